#include "cpu/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/formats.h"
#include "common/half.h"
#include "cpu/dispatch.h"

namespace moe_export {
namespace {

constexpr int kLanes = kRoundingLanes;
constexpr int kFactors = 17;  // factors that a search tries, as in formats/search.py

// Null if no quantized format has this name.
const FormatFacts* grid_of(const char* name) {
  for (const FormatFacts& facts : kFormats) {
    if (facts.is_quantized && std::strcmp(name, facts.name) == 0) return &facts;
  }
  return nullptr;
}

float as_it_is(float value) { return value; }

template <typename Stored, float (*widen)(Stored)>
void load_as(const MoeRounding& job, int64_t column, int64_t row, Tile* tile) {
  const int64_t rows = std::min(job.group_size, job.depth - row);
  for (int lane = 0; lane < tile->lanes; ++lane) {
    const Stored* from = static_cast<const Stored*>(job.values) + (column + lane) * job.depth + row;
    for (int64_t r = 0; r < rows; ++r) tile->values[r][lane] = widen(from[r]);
  }
}

// Loads the rows of a group, and zeros beyond the matrix.
void load(const MoeRounding& job, int64_t column, int64_t row, Tile* tile) {
  tile->rows = static_cast<int>(job.group_size);
  tile->lanes = static_cast<int>(std::min<int64_t>(kLanes, job.columns - column));
  if (tile->lanes < kLanes || job.depth - row < job.group_size) {
    std::memset(tile->values, 0, sizeof tile->values);
  }
  switch (job.type) {
    case kFloat32:
      return load_as<float, as_it_is>(job, column, row, tile);
    case kFloat16:
      return load_as<uint16_t, float_of_half>(job, column, row, tile);
    default:
      return load_as<uint16_t, float_of_bfloat16>(job, column, row, tile);
  }
}

void to_halves(const float* scale, float* rounded) {
  for (int c = 0; c < kLanes; ++c) rounded[c] = float_of_half(half_of_float(scale[c]));
}

// Chooses, for each lane, the scale with the least error among `largest` and smaller ones.
void search(const Rounding& rounding, const FormatFacts& grid, Tile* tile, const float* largest) {
  float least[kLanes];
  std::fill(least, least + kLanes, HUGE_VALF);
  for (int step = 0; step < kFactors; ++step) {
    float tried[kLanes], error[kLanes];
    const float factor = 1.0f - static_cast<float>(step) / 64.0f;
    for (int c = 0; c < kLanes; ++c) tried[c] = largest[c] * factor;
    to_halves(tried, tried);
    rounding.round(grid, tile, tried, error);
    for (int c = 0; c < kLanes; ++c) {
      // False for an error of NaN, which a scale beyond float16 gives.
      if (error[c] < least[c]) {
        least[c] = error[c];
        tile->scale[c] = tried[c];
      }
    }
  }
}

// Writes the codes of a tile, its scales and zero points. Returns false if a scale is too large.
bool store(const MoeRounding& job, const Rounding& rounding, const FormatFacts& grid,
           int64_t column, int64_t row, Tile* tile) {
  const int64_t group = row / job.group_size * job.columns + column;
  for (int lane = 0; lane < tile->lanes; ++lane) {
    uint16_t half = half_of_float(tile->scale[lane]);
    if (half == 0x8000) half = 0;
    if ((half & 0x7fff) >= 0x7c00) return false;
    job.scale[group + lane] = half;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    tile->scale[lane] = lane < tile->lanes ? float_of_half(job.scale[group + lane]) : 0;
  }
  float error[kLanes];
  rounding.round(grid, tile, tile->scale, error);
  const int64_t rows = std::min(job.group_size, job.depth - row);
  for (int lane = 0; lane < tile->lanes && grid.has_zero_point; ++lane) {
    // With a scale of 0 every code means 0; the first is used.
    if (tile->scale[lane] == 0) {
      tile->zero[lane] = 0;
      for (int64_t r = 0; r < rows; ++r) tile->codes[r][lane] = 0;
    }
    job.zero_point[group + lane] = static_cast<uint8_t>(tile->zero[lane]);
  }
  const int mask = (1 << grid.bits) - 1;
  for (int64_t r = 0; r < rows; ++r) {
    uint8_t* codes = job.codes + (row + r) * job.columns + column;
    for (int lane = 0; lane < tile->lanes; ++lane) {
      codes[lane] = static_cast<uint8_t>(static_cast<int>(tile->codes[r][lane]) & mask);
    }
  }
  return true;
}

}  // namespace

Rounded quantize(const MoeRounding& job) {
  const FormatFacts* facts = grid_of(job.format);
  if (facts == nullptr) return kNoSuchFormat;
  const FormatFacts& grid = *facts;
  const Rounding& rounding = process_rounding();
  Tile tile;
  for (int64_t column = 0; column < job.columns; column += kLanes) {
    for (int64_t row = 0; row < job.depth; row += job.group_size) {
      load(job, column, row, &tile);
      if (!rounding.is_finite(tile)) return kNotFinite;
      rounding.fit(grid, tile, tile.scale, tile.zero);
      if (job.search) {
        float largest[kLanes];
        std::memcpy(largest, tile.scale, sizeof largest);
        search(rounding, grid, &tile, largest);
      }
      if (!store(job, rounding, grid, column, row, &tile)) return kScaleTooLarge;
    }
  }
  return kRounded;
}

Rounded squared_error(const MoeRounding& job, double* lost, double* norm) {
  const FormatFacts* facts = grid_of(job.format);
  if (facts == nullptr) return kNoSuchFormat;
  const FormatFacts& grid = *facts;
  std::fill(lost, lost + job.columns, 0.0);
  std::fill(norm, norm + job.columns, 0.0);
  // Signed codes are in two's complement.
  const int sign = grid.low < 0 ? 1 << (grid.bits - 1) : 0;
  Tile tile;
  for (int64_t column = 0; column < job.columns; column += kLanes) {
    for (int64_t row = 0; row < job.depth; row += job.group_size) {
      load(job, column, row, &tile);
      const int64_t group = row / job.group_size * job.columns + column;
      const int64_t rows = std::min(job.group_size, job.depth - row);
      for (int lane = 0; lane < tile.lanes; ++lane) {
        const float scale = float_of_half(job.scale[group + lane]);
        const float zero = grid.has_zero_point ? job.zero_point[group + lane] : 0;
        const uint8_t* codes = job.codes + row * job.columns + column + lane;
        double lost_sum = 0, norm_sum = 0;
        for (int64_t r = 0; r < rows; ++r, codes += job.columns) {
          const float code = static_cast<float>((*codes ^ sign) - sign);
          const float point = grid.has_codebook ? kNf4[*codes & 15] : code - zero;
          const float value = tile.values[r][lane], difference = point * scale - value;
          lost_sum += static_cast<double>(difference) * difference;
          norm_sum += static_cast<double>(value) * value;
        }
        lost[column + lane] += lost_sum;
        norm[column + lane] += norm_sum;
      }
    }
  }
  return kRounded;
}

}  // namespace moe_export

int moe_export_quantize(const MoeRounding* job) { return moe_export::quantize(*job); }

int moe_export_squared_error(const MoeRounding* job, double* lost, double* norm) {
  return moe_export::squared_error(*job, lost, norm);
}
