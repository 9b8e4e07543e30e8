// The arithmetic of rounding weights to codes, once per instruction set.
//
// Every step is the same on all lanes, in the order of the rows and without fused products, so the
// codes are the same on every processor. The versions are the same source, rounding_on_lanes.h,
// compiled with different flags.
#pragma once

#include "common/formats.h"

namespace moe_export {

constexpr int kRoundingLanes = 16;
constexpr int kLargestGroup = 128;

// One group of each column of a tile; columns lie side by side, one per lane.
struct Tile {
  alignas(64) float values[kLargestGroup][kRoundingLanes];
  alignas(64) float codes[kLargestGroup][kRoundingLanes];
  alignas(64) float scale[kRoundingLanes];
  alignas(64) float zero[kRoundingLanes];
  int rows;   // rows of the group, those filled with zeros included
  int lanes;  // lanes that are columns of the matrix
};

struct Rounding {
  const char* name;
  bool (*is_finite)(const Tile& tile);
  // Computes the scale with which no value is clipped, and the code of 0 that goes with it.
  void (*fit)(const FormatFacts& grid, const Tile& tile, float* scale, float* zero);
  // Rounds to the codes of a scale, and sums the squared differences.
  void (*round)(const FormatFacts& grid, Tile* tile, const float* scale, float* error);
};

// Null if the library was built for another processor family.
const Rounding* portable_rounding();
const Rounding* avx2_rounding();
const Rounding* avx512_rounding();

}  // namespace moe_export
