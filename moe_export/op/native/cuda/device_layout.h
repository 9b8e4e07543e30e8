// The layout of an expert's matrix on a device, as in moe_export/op/triton/device_layout.py.
#pragma once

#include <functional>
#include <vector>

#include "common/ragged_moe.h"
#include "cuda/driver.h"

namespace moe_export::cuda {

struct DeviceMatrix {
  std::vector<uint8_t> values;   // values or codes, [outputs, padded depth]
  std::vector<uint16_t> scales;  // [outputs, groups] in float16
  std::vector<uint8_t> zeros;    // zero points, [outputs, groups]
};

// Format of the weights on the device: bfloat16 becomes float16 where x is float16.
Format device_format(const Problem& problem);

// Depth of a stored row: rounded up to 32, or 64 in 4-bit formats, and filled with zeros.
int64_t padded_depth(int64_t depth, Format format);

// Bytes of a stored row.
size_t row_bytes(int64_t depth, Format format);

int64_t groups_of(int64_t depth, int64_t group_size);

// Lays out the matrix whose first tensor is `index`; all data is in host memory. Throws Error.
DeviceMatrix lay_out_matrix(const Problem& problem, const std::vector<MoeTensor>& tensors,
                            size_t index);

// Calls item(i) for each i below `count`, on a thread for each processor. Rethrows the exception of
// the first item that failed.
void in_parallel(size_t count, const std::function<void(size_t)>& item);

}  // namespace moe_export::cuda
