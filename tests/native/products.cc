// Compares the products of AVX-VNNI's kernels, compiled with AVX-512's encoding of the instruction,
// with those of AVX2's. Sums of codes are exact, so they have to be equal to the bit.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/kernels.h"

namespace {

using moe_export::Format;
using moe_export::Kernels;

constexpr int64_t kDepth = 170;

std::vector<uint8_t> random_panel(Format format, std::mt19937* random) {
  std::vector<uint8_t> panel(static_cast<size_t>(moe_export::panel_bytes(format, kDepth)));
  for (uint8_t& byte : panel) byte = static_cast<uint8_t>((*random)());
  // Scales are finite.
  for (size_t block = 0; block < panel.size(); block += moe_export::block_bytes(format)) {
    for (int64_t c = 0; c < moe_export::kColumns; ++c) panel[block + 2 * c + 1] &= 0xbb;
  }
  return panel;
}

}  // namespace

int main() {
  const Kernels &plain = *moe_export::avx2_kernels(), &dot = *moe_export::avxvnni_kernels();
  std::mt19937 random(20);
  std::normal_distribution<float> normal;
  int compared = 0;
  for (Format format : {Format::kInt8, Format::kInt4, Format::kUint8, Format::kUint4}) {
    const std::vector<uint8_t> panel = random_panel(format, &random);
    for (int count = 1; count <= moe_export::kTile; ++count, ++compared) {
      moe_export::QuantizedBlock blocks[moe_export::kTile][kDepth / moe_export::kBlock + 1];
      const void* rows[moe_export::kTile];
      for (int row = 0; row < count; ++row) {
        float values[kDepth];
        for (float& value : values) value = normal(random);
        plain.quantize(values, kDepth, blocks[row]);
        rows[row] = blocks[row];
      }
      float sums[2][moe_export::kTile * moe_export::kColumns] = {};
      const int number = static_cast<int>(format);
      plain.product[number](panel.data(), kDepth, rows, count, sums[0]);
      dot.product[number](panel.data(), kDepth, rows, count, sums[1]);
      if (std::memcmp(sums[0], sums[1], sizeof sums[0]) != 0 || sums[0][0] == 0) {
        std::printf("format %d with %d rows differs\n", number, count);
        return 1;
      }
    }
  }
  std::printf("compared %d\n", compared);
  return 0;
}
