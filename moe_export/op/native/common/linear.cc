#include "common/linear.h"

namespace moe_export {

Refusal check_linear_sizes(int64_t depth, int64_t columns) {
  const Refusal refusal = check_size("the depth", depth, 1, kLargestSize);
  return refusal ? refusal : check_size("the number of columns", columns, 1, kLargestSize);
}

Refusal check_linear_attributes(const LinearWeights& weights, LinearProblem* problem) {
  *problem = LinearProblem();
  problem->x_type = weights.x_type;
  problem->group_size = weights.group_size;
  problem->exact_activations = weights.exact_activations != 0;
  return check_format(weights.format, weights.x_type, weights.group_size, &problem->format);
}

Refusal check_linear(const LinearWeights& weights, LinearProblem* problem) {
  Refusal refusal = check_linear_attributes(weights, problem);
  if (refusal) return refusal;
  const size_t parts = static_cast<size_t>(tensors_per_matrix(problem->format));
  if (weights.num_tensors != parts && weights.num_tensors != parts + 1) {
    return "the node has " + std::to_string(weights.num_tensors) + " weights, expected " +
           std::to_string(parts) + ", or " + std::to_string(parts + 1) + " with a bias";
  }
  const MoeTensor* tensors = weights.tensors;
  const int32_t weight_type = facts_of(problem->format).weight_type;
  refusal = check_tensor("weight", tensors[0], weight_type, {kAny, kAny}, "?");
  if (refusal) return refusal;
  const int64_t depth = tensors[0].shape[0], columns = tensors[0].shape[1];
  refusal = check_linear_sizes(depth, columns);
  if (refusal) return "weight: " + *refusal;
  // Scales are of x's type, zero points of the codes' type.
  static const char* const kParts[] = {"weight", "weight_scale", "weight_zero_point"};
  for (size_t part = 1; part < parts && !refusal; ++part) {
    const int64_t groups = round_up(depth, weights.group_size) / weights.group_size;
    refusal = check_tensor(kParts[part], tensors[part], part == 1 ? weights.x_type : weight_type,
                           {groups, columns}, "");
  }
  problem->depth = depth;
  problem->columns = columns;
  problem->has_bias = weights.num_tensors > parts;
  if (refusal || !problem->has_bias) return refusal;
  return check_tensor("bias", tensors[parts], weights.x_type, {columns}, "");
}

Refusal check_linear_x(const LinearProblem& problem, const MoeTensor& x) {
  bool fits = x.type == problem.x_type && x.rank >= 1;
  int64_t rows = 1;
  for (int32_t axis = 0; fits && axis + 1 < x.rank; ++axis) {
    // Bounding each step keeps the product from overflowing.
    fits = x.shape[axis] >= 0 && x.shape[axis] <= kLargestSize;
    if (fits) rows *= x.shape[axis];
    fits = fits && rows <= kLargestSize;
  }
  if (fits && x.shape[x.rank - 1] == problem.depth) return std::nullopt;
  const size_t rank = x.rank < 0 ? 0 : static_cast<size_t>(x.rank);
  return "x is " + type_name(x.type) + " " + shape_text(x.shape, rank, "?") + ", expected " +
         type_name(problem.x_type) + " [..., " + std::to_string(problem.depth) + "] with at most " +
         std::to_string(kLargestSize) + " rows";
}

int64_t rows_of(const MoeTensor& x) {
  int64_t rows = 1;
  for (int32_t axis = 0; axis + 1 < x.rank; ++axis) rows *= x.shape[axis];
  return rows;
}

}  // namespace moe_export
