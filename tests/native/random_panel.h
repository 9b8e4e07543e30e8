// Panels and activations of random numbers, for programs that compare kernels.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "common/half.h"
#include "cpu/kernels.h"

namespace moe_export {

// Codes at random with finite scales; floats from the normal distribution.
inline std::vector<uint8_t> random_panel(Format format, int64_t depth, std::mt19937* random) {
  std::vector<uint8_t> panel(static_cast<size_t>(panel_bytes(format, depth)));
  if (is_quantized(format)) {
    for (uint8_t& byte : panel) byte = static_cast<uint8_t>((*random)());
    for (size_t block = 0; block < panel.size(); block += block_bytes(format)) {
      for (int64_t c = 0; c < kColumns; ++c) panel[block + 2 * c + 1] &= 0xbb;
    }
    return panel;
  }
  std::normal_distribution<float> normal;
  const size_t size = static_cast<size_t>(facts_of(format).bits / 8);
  for (size_t at = 0; at < panel.size(); at += size) {
    const float value = normal(*random);
    const uint16_t half = format == Format::kFloat16
                              ? half_of_float(value)
                              : static_cast<uint16_t>(bits_of_float(value) >> 16);
    std::memcpy(&panel[at], size == 4 ? static_cast<const void*>(&value) : &half, size);
  }
  return panel;
}

// Random activations, as floats and as codes: rows of two sides for kTile rows of sums.
struct RandomRows {
  static constexpr int kCount = 2 * kTile;

  RandomRows(int64_t depth, const Kernels& kernels, std::mt19937* random) {
    std::normal_distribution<float> normal;
    for (int row = 0; row < kCount; ++row) {
      for (int64_t d = 0; d < depth; ++d) values[row].push_back(normal(*random));
      blocks[row].resize(static_cast<size_t>((depth + kBlock - 1) / kBlock));
      kernels.quantize(values[row].data(), depth, blocks[row].data());
    }
  }

  // Rows as a product with this format takes them.
  std::vector<const void*> rows(Format format) const {
    std::vector<const void*> pointers;
    for (int row = 0; row < kCount; ++row) {
      pointers.push_back(has_integer_codes(format) ? static_cast<const void*>(blocks[row].data())
                                                   : values[row].data());
    }
    return pointers;
  }

  std::vector<float> values[kCount];
  std::vector<QuantizedBlock> blocks[kCount];
};

}  // namespace moe_export
