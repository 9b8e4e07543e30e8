// A matrix of an expert in the layout of moe_export/op/triton/packed.py.
#pragma once

#include <functional>
#include <vector>

#include "cuda_driver.h"
#include "ragged_moe.h"

namespace moe_export::cuda {

struct PackedMatrix {
  std::vector<uint8_t> values;   // or codes: a row for each output, of padded depth
  std::vector<uint16_t> scales;  // [outputs, groups] in float16
  std::vector<uint8_t> zeros;    // likewise
};

// What weights of a problem are on the device: bfloat16 is rounded to float16 where x is.
Format device_format(const Problem& problem);

// The depth that a row is stored with; what is beyond the real one is zero.
int64_t padded_depth(int64_t depth, Format format);

// Bytes of a row.
size_t row_bytes(int64_t depth, Format format);

int64_t groups_of(int64_t depth, int64_t group_size);

// Packs the matrix whose first tensor is `index`; all are in host memory. Throws Error.
PackedMatrix pack_matrix(const Problem& problem, const std::vector<MoeTensor>& tensors,
                         size_t index);

// Does the items from 0 to count - 1 on as many threads as the machine has processors; what the
// first of those that failed threw is thrown.
void in_parallel(size_t count, const std::function<void(size_t)>& item);

}  // namespace moe_export::cuda
