#include "common/ragged_moe.h"

#include <algorithm>
#include <numeric>

#include "common/checks.h"

namespace moe_export {

Refusal check_attributes(const MoeWeights& weights, Problem* problem) {
  *problem = Problem();
  const Refusal refusal =
      check_format(weights.format, weights.x_type, weights.group_size, &problem->format);
  if (refusal) return refusal;
  const std::string activation = weights.activation;
  const int activation_number = find(kNumActivations, activation, activation_name);
  if (activation_number < 0) {
    return "attribute activation is '" + activation + "', expected " +
           listed(kNumActivations, activation_name);
  }
  problem->activation = static_cast<Activation>(activation_number);
  problem->x_type = weights.x_type;
  problem->group_size = weights.group_size;
  problem->exact_activations = weights.exact_activations != 0;
  problem->num_experts = weights.num_experts;
  return check_size("attribute num_experts", weights.num_experts, 1, kLargestCount);
}

namespace {

// Checks the weights of one expert, from index `first` on, and adds its width to `problem`.
Refusal check_expert(const MoeWeights& weights, size_t first, Problem* problem) {
  const int32_t weight_type = facts_of(problem->format).weight_type;
  int64_t width = kAny;
  size_t index = first;
  const int last = problem->matrices_per_expert() - 1;
  for (int role = 0; role <= last; ++role) {
    const MoeTensor& tensor = weights.tensors[index];
    const std::string name = weight_name(*problem, index++);
    const int64_t hidden_size = problem->hidden_size;
    const int64_t depth = role == last ? width : hidden_size;
    const int64_t columns = role == last ? hidden_size : width;
    Refusal refusal =
        check_tensor(name, tensor, weight_type, {depth, columns}, depth == kAny ? "D" : "w");
    if (!refusal && role == 0) {
      problem->hidden_size = tensor.shape[0];
      width = tensor.shape[1];
      refusal = check_sizes(tensor.shape[0], width);
      if (refusal) refusal = name + ": " + *refusal;
    }
    // Scales are of x's type, zero points of the codes' type.
    for (int part = 1; part < problem->tensors_per_matrix() && !refusal; ++part, ++index) {
      const int64_t groups = round_up(tensor.shape[0], problem->group_size) / problem->group_size;
      refusal =
          check_tensor(weight_name(*problem, index), weights.tensors[index],
                       part == 1 ? problem->x_type : weight_type, {groups, tensor.shape[1]}, "");
    }
    if (refusal) return refusal;
  }
  problem->widths.push_back(width);
  return std::nullopt;
}

}  // namespace

Refusal check_sizes(int64_t hidden_size, int64_t width) {
  const Refusal refusal = check_size("the hidden size", hidden_size, 1, kLargestSize);
  return refusal ? refusal : check_size("the width", width, 0, kLargestSize);
}

const char* activation_name(uint32_t activation) {
  return activation < kNumActivations ? kActivationNames[activation] : "?";
}

std::string weight_name(const Problem& problem, size_t index) {
  static const char* const kRoles[] = {"gate", "up", "down"};
  const size_t each = static_cast<size_t>(problem.tensors_per_expert());
  const size_t step = static_cast<size_t>(problem.tensors_per_matrix());
  const size_t expert = index / each, part = index % each;
  std::string name = kRoles[part / step + (is_gated(problem.activation) ? 0 : 1)];
  static const char* const kParts[] = {"", "_scale", "_zero_point"};
  name += kParts[part % step];
  if (expert == static_cast<size_t>(problem.num_experts)) return "shared_" + name;
  return name + "_" + std::to_string(expert);
}

Refusal check_weights(const MoeWeights& weights, Problem* problem) {
  Refusal refusal = check_attributes(weights, problem);
  if (refusal) return refusal;
  const size_t each = static_cast<size_t>(problem->tensors_per_expert());
  const size_t experts = weights.num_tensors / each;
  const size_t routed = static_cast<size_t>(weights.num_experts);
  if (weights.num_tensors % each != 0 || (experts != routed && experts != routed + 1)) {
    return "the node has " + std::to_string(weights.num_tensors) + " weights, expected " +
           std::to_string(routed * each) + " for " + std::to_string(routed) + " experts, or " +
           std::to_string(routed * each + each) + " with a shared expert";
  }
  problem->hidden_size = kAny;
  for (size_t expert = 0; expert < experts && !refusal; ++expert) {
    refusal = check_expert(weights, expert * each, problem);
  }
  return refusal ? refusal : check_units(weights.units, problem);
}

Refusal check_units(const MoeTensor& units, Problem* problem) {
  const auto first = problem->widths.begin(), last = first + problem->num_experts;
  if (units.type == 0) {
    problem->scale_columns = *std::max_element(first, last);
    return std::nullopt;
  }
  const int64_t rows = std::accumulate(first, last, int64_t{0});
  const Refusal refusal = check_tensor("units", units, kInt32, {rows}, "");
  if (refusal) return refusal;
  const int32_t* columns = static_cast<const int32_t*>(units.data);
  problem->units.assign(columns, columns + rows);
  for (int32_t column : problem->units) {
    if (column < 0 || column > kLargestSize) {
      return "units holds " + std::to_string(column) + ", expected 0 to " +
             std::to_string(kLargestSize);
    }
    problem->scale_columns = std::max<int64_t>(problem->scale_columns, column + 1);
  }
  return std::nullopt;
}

namespace {

Refusal check_scales(const Problem& problem, const MoeCall& call) {
  const int64_t tokens = call.x.shape[0];
  Refusal refusal;
  if (call.input_scale.type != 0) {
    refusal = check_tensor("input_scale", call.input_scale, problem.x_type,
                           {tokens, problem.hidden_size}, "");
  }
  if (!refusal && call.up_scale.type != 0) {
    if (call.input_scale.type == 0 || !is_gated(problem.activation)) return kUpScaleAlone;
    refusal =
        check_tensor("up_scale", call.up_scale, problem.x_type, {tokens, problem.hidden_size}, "");
  }
  if (refusal || call.hidden_scale.type == 0) return refusal;
  refusal = check_tensor("hidden_scale", call.hidden_scale, problem.x_type, {tokens, kAny}, "W");
  if (refusal) return refusal;
  return check_size("the number of columns of hidden_scale", call.hidden_scale.shape[1],
                    problem.scale_columns, kLargestSize);
}

}  // namespace

Refusal check_call_shapes(const Problem& problem, const MoeCall& call) {
  const int64_t num_experts = problem.num_experts;
  Refusal refusal = check_tensor("x", call.x, problem.x_type, {kAny, problem.hidden_size}, "T");
  if (refusal) return refusal;
  const int64_t tokens = call.x.shape[0];
  refusal = check_size("the number of tokens", tokens, 0, kLargestSize);
  if (refusal) return refusal;
  refusal = check_tensor("expert_indices", call.expert_indices, kInt64, {tokens, kAny}, "K");
  if (refusal) return refusal;
  const int64_t top_k = call.expert_indices.shape[1];
  refusal = check_size("the number of columns of expert_indices", top_k, 1, num_experts);
  if (refusal) return refusal;
  refusal =
      check_tensor("routing_weights", call.routing_weights, problem.x_type, {tokens, top_k}, "");
  if (!refusal && problem.has_shared_expert()) {
    refusal = check_tensor("shared_weight", call.shared_weight, problem.x_type, {tokens, 1}, "");
  }
  return refusal ? refusal : check_scales(problem, call);
}

Refusal check_call(const Problem& problem, const MoeCall& call) {
  const Refusal refusal = check_call_shapes(problem, call);
  if (refusal) return refusal;
  const int64_t num_experts = problem.num_experts;
  const int64_t pairs = call.expert_indices.shape[0] * call.expert_indices.shape[1];
  const int64_t* indices = static_cast<const int64_t*>(call.expert_indices.data);
  for (int64_t i = 0; i < pairs; ++i) {
    if (indices[i] < 0 || indices[i] >= num_experts) {
      return "expert_indices holds " + std::to_string(indices[i]) + ", expected 0 to " +
             std::to_string(num_experts - 1);
    }
  }
  return std::nullopt;
}

}  // namespace moe_export
