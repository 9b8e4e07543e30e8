// The source of the Arm kernels: kernels_4_neon.cc, kernels_5_dotprod.cc and kernels_6_i8mm.cc
// include it and are compiled with different flags.
#pragma once

#include "cpu/activations.h"
#include "cpu/codes_4_neon.h"

namespace moe_export {
namespace {

struct Vector {
  using Floats = float32x4_t;
  static constexpr int64_t kLanes = 4;

  static Floats load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, Floats a) { vst1q_f32(to, a); }
  static Floats set(float value) { return vdupq_n_f32(value); }
  static Floats min(Floats a, Floats b) { return vminq_f32(a, b); }
  static Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }
  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats subtract(Floats a, Floats b) { return vsubq_f32(a, b); }
  static Floats multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats divide(Floats a, Floats b) { return vdivq_f32(a, b); }
  // a * b + c.
  static Floats add_product(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  // c - a * b.
  static Floats subtract_product(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }
  // Rounded to whole numbers, ties to even.
  static Floats nearest(Floats a) { return vrndnq_f32(a); }
  // a * 2^n. The power is built from its bits: zero for n = -127, infinity for n = 128.
  static Floats times_power_of_two(Floats a, Floats n) {
    const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
  }
};

// Bits of the largest magnitude. Compared as integers, those of infinity and NaN are above all
// others.
inline uint32_t largest_magnitude(const float* block) {
  uint32x4_t magnitude = vdupq_n_u32(0);
  for (int64_t i = 0; i < kBlock; i += 4) {
    magnitude = vmaxq_u32(magnitude, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(block + i))));
  }
  return vmaxvq_u32(magnitude);
}

void quantize(const float* values, int64_t count, QuantizedBlock* blocks) {
  for (int64_t first = 0; first < count; first += kBlock, ++blocks) {
    float padded[kBlock];
    const float* block = whole_block(values + first, count - first, padded);
    const uint32_t bits = largest_magnitude(block);
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
    int32x4_t sum = vdupq_n_s32(0);
    for (int64_t i = 0; i < kBlock; i += 8) {
      const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(block + i), inverse));
      const int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(block + i + 4), inverse));
      sum = vaddq_s32(sum, vaddq_s32(a, b));
      vst1_s8(blocks->codes + i, vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b))));
    }
    blocks->sum = vaddvq_s32(sum);
  }
}

void widen(const uint16_t* halves, int64_t count, float* values) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    vst1q_f32(values + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + i))));
  }
  for (; i < count; ++i) {
    values[i] = vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(halves[i]))), 0);
  }
}

void narrow(const float* values, int64_t count, uint16_t* halves) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    vst1_u16(halves + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(values + i))));
  }
  for (; i < count; ++i) {
    halves[i] = vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(values[i]))), 0);
  }
}

template <typename Weight, int kSides>
constexpr Product* product_of_floats() {
  return by_count<FloatProduct<Widened<Weight>>, kSides>;
}

template <Format kFormat, int kSides>
constexpr Product* product_of_codes() {
  return by_count<QuantizedProduct<kFormat>, kSides, kMostRowsOfCodes>;
}

template <int kSides>
constexpr Products kProducts = {
    {product_of_floats<Float32, kSides>(), product_of_floats<Float16, kSides>(),
     product_of_floats<Bfloat16, kSides>(), product_of_codes<Format::kInt8, kSides>(),
     product_of_codes<Format::kInt4, kSides>(), product_of_codes<Format::kUint8, kSides>(),
     product_of_codes<Format::kUint4, kSides>(), by_count<Nf4Product, kSides>}};

// Rounding is plain C++, which compilers turn into the same vectors.
constexpr Kernels kernels_named(const char* name) {
  return {name,
          {kProducts<1>, kProducts<2>},
          {gated<Vector, Silu>, gated<Vector, Gelu>, plain<Vector, Silu>, plain<Vector, Relu>,
           plain<Vector, Relu2>},
          quantize,
          widen,
          narrow,
          portable_rounding};
}

}  // namespace
}  // namespace moe_export
