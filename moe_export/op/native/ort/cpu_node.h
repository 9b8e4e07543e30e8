// The common part of the operators for ONNX Runtime's CPU provider.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "ort/objects.h"

namespace moe_export {

// An operator for x of one element type, with one output of that type.
struct CpuOp : ort::CustomOp {
  explicit CpuOp(ort::ElementType x_type);

  ort::ElementType x_type;
};

inline int x_type_of(const ort::CustomOp* op) { return static_cast<const CpuOp*>(op)->x_type; }

// True if MOE_EXPORT_ACTIVATIONS asks for activations in float32. Fails if it is not understood.
bool wants_exact_activations(Api api, const std::string& node);

// The kernels of the process. Fails if there are none.
const Kernels* kernels_or_fail(Api api, const std::string& node);

// The bytes of the input `packed`: in ONNX Runtime's memory, which it keeps as long as the node, or
// in a mapped file; or, if MOE_EXPORT_WEIGHTS is copy, in memory of our own with huge pages. Fails
// if the input is not a constant of one axis of bytes, or the setting is not understood.
class PackedBytes {
 public:
  PackedBytes(Api api, const Info& info, size_t input);

  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }

  // The copy, which must live as long as the data are used; empty if there is none.
  Memory take_copy() { return std::move(copy_); }

 private:
  const uint8_t* data_;
  uint64_t size_;
  Memory copy_;
};

// The threads of the session, for one call.
class Pool {
 public:
  Pool(Api api, const ort::KernelContext* context) : api_(api), context_(context) {}

  ParallelFor parallel_for() { return {call, this}; }

  // Fails if a loop failed.
  void check() const { succeed(status_); }

 private:
  static void call(void* pool, size_t items, void (*item)(void*, size_t), void* job) {
    Pool& self = *static_cast<Pool*>(pool);
    if (self.status_ != nullptr) return;
    const auto loop = ort::KernelContextParallelFor::of(self.api_);
    self.status_ = loop(self.context_, item, items, 0, job);
  }

  Api api_;
  const ort::KernelContext* context_;
  Status* status_ = nullptr;
};

}  // namespace moe_export
