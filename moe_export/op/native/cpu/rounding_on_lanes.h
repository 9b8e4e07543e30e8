// The source of `Rounding`, compiled once per instruction set by the files rounding_N_*.cc.
#pragma once

#include <cmath>
#include <cstring>

#include "common/half.h"
#include "cpu/rounding.h"

namespace moe_export {
namespace {

constexpr int kLanes = kRoundingLanes;
constexpr int kPoints = 16;  // values of nf4

bool is_finite(const Tile& tile) {
  uint32_t bad = 0;
  for (int r = 0; r < tile.rows; ++r) {
    for (int c = 0; c < kLanes; ++c) {
      bad |= (bits_of_float(tile.values[r][c]) & 0x7fffffff) >= 0x7f800000;
    }
  }
  return bad == 0;
}

// Rounds numbers below 2^22 to nearest, ties to even.
inline float nearest(float value) {
  constexpr float kShift = 0x1.8p23f;
  return value + kShift - kShift;
}

inline float within(float value, float low, float high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

void fit(const FormatFacts& grid, const Tile& tile, float* scale, float* zero) {
  float low[kLanes] = {}, high[kLanes] = {};
  for (int r = 0; r < tile.rows; ++r) {
    for (int c = 0; c < kLanes; ++c) {
      low[c] = tile.values[r][c] < low[c] ? tile.values[r][c] : low[c];
      high[c] = tile.values[r][c] > high[c] ? tile.values[r][c] : high[c];
    }
  }
  for (int c = 0; c < kLanes; ++c) {
    const float largest = high[c] > -low[c] ? high[c] : -low[c];
    zero[c] = 0;
    if (grid.has_zero_point) {
      scale[c] = (high[c] - low[c]) / grid.high;
      const float code = (0 - low[c]) / (scale[c] == 0 ? 1.0f : scale[c]);
      zero[c] = nearest(within(code, 0, grid.high));
    } else if (grid.has_codebook) {
      scale[c] = largest;
    } else if (grid.high == -grid.low) {
      scale[c] = largest / grid.high;
    } else {
      // There is one more code below 0 than above: the larger side gets it.
      scale[c] = (high[c] > -low[c] ? high[c] : low[c]) / grid.low;
    }
  }
}

void round_evenly(const FormatFacts& grid, Tile* tile, const float* scale, float* error) {
  float divisor[kLanes], sum[kLanes] = {};
  for (int c = 0; c < kLanes; ++c) divisor[c] = scale[c] == 0 ? HUGE_VALF : scale[c];
  for (int r = 0; r < tile->rows; ++r) {
    for (int c = 0; c < kLanes; ++c) {
      // Clipping first gives the same, since the limits are whole numbers.
      const float zero = tile->zero[c], value = tile->values[r][c];
      const float code = nearest(within(value / divisor[c], grid.low - zero, grid.high - zero));
      tile->codes[r][c] = code + zero;
      const float difference = value - code * scale[c];
      sum[c] += difference * difference;
    }
  }
  std::memcpy(error, sum, sizeof sum);
}

void round_by_codebook(Tile* tile, const float* scale, float* error) {
  // Vector types, since compilers do not vectorize the loop over the codebook.
  typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
  typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
  Floats scales, sum = {};
  std::memcpy(&scales, scale, sizeof scales);
  const Floats inverse = 1.0f / (scales == 0.0f ? Floats{} + HUGE_VALF : scales);
  for (int r = 0; r < tile->rows; ++r) {
    Floats values, point = Floats{} + kNf4[0];
    std::memcpy(&values, tile->values[r], sizeof values);
    const Floats relative = values * inverse;
    Ints code = {};
    for (int i = 0; i < kPoints - 1; ++i) {
      const Ints above = relative > (kNf4[i + 1] + kNf4[i]) / 2.0f;  // -1 where it is
      code -= above;
      point = above ? Floats{} + kNf4[i + 1] : point;
    }
    const Floats codes = __builtin_convertvector(code, Floats);
    std::memcpy(tile->codes[r], &codes, sizeof codes);
    const Floats difference = values - point * scales;
    sum += difference * difference;
  }
  std::memcpy(error, &sum, sizeof sum);
}

void round(const FormatFacts& grid, Tile* tile, const float* scale, float* error) {
  if (grid.has_codebook) return round_by_codebook(tile, scale, error);
  round_evenly(grid, tile, scale, error);
}

}  // namespace
}  // namespace moe_export
