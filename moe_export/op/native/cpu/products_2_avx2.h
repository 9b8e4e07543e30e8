// Products of the AVX2 kernels. A panel's 64 columns are eight vectors, and the 16 registers hold
// the sums of one row. So rows take turns with a chunk of the panel that stays in the first-level
// cache. Six rows of 16 columns would load less, but reading a panel in stripes measured half as
// fast.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "cpu/by_count.h"
#include "cpu/kernels.h"

namespace moe_export {
namespace {

// As in the AVX-512 kernels, but at a shorter distance. On a Zen 4 with one token this gave 0.73
// and 0.84 of the rate of a plain read in int4 and int8; 8 KB ahead gave 0.32 and 0.40.
constexpr int64_t kAhead = 1024;
constexpr int64_t kEvery = 256;

inline void prefetch(const uint8_t* at, int64_t bytes) {
#pragma GCC unroll 2
  for (int64_t line = 0; line < bytes; line += kEvery) {
    _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead + line, _MM_HINT_T1);
  }
}

struct Float32 {
  static constexpr int64_t kBytes = 4;
  static __m256 load(const uint8_t* at) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
  }
};

struct Float16 {
  static constexpr int64_t kBytes = 2;
  static __m256 load(const uint8_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
};

struct Bfloat16 {
  static constexpr int64_t kBytes = 2;
  static __m256 load(const uint8_t* at) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
};

template <typename Weight>
struct FloatProduct {
  template <int kRows, int kSides>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    constexpr int64_t kChunk = 32;
    constexpr int kVectors = 8 / kSides;
    constexpr int64_t kStep = kColumns * Weight::kBytes;
    __builtin_memset(sums, 0, sizeof(float) * kRows * kColumns);
    for (int64_t first = 0; first < depth; first += kChunk, panel += kChunk * kStep) {
      const int64_t size = first + kChunk < depth ? kChunk : depth - first;
      for (int row = 0; row < kSides * kRows; ++row) {
        const float* x = static_cast<const float*>(rows[row]) + first;
        float* row_sums = sums + row * (kColumns / kSides);
        __m256 sum[kVectors];
        for (int v = 0; v < kVectors; ++v) sum[v] = _mm256_loadu_ps(row_sums + 8 * v);
        const uint8_t* at = panel + row % kSides * (kStep / kSides);
        for (int64_t d = 0; d < size; ++d, at += kStep) {
          if (row == 0) prefetch(at, kStep);
          const __m256 value = _mm256_set1_ps(x[d]);
          for (int v = 0; v < kVectors; ++v) {
            sum[v] = _mm256_fmadd_ps(Weight::load(at + 8 * v * Weight::kBytes), value, sum[v]);
          }
        }
        for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(row_sums + 8 * v, sum[v]);
      }
    }
  }
};

// Four codes, repeated in every lane.
inline __m256i broadcast(const int8_t* codes) {
  int32_t four;
  __builtin_memcpy(&four, codes, sizeof four);
  return _mm256_set1_epi32(four);
}

inline __m256i load(const uint8_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

// Dot products over a block: vectors of 32-bit sums of 8 columns.
#if defined(MOE_EXPORT_DOT_PRODUCTS)

inline __m256i add_dot(__m256i sum, __m256i codes, __m256i values) {
#if defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sum, codes, values);
#else
  return _mm256_dpbusd_epi32(sum, codes, values);
#endif
}

struct EightBits {
  static constexpr int32_t kTaken = 0;  // subtracted from the codes before the product

  template <int kRows, int kVectors>
  static void dot(const uint8_t* codes, const QuantizedBlock* const* x,
                  __m256i (&sum)[kRows][kVectors]) {
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) sum[row][v] = _mm256_setzero_si256();
    }
    for (int step = 0; step < kBlock / 4; ++step, codes += 4 * kColumns) {
      for (int v = 0; v < kVectors; ++v) {
        const __m256i weights = load(codes + 32 * v);
        for (int row = 0; row < kRows; ++row) {
          sum[row][v] = add_dot(sum[row][v], weights, broadcast(x[row]->codes + 4 * step));
        }
      }
    }
  }
};

struct FourBits {
  static constexpr int32_t kTaken = 0;

  template <int kRows, int kVectors>
  static void dot(const uint8_t* codes, const QuantizedBlock* const* x,
                  __m256i (&sum)[kRows][kVectors]) {
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) sum[row][v] = _mm256_setzero_si256();
    }
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int step = 0; step < kBlock / 8; ++step, codes += 4 * kColumns) {
      for (int v = 0; v < kVectors; ++v) {
        const __m256i pairs = load(codes + 32 * v);
        const __m256i low = _mm256_and_si256(pairs, nibble);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble);
        for (int row = 0; row < kRows; ++row) {
          sum[row][v] = add_dot(sum[row][v], low, broadcast(x[row]->codes + 8 * step));
          sum[row][v] = add_dot(sum[row][v], high, broadcast(x[row]->codes + 8 * step + 4));
        }
      }
    }
  }
};

