// The tensor `packed` of a LinearPacked node: a matrix in the layout of the kernels, which they
// read in the mapped file.
//
//   header        PackedLinearHeader, 64 bytes
//   bias          float32 for each column, up to a multiple of 64 bytes; absent without a bias
//   panels        of 64 columns each
//
// All numbers are little-endian. `moe_export/op/packed_linear.py` writes the tensor.
#pragma once

#include "common/linear.h"

namespace moe_export {

struct PackedLinearHeader {
  char magic[8];  // kPackedLinearMagic
  uint32_t version;
  uint32_t format;      // number in `Format`
  uint32_t group_size;  // depths that shared a scale in the model; 0 in the float formats
  uint32_t has_bias;
  uint64_t depth;
  uint64_t columns;
  uint64_t total_bytes;  // of the whole tensor
  uint64_t reserved[2];  // 0
};
static_assert(sizeof(PackedLinearHeader) == 64, "as in moe_export/op/packed_linear.py");

constexpr char kPackedLinearMagic[8] = {'m', 'o', 'e', 'l', 'i', 'n', '\0', '\0'};
constexpr uint32_t kPackedLinearVersion = 1;

// Reads the header into `problem`. Refuses bytes that are no packed matrix.
Refusal read_packed_linear(const uint8_t* packed, uint64_t bytes, int32_t x_type,
                           bool exact_activations, LinearProblem* problem);

}  // namespace moe_export
