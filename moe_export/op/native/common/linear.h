// The rules of a Linear node: every check of its shapes and types, once.
//
// Legend: K depth (inputs), N columns (outputs).
#pragma once

#include "common/checks.h"

namespace moe_export {

// The sizes of a matrix, read from weights that passed the check.
struct LinearProblem {
  Format format = Format::kFloat32;
  int32_t x_type = kFloat32;
  bool exact_activations = false;
  int64_t group_size = 0;
  int64_t depth = 0;
  int64_t columns = 0;
  bool has_bias = false;
};

// Bounds the sizes so that no product of them overflows.
Refusal check_linear_sizes(int64_t depth, int64_t columns);

// Checks format, type of x and group size, and fills in what they say.
Refusal check_linear_attributes(const LinearWeights& weights, LinearProblem* problem);

// Checks all weights and fills `problem`.
Refusal check_linear(const LinearWeights& weights, LinearProblem* problem);

// Checks x, of which the last axis is K and the others are free.
Refusal check_linear_x(const LinearProblem& problem, const MoeTensor& x);

// Rows of x: the product of all its axes but the last.
int64_t rows_of(const MoeTensor& x);

}  // namespace moe_export
