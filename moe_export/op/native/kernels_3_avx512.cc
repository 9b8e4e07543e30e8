// The kernels for AVX-512 with VNNI.
#include "kernels.h"

#if defined(__AVX512VNNI__)

#include <immintrin.h>

#include "products_3_avx512.h"

namespace moe_export {
namespace {

constexpr float kInverseFactorials[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6,
                                        0.5f,       1.0f,       1.0f};

// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2, where the series to r^7 is exact to float32. Above the
// range of float32 it gives infinity, as it has to: -3e38 / (1 + exp(3e38)) is zero.
inline __m512 exp(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-88.0f)), _mm512_set1_ps(89.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // ln(2) in two parts, the first with enough trailing zeros for n * part to be exact.
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
  __m512 series = _mm512_set1_ps(1.0f / 5040);
  for (float factor : kInverseFactorials) {
    series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(factor));
  }
  return _mm512_scalef_ps(series, n);
}

struct Silu {
  static __m512 of(__m512 a) {
    const __m512 negative = _mm512_sub_ps(_mm512_setzero_ps(), a);
    return _mm512_div_ps(a, _mm512_add_ps(_mm512_set1_ps(1.0f), exp(negative)));
  }
};

struct Gelu {
  static __m512 of(__m512 a) {
    const __m512 slope = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_set1_ps(kGeluCubic), a), a,
                                         _mm512_set1_ps(kGeluLinear));
    const __m512 negative = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(a, slope));
    return _mm512_div_ps(a, _mm512_add_ps(_mm512_set1_ps(1.0f), exp(negative)));
  }
};

struct Relu {
  // Of a NaN and another number the instruction gives the second.
  static __m512 of(__m512 a) { return _mm512_max_ps(_mm512_setzero_ps(), a); }
};

struct Relu2 {
  static __m512 of(__m512 a) { return _mm512_mul_ps(Relu::of(a), Relu::of(a)); }
};

template <typename Function>
void gated(const float* sums, float* hidden) {
  constexpr int64_t kUnits = kColumns / 2;
  for (int64_t unit = 0; unit < kUnits; unit += 16) {
    const __m512 up = _mm512_loadu_ps(sums + kUnits + unit);
    const __m512 gate = Function::of(_mm512_loadu_ps(sums + unit));
    _mm512_storeu_ps(hidden + unit, _mm512_mul_ps(gate, up));
  }
}

template <typename Function>
void plain(const float* sums, float* hidden) {
  for (int64_t unit = 0; unit < kColumns; unit += 16) {
    _mm512_storeu_ps(hidden + unit, Function::of(_mm512_loadu_ps(sums + unit)));
  }
}

inline __mmask16 first_lanes(int64_t count) {
  if (count >= 16) return 0xffff;
  return count <= 0 ? 0 : static_cast<__mmask16>((1 << count) - 1);
}

void quantize(const float* values, int64_t count, QuantizedBlock* blocks) {
  for (int64_t first = 0; first < count; first += kBlock, ++blocks) {
    const __m512 a = _mm512_maskz_loadu_ps(first_lanes(count - first), values + first);
    const __m512 b = _mm512_maskz_loadu_ps(first_lanes(count - first - 16), values + first + 16);
    // Compared as integers, magnitudes of infinity and NaN are above all others.
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const int32_t bits = _mm512_reduce_max_epi32(
        _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), magnitude),
                         _mm512_and_si512(_mm512_castps_si512(b), magnitude)));
    float largest;
    __builtin_memcpy(&largest, &bits, sizeof largest);
    const bool finite = bits < 0x7f800000;
    float inverse = 127.0f / largest;
    if (!finite || !(inverse <= __FLT_MAX__)) inverse = 0.0f;
    const __m512i a_codes = _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse)));
    const __m512i b_codes = _mm512_cvtps_epi32(_mm512_mul_ps(b, _mm512_set1_ps(inverse)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(blocks->codes), _mm512_cvtepi32_epi8(a_codes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(blocks->codes + 16), _mm512_cvtepi32_epi8(b_codes));
    blocks->scale = finite ? largest / 127.0f : __builtin_nanf("");
    blocks->sum = finite ? _mm512_reduce_add_epi32(_mm512_add_epi32(a_codes, b_codes)) : 0;
  }
}

void widen(const uint16_t* halves, int64_t count, float* values) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m256i half = _mm256_maskz_loadu_epi16(lanes, halves + i);
    _mm512_mask_storeu_ps(values + i, lanes, _mm512_cvtph_ps(half));
  }
}

void narrow(const float* values, int64_t count, uint16_t* halves) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512 value = _mm512_maskz_loadu_ps(lanes, values + i);
    const __m256i half = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(halves + i, lanes, half);
  }
}

const Kernels kKernels = {
    "avx512",
    {by_count<FloatProduct<Float32>>, by_count<FloatProduct<Float16>>,
     by_count<FloatProduct<Bfloat16>>, by_count<QuantizedProduct<Format::kInt8>>,
     by_count<QuantizedProduct<Format::kInt4>>, by_count<QuantizedProduct<Format::kUint8>>,
     by_count<QuantizedProduct<Format::kUint4>>, by_count<Nf4Product>},
    {gated<Silu>, gated<Gelu>, plain<Silu>, plain<Relu>, plain<Relu2>},
    quantize,
    widen,
    narrow};

}  // namespace

const Kernels* avx512_kernels() { return &kKernels; }

}  // namespace moe_export

#else

const moe_export::Kernels* moe_export::avx512_kernels() { return nullptr; }

#endif
