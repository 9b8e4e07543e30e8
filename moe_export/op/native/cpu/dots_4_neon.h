// Dot products of a block's codes with Armv8-A: products of 8 bits are summed in 16 bits.
#pragma once

#include "cpu/products_4_neon.h"

namespace moe_export {
namespace {

template <bool kFourBits>
struct Codes {
  static constexpr int32_t kTaken = kFourBits ? 0 : 128;  // subtracted from the codes
};

// A vector of 16-bit sums is two columns. All vectors are of one side.
template <int kRows, int kSides>
constexpr int kVectorsOfCodes = kRows == 1   ? 8
                                : kRows <= 3 ? 4
                                             : 2;

constexpr int kMostRowsOfCodes = 6;

// 32 activations of each row.
template <int kRows>
struct Activations {
  explicit Activations(const QuantizedBlock* const* x) {
    for (int row = 0; row < kRows; ++row) codes[row] = x[row]->codes;
  }
  const int8_t* codes[kRows];
};

// Four codes of activations, repeated in every lane.
inline int8x16_t broadcast(const int8_t* codes) {
  return vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(codes)));
}

// A lane of the 16-bit sums takes eight products of at most 15 * 127 in a block, which fit.
template <int kRows, int kVectors>
MOE_EXPORT_INLINE void add_dots_of_four_bits(const uint8_t* codes, const Activations<kRows>& x,
                                             int32x4_t (&sum)[kRows][kVectors]) {
  int16x8_t halves[kRows][2 * kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int half = 0; half < 2 * kVectors; ++half) halves[row][half] = vdupq_n_s16(0);
  }
#pragma GCC unroll 1
  for (int step = 0; step < kBlock / 8; ++step, codes += 4 * kColumns) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const uint8x16_t pairs = vld1q_u8(codes + 16 * v);
      const int8x16_t first = vreinterpretq_s8_u8(vandq_u8(pairs, vdupq_n_u8(15)));
      const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4));
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const int8x16_t low = broadcast(x.codes[row] + 8 * step);
        const int8x16_t high = broadcast(x.codes[row] + 8 * step + 4);
        int16x8_t* to = halves[row] + 2 * v;
        to[0] = vmlal_s8(to[0], vget_low_s8(first), vget_low_s8(low));
        to[1] = vmlal_high_s8(to[1], first, low);
        to[0] = vmlal_s8(to[0], vget_low_s8(second), vget_low_s8(high));
        to[1] = vmlal_high_s8(to[1], second, high);
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const int16x8_t* from = halves[row] + 2 * v;
      const int32x4_t dots = vpaddq_s32(vpaddlq_s16(from[0]), vpaddlq_s16(from[1]));
      sum[row][v] = vaddq_s32(sum[row][v], dots);
    }
  }
}

// Two products of magnitudes up to 128 and 127 fit 16 bits; their sums go on in 32 bits.
template <int kRows, int kVectors>
MOE_EXPORT_INLINE void add_dots_of_eight_bits(const uint8_t* codes, const Activations<kRows>& x,
                                              int32x4_t (&sum)[kRows][kVectors]) {
  int32x4_t words[kRows][2 * kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int half = 0; half < 2 * kVectors; ++half) words[row][half] = vdupq_n_s32(0);
  }
#pragma GCC unroll 1
  for (int step = 0; step < kBlock / 8; ++step, codes += 8 * kColumns) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const uint8x16_t top = vdupq_n_u8(128);
      const int8x16_t first = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes + 16 * v), top));
      const int8x16_t second =
          vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes + 4 * kColumns + 16 * v), top));
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const int8x16_t low = broadcast(x.codes[row] + 8 * step);
        const int8x16_t high = broadcast(x.codes[row] + 8 * step + 4);
        int16x8_t lower = vmull_s8(vget_low_s8(first), vget_low_s8(low));
        int16x8_t upper = vmull_high_s8(first, low);
        lower = vmlal_s8(lower, vget_low_s8(second), vget_low_s8(high));
        upper = vmlal_high_s8(upper, second, high);
        words[row][2 * v] = vpadalq_s16(words[row][2 * v], lower);
        words[row][2 * v + 1] = vpadalq_s16(words[row][2 * v + 1], upper);
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const int32x4_t dots = vpaddq_s32(words[row][2 * v], words[row][2 * v + 1]);
      sum[row][v] = vaddq_s32(sum[row][v], dots);
    }
  }
}

template <bool kFourBits, int kRows, int kVectors>
MOE_EXPORT_INLINE void add_dots(const uint8_t* codes, const Activations<kRows>& x,
                                int32x4_t (&sum)[kRows][kVectors]) {
  if constexpr (kFourBits) {
    add_dots_of_four_bits(codes, x, sum);
  } else {
    add_dots_of_eight_bits(codes, x, sum);
  }
}

}  // namespace
}  // namespace moe_export
