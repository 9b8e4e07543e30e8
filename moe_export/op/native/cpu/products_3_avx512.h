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
  template <int kRows>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    const float* x[kRows];
    __m512 sum[kRows][kVectors];
    for (int row = 0; row < kRows; ++row) {
      x[row] = static_cast<const float*>(rows[row]);
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
        const __m512 value = _mm512_set1_ps(x[row][d]);
        for (int v = 0; v < kVectors; ++v) {
          sum[row][v] = _mm512_fmadd_ps(weights[v], value, sum[row][v]);
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
  template <int kRows, int kParts>
  static void add(const uint8_t* codes, const QuantizedBlock* const* x, bool fetches,
                  __m512i (&sum)[kRows][kParts]) {
#pragma GCC unroll 8
    for (int step = 0; step < kBlock / 4; ++step, codes += 4 * kColumns) {
      if (fetches) prefetch<kRows>(codes, 4 * kColumns);
      __m512i weights[kParts];
      for (int v = 0; v < kParts; ++v) weights[v] = _mm512_loadu_si512(codes + 64 * v);
      for (int row = 0; row < kRows; ++row) {
        const __m512i value = broadcast(x[row]->codes + 4 * step);
        for (int v = 0; v < kParts; ++v) {
          sum[row][v] = _mm512_dpbusd_epi32(sum[row][v], weights[v], value);
        }
      }
    }
  }
};

struct FourBits {
  // With one row, splitting the nibbles is most of the work. So high nibbles stay in place, as 16
  // times their value, and have sums of their own.
  static void add_one(const uint8_t* codes, const QuantizedBlock* x, __m512i (&sum)[kVectors]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i sixteen[kVectors];
    for (int v = 0; v < kVectors; ++v) sixteen[v] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int step = 0; step < kBlock / 8; ++step, codes += 4 * kColumns) {
      prefetch<1>(codes, 4 * kColumns);
      const __m512i first = broadcast(x->codes + 8 * step);
      const __m512i second = broadcast(x->codes + 8 * step + 4);
      for (int v = 0; v < kVectors; ++v) {
        __m512i pairs = _mm512_loadu_si512(codes + 64 * v);
        __asm__("" : "+v"(pairs));  // or the compiler loads it twice, and loads are scarce
        const __m512i low = _mm512_and_si512(pairs, nibble);
        sum[v] = _mm512_dpbusd_epi32(sum[v], low, first);
        sixteen[v] = _mm512_dpbusd_epi32(sixteen[v], _mm512_xor_si512(pairs, low), second);
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      sum[v] = _mm512_add_epi32(sum[v], _mm512_srai_epi32(sixteen[v], 4));
    }
  }

  template <int kRows, int kParts>
  static void add(const uint8_t* codes, const QuantizedBlock* const* x, bool fetches,
                  __m512i (&sum)[kRows][kParts]) {
    if constexpr (kRows == 1 && kParts == kVectors) return add_one(codes, x[0], sum[0]);
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
        const __m512i first = broadcast(x[row]->codes + 8 * step);
        for (int v = 0; v < kParts; ++v) {
          sum[row][v] = _mm512_dpbusd_epi32(sum[row][v], low[v], first);
        }
      }
      for (int row = 0; row < kRows; ++row) {
        const __m512i second = broadcast(x[row]->codes + 8 * step + 4);
        for (int v = 0; v < kParts; ++v) {
          sum[row][v] = _mm512_dpbusd_epi32(sum[row][v], high[v], second);
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

  template <int kRows>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    constexpr int kParts = kPartsOf<kRows>;
    const int64_t blocks = (depth + kBlock - 1) / kBlock;
    if constexpr (kParts == kVectors) return add<kRows, kParts>(panel, 0, blocks, rows, 0, sums);
    for (int64_t first = 0; first < blocks; first += kChunk) {
      const int64_t last = first + kChunk < blocks ? first + kChunk : blocks;
      for (int v = 0; v < kVectors; v += kParts) {
        add<kRows, kParts>(panel, first, last, rows, v, sums);
      }
    }
  }

  // Adds the products of blocks [first, last) to kParts vectors of columns.
  template <int kRows, int kParts>
  static void add(const uint8_t* panel, int64_t first, int64_t last, const void* const* rows,
                  int vector, float* sums) {
    const QuantizedBlock* x[kRows];
    __m512 total[kRows][kParts];
    for (int row = 0; row < kRows; ++row) {
      x[row] = static_cast<const QuantizedBlock*>(rows[row]) + first;
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
        for (int v = 0; v < kParts; ++v) sum[row][v] = start<kFormat>(panel, vector + v, x[row]);
      }
      Codes::template add<kRows, kParts>(panel + codes_offset(kFormat) + 64 * vector, x, fetches,
                                         sum);
      for (int v = 0; v < kParts; ++v) {
        const __m512 scale = Float16::load(panel + 32 * (vector + v));
        for (int row = 0; row < kRows; ++row) {
          const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x[row]->scale));
          total[row][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[row][v]), both, total[row][v]);
        }
      }
      for (int row = 0; row < kRows; ++row) ++x[row];
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
  template <int kRows, bool kScaled>
  static void add(const uint8_t* block, const float* const* x, __m512 codebook,
                  __m512 (&sum)[kRows][kVectors]) {
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
          const __m512 value = _mm512_set1_ps(x[row][8 * step + i / 2 + i % 2 * 4]);
          for (int v = 0; v < kVectors; ++v) {
            sum[row][v] = _mm512_fmadd_ps(weights[v], value, sum[row][v]);
          }
        }
      }
    }
  }

  template <int kRows>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    const __m512 codebook = _mm512_loadu_ps(kNf4);
    __m512 total[kRows][kVectors];
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) total[row][v] = _mm512_setzero_ps();
    }
    for (int64_t d = 0; d < depth; d += kBlock, panel += block_bytes(Format::kNf4)) {
      prefetch<kRows>(panel, kScaleBytes);
      float padded[kRows][kBlock];
      const float* x[kRows];
      for (int row = 0; row < kRows; ++row) {
        x[row] = whole_block(static_cast<const float*>(rows[row]) + d, depth - d, padded[row]);
      }
      if constexpr (kRows > 2) {
        add<kRows, true>(panel, x, codebook, total);
      } else {
        // Few rows leave registers for sums of a block, which are scaled instead of all weights:
        // 5 % less time for one row.
        __m512 sum[kRows][kVectors];
        for (int row = 0; row < kRows; ++row) {
          for (int v = 0; v < kVectors; ++v) sum[row][v] = _mm512_setzero_ps();
        }
        add<kRows, false>(panel, x, codebook, sum);
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
