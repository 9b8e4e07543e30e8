// Handling of rows, shared by the kernels of all vector instruction sets.
#pragma once

#include "cpu/kernels.h"

namespace moe_export {
namespace {

// Calls the kernel compiled for `count` rows; 1 <= count <= kMost.
template <typename Kernel, int kSides, int kMost>
void of_count(const uint8_t* panel, int64_t depth, const void* const* rows, int count,
              float* sums) {
  if constexpr (kMost > 1) {
    if (count < kMost) return of_count<Kernel, kSides, kMost - 1>(panel, depth, rows, count, sums);
  }
  Kernel::template run<kMost, kSides>(panel, depth, rows, sums);
}

// Calls the kernel compiled for a number of rows known at run time:
// `Kernel::run<kRows, kSides>(panel, depth, rows, sums)` with kRows == count. More than kMost rows,
// the most that the kernel has registers for, are two calls.
template <typename Kernel, int kSides, int kMost = kRegisterRows>
void by_count(const uint8_t* panel, int64_t depth, const void* const* rows, int count,
              float* sums) {
  static_assert(2 * kMost >= kTile, "two calls suffice");
  if (count > kMost) {
    const int half = count / 2;
    by_count<Kernel, kSides, kMost>(panel, depth, rows, half, sums);
    return by_count<Kernel, kSides, kMost>(panel, depth, rows + kSides * half, count - half,
                                           sums + half * kColumns);
  }
  of_count<Kernel, kSides, kMost>(panel, depth, rows, count, sums);
}

// The rows of each side, which are interleaved in `rows`.
template <typename Row, int kRows, int kSides>
inline void take_sides(const void* const* rows, const Row* (&sides)[kSides][kRows]) {
  for (int side = 0; side < kSides; ++side) {
    for (int row = 0; row < kRows; ++row) {
      sides[side][row] = static_cast<const Row*>(rows[kSides * row + side]);
    }
  }
}

// The side that a column belongs to.
template <int kSides>
constexpr int64_t side_of(int64_t column) {
  return column * kSides / kColumns;
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