#else

struct EightBits {
  static constexpr int32_t kTaken = 128;  // subtracted from the codes before the product

  template <int kRows, int kVectors>
  static void dot(const uint8_t* codes, const QuantizedBlock* const* x,
                  __m256i (&sum)[kRows][kVectors]) {
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) sum[row][v] = _mm256_setzero_si256();
    }
    const __m256i offset = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    for (int step = 0; step < kBlock / 4; ++step, codes += 4 * kColumns) {
      for (int v = 0; v < kVectors; ++v) {
        // maddubs saturates at 16 bits. Two products of magnitudes up to 128 and 127 fit, those of
        // an unsigned code up to 255 would not. So the sign moves to the activation.
        const __m256i weights = _mm256_xor_si256(load(codes + 32 * v), offset);
        const __m256i magnitude = _mm256_abs_epi8(weights);
        for (int row = 0; row < kRows; ++row) {
          const __m256i value = _mm256_sign_epi8(broadcast(x[row]->codes + 4 * step), weights);
          const __m256i pairs = _mm256_maddubs_epi16(magnitude, value);
          sum[row][v] = _mm256_add_epi32(sum[row][v], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
  }
};

struct FourBits {
  static constexpr int32_t kTaken = 0;

  template <int kRows, int kVectors>
  static void dot(const uint8_t* codes, const QuantizedBlock* const* x,
                  __m256i (&sum)[kRows][kVectors]) {
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) sum[row][v] = _mm256_setzero_si256();
    }
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int step = 0; step < kBlock / 8; ++step, codes += 4 * kColumns) {
      for (int v = 0; v < kVectors; ++v) {
        const __m256i pairs = load(codes + 32 * v);
        const __m256i low = _mm256_and_si256(pairs, nibble);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble);
        for (int row = 0; row < kRows; ++row) {
          const __m256i first = _mm256_maddubs_epi16(low, broadcast(x[row]->codes + 8 * step));
          const __m256i second =
              _mm256_maddubs_epi16(high, broadcast(x[row]->codes + 8 * step + 4));
          // A lane sums 16 products of at most 15 * 127 per block: 30480, which fits 16 bits.
          sum[row][v] = _mm256_add_epi16(sum[row][v], _mm256_add_epi16(first, second));
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) {
        sum[row][v] = _mm256_madd_epi16(sum[row][v], _mm256_set1_epi16(1));
      }
    }
  }
};

#endif

template <Format kFormat>
struct QuantizedProduct {
  using Codes = std::conditional_t<has_four_bits(kFormat), FourBits, EightBits>;

  // What `Codes` subtracted, less the zero of 8 columns, times the sum of the activations' codes.
  // Both factors fit one 16-bit multiplication: 32 codes add up to 4064 at most.
  static __m256i correction(const uint8_t* block, int64_t column, const QuantizedBlock* x) {
    if constexpr (!has_zero_points(kFormat)) {
      return _mm256_set1_epi32((Codes::kTaken - zero_code(kFormat)) * x->sum);
    }
    const uint8_t* zero_points = block + kScaleBytes + column;
    const __m256i zeros =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zero_points)));
    const __m256i taken = _mm256_sub_epi32(_mm256_set1_epi32(Codes::kTaken), zeros);
    return _mm256_madd_epi16(taken, _mm256_set1_epi32(x->sum & 0xffff));
  }

  template <int kRows, int kSides>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    constexpr int kVectors = kRows == 1 ? 4 : kRows <= 3 ? 2 : 1;
    __builtin_memset(sums, 0, sizeof(float) * kRows * kColumns);
    const QuantizedBlock* sides[kSides][kRows];
    take_sides(rows, sides);
    constexpr int64_t kBytes = block_bytes(kFormat);
    for (int64_t d = 0; d < depth; d += kBlock, panel += kBytes) {
      prefetch(panel, kBytes);
      for (int64_t column = 0; column < kColumns; column += 8 * kVectors) {
        const auto& x = sides[side_of<kSides>(column)];
        __m256i sum[kRows][kVectors];
        const uint8_t* codes = panel + codes_offset(kFormat) + 4 * column;
        Codes::template dot<kRows, kVectors>(codes, x, sum);
        for (int v = 0; v < kVectors; ++v) {
          const __m256 scale = Float16::load(panel + 2 * (column + 8 * v));
          for (int row = 0; row < kRows; ++row) {
            float* at = sums + row * kColumns + column + 8 * v;
            const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(x[row]->scale));
            const __m256i whole =
                _mm256_add_epi32(sum[row][v], correction(panel, column + 8 * v, x[row]));
            _mm256_storeu_ps(at,
                             _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), both, _mm256_loadu_ps(at)));
          }
        }
      }
      for (auto& side : sides) {
        for (int row = 0; row < kRows; ++row) ++side[row];
      }
    }
  }
};

