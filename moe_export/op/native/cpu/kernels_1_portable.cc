// Version 1 of 3, from plain to fast: plain C++ for every processor.
//
// To time it: `MOE_EXPORT_KERNEL=portable python -m tools.bench.op --candidates packed_int4`.
#include <cmath>

#include "common/half.h"
#include "cpu/kernels.h"

namespace moe_export {
namespace {

struct Float32 {
  static constexpr int64_t kBytes = 4;
  static float load(const uint8_t* at) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
};

struct Float16 {
  static constexpr int64_t kBytes = 2;
  static float load(const uint8_t* at) {
    uint16_t half;
    std::memcpy(&half, at, sizeof half);
    return float_of_half(half);
  }
};

struct Bfloat16 {
  static constexpr int64_t kBytes = 2;
  static float load(const uint8_t* at) {
    uint16_t half;
    std::memcpy(&half, at, sizeof half);
    return float_of_bfloat16(half);
  }
};

// Columns of a side, which are multiplied by the same row.
template <int kSides>
constexpr int64_t kWidth = kColumns / kSides;

template <typename Weight, int kSides>
void product(const uint8_t* panel, int64_t depth, const void* const* rows, int count, float* sums) {
  std::memset(sums, 0, static_cast<size_t>(count) * kColumns * sizeof(float));
  for (int64_t d = 0; d < depth; ++d, panel += kColumns * Weight::kBytes) {
    float weights[kColumns];
    for (int64_t c = 0; c < kColumns; ++c) weights[c] = Weight::load(panel + c * Weight::kBytes);
    for (int row = 0; row < kSides * count; ++row) {
      const float x = static_cast<const float*>(rows[row])[d];
      const float* factors = weights + row % kSides * kWidth<kSides>;
      float* sum = sums + row * kWidth<kSides>;
      for (int64_t c = 0; c < kWidth<kSides>; ++c) sum[c] += x * factors[c];
    }
  }
}

// Bytes of codes that go together in a panel: 4 of the depth for each column. Plain loops over them
// are what compilers turn into vectors.
constexpr int64_t kQuad = 4;
constexpr int64_t kGroup = kQuad * kColumns;
constexpr int64_t kGroups = kBlock / kQuad;
constexpr int64_t kLanes = 16;

// Codes of a block: codes[group][column * 4 + d % 4] for the depth 4 * group + d % 4.
using Codes = int16_t[kGroups][kGroup];

// Number taken off codes of 8 bits, so that the sum of two products fits into 16 bits.
template <Format kFormat>
constexpr int32_t kTaken = has_four_bits(kFormat) ? 0 : 128;

template <Format kFormat>
void unpack(const uint8_t* block, Codes codes) {
  const uint8_t* from = block + codes_offset(kFormat);
  if constexpr (has_four_bits(kFormat)) {
    for (int64_t pair = 0; pair < kGroups; pair += 2, from += kGroup) {
      for (int64_t i = 0; i < kGroup; ++i) codes[pair][i] = from[i] & 15;
      for (int64_t i = 0; i < kGroup; ++i) codes[pair + 1][i] = from[i] >> 4;
    }
  } else {
    for (int64_t group = 0; group < kGroups; ++group, from += kGroup) {
      for (int64_t i = 0; i < kGroup; ++i) {
        codes[group][i] = static_cast<int16_t>(from[i] - kTaken<kFormat>);
      }
    }
  }
}

// Dot products of the columns [begin, end) of a block with 32 activations. Products of
// `kGroupsInShort` groups are summed in 16 bits: two of 8 bits (2 * 128 * 127), eight of 4 bits
// (8 * 15 * 127).
template <int64_t kGroupsInShort>
void dot(const Codes codes, const int8_t* x, int64_t begin, int64_t end, int32_t* sums) {
  int16_t repeated[kGroups][kLanes];
  for (int64_t group = 0; group < kGroups; ++group) {
    for (int64_t i = 0; i < kLanes; ++i) repeated[group][i] = x[group * kQuad + i % kQuad];
  }
  for (int64_t first = kQuad * begin; first < kQuad * end; first += kLanes) {
    int32_t wide[kLanes] = {};
    for (int64_t group = 0; group < kGroups; group += kGroupsInShort) {
      int16_t narrow[kLanes] = {};
      for (int64_t g = group; g < group + kGroupsInShort; ++g) {
        for (int64_t i = 0; i < kLanes; ++i) {
          narrow[i] = static_cast<int16_t>(narrow[i] + codes[g][first + i] * repeated[g][i]);
        }
      }
      for (int64_t i = 0; i < kLanes; ++i) wide[i] += narrow[i];
    }
    for (int64_t i = 0; i < kLanes; i += kQuad) {
      sums[(first + i) / kQuad] = wide[i] + wide[i + 1] + wide[i + 2] + wide[i + 3];
    }
  }
}

template <Format kFormat, int kSides>
void quantized_product(const uint8_t* panel, int64_t depth, const void* const* rows, int count,
                       float* sums) {
  std::memset(sums, 0, static_cast<size_t>(count) * kColumns * sizeof(float));
  for (int64_t block = 0; block * kBlock < depth; ++block, panel += block_bytes(kFormat)) {
    Codes codes;
    unpack<kFormat>(panel, codes);
    int32_t zero[kColumns];
    float scale[kColumns];
    for (int64_t c = 0; c < kColumns; ++c) {
      zero[c] = has_zero_points(kFormat) ? panel[kScaleBytes + c] : zero_code(kFormat);
      scale[c] = Float16::load(panel + 2 * c);
    }
    for (int row = 0; row < kSides * count; ++row) {
      const QuantizedBlock& x = static_cast<const QuantizedBlock*>(rows[row])[block];
      const int64_t begin = row % kSides * kWidth<kSides>, end = begin + kWidth<kSides>;
      int32_t sum[kColumns];
      dot<has_four_bits(kFormat) ? 8 : 2>(codes, x.codes, begin, end, sum);
      float* to = sums + row / kSides * kColumns;
      for (int64_t c = begin; c < end; ++c) {
        const int32_t exact = sum[c] + (kTaken<kFormat> - zero[c]) * x.sum;
        to[c] += static_cast<float>(exact) * (scale[c] * x.scale);
      }
    }
  }
}

template <int kSides>
void nf4_product(const uint8_t* panel, int64_t depth, const void* const* rows, int count,
                 float* sums) {
  std::memset(sums, 0, static_cast<size_t>(count) * kColumns * sizeof(float));
  for (int64_t first = 0; first < depth; first += kBlock, panel += block_bytes(Format::kNf4)) {
    Codes codes;
    unpack<Format::kNf4>(panel, codes);
    float scale[kColumns];
    for (int64_t c = 0; c < kColumns; ++c) scale[c] = Float16::load(panel + 2 * c);
    for (int64_t d = 0; d < kBlock && first + d < depth; ++d) {
      float weights[kColumns];
      for (int64_t c = 0; c < kColumns; ++c) {
        weights[c] = kNf4[codes[d / kQuad][c * kQuad + d % kQuad]] * scale[c];
      }
      for (int row = 0; row < kSides * count; ++row) {
        const float x = static_cast<const float*>(rows[row])[first + d];
        const float* factors = weights + row % kSides * kWidth<kSides>;
        float* sum = sums + row * kWidth<kSides>;
        for (int64_t c = 0; c < kWidth<kSides>; ++c) sum[c] += x * factors[c];
      }
    }
  }
}

struct Silu {
  static float of(float a) { return a / (1.0f + std::exp(-a)); }
};

struct Gelu {
  static float of(float a) {
    return a / (1.0f + std::exp(-a * (kGeluLinear + kGeluCubic * a * a)));
  }
};

struct Relu {
  static float of(float a) { return a < 0 ? 0 : a; }  // NaN stays NaN
};

struct Relu2 {
  static float of(float a) { return Relu::of(a) * Relu::of(a); }
};

template <typename Function>
void gated(const float* sums, float* hidden) {
  constexpr int64_t kUnits = kColumns / 2;
  for (int64_t unit = 0; unit < kUnits; ++unit) {
    hidden[unit] = Function::of(sums[unit]) * sums[kUnits + unit];
  }
}

template <typename Function>
void plain(const float* sums, float* hidden) {
  for (int64_t unit = 0; unit < kColumns; ++unit) hidden[unit] = Function::of(sums[unit]);
}

void quantize(const float* values, int64_t count, QuantizedBlock* blocks) {
  for (int64_t first = 0; first < count; first += kBlock, ++blocks) {
    const int64_t size = count - first < kBlock ? count - first : kBlock;
    // Compared as integers, infinity and NaN are above all other magnitudes.
    uint32_t largest = 0;
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t magnitude = bits_of_float(values[first + i]) & 0x7fffffff;
      largest = magnitude > largest ? magnitude : largest;
    }
    std::memset(blocks->codes, 0, sizeof blocks->codes);
    blocks->sum = 0;
    blocks->scale = float_of_bits(largest) / 127.0f;
    if (largest >= 0x7f800000) {
      blocks->scale = NAN;
      continue;
    }
    const float inverse = blocks->scale > 0 ? 127.0f / float_of_bits(largest) : 0.0f;
    if (!(inverse < HUGE_VALF)) continue;
    for (int64_t i = 0; i < size; ++i) {
      blocks->codes[i] = static_cast<int8_t>(std::nearbyint(values[first + i] * inverse));
      blocks->sum += blocks->codes[i];
    }
  }
}

void widen(const uint16_t* halves, int64_t count, float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] = float_of_half(halves[i]);
}

void narrow(const float* values, int64_t count, uint16_t* halves) {
  for (int64_t i = 0; i < count; ++i) halves[i] = half_of_float(values[i]);
}

template <int kSides>
constexpr Products kProducts = {
    {product<Float32, kSides>, product<Float16, kSides>, product<Bfloat16, kSides>,
     quantized_product<Format::kInt8, kSides>, quantized_product<Format::kInt4, kSides>,
     quantized_product<Format::kUint8, kSides>, quantized_product<Format::kUint4, kSides>,
     nf4_product<kSides>}};

const Kernels kKernels = {"portable",
                          {kProducts<1>, kProducts<2>},
                          {gated<Silu>, gated<Gelu>, plain<Silu>, plain<Relu>, plain<Relu2>},
                          quantize,
                          widen,
                          narrow,
                          portable_rounding};

}  // namespace

const Kernels* portable_kernels() { return &kKernels; }

}  // namespace moe_export
