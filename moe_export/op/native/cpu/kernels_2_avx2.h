// The source of the kernels on AVX2's registers: kernels_2_avx2.cc and kernels_2_avxvnni.cc include
// it and are compiled with different flags.
#pragma once

#include <immintrin.h>

#include "cpu/activations.h"
#include "cpu/products_2_avx2.h"

namespace moe_export {
namespace {

struct Vector {
  using Floats = __m256;
  static constexpr int64_t kLanes = 8;

  static Floats load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Floats a) { _mm256_storeu_ps(to, a); }
  static Floats set(float value) { return _mm256_set1_ps(value); }
  static Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats divide(Floats a, Floats b) { return _mm256_div_ps(a, b); }
  // a * b + c.
  static Floats add_product(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  // c - a * b.
  static Floats subtract_product(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
  // Rounded to whole numbers, ties to even.
  static Floats nearest(Floats a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // a * 2^n. The power is built from its bits: zero for n = -127, infinity for n = 128.
  static Floats times_power_of_two(Floats a, Floats n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
};

inline int32_t largest_lane(__m256i lanes) {
  alignas(32) int32_t values[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(values), lanes);
  int32_t largest = values[0];
  for (int32_t value : values) largest = value > largest ? value : largest;
  return largest;
}

void quantize(const float* values, int64_t count, QuantizedBlock* blocks) {
  for (int64_t first = 0; first < count; first += kBlock, ++blocks) {
    alignas(32) float block[kBlock] = {};
    const int64_t size = count - first < kBlock ? count - first : kBlock;
    __builtin_memcpy(block, values + first, static_cast<size_t>(size) * sizeof(float));
    // Compared as integers, magnitudes of infinity and NaN are above all others.
    __m256i magnitude = _mm256_setzero_si256();
    for (int64_t i = 0; i < kBlock; i += 8) {
      const __m256i bits = _mm256_load_si256(reinterpret_cast<const __m256i*>(block + i));
      magnitude =
          _mm256_max_epi32(magnitude, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    }
    const int32_t bits = largest_lane(magnitude);
    float largest;
    __builtin_memcpy(&largest, &bits, sizeof largest);
    blocks->scale = largest / 127.0f;
    blocks->sum = 0;
    float inverse = 127.0f / largest;
    if (bits >= 0x7f800000) {
      __builtin_memset(blocks->codes, 0, sizeof blocks->codes);
      blocks->scale = __builtin_nanf("");
      continue;
    }
    if (!(inverse <= __FLT_MAX__)) inverse = 0.0f;
    for (int64_t i = 0; i < kBlock; i += 8) {
      alignas(32) int32_t codes[8];
      const __m256 scaled = _mm256_mul_ps(_mm256_load_ps(block + i), _mm256_set1_ps(inverse));
      _mm256_store_si256(reinterpret_cast<__m256i*>(codes), _mm256_cvtps_epi32(scaled));
      for (int lane = 0; lane < 8; ++lane) {
        blocks->codes[i + lane] = static_cast<int8_t>(codes[lane]);
        blocks->sum += codes[lane];
      }
    }
  }
}

void widen(const uint16_t* halves, int64_t count, float* values) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i));
    _mm256_storeu_ps(values + i, _mm256_cvtph_ps(half));
  }
  for (; i < count; ++i) values[i] = _cvtsh_ss(halves[i]);
}

void narrow(const float* values, int64_t count, uint16_t* halves) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(halves + i), half);
  }
  for (; i < count; ++i) halves[i] = _cvtss_sh(values[i], _MM_FROUND_TO_NEAREST_INT);
}

template <int kSides>
constexpr Products kProducts = {
    {by_count<FloatProduct<Float32>, kSides>, by_count<FloatProduct<Float16>, kSides>,
     by_count<FloatProduct<Bfloat16>, kSides>, by_count<QuantizedProduct<Format::kInt8>, kSides>,
     by_count<QuantizedProduct<Format::kInt4>, kSides>,
     by_count<QuantizedProduct<Format::kUint8>, kSides>,
     by_count<QuantizedProduct<Format::kUint4>, kSides>, by_count<Nf4Product, kSides>}};

constexpr Kernels kernels_named(const char* name) {
  return {name,
          {kProducts<1>, kProducts<2>},
          {gated<Vector, Silu>, gated<Vector, Gelu>, plain<Vector, Silu>, plain<Vector, Relu>,
           plain<Vector, Relu2>},
          quantize,
          widen,
          narrow,
          avx2_rounding};
}

}  // namespace
}  // namespace moe_export
