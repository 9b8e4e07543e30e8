// The matrix of a Linear node, packed into panels.
#pragma once

#include <memory>

#include "common/linear.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace moe_export {

// Panels of 64 columns of the matrix, one after the other.
int64_t linear_panels(const LinearProblem& problem);

// Bytes of all panels.
uint64_t linear_panel_bytes(const LinearProblem& problem);

// Bytes of the bias in float32, up to a whole cache line; 0 without a bias.
uint64_t linear_bias_bytes(const LinearProblem& problem);

// Packs the matrix, without the bias, of weights that passed the check. Refuses a scale that is not
// a float16 number.
Refusal pack_linear(const LinearProblem& problem, const LinearWeights& weights, uint8_t* panels);

// The bias in float32, then the panels.
class Linear {
 public:
  // Packs weights that passed the check into `linear`, and gives back the pages of their file.
  static Refusal pack(const LinearProblem& problem, const LinearWeights& weights,
                      const Kernels* kernels, std::unique_ptr<Linear>* linear);

  // Opens bias and panels that are already in memory, without a copy; they must outlive the result.
  static std::unique_ptr<Linear> over(const LinearProblem& problem, const uint8_t* data,
                                      const Kernels* kernels);

  const LinearProblem& problem() const { return problem_; }
  const Kernels& kernels() const { return *kernels_; }
  uint64_t bytes() const { return linear_bias_bytes(problem_) + linear_panel_bytes(problem_); }

  // Null without a bias.
  const float* bias() const {
    return problem_.has_bias ? reinterpret_cast<const float*>(data_) : nullptr;
  }

  const uint8_t* panel(size_t index) const {
    return data_ + linear_bias_bytes(problem_) +
           index * static_cast<size_t>(panel_bytes(problem_.format, problem_.depth));
  }

 private:
  Linear(const LinearProblem& problem, const Kernels* kernels)
      : problem_(problem), kernels_(kernels) {}

  LinearProblem problem_;
  const Kernels* kernels_;
  Memory owned_;  // empty if the data belong to the caller
  const uint8_t* data_ = nullptr;
};

// Computes y = x . matrix + bias for x that passed the check; y has x's type, and its shape but for
// the last axis. The result does not depend on the threads.
void run(const Linear& linear, const MoeTensor& x, void* y, const ParallelFor& parallel_for);

}  // namespace moe_export
