// Dot products of a block's codes with FEAT_DotProd: one instruction multiplies 4 columns by 4 of
// the depth.
#pragma once

#include "cpu/products_4_neon.h"

namespace moe_export {
namespace {

// 16 codes for each of two groups of 4 of the depth.
template <bool kFourBits>
struct Codes {
  static constexpr int32_t kTaken = kFourBits ? 0 : 128;            // subtracted from the codes
  static constexpr int64_t kStep = (kFourBits ? 4 : 8) * kColumns;  // bytes of 8 of the depth

  explicit Codes(const uint8_t* at) {
    if constexpr (kFourBits) {
      const uint8x16_t pairs = vld1q_u8(at);
      first = vreinterpretq_s8_u8(vandq_u8(pairs, vdupq_n_u8(15)));
      second = vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4));
    } else {
      const uint8x16_t top = vdupq_n_u8(128);
      first = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at), top));
      second = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at + 4 * kColumns), top));
    }
  }

  int8x16_t first, second;
};

template <int kRows, int kSides>
constexpr int kVectorsOfCodes = kVectorsOf<kRows, kSides>;

constexpr int kMostRowsOfCodes = 6;

// 32 activations of each row.
template <int kRows>
struct Activations {
  explicit Activations(const QuantizedBlock* const* x) {
    for (int row = 0; row < kRows; ++row) codes[row] = x[row]->codes;
  }
  const int8_t* codes[kRows];
};

template <bool kFourBits, int kRows, int kVectors>
MOE_EXPORT_INLINE void add_dots(const uint8_t* codes, const Activations<kRows>& x,
                                int32x4_t (&sum)[kRows][kVectors]) {
  // Unrolled, GCC 12 loads the whole block first and has no registers left for the sums.
#pragma GCC unroll 1
  for (int step = 0; step < kBlock / 8; ++step, codes += Codes<kFourBits>::kStep) {
    int8x8_t values[kRows];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) values[row] = vld1_s8(x.codes[row] + 8 * step);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Codes<kFourBits> code(codes + 16 * v);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        sum[row][v] = vdotq_lane_s32(sum[row][v], code.first, values[row], 0);
        sum[row][v] = vdotq_lane_s32(sum[row][v], code.second, values[row], 1);
      }
    }
  }
}

}  // namespace
}  // namespace moe_export
