// Products of float16 with FEAT_FHM: one instruction multiplies 4 weights by a value of a row, both
// in float16, and adds the exact products to sums in float32.
#pragma once

#include "cpu/products_4_neon.h"

namespace moe_export {
namespace {

// Weights and rows of float16. They have the sums of `Widened<Float16>`, to the bit.
struct Halves {
  using Row = float16_t;
  static constexpr int64_t kBytes = 2;

  // Adds the products of a depth, at which `x` holds the lane's values.
  template <int kLane, int kRows, int kVectors>
  MOE_EXPORT_INLINE static void add_depth(const uint8_t* panel, const float16x4_t (&x)[kRows],
                                          float32x4_t (&sum)[kRows][kVectors]) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v += 2) {
      const float16x8_t weights = vreinterpretq_f16_u8(vld1q_u8(panel + 4 * v * kBytes));
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        sum[row][v] = vfmlalq_lane_low_f16(sum[row][v], weights, x[row], kLane);
        sum[row][v + 1] = vfmlalq_lane_high_f16(sum[row][v + 1], weights, x[row], kLane);
      }
    }
  }

  template <int kRows, int kVectors>
  MOE_EXPORT_INLINE static void add(const uint8_t* panel, int64_t size, const Row* const* x,
                                    float32x4_t (&sum)[kRows][kVectors]) {
    constexpr int64_t kStep = kColumns * kBytes;
    float16x4_t values[kRows];
    int64_t d = 0;
#pragma GCC unroll 1
    for (; d + 4 <= size; d += 4, panel += 4 * kStep) {
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) values[row] = vld1_f16(x[row] + d);
      add_depth<0>(panel, values, sum);
      add_depth<1>(panel + kStep, values, sum);
      add_depth<2>(panel + 2 * kStep, values, sum);
      add_depth<3>(panel + 3 * kStep, values, sum);
    }
#pragma GCC unroll 1
    for (; d < size; ++d, panel += kStep) {
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) values[row] = vld1_dup_f16(x[row] + d);
      add_depth<0>(panel, values, sum);
    }
  }
};

}  // namespace
}  // namespace moe_export
