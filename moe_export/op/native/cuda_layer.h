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
  // Packs weights that passed the check, a number of matrices at a time on all processors, uploads
  // them, and gives the pages of their file back. Throws Error.
  Layer(const Problem& problem, const MoeWeights& weights, const OnDevice& on_device);
  ~Layer();
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  const Problem& problem() const { return problem_; }
  const Kernels& kernels() const { return kernels_; }
  size_t bytes() const { return bytes_; }

  int64_t num_experts() const { return static_cast<int64_t>(problem_.widths.size()); }
  // What the weights are on the device: bfloat16 is rounded to float16 where x is.
  Format format() const { return format_; }

  // Hidden values of a pair at most, padded; and of a token, its experts side by side. An expert
  // may be chosen twice.
  int64_t pair_stride() const;
  int64_t token_stride(int64_t top_k) const;

  // In the order of gate, up, down. Where the activation has no gate its place is up's: the kernels
  // multiply by up twice rather than be compiled once more. What a format lacks is not read.
  Pointer weights(size_t role) const { return part(kWeights, role); }
  Pointer scales(size_t role) const { return part(kScales, role); }
  Pointer zeros(size_t role) const { return part(kZeros, role); }
  Pointer codebook() const { return data_ + offsets_[kCodebook]; }
  Pointer table() const { return data_ + offsets_[kTable]; }

 private:
  // Parts of the layer in the device's memory, three of each of the first.
  enum Part : size_t { kWeights = 0, kScales = 3, kZeros = 6, kCodebook = 9, kTable, kNumParts };

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
