#include "cpu/linear.h"

#include <cstring>

#include "common/pages.h"
#include "cpu/panel_part.h"

namespace moe_export {

int64_t linear_panels(const LinearProblem& problem) {
  return round_up(problem.columns, kColumns) / kColumns;
}

uint64_t linear_panel_bytes(const LinearProblem& problem) {
  return static_cast<uint64_t>(linear_panels(problem) * panel_bytes(problem.format, problem.depth));
}

uint64_t linear_bias_bytes(const LinearProblem& problem) {
  if (!problem.has_bias) return 0;
  return static_cast<uint64_t>(
      round_up(problem.columns * static_cast<int64_t>(sizeof(float)), kCacheLine));
}

Refusal pack_linear(const LinearProblem& problem, const LinearWeights& weights, uint8_t* panels) {
  const Matrix matrix = matrix_of(problem.format, weights.tensors);
  bool fits = true;
  for (int64_t panel = 0; panel < linear_panels(problem); ++panel) {
    const Part part = {&matrix, panel * kColumns, 0, kColumns};
    fits &= pack_part(problem.format, problem.group_size, part, panels);
    panels += panel_bytes(problem.format, problem.depth);
  }
  if (fits) return std::nullopt;
  return "weight_scale holds a value that is not a float16 number, as all scales have to be";
}

Refusal Linear::pack(const LinearProblem& problem, const LinearWeights& weights,
                     const Kernels* kernels, std::unique_ptr<Linear>* linear) {
  linear->reset(new Linear(problem, kernels));
  Linear& packed = **linear;
  packed.owned_ = allocate(static_cast<size_t>(packed.bytes()));
  packed.data_ = packed.owned_.get();
  const size_t bias_bytes = static_cast<size_t>(linear_bias_bytes(problem));
  if (problem.has_bias) {
    const void* from = weights.tensors[weights.num_tensors - 1].data;
    float* to = reinterpret_cast<float*>(packed.owned_.get());
    std::memset(to, 0, bias_bytes);
    if (problem.x_type == kFloat32) {
      std::memcpy(to, from, static_cast<size_t>(problem.columns) * sizeof(float));
    } else {
      kernels->widen(static_cast<const uint16_t*>(from), problem.columns, to);
    }
  }
  const Refusal refusal = pack_linear(problem, weights, packed.owned_.get() + bias_bytes);
  for (int part = 0; part < tensors_per_matrix(problem.format); ++part) {
    give_back_pages(weights.tensors[part].data, data_bytes(weights.tensors[part]));
  }
  return refusal;
}

std::unique_ptr<Linear> Linear::over(const LinearProblem& problem, const uint8_t* data,
                                     const Kernels* kernels) {
  std::unique_ptr<Linear> linear(new Linear(problem, kernels));
  linear->data_ = data;
  return linear;
}

}  // namespace moe_export
