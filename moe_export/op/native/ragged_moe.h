// What a RaggedMoE node may look like: every rule about shapes and types, once.
//
// Legend: T tokens, D hidden, K experts per token, w width of an expert.
#pragma once

#include <string>
#include <vector>

#include "c_api.h"
#include "formats.h"

namespace moe_export {

// The sizes of a layer, read off weights that passed the check. A shared expert is the last entry
// of `widths` and is not counted in `num_experts`.
struct Problem {
  Format format = Format::kFloat32;
  Activation activation = Activation::kSwiglu;
  int32_t x_type = kFloat32;
  bool exact_activations = false;
  int64_t group_size = 0;
  int64_t num_experts = 0;
  int64_t hidden_size = 0;
  std::vector<int64_t> widths;

  bool has_shared_expert() const { return static_cast<int64_t>(widths.size()) > num_experts; }

  // gate, up and down, or up and down.
  int matrices_per_expert() const { return is_gated(activation) ? 3 : 2; }

  // In the quantized formats each is followed by its scales, and where there are zero points by
  // them.
  int tensors_per_matrix() const {
    return 1 + (is_quantized(format) ? 1 : 0) + (has_zero_points(format) ? 1 : 0);
  }

  int tensors_per_expert() const { return matrices_per_expert() * tensors_per_matrix(); }
};

// Fills in what the node's attributes say, and gives an empty string or one sentence.
std::string check_attributes(const MoeWeights& weights, Problem* problem);

// Of a layer and an expert, within the bounds of what is computed with.
std::string check_sizes(int64_t hidden_size, int64_t width);

// Whether nodes of a format, by its name, have the attribute group_size.
bool has_group_size(const std::string& format);

// The names of attributes; "?" beyond the last.
const char* format_name(uint32_t format);
const char* activation_name(uint32_t activation);

// Bytes of a matrix's data, as it is given.
size_t data_bytes(const MoeTensor& tensor);

// The name of a weight of the node, by its place after the three common inputs.
std::string weight_name(const Problem& problem, size_t index);

// Fills `problem`. Gives an empty string, or one sentence saying what does not fit.
std::string check_weights(const MoeWeights& weights, Problem* problem);

// As check_call, all but the indices, which may be out of reach in a device's memory.
std::string check_call_shapes(const Problem& problem, const MoeCall& call);

// Gives an empty string, or one sentence saying what does not fit.
std::string check_call(const Problem& problem, const MoeCall& call);

}  // namespace moe_export
