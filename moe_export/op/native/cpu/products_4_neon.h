// Products of the Arm kernels with weights that are floats or codes of floats. A panel's 64 columns
// are 16 vectors of 4. Products with integer codes are in codes_4_neon.h.
#pragma once

#include <arm_neon.h>

#include "cpu/by_count.h"
#include "cpu/kernels.h"

namespace moe_export {
namespace {

// Functions of rows and vectors in registers, which would be stored and loaded by a call.
#define MOE_EXPORT_INLINE inline __attribute__((always_inline))

constexpr int kVectorsOfPanel = 16;

// Vectors of columns whose sums are in registers at once. A block of the panel is read in stripes
// of so many vectors; it stays in the first-level cache meanwhile.
template <int kRows, int kSides = 1>
constexpr int kVectorsOf = kRows == 1   ? kVectorsOfPanel / kSides
                           : kRows <= 3 ? 8
                                        : 4;

struct Float32 {
  static constexpr int64_t kBytes = 4;
  static float32x4_t load(const uint8_t* at) { return vreinterpretq_f32_u8(vld1q_u8(at)); }
};

struct Float16 {
  static constexpr int64_t kBytes = 2;
  static float32x4_t load(const uint8_t* at) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at)));
  }
};

struct Bfloat16 {
  static constexpr int64_t kBytes = 2;
  static float32x4_t load(const uint8_t* at) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(at)), 16));
  }
};

// Weights that are widened to float32 and multiplied by rows of floats.
template <typename Weight>
struct Widened {
  using Row = float;
  static constexpr int64_t kBytes = Weight::kBytes;

  template <int kRows, int kVectors>
  MOE_EXPORT_INLINE static void add(const uint8_t* panel, int64_t size, const Row* const* x,
                                    float32x4_t (&sum)[kRows][kVectors]) {
    for (int64_t d = 0; d < size; ++d, panel += kColumns * kBytes) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const float32x4_t weights = Weight::load(panel + 4 * v * kBytes);
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
          sum[row][v] = vfmaq_n_f32(sum[row][v], weights, x[row][d]);
        }
      }
    }
  }
};

// `Weights::add` adds products of `size` of the depth to the sums of a stripe of columns.
template <typename Weights>
struct FloatProduct {
  using Row = typename Weights::Row;
  static constexpr int64_t kStep = kColumns * Weights::kBytes;

  template <int kRows, int kVectors>
  MOE_EXPORT_INLINE static void add(const uint8_t* panel, int64_t size, const Row* const* x,
                                    float* sums) {
    float32x4_t sum[kRows][kVectors];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[row][v] = vld1q_f32(sums + row * kColumns + 4 * v);
    }
    Weights::add(panel, size, x, sum);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) vst1q_f32(sums + row * kColumns + 4 * v, sum[row][v]);
    }
  }

  template <int kRows, int kSides>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    constexpr int kVectors = kVectorsOf<kRows, kSides>;
    __builtin_memset(sums, 0, sizeof(float) * kRows * kColumns);
    for (int64_t first = 0; first < depth; first += kBlock, panel += kBlock * kStep) {
      const int64_t size = first + kBlock < depth ? kBlock : depth - first;
      const Row* x[kSides][kRows];
      take_sides(rows, x);
      for (auto& side : x) {
        for (int row = 0; row < kRows; ++row) side[row] += first;
      }
      for (int64_t column = 0; column < kColumns; column += 4 * kVectors) {
        add<kRows, kVectors>(panel + column * Weights::kBytes, size, x[side_of<kSides>(column)],
                             sums + column);
      }
    }
  }
};

// A float is assembled from its four bytes, each looked up for 16 codes at once.
struct Nf4Product {
  // Tables of one byte of each of the sixteen values.
  static void tables(uint8x16_t (&bytes)[4]) {
    for (int byte = 0; byte < 4; ++byte) {
      uint8_t table[16];
      for (int code = 0; code < 16; ++code) {
        uint32_t bits;
        __builtin_memcpy(&bits, kNf4 + code, sizeof bits);
        table[code] = static_cast<uint8_t>(bits >> (8 * byte));
      }
      bytes[byte] = vld1q_u8(table);
    }
  }

  // Values of 16 codes: of 4 columns at 4 depths, one vector for each depth.
  static void look_up(const uint8x16_t (&bytes)[4], uint8x16_t codes, float32x4_t* values) {
    uint8x16_t found[4];
    for (int byte = 0; byte < 4; ++byte) found[byte] = vqtbl1q_u8(bytes[byte], codes);
    for (int half = 0; half < 2; ++half) {
      const uint16x8_t lower = vreinterpretq_u16_u8(half == 0 ? vzip1q_u8(found[0], found[1])
                                                              : vzip2q_u8(found[0], found[1]));
      const uint16x8_t upper = vreinterpretq_u16_u8(half == 0 ? vzip1q_u8(found[2], found[3])
                                                              : vzip2q_u8(found[2], found[3]));
      values[2 * half] = vreinterpretq_f32_u16(vzip1q_u16(lower, upper));
      values[2 * half + 1] = vreinterpretq_f32_u16(vzip2q_u16(lower, upper));
    }
  }

  // Adds a block's products with 4 columns to their sums.
  template <int kRows>
  MOE_EXPORT_INLINE static void add(const uint8x16_t (&bytes)[4], const uint8_t* codes,
                                    float32x4_t scale, const float* const* x, float* sums) {
    // A panel has 4 of the depth side by side; here the columns of a depth go together.
    static constexpr uint8_t kByDepth[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const uint8x16_t by_depth = vld1q_u8(kByDepth);
    float32x4_t sum[kRows];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) sum[row] = vdupq_n_f32(0);
    for (int step = 0; step < kBlock / 8; ++step) {
      const uint8x16_t pairs = vqtbl1q_u8(vld1q_u8(codes + 4 * kColumns * step), by_depth);
      float32x4_t values[8];
      look_up(bytes, vandq_u8(pairs, vdupq_n_u8(15)), values);
      look_up(bytes, vshrq_n_u8(pairs, 4), values + 4);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        for (int d = 0; d < 8; ++d) {
          sum[row] = vfmaq_n_f32(sum[row], values[d], x[row][8 * step + d]);
        }
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      float* at = sums + row * kColumns;
      vst1q_f32(at, vfmaq_f32(vld1q_f32(at), sum[row], scale));
    }
  }

  template <int kRows, int kSides>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    __builtin_memset(sums, 0, sizeof(float) * kRows * kColumns);
    const float* whole_rows[kSides][kRows];
    take_sides(rows, whole_rows);
    uint8x16_t bytes[4];
    tables(bytes);
    for (int64_t d = 0; d < depth; d += kBlock, panel += block_bytes(Format::kNf4)) {
      float padded[kSides][kRows][kBlock];
      const float* x[kSides][kRows];
      for (int side = 0; side < kSides; ++side) {
        for (int row = 0; row < kRows; ++row) {
          x[side][row] = whole_block(whole_rows[side][row] + d, depth - d, padded[side][row]);
        }
      }
      for (int64_t column = 0; column < kColumns; column += 4) {
        add<kRows>(bytes, panel + codes_offset(Format::kNf4) + 4 * column,
                   Float16::load(panel + 2 * column), x[side_of<kSides>(column)], sums + column);
      }
    }
  }
};

}  // namespace
}  // namespace moe_export
