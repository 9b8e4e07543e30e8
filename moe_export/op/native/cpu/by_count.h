// Handling of rows, shared by the kernels of all vector instruction sets.
#pragma once

#include "cpu/kernels.h"

namespace moe_export {
namespace {

// Calls the kernel compiled for a number of rows known at run time:
// `Kernel::run<kRows>(panel, depth, rows, sums)` with kRows == count.
template <typename Kernel>
void by_count(const uint8_t* panel, int64_t depth, const void* const* rows, int count,
              float* sums) {
  static_assert(kTile == 6, "one case for each count");
  switch (count) {
    case 1:
      return Kernel::template run<1>(panel, depth, rows, sums);
    case 2:
      return Kernel::template run<2>(panel, depth, rows, sums);
    case 3:
      return Kernel::template run<3>(panel, depth, rows, sums);
    case 4:
      return Kernel::template run<4>(panel, depth, rows, sums);
    case 5:
      return Kernel::template run<5>(panel, depth, rows, sums);
    case 6:
      return Kernel::template run<6>(panel, depth, rows, sums);
  }
}

// The next 32 values of a row that has `left` more. The last ones are copied to `padded` and filled
// up with zeros.
inline const float* whole_block(const float* values, int64_t left, float* padded) {
  if (left >= kBlock) return values;
  for (int64_t d = 0; d < kBlock; ++d) padded[d] = d < left ? values[d] : 0.0f;
  return padded;
}

}  // namespace
}  // namespace moe_export
