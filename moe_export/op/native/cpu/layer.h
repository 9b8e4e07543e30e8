// The experts of a layer in memory, packed into panels.
#pragma once

#include <memory>
#include <vector>

#include "common/ragged_moe.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/packing.h"

namespace moe_export {

// The panels of each expert, one expert after the other. An expert's panels of down lie in the
// order of D, so a range of y's columns is a sequential read of each expert.
class Layer {
 public:
  // Packs weights that passed the check into `layer`, and gives back the pages of their file on the
  // way. Refuses a value that cannot be packed.
  static Refusal pack(const Problem& problem, const MoeWeights& weights, const Kernels* kernels,
                      std::unique_ptr<Layer>* layer);

  // Opens panels that are already in memory, without a copy; they must outlive the layer.
  static std::unique_ptr<Layer> over(const Problem& problem, const uint8_t* panels,
                                     const Kernels* kernels);

  const Problem& problem() const { return problem_; }
  const Kernels& kernels() const { return *kernels_; }
  size_t bytes() const { return bytes_; }

  int64_t gate_up_panels(size_t expert) const {
    return moe_export::gate_up_panels(problem_, problem_.widths[expert]);
  }
  int64_t down_panels() const { return moe_export::down_panels(problem_); }

  const uint8_t* gate_up_panel(size_t expert, int64_t panel) const {
    return panels_ + offsets_[expert] + panel * panel_bytes(problem_.format, problem_.hidden_size);
  }
  const uint8_t* down_panel(size_t expert, int64_t panel) const {
    return gate_up_panel(expert, gate_up_panels(expert)) +
           panel * panel_bytes(problem_.format, problem_.widths[expert]);
  }

 private:
  Layer(const Problem& problem, const Kernels* kernels);

  Problem problem_;
  const Kernels* kernels_;
  std::vector<size_t> offsets_;  // of each expert's panels
  size_t bytes_ = 0;
  Memory owned_;  // empty if the panels belong to the caller
  const uint8_t* panels_ = nullptr;
};

}  // namespace moe_export
