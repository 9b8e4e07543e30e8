// Products of the AVX-512 kernels. A panel's 64 columns are four vectors.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "cpu/by_count.h"
#include "cpu/kernels.h"

namespace moe_export {
namespace {

constexpr int kVectors = 4;

// Distance in bytes at which weights are prefetched, and the step from one prefetch to the next.
// The processor's own prefetcher stops at the end of each page and keeps no distance; every second
// line, into the second-level cache, leads it on. On a Zen 4 with one token this gave 0.86 and 0.87
// of the rate of a plain read in int4 and int8. Without it the rates were 0.84 and 0.72, with 8 KB
// ahead 0.50 and 0.86. Prefetching into the first-level cache uses up its few miss buffers and gave
// 0.44. With the loads of several rows in between, the processor's own prefetcher falls behind.
// Every line at twice the distance then made products of 4 and 6 rows 1.4 to 1.6 times as fast.
template <int kRows>
constexpr int64_t kAhead = kRows <= 2 ? 3072 : 6144;
template <int kRows>
constexpr int64_t kEvery = kRows <= 2 ? 128 : 64;

template <int kRows>
inline void prefetch(const uint8_t* at, int64_t bytes) {
#pragma GCC unroll 4
  for (int64_t line = 0; line < bytes; line += kEvery<kRows>) {
    _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead<kRows> + line, _MM_HINT_T1);
  }
}

struct Float32 {
  static constexpr int64_t kBytes = 4;
  static __m512 load(const uint8_t* at) { return _mm512_loadu_ps(at); }
};

struct Float16 {
  static constexpr int64_t kBytes = 2;
  static __m512 load(const uint8_t* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
};

struct Bfloat16 {
  static constexpr int64_t kBytes = 2;
  static __m512 load(const uint8_t* at) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
};

template <typename Weight>
struct FloatProduct {
  template <int kRows, int kSides>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    constexpr int kEach = kVectors / kSides;
    const float* x[kSides][kRows];
    take_sides(rows, x);
    __m512 sum[kRows][kVectors];
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) sum[row][v] = _mm512_setzero_ps();
    }
    constexpr int64_t kStep = kColumns * Weight::kBytes;
    for (int64_t d = 0; d < depth; ++d, panel += kStep) {
      prefetch<kRows>(panel, kStep);
      __m512 weights[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        weights[v] = Weight::load(panel + v * 16 * Weight::kBytes);
      }
      for (int row = 0; row < kRows; ++row) {
        for (int side = 0; side < kSides; ++side) {
          const __m512 value = _mm512_set1_ps(x[side][row][d]);
          for (int v = side * kEach; v < (side + 1) * kEach; ++v) {
            sum[row][v] = _mm512_fmadd_ps(weights[v], value, sum[row][v]);
          }
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) {
        _mm512_storeu_ps(sums + row * kColumns + v * 16, sum[row][v]);
      }
    }
  }
};

// Four codes, repeated in every lane.
inline __m512i broadcast(const int8_t* codes) {
  int32_t four;
  __builtin_memcpy(&four, codes, sizeof four);
  return _mm512_set1_epi32(four);
}

// First value of a block's sum: less the zero that every code of a column contains.
template <Format kFormat>
__m512i start(const uint8_t* block, int v, const QuantizedBlock* x) {
  if constexpr (!has_zero_points(kFormat)) {
    return _mm512_set1_epi32(-zero_code(kFormat) * x->sum);
  }
  // Both factors fit one 16-bit multiplication: 32 codes add up to 4064 at most.
  const uint8_t* zero_points = block + kScaleBytes + 16 * v;
  const __m512i zeros =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zero_points)));
  return _mm512_madd_epi16(zeros, _mm512_set1_epi32(-x->sum));
}

struct EightBits {
  template <int kRows, int kParts, int kSides>
  static void add(const uint8_t* codes, const QuantizedBlock* const (&x)[kSides][kRows],
                  bool fetches, __m512i (&sum)[kRows][kParts]) {
    constexpr int kEach = kParts / kSides;
#pragma GCC unroll 8
    for (int step = 0; step < kBlock / 4; ++step, codes += 4 * kColumns) {
      if (fetches) prefetch<kRows>(codes, 4 * kColumns);
      __m512i weights[kParts];
      for (int v = 0; v < kParts; ++v) weights[v] = _mm512_loadu_si512(codes + 64 * v);
      for (int row = 0; row < kRows; ++row) {
        for (int side = 0; side < kSides; ++side) {
          const __m512i value = broadcast(x[side][row]->codes + 4 * step);
          for (int v = side * kEach; v < (side + 1) * kEach; ++v) {
            sum[row][v] = _mm512_dpbusd_epi32(sum[row][v], weights[v], value);
          }
        }
      }
    }
  }
};

