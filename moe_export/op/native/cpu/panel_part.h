// Packs columns of a matrix into a panel (panels.h).
#pragma once

#include "common/c_types.h"
#include "cpu/panels.h"

namespace moe_export {

// A matrix [depth, columns] of the model and, if it is quantized, its scales and zero points
// [groups, columns].
struct Matrix {
  const MoeTensor* values;
  const MoeTensor* scales;
  const MoeTensor* zero_points;
};

// Columns [from, from + room) of a matrix, which become columns [to, to + room) of a panel. Columns
// beyond the matrix are zero.
struct Part {
  const Matrix* matrix;
  int64_t from;
  int64_t to;
  int64_t room;

  int64_t count() const {
    const int64_t left = matrix->values->shape[1] - from;
    return left < room ? left : room;
  }
};

// The matrix of which the parts are consecutive tensors.
Matrix matrix_of(Format format, const MoeTensor* parts);

// Packs a part of a panel. Returns false if a scale is not a float16 number.
bool pack_part(Format format, int64_t group_size, const Part& part, uint8_t* panel);

}  // namespace moe_export
