// The kernels for AVX2.
#include "kernels.h"

#if defined(__AVX2__)

#include <immintrin.h>

#include "products_2_avx2.h"

namespace moe_export {
namespace {

constexpr float kInverseFactorials[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6,
                                        0.5f,       1.0f,       1.0f};

// As in the AVX-512 kernels. 2^n is put together from its bits: zero for n = -127 and infinity for
// n = 128.
inline __m256 exp(__m256 x) {
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-88.0f)), _mm256_set1_ps(89.0f));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
  __m256 series = _mm256_set1_ps(1.0f / 5040);
  for (float factor : kInverseFactorials) {
    series = _mm256_fmadd_ps(series, r, _mm256_set1_ps(factor));
  }
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(series, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

struct Silu {
  static __m256 of(__m256 a) {
    const __m256 negative = _mm256_sub_ps(_mm256_setzero_ps(), a);
    return _mm256_div_ps(a, _mm256_add_ps(_mm256_set1_ps(1.0f), exp(negative)));
  }
};

struct Gelu {
  static __m256 of(__m256 a) {
    const __m256 slope = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_set1_ps(kGeluCubic), a), a,
                                         _mm256_set1_ps(kGeluLinear));
    const __m256 negative = _mm256_sub_ps(_mm256_setzero_ps(), _mm256_mul_ps(a, slope));
    return _mm256_div_ps(a, _mm256_add_ps(_mm256_set1_ps(1.0f), exp(negative)));
  }
};

struct Relu {
  // Of a NaN and another number the instruction gives the second.
  static __m256 of(__m256 a) { return _mm256_max_ps(_mm256_setzero_ps(), a); }
};

struct Relu2 {
  static __m256 of(__m256 a) { return _mm256_mul_ps(Relu::of(a), Relu::of(a)); }
};

template <typename Function>
void gated(const float* sums, float* hidden) {
  constexpr int64_t kUnits = kColumns / 2;
  for (int64_t unit = 0; unit < kUnits; unit += 8) {
    const __m256 up = _mm256_loadu_ps(sums + kUnits + unit);
    const __m256 gate = Function::of(_mm256_loadu_ps(sums + unit));
    _mm256_storeu_ps(hidden + unit, _mm256_mul_ps(gate, up));
  }
}

template <typename Function>
void plain(const float* sums, float* hidden) {
  for (int64_t unit = 0; unit < kColumns; unit += 8) {
    _mm256_storeu_ps(hidden + unit, Function::of(_mm256_loadu_ps(sums + unit)));
  }
}

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

const Kernels kKernels = {
    "avx2",
    {by_count<FloatProduct<Float32>>, by_count<FloatProduct<Float16>>,
     by_count<FloatProduct<Bfloat16>>, by_count<QuantizedProduct<Format::kInt8>>,
     by_count<QuantizedProduct<Format::kInt4>>, by_count<QuantizedProduct<Format::kUint8>>,
     by_count<QuantizedProduct<Format::kUint4>>, by_count<Nf4Product>},
    {gated<Silu>, gated<Gelu>, plain<Silu>, plain<Relu>, plain<Relu2>},
    quantize,
    widen,
    narrow};

}  // namespace

const Kernels* avx2_kernels() { return &kKernels; }

}  // namespace moe_export

#else

const moe_export::Kernels* moe_export::avx2_kernels() { return nullptr; }

#endif
