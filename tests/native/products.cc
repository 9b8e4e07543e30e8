// Compares the products of AVX-VNNI's kernels, compiled with AVX-512's encoding of the instruction,
// with those of AVX2's. Sums of codes are exact, so they have to be equal to the bit.
#include <cstdio>

#include "random_panel.h"

using moe_export::Format;
using moe_export::Kernels;

constexpr int64_t kDepth = 170;

int main() {
  const Kernels &plain = *moe_export::avx2_kernels(), &dot = *moe_export::avxvnni_kernels();
  std::mt19937 random(20);
  int compared = 0;
  for (Format format : {Format::kInt8, Format::kInt4, Format::kUint8, Format::kUint4}) {
    const std::vector<uint8_t> panel = moe_export::random_panel(format, kDepth, &random);
    for (int count = 1; count <= moe_export::kTile; ++count, ++compared) {
      const moe_export::RandomRows x(kDepth, plain, &random);
      const std::vector<const void*> rows = x.rows(format);
      for (int sides : {0, 1}) {
        float sums[2][moe_export::kTile * moe_export::kColumns] = {};
        plain.products[sides][format](panel.data(), kDepth, rows.data(), count, sums[0]);
        dot.products[sides][format](panel.data(), kDepth, rows.data(), count, sums[1]);
        if (std::memcmp(sums[0], sums[1], sizeof sums[0]) != 0 || sums[0][0] == 0) {
          std::printf("format %d with %d rows differs\n", static_cast<int>(format), count);
          return 1;
        }
      }
    }
  }
  std::printf("compared %d\n", compared);
  return 0;
}
