// The rules of a RaggedMoE node: every check of its shapes and types, once.
//
// Legend: T tokens, D hidden, K experts per token, w width of an expert.
#pragma once

#include <string>
#include <vector>

#include "common/checks.h"
#include "common/formats.h"

namespace moe_export {

// The sizes of a layer, read from weights that passed the check. A shared expert is the last entry
// of `widths` and does not count in `num_experts`.
struct Problem {
  Format format = Format::kFloat32;
  Activation activation = Activation::kSwiglu;
  int32_t x_type = kFloat32;
  bool exact_activations = false;
  int64_t group_size = 0;
  int64_t num_experts = 0;
  int64_t hidden_size = 0;
  std::vector<int64_t> widths;
  std::vector<int32_t> units;  // as in MoeWeights; empty if the columns are 0 to w - 1
  int64_t scale_columns = 0;   // least number of columns of hidden_scale

  bool has_shared_expert() const { return static_cast<int64_t>(widths.size()) > num_experts; }

  // gate, up and down, or up and down.
  int matrices_per_expert() const { return is_gated(activation) ? 3 : 2; }

  int tensors_per_matrix() const { return moe_export::tensors_per_matrix(format); }

  int tensors_per_expert() const { return matrices_per_expert() * tensors_per_matrix(); }
};

// Refusal of up_scale where gate has no scale, or there is no gate.
constexpr const char* kUpScaleAlone =
    "the input up_scale is given without input_scale or without a gate; scale x by input_scale";

// Fills `problem` with what the node's attributes say.
Refusal check_attributes(const MoeWeights& weights, Problem* problem);

// Bounds the hidden size and a width so that no product of sizes overflows.
Refusal check_sizes(int64_t hidden_size, int64_t width);

// Name of an activation by number; "?" beyond the last.
const char* activation_name(uint32_t activation);

// Name of a weight of the node; `index` counts the weights from gate_0 on.
std::string weight_name(const Problem& problem, size_t index);

// Checks `units` of a layer whose widths are known, and adds them to `problem`.
Refusal check_units(const MoeTensor& units, Problem* problem);

// Checks all weights and fills `problem`.
Refusal check_weights(const MoeWeights& weights, Problem* problem);

// Checks the shapes and types of a call, but not the indices, which may be on a device.
Refusal check_call_shapes(const Problem& problem, const MoeCall& call);

// Checks shapes, types and indices of a call.
Refusal check_call(const Problem& problem, const MoeCall& call);

}  // namespace moe_export
