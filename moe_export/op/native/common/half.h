// Conversions of float16 and bfloat16 in plain C++.
#pragma once

#include <cstdint>
#include <cstring>

namespace moe_export {
namespace {

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of_bfloat16(uint16_t half) {
  return float_of_bits(static_cast<uint32_t>(half) << 16);
}

inline float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  // Infinity and NaN get the exponent of a float's. All other numbers are scaled by the difference
  // of the exponents' biases, 127 - 15, which is exact for subnormal numbers too.
  if (magnitude >= 0x0f800000) return float_of_bits(sign | magnitude | 0x7f800000);
  return float_of_bits(sign | bits_of_float(float_of_bits(magnitude) * 0x1p112f));
}

// Rounds to nearest, ties to even.
inline uint16_t half_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) {
    // Below 2^-14 a half's last place is 2^-24, that of a float between 0.5 and 1.
    const float rounded = float_of_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of_float(rounded) - bits_of_float(0.5f)));
  }
  const uint32_t even = (magnitude >> 13) & 1;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + even) >> 13));
}

}  // namespace
}  // namespace moe_export
