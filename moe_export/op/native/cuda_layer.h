// The experts of a layer in the memory of a device, in the layout of
// moe_export/op/triton/packed.py.
#pragma once

#include <functional>
#include <memory>

#include "cuda_kernels.h"
#include "ragged_moe.h"

namespace moe_export::cuda {

// Where a tensor's data is: host memory, or the device's.
using OnDevice = std::function<bool(size_t tensor)>;

class Layer {
 public:
  // Packs and uploads weights that passed the check, an expert at a time, and gives the pages of
  // their file back. Throws Error.
  Layer(const Problem& problem, const MoeWeights& weights, const OnDevice& on_device);
  ~Layer();
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  const Problem& problem() const { return problem_; }
  const Kernels& kernels() const { return kernels_; }
  size_t bytes() const { return bytes_; }

  int64_t num_experts() const { return static_cast<int64_t>(problem_.widths.size()); }
  int64_t widest() const { return widest_; }

  // In the order of gate, up, down.
  Pointer weights(size_t role) const { return data_ + offsets_[role]; }
  Pointer scales(size_t role) const { return data_ + offsets_[3 + role]; }
  Pointer table() const { return data_ + offsets_[6]; }

 private:
  Problem problem_;
  const Kernels& kernels_;
  int64_t widest_ = 0;
  size_t offsets_[7];
  size_t bytes_ = 0;
  Pointer data_ = 0;
};

// The depth that a row is stored with; what is beyond the real one is zero.
int64_t padded_depth(int64_t depth, Format format);

}  // namespace moe_export::cuda