struct FourBits {
  // With one row, splitting the nibbles is most of the work. So high nibbles stay in place, as 16
  // times their value, and have sums of their own.
  template <int kParts, int kSides>
  static void add_one(const uint8_t* codes, const QuantizedBlock* const (&x)[kSides][1],
                      bool fetches, __m512i (&sum)[kParts]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i sixteen[kParts];
    for (int v = 0; v < kParts; ++v) sixteen[v] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int step = 0; step < kBlock / 8; ++step, codes += 4 * kColumns) {
      if (fetches) prefetch<1>(codes, 4 * kColumns);
      __m512i first[kSides], second[kSides];
      for (int side = 0; side < kSides; ++side) {
        first[side] = broadcast(x[side][0]->codes + 8 * step);
        second[side] = broadcast(x[side][0]->codes + 8 * step + 4);
      }
      for (int v = 0; v < kParts; ++v) {
        const int side = v * kSides / kParts;
        __m512i pairs = _mm512_loadu_si512(codes + 64 * v);
        __asm__("" : "+v"(pairs));  // or the compiler loads it twice, and loads are scarce
        const __m512i low = _mm512_and_si512(pairs, nibble);
        sum[v] = _mm512_dpbusd_epi32(sum[v], low, first[side]);
        sixteen[v] = _mm512_dpbusd_epi32(sixteen[v], _mm512_xor_si512(pairs, low), second[side]);
      }
    }
    for (int v = 0; v < kParts; ++v) {
      sum[v] = _mm512_add_epi32(sum[v], _mm512_srai_epi32(sixteen[v], 4));
    }
  }

  template <int kRows, int kParts, int kSides>
  static void add(const uint8_t* codes, const QuantizedBlock* const (&x)[kSides][kRows],
                  bool fetches, __m512i (&sum)[kRows][kParts]) {
    constexpr int kEach = kParts / kSides;
    if constexpr (kRows == 1) return add_one(codes, x, fetches, sum[0]);
    const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int step = 0; step < kBlock / 8; ++step, codes += 4 * kColumns) {
      if (fetches) prefetch<kRows>(codes, 4 * kColumns);
      __m512i low[kParts], high[kParts];
      for (int v = 0; v < kParts; ++v) {
        const __m512i pairs = _mm512_loadu_si512(codes + 64 * v);
        low[v] = _mm512_and_si512(pairs, nibble);
        high[v] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), nibble);
      }
      for (int row = 0; row < kRows; ++row) {
        for (int side = 0; side < kSides; ++side) {
          const __m512i first = broadcast(x[side][row]->codes + 8 * step);
          for (int v = side * kEach; v < (side + 1) * kEach; ++v) {
            sum[row][v] = _mm512_dpbusd_epi32(sum[row][v], low[v], first);
          }
        }
      }
      for (int row = 0; row < kRows; ++row) {
        for (int side = 0; side < kSides; ++side) {
          const __m512i second = broadcast(x[side][row]->codes + 8 * step + 4);
          for (int v = side * kEach; v < (side + 1) * kEach; ++v) {
            sum[row][v] = _mm512_dpbusd_epi32(sum[row][v], high[v], second);
          }
        }
      }
    }
  }
};

template <Format kFormat>
struct QuantizedProduct {
  using Codes = std::conditional_t<has_four_bits(kFormat), FourBits, EightBits>;

  // Vectors of columns at a time: as many as their sums over a block and over all leave registers.
  template <int kRows>
  static constexpr int kPartsOf = kRows <= 2   ? 4
                                  : kRows <= 6 ? 2
                                               : 1;

  // Blocks of which all columns are done before the next ones: they stay in the first-level cache.
  static constexpr int64_t kChunk = 16;

