// The experts of a layer in the kernels' own layout.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "ragged_moe.h"

namespace moe_export {

constexpr int64_t kCacheLine = 64;

// Of an expert's panels.
int64_t gate_up_panels(const Problem& problem, int64_t width);
int64_t down_panels(const Problem& problem);
uint64_t expert_bytes(const Problem& problem, int64_t width);

// Packs expert number `expert` of weights that passed the check into `expert_bytes` bytes. Gives an
// empty string, or one sentence if a value cannot be packed.
std::string pack_expert(const Problem& problem, const MoeWeights& weights, size_t expert,
                        uint8_t* packed);

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<uint8_t, Free>;

// Uninitialized, at the start of a cache line; large blocks are asked to be of huge pages, which
// are read about a fifth faster. Throws std::bad_alloc.
Memory allocate(size_t bytes);

// An expert's panels follow each other: those of gate and up (or of up alone), of depth D, then
// those of down, of depth w. The panels of down are one after the other in D, so that a range of
// y's columns is a sequential read of each expert.
class Layer {
 public:
  // Packs weights that passed the check, and gives the pages of their file back as it goes.
  // Null and a sentence if a value cannot be packed.
  static std::unique_ptr<Layer> pack(const Problem& problem, const MoeWeights& weights,
                                     const Kernels* kernels, std::string* error);

  // Panels that are already in place, after each other; they have to outlive the layer.
  static std::unique_ptr<Layer> over(const Problem& problem, const uint8_t* panels,
                                     const Kernels* kernels);

  const Problem& problem() const { return problem_; }
  const Kernels& kernels() const { return *kernels_; }
  size_t bytes() const { return bytes_; }

  // Whether products take QuantizedBlocks, or floats.
  bool rows_are_quantized() const {
    return has_integer_codes(problem_.format) && !problem_.exact_activations;
  }

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
  std::vector<size_t> offsets_;  // of each expert
  size_t bytes_ = 0;
  Memory owned_;  // none if the panels are others' memory
  const uint8_t* panels_ = nullptr;
};

}  // namespace moe_export