// A float is assembled from its four bytes, each looked up for 32 codes at once; looking up eight
// floats at a time took more than twice as long. Interleaving works within the halves of a vector,
// so vector j of four holds four depths of column j in its lower half, and of column 4 + j in its
// upper half. They are summed at the end of a block.
struct Nf4Product {
  // Tables of one byte of each of the sixteen values, in both halves.
  static void tables(__m256i (&bytes)[4]) {
    for (int byte = 0; byte < 4; ++byte) {
      alignas(16) uint8_t table[16];
      for (int code = 0; code < 16; ++code) {
        uint32_t bits;
        __builtin_memcpy(&bits, kNf4 + code, sizeof bits);
        table[code] = static_cast<uint8_t>(bits >> (8 * byte));
      }
      bytes[byte] =
          _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
    }
  }

  // Values of 32 codes, in four vectors as above.
  static void look_up(const __m256i (&bytes)[4], __m256i codes, __m256* values) {
    __m256i looked_up[4];
    for (int byte = 0; byte < 4; ++byte) looked_up[byte] = _mm256_shuffle_epi8(bytes[byte], codes);
    for (int half = 0; half < 2; ++half) {
      const __m256i lower = half == 0 ? _mm256_unpacklo_epi8(looked_up[0], looked_up[1])
                                      : _mm256_unpackhi_epi8(looked_up[0], looked_up[1]);
      const __m256i upper = half == 0 ? _mm256_unpacklo_epi8(looked_up[2], looked_up[3])
                                      : _mm256_unpackhi_epi8(looked_up[2], looked_up[3]);
      values[2 * half] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(lower, upper));
      values[2 * half + 1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(lower, upper));
    }
  }

  template <int kRows, int kSides>
  static void run(const uint8_t* panel, int64_t depth, const void* const* rows, float* sums) {
    __builtin_memset(sums, 0, sizeof(float) * kRows * kColumns);
    const float* whole_rows[kSides][kRows];
    take_sides(rows, whole_rows);
    __m256i bytes[4];
    tables(bytes);
    const __m256i nibble = _mm256_set1_epi8(15);
    constexpr int64_t kBytes = block_bytes(Format::kNf4);
    for (int64_t d = 0; d < depth; d += kBlock, panel += kBytes) {
      prefetch(panel, kBytes);
      float padded[kSides][kRows][kBlock];
      const float* sides[kSides][kRows];
      for (int side = 0; side < kSides; ++side) {
        for (int row = 0; row < kRows; ++row) {
          sides[side][row] = whole_block(whole_rows[side][row] + d, depth - d, padded[side][row]);
        }
      }
      for (int64_t column = 0; column < kColumns; column += 8) {
        const auto& x = sides[side_of<kSides>(column)];
        const uint8_t* codes = panel + codes_offset(Format::kNf4) + 4 * column;
        __m256 values[kBlock];
        for (int step = 0; step < kBlock / 8; ++step) {
          const __m256i pairs = load(codes + 4 * kColumns * step);
          look_up(bytes, _mm256_and_si256(pairs, nibble), values + 8 * step);
          look_up(bytes, _mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble),
                  values + 8 * step + 4);
        }
        const __m256 scale = Float16::load(panel + 2 * column);
        for (int row = 0; row < kRows; ++row) {
          __m256 sum[4];
          for (int j = 0; j < 4; ++j) sum[j] = _mm256_setzero_ps();
          for (int four = 0; four < kBlock / 4; ++four) {
            const __m256 value =
                _mm256_broadcast_ps(reinterpret_cast<const __m128*>(x[row] + 4 * four));
            for (int j = 0; j < 4; ++j) {
              sum[j] = _mm256_fmadd_ps(values[4 * four + j], value, sum[j]);
            }
          }
          const __m256 whole =
              _mm256_hadd_ps(_mm256_hadd_ps(sum[0], sum[1]), _mm256_hadd_ps(sum[2], sum[3]));
          float* at = sums + row * kColumns + column;
          _mm256_storeu_ps(at, _mm256_fmadd_ps(whole, scale, _mm256_loadu_ps(at)));
        }
      }
    }
  }
};

}  // namespace
}  // namespace moe_export
