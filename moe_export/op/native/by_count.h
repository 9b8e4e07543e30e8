// From a number of rows known at run time to a kernel compiled for it.
#pragma once

#include "kernels.h"

namespace moe_export {
namespace {

// `Kernel::run<kRows>(panel, depth, rows, sums)` for kRows == count.
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

}  // namespace
}  // namespace moe_export
