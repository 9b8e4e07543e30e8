// Dot products of a block's codes with FEAT_I8MM: one instruction multiplies 2 columns and 2 rows
// by 8 of the depth. Codes are its unsigned operand, so nothing is subtracted from them.
#pragma once

#include "cpu/products_4_neon.h"

namespace moe_export {
namespace {

// 16 codes for each of two groups of 4 of the depth.
template <bool kFourBits>
struct Codes {
  static constexpr int32_t kTaken = 0;
  static constexpr int64_t kStep = (kFourBits ? 4 : 8) * kColumns;  // bytes of 8 of the depth

  explicit Codes(const uint8_t* at) {
    if constexpr (kFourBits) {
      const uint8x16_t pairs = vld1q_u8(at);
      first = vandq_u8(pairs, vdupq_n_u8(15));
      second = vshrq_n_u8(pairs, 4);
    } else {
      first = vld1q_u8(at);
      second = vld1q_u8(at + 4 * kColumns);
    }
  }

  // The first or the last two columns by 8 of the depth.
  uint8x16_t lower() const {
    return vreinterpretq_u8_u32(
        vzip1q_u32(vreinterpretq_u32_u8(first), vreinterpretq_u32_u8(second)));
  }
  uint8x16_t upper() const {
    return vreinterpretq_u8_u32(
        vzip2q_u32(vreinterpretq_u32_u8(first), vreinterpretq_u32_u8(second)));
  }

  uint8x16_t first, second;
};

// With 8 rows, 8 columns: 16 registers of sums, 4 of activations and 4 of codes.
template <int kRows, int kSides>
constexpr int kVectorsOfCodes = kRows == 1   ? 16 / kSides
                                : kRows == 2 ? 8
                                : kRows <= 4 ? 4
                                             : 2;

constexpr int kMostRowsOfCodes = 8;

// 32 activations of each row: of two rows side by side, 8 of the depth at a time. The last of an
// odd number of rows is there twice.
template <int kRows>
struct Activations {
  static constexpr int kPairs = (kRows + 1) / 2;

  explicit Activations(const QuantizedBlock* const* x) {
    for (int pair = 0; pair < kPairs; ++pair) {
      const QuantizedBlock* one = x[2 * pair];
      const QuantizedBlock* other = x[2 * pair + 1 < kRows ? 2 * pair + 1 : 2 * pair];
      for (int step = 0; step < kBlock / 8; ++step) {
        vst1q_s8(codes[step][pair],
                 vcombine_s8(vld1_s8(one->codes + 8 * step), vld1_s8(other->codes + 8 * step)));
      }
    }
  }

  int8_t codes[kBlock / 8][kPairs][16];
};

template <>
struct Activations<1> {
  explicit Activations(const QuantizedBlock* const* x) : codes(x[0]->codes) {}
  const int8_t* codes;
};

template <bool kFourBits, int kVectors>
MOE_EXPORT_INLINE void add_dots(const uint8_t* codes, const Activations<1>& x,
                                int32x4_t (&sum)[1][kVectors]) {
#pragma GCC unroll 1
  for (int step = 0; step < kBlock / 8; ++step, codes += Codes<kFourBits>::kStep) {
    const int8x8_t values = vld1_s8(x.codes + 8 * step);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Codes<kFourBits> code(codes + 16 * v);
      sum[0][v] = vusdotq_lane_s32(sum[0][v], code.first, values, 0);
      sum[0][v] = vusdotq_lane_s32(sum[0][v], code.second, values, 1);
    }
  }
}

template <bool kFourBits, int kRows, int kVectors>
MOE_EXPORT_INLINE void add_dots(const uint8_t* codes, const Activations<kRows>& x,
                                int32x4_t (&sum)[kRows][kVectors]) {
  constexpr int kPairs = Activations<kRows>::kPairs;
  int32x4_t product[kPairs][2 * kVectors];  // two columns by two rows
#pragma GCC unroll 4
  for (int pair = 0; pair < kPairs; ++pair) {
    const int other = 2 * pair + 1 < kRows ? 2 * pair + 1 : 2 * pair;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      product[pair][2 * v] = vzip1q_s32(sum[2 * pair][v], sum[other][v]);
      product[pair][2 * v + 1] = vzip2q_s32(sum[2 * pair][v], sum[other][v]);
    }
  }
#pragma GCC unroll 1
  for (int step = 0; step < kBlock / 8; ++step, codes += Codes<kFourBits>::kStep) {
    int8x16_t values[kPairs];
#pragma GCC unroll 4
    for (int pair = 0; pair < kPairs; ++pair) values[pair] = vld1q_s8(x.codes[step][pair]);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Codes<kFourBits> code(codes + 16 * v);
      const uint8x16_t lower = code.lower(), upper = code.upper();
#pragma GCC unroll 4
      for (int pair = 0; pair < kPairs; ++pair) {
        int32x4_t* to = product[pair] + 2 * v;
        to[0] = vusmmlaq_s32(to[0], lower, values[pair]);
        to[1] = vusmmlaq_s32(to[1], upper, values[pair]);
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const int32x4_t* from = product[row / 2] + 2 * v;
      sum[row][v] = row % 2 == 0 ? vuzp1q_s32(from[0], from[1]) : vuzp2q_s32(from[0], from[1]);
    }
  }
}

}  // namespace
}  // namespace moe_export
