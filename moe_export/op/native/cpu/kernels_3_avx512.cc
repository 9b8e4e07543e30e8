// Version 3 of 3, from plain to fast: AVX-512 with VNNI. Products are in products_3_avx512.h.
//
// To time it: `MOE_EXPORT_KERNEL=avx512 python -m tools.bench.op --candidates packed_int4`.
#include "cpu/kernels.h"

#if defined(__AVX512VNNI__)

#include <immintrin.h>

#include "cpu/activations.h"
#include "cpu/products_3_avx512.h"

namespace moe_export {
namespace {

struct Vector {
  using Floats = __m512;
  static constexpr int64_t kLanes = 16;

  static Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Floats a) { _mm512_storeu_ps(to, a); }
  static Floats set(float value) { return _mm512_set1_ps(value); }
  static Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  // a * b + c.
  static Floats add_product(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  // c - a * b.
  static Floats subtract_product(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
  // Rounded to whole numbers, ties to even.
  static Floats nearest(Floats a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // a * 2^n.
  static Floats times_power_of_two(Floats a, Floats n) { return _mm512_scalef_ps(a, n); }
};

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

template <int kSides>
constexpr Products kProducts = {
    {by_count<FloatProduct<Float32>, kSides>, by_count<FloatProduct<Float16>, kSides>,
     by_count<FloatProduct<Bfloat16>, kSides>,
     by_count<QuantizedProduct<Format::kInt8>, kSides, kTile>,
     by_count<QuantizedProduct<Format::kInt4>, kSides, kTile>,
     by_count<QuantizedProduct<Format::kUint8>, kSides, kTile>,
     by_count<QuantizedProduct<Format::kUint4>, kSides, kTile>, by_count<Nf4Product, kSides>}};

const Kernels kKernels = {"avx512",
                          {kProducts<1>, kProducts<2>},
                          {gated<Vector, Silu>, gated<Vector, Gelu>, plain<Vector, Silu>,
                           plain<Vector, Relu>, plain<Vector, Relu2>},
                          quantize,
                          widen,
                          narrow,
                          avx512_rounding};

}  // namespace

const Kernels* avx512_kernels() { return &kKernels; }

}  // namespace moe_export

#else

const moe_export::Kernels* moe_export::avx512_kernels() { return nullptr; }

#endif
