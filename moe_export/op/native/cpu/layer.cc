#include "cpu/layer.h"

#include "common/pages.h"
#include "cpu/packing.h"

namespace moe_export {

Layer::Layer(const Problem& problem, const Kernels* kernels)
    : problem_(problem), kernels_(kernels) {
  for (int64_t width : problem_.widths) {
    offsets_.push_back(bytes_);
    bytes_ += static_cast<size_t>(expert_bytes(problem_, width));
  }
}

std::unique_ptr<Layer> Layer::over(const Problem& problem, const uint8_t* panels,
                                   const Kernels* kernels) {
  std::unique_ptr<Layer> layer(new Layer(problem, kernels));
  layer->panels_ = panels;
  return layer;
}

Refusal Layer::pack(const Problem& problem, const MoeWeights& weights, const Kernels* kernels,
                    std::unique_ptr<Layer>* layer) {
  layer->reset(new Layer(problem, kernels));
  Layer& packed = **layer;
  packed.owned_ = allocate(packed.bytes_);
  packed.panels_ = packed.owned_.get();
  const size_t each = static_cast<size_t>(problem.tensors_per_expert());
  for (size_t expert = 0; expert < problem.widths.size(); ++expert) {
    uint8_t* panels = packed.owned_.get() + packed.offsets_[expert];
    const Refusal refusal = pack_expert(problem, weights, expert, panels);
    if (refusal) return refusal;
    for (size_t i = 0; i < each; ++i) {
      const MoeTensor& tensor = weights.tensors[expert * each + i];
      give_back_pages(tensor.data, data_bytes(tensor));
    }
  }
  return std::nullopt;
}

}  // namespace moe_export
