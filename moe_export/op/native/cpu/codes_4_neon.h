// Products of the Arm kernels with integer codes. 16 bytes of codes are 4 columns of 4 of the
// depth, as the dot product instruction takes them. The dot products of a block are in a header of
// each instruction set.
#pragma once

#include "cpu/products_4_neon.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include "cpu/dots_6_i8mm.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "cpu/dots_5_dotprod.h"
#else
#include "cpu/dots_4_neon.h"
#endif

namespace moe_export {
namespace {

template <Format kFormat>
struct QuantizedProduct {
  static constexpr bool kFourBits = has_four_bits(kFormat);
  static constexpr int32_t kTaken = Codes<kFourBits>::kTaken;

  // Begins the sums of 8 columns, which are the vectors v and v + 1: the number that `Codes`
  // subtracted less the columns' zero, times the sum of the activations' codes.
  template <int kRows, int kVectors>
  MOE_EXPORT_INLINE static void start(const uint8_t* block, int64_t column,
                                      const QuantizedBlock* const* x, int v,
                                      int32x4_t (&sum)[kRows][kVectors]) {
    if constexpr (!has_zero_points(kFormat)) {
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        sum[row][v] = sum[row][v + 1] = vdupq_n_s32((kTaken - zero_code(kFormat)) * x[row]->sum);
      }
    } else {
      const uint8x8_t zeros = vld1_u8(block + kScaleBytes + column + 4 * v);
      const int16x8_t wide = vreinterpretq_s16_u16(vmovl_u8(zeros));
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        // 32 codes add up to 4064 at most, which fits 16 bits.
        const int16_t total = static_cast<int16_t>(x[row]->sum);
        const int32x4_t taken = vdupq_n_s32(kTaken * x[row]->sum);
        sum[row][v] = vmlsl_n_s16(taken, vget_low_s16(wide), total);
        sum[row][v + 1] = vmlsl_high_n_s16(taken, wide, total);
      }
    }
  }

  template <int kVectors>
  MOE_EXPORT_INLINE static void add_scaled(const int32x4_t* sum,
                                           const float32x4_t (&scale)[kVectors], float x_scale,
                                           float* sums) {
    float32x4_t total[kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) total[i] = vld1q_f32(sums + 4 * i);
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      total[i] = vfmaq_f32(total[i], vcvtq_f32_s32(sum[i]), vmulq_n_f32(scale[i], x_scale));
    }
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) vst1q_f32(sums + 4 * i, total[i]);
  }

  // Adds a block's products with kVectors vectors of columns to their sums.
  template <int kVectors, int kRows>
  MOE_EXPORT_INLINE static void add(const uint8_t* block, int64_t column,
                                    const QuantizedBlock* const* x,
                                    const Activations<kRows>& activations, float* sums) {
    int32x4_t sum[kRows][kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v += 2) start(block, column, x, v, sum);
    add_dots<kFourBits>(block + codes_offset(kFormat) + 4 * column, activations, sum);
    // Sums of a row lie side by side, so they are loaded and stored in pairs.
    constexpr int kTogether = kVectors < 4 ? kVectors : 4;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v += kTogether) {
      float32x4_t scale[kTogether];
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i)
        scale[i] = Float16::load(block + 2 * column + 8 * (v + i));
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        add_scaled(sum[row] + v, scale, x[row]->scale, sums + row * kColumns + column + 4 * v);
      }
    }
  }

  template <int kRows, int kSides>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    constexpr int kVectors = kVectorsOfCodes<kRows, kSides>;
    __builtin_memset(sums, 0, sizeof(float) * kRows * kColumns);
    const QuantizedBlock* x[kSides][kRows];
    take_sides(rows, x);
    for (int64_t d = 0; d < depth; d += kBlock, panel += block_bytes(kFormat)) {
      for (int side = 0; side < kSides; ++side) {
        const Activations<kRows> activations(x[side]);
        constexpr int64_t kWidth = kColumns / kSides;
        for (int64_t column = 0; column < kWidth; column += 4 * kVectors) {
          add<kVectors>(panel, side * kWidth + column, x[side], activations, sums);
        }
        for (int row = 0; row < kRows; ++row) ++x[side][row];
      }
      // Sums stay in memory between blocks: GCC 12 would keep some in registers that the next block
      // needs, and spill others.
      __asm__ volatile("" : : : "memory");
    }
  }
};

}  // namespace
}  // namespace moe_export
