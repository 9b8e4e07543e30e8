// A tile holds columns side by side, one per lane. Every step is the same arithmetic on all lanes,
// in the order of the rows, so the codes are the same on every processor.
#include "cpu/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/formats.h"
#include "common/half.h"

#if defined(__x86_64__) && defined(__linux__)
#define MOE_EXPORT_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MOE_EXPORT_CLONES
#endif

namespace moe_export {
namespace {

constexpr int kLanes = 16;
constexpr int kLargestGroup = 128;
constexpr int kPoints = 16;   // values of nf4
constexpr int kFactors = 17;  // factors that a search tries, as in formats/search.py

// One group of each column of a tile.
struct Tile {
  alignas(64) float values[kLargestGroup][kLanes];
  alignas(64) float codes[kLargestGroup][kLanes];
  alignas(64) float scale[kLanes];
  alignas(64) float zero[kLanes];
  int rows;   // rows of the group, those filled with zeros included
  int lanes;  // lanes that are columns of the matrix
};

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

MOE_EXPORT_CLONES bool is_finite(const Tile& tile) {
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

// Computes the scale with which no value is clipped, and the code of 0 that goes with it.
MOE_EXPORT_CLONES void fit(const FormatFacts& grid, const Tile& tile, float* scale, float* zero) {
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

// Rounds to the codes of a scale, and sums the squared differences.
MOE_EXPORT_CLONES void round_evenly(const FormatFacts& grid, Tile* tile, const float* scale,
                                    float* error) {
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

MOE_EXPORT_CLONES void round_by_codebook(Tile* tile, const float* scale, float* error) {
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

void round_to(const FormatFacts& grid, Tile* tile, const float* scale, float* error) {
  if (grid.has_codebook) return round_by_codebook(tile, scale, error);
  round_evenly(grid, tile, scale, error);
}

void to_halves(const float* scale, float* rounded) {
  for (int c = 0; c < kLanes; ++c) rounded[c] = float_of_half(half_of_float(scale[c]));
}

// Chooses, for each lane, the scale with the least error among `largest` and smaller ones.
void search(const FormatFacts& grid, Tile* tile, const float* largest) {
  float least[kLanes];
  std::fill(least, least + kLanes, HUGE_VALF);
  for (int step = 0; step < kFactors; ++step) {
    float tried[kLanes], error[kLanes];
    const float factor = 1.0f - static_cast<float>(step) / 64.0f;
    for (int c = 0; c < kLanes; ++c) tried[c] = largest[c] * factor;
    to_halves(tried, tried);
    round_to(grid, tile, tried, error);
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
bool store(const MoeRounding& job, const FormatFacts& grid, int64_t column, int64_t row,
           Tile* tile) {
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
  round_to(grid, tile, tile->scale, error);
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
  Tile tile;
  for (int64_t column = 0; column < job.columns; column += kLanes) {
    for (int64_t row = 0; row < job.depth; row += job.group_size) {
      load(job, column, row, &tile);
      if (!is_finite(tile)) return kNotFinite;
      fit(grid, tile, tile.scale, tile.zero);
      if (job.search) {
        float largest[kLanes];
        std::memcpy(largest, tile.scale, sizeof largest);
        search(grid, &tile, largest);
      }
      if (!store(job, grid, column, row, &tile)) return kScaleTooLarge;
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