  template <int kRows, int kSides>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    constexpr int kParts = kPartsOf<kRows>;
    const int64_t blocks = (depth + kBlock - 1) / kBlock;
    const QuantizedBlock* x[kSides][kRows];
    take_sides(rows, x);
    if constexpr (kParts == kVectors) return add<kRows, kParts>(panel, 0, blocks, x, 0, sums);
    for (int64_t first = 0; first < blocks; first += kChunk) {
      const int64_t last = first + kChunk < blocks ? first + kChunk : blocks;
      for (int v = 0; v < kVectors; v += kParts) {
        const QuantizedBlock* side[1][kRows];
        for (int row = 0; row < kRows; ++row) side[0][row] = x[side_of<kSides>(16 * v)][row];
        add<kRows, kParts>(panel, first, last, side, v, sums);
      }
    }
  }

  // Adds the products of blocks [first, last) to kParts vectors of columns, of so many sides.
  template <int kRows, int kParts, int kSides>
  static void add(const uint8_t* panel, int64_t first, int64_t last,
                  const QuantizedBlock* const (&rows)[kSides][kRows], int vector, float* sums) {
    const QuantizedBlock* x[kSides][kRows];
    __m512 total[kRows][kParts];
    for (int row = 0; row < kRows; ++row) {
      for (int side = 0; side < kSides; ++side) x[side][row] = rows[side][row] + first;
      for (int v = 0; v < kParts; ++v) {
        const float* from = sums + row * kColumns + (vector + v) * 16;
        total[row][v] = first > 0 ? _mm512_loadu_ps(from) : _mm512_setzero_ps();
      }
    }
    const bool fetches = vector == 0;
    panel += first * block_bytes(kFormat);
    for (int64_t block = first; block < last; ++block, panel += block_bytes(kFormat)) {
      if (fetches) prefetch<kRows>(panel, kScaleBytes);
      __m512i sum[kRows][kParts];
      for (int row = 0; row < kRows; ++row) {
        for (int v = 0; v < kParts; ++v) {
          sum[row][v] = start<kFormat>(panel, vector + v, x[v * kSides / kParts][row]);
        }
      }
      Codes::template add<kRows, kParts>(panel + codes_offset(kFormat) + 64 * vector, x, fetches,
                                         sum);
      for (int v = 0; v < kParts; ++v) {
        const __m512 scale = Float16::load(panel + 32 * (vector + v));
        for (int row = 0; row < kRows; ++row) {
          const float x_scale = x[v * kSides / kParts][row]->scale;
          const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale));
          total[row][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[row][v]), both, total[row][v]);
        }
      }
      for (auto& side : x) {
        for (int row = 0; row < kRows; ++row) ++side[row];
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kParts; ++v) {
        _mm512_storeu_ps(sums + row * kColumns + (vector + v) * 16, total[row][v]);
      }
    }
  }
};

// A look-up reads the lowest four bits of a lane and ignores the rest. So a lane's eight codes are
// shifted into place one after the other, in the order of depths 0, 4, 1, 5, 2, 6, 3, 7.
struct Nf4Product {
  // Adds the products with a block, with (kScaled) or without its scales.
  template <int kRows, bool kScaled, int kSides>
  static void add(const uint8_t* block, const float* const (&x)[kSides][kRows], __m512 codebook,
                  __m512 (&sum)[kRows][kVectors]) {
    constexpr int kEach = kVectors / kSides;
    const uint8_t* codes = block + codes_offset(Format::kNf4);
    for (int step = 0; step < kBlock / 8; ++step, codes += 4 * kColumns) {
      prefetch<kRows>(codes, 4 * kColumns);
      __m512i lanes[kVectors];
      for (int v = 0; v < kVectors; ++v) lanes[v] = _mm512_loadu_si512(codes + 64 * v);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        __m512 weights[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          weights[v] = _mm512_permutexvar_ps(lanes[v], codebook);
          if constexpr (kScaled)
            weights[v] = _mm512_mul_ps(weights[v], Float16::load(block + 32 * v));
          lanes[v] = _mm512_srli_epi32(lanes[v], 4);
        }
        for (int row = 0; row < kRows; ++row) {
          for (int side = 0; side < kSides; ++side) {
            const __m512 value = _mm512_set1_ps(x[side][row][8 * step + i / 2 + i % 2 * 4]);
            for (int v = side * kEach; v < (side + 1) * kEach; ++v) {
              sum[row][v] = _mm512_fmadd_ps(weights[v], value, sum[row][v]);
            }
          }
        }
      }
    }
  }

  template <int kRows, int kSides>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    const __m512 codebook = _mm512_loadu_ps(kNf4);
    const float* x[kSides][kRows];
    take_sides(rows, x);
    __m512 total[kRows][kVectors];
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) total[row][v] = _mm512_setzero_ps();
    }
    for (int64_t d = 0; d < depth; d += kBlock, panel += block_bytes(Format::kNf4)) {
      prefetch<kRows>(panel, kScaleBytes);
      float padded[kSides][kRows][kBlock];
      const float* block[kSides][kRows];
      for (int side = 0; side < kSides; ++side) {
        for (int row = 0; row < kRows; ++row) {
          block[side][row] = whole_block(x[side][row] + d, depth - d, padded[side][row]);
        }
      }
      if constexpr (kRows > 2) {
        add<kRows, true>(panel, block, codebook, total);
      } else {
        // Few rows leave registers for sums of a block, which are scaled instead of all weights:
        // 5 % less time for one row.
        __m512 sum[kRows][kVectors];
        for (int row = 0; row < kRows; ++row) {
          for (int v = 0; v < kVectors; ++v) sum[row][v] = _mm512_setzero_ps();
        }
        add<kRows, false>(panel, block, codebook, sum);
        for (int v = 0; v < kVectors; ++v) {
          const __m512 scale = Float16::load(panel + 32 * v);
          for (int row = 0; row < kRows; ++row) {
            total[row][v] = _mm512_fmadd_ps(sum[row][v], scale, total[row][v]);
          }
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) {
        _mm512_storeu_ps(sums + row * kColumns + v * 16, total[row][v]);
      }
    }
  }
};

}  // namespace
}  // namespace moe_export
