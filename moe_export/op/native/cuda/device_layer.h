// The experts of a layer in the memory of a device (device_layout.h).
#pragma once

#include <functional>
#include <memory>

#include "common/ragged_moe.h"
#include "cuda/kernels.h"

namespace moe_export::cuda {

// True if the data of a tensor, by its index, is on the device.
using OnDevice = std::function<bool(size_t tensor)>;

class DeviceLayer {
 public:
  // Lays out weights that passed the check, several matrices at a time on all processors, uploads
  // them, and gives back the pages of their file. Throws Error.
  DeviceLayer(const Problem& problem, const MoeWeights& weights, const OnDevice& on_device);
  ~DeviceLayer();
  DeviceLayer(const DeviceLayer&) = delete;
  DeviceLayer& operator=(const DeviceLayer&) = delete;

  const Problem& problem() const { return problem_; }
  const Kernels& kernels() const { return kernels_; }
  size_t bytes() const { return bytes_; }

  int64_t num_experts() const { return static_cast<int64_t>(problem_.widths.size()); }
  // Format of the weights on the device: bfloat16 becomes float16 where x is float16.
  Format format() const { return format_; }

  // Most hidden values of a pair, padded, and of a token with its experts side by side. An expert
  // may be chosen twice.
  int64_t pair_stride() const;
  int64_t token_stride(int64_t top_k) const;

  // Addresses of the arrays; role 0 is gate, 1 up, 2 down. Without a gate, role 0 gives up: the
  // kernels multiply by up twice, which saves compiling them once more. Kernels do not read the
  // arrays that a format lacks.
  Pointer weights(size_t role) const { return part(kWeights, role); }
  Pointer scales(size_t role) const { return part(kScales, role); }
  Pointer zeros(size_t role) const { return part(kZeros, role); }
  Pointer codebook() const { return data_ + offsets_[kCodebook]; }
  Pointer table() const { return data_ + offsets_[kTable]; }
  // Column of hidden_scale for each row of the routed experts; not read if has_columns() is false.
  Pointer columns() const { return data_ + offsets_[kColumnsOfScale]; }
  bool has_columns() const { return !problem_.units.empty(); }

 private:
  // Arrays of the layer, in order; three each of weights, scales and zero points.
  enum Part : size_t {
    kWeights = 0,
    kScales = 3,
    kZeros = 6,
    kCodebook = 9,
    kTable,
    kColumnsOfScale,
    kNumParts
  };

  Pointer part(Part first, size_t role) const {
    return data_ + offsets_[first + (role == 0 && !is_gated(problem_.activation) ? 1 : role)];
  }
  void upload_matrices(const MoeWeights& weights, const OnDevice& on_device) const;

  Problem problem_;
  const Kernels& kernels_;
  const Format format_;
  size_t offsets_[kNumParts];
  size_t bytes_ = 0;
  Pointer data_ = 0;
};

}  // namespace moe_export::cuda
