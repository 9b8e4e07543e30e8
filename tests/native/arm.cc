// Compares every Arm kernel that the processor has with the portable ones, and prints for each the
// number of products that were compared. Sums of codes are exact, and compilers fuse a product with
// a sum on Arm, so products with integer codes have to be equal to the bit.
#include <cmath>
#include <cstdio>

#include "arm_halves.h"
#include "cpu/dispatch.h"
#include "random_panel.h"

using namespace moe_export;

namespace {

constexpr int64_t kDepths[] = {1, 2, 31, 32, 33, 95, 170};

// Float products sum in another order; the error of a sum is relative to the largest of a row.
bool are_close(const float* expected, const float* got, int count) {
  float largest = 0, error = 0;
  for (int i = 0; i < count; ++i) {
    largest = std::fmax(largest, std::fabs(expected[i]));
    error = std::fmax(error, std::fabs(expected[i] - got[i]));
  }
  return error <= 2e-6f * largest;  // NaN is not
}

bool product_is_right(const Kernels& plain, const Kernels& tested, Format format, int64_t depth,
                      int count, int sides, std::mt19937* random) {
  const std::vector<uint8_t> panel = random_panel(format, depth, random);
  const RandomRows x(depth, plain, random);
  const std::vector<const void*> rows = x.rows(format);
  float sums[2][kTile * kColumns] = {};
  plain.products[sides - 1][format](panel.data(), depth, rows.data(), count, sums[0]);
  tested.products[sides - 1][format](panel.data(), depth, rows.data(), count, sums[1]);
  if (has_integer_codes(format)) return std::memcmp(sums[0], sums[1], sizeof sums[0]) == 0;
  return are_close(sums[0], sums[1], count * kColumns);
}

bool quantization_is_right(const Kernels& plain, const Kernels& tested, int64_t depth,
                           std::mt19937* random) {
  const RandomRows x(depth, plain, random);
  for (int row = 0; row < RandomRows::kCount; ++row) {
    std::vector<QuantizedBlock> blocks(x.blocks[row].size());
    tested.quantize(x.values[row].data(), depth, blocks.data());
    if (std::memcmp(blocks.data(), x.blocks[row].data(), blocks.size() * sizeof blocks[0]) != 0) {
      return false;
    }
  }
  return true;
}

bool activations_are_right(const Kernels& plain, const Kernels& tested, std::mt19937* random) {
  std::normal_distribution<float> normal;
  for (int activation = 0; activation < kNumActivations; ++activation) {
    for (float deviation : {4.0f, 60.0f}) {
      float sums[kColumns], hidden[2][kColumns] = {};
      for (float& sum : sums) sum = normal(*random) * deviation;
      plain.activate[activation](sums, hidden[0]);
      tested.activate[activation](sums, hidden[1]);
      for (int i = 0; i < kColumns; ++i) {
        const float size = std::fabs(hidden[0][i]);
        if (!(std::fabs(hidden[0][i] - hidden[1][i]) <= 1e-6f * size + 1e-30f)) return false;
      }
    }
  }
  return true;
}

// All halves to floats, and floats near all halves back.
bool halves_are_right(const Kernels& plain, const Kernels& tested) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    float wide[2];
    plain.widen(&half, 1, &wide[0]);
    tested.widen(&half, 1, &wide[1]);
    if (std::isnan(wide[0])) {
      if (!std::isnan(wide[1])) return false;
      continue;
    }
    if (bits_of_float(wide[0]) != bits_of_float(wide[1])) return false;
    const float near = wide[0] * 1.0003f;
    uint16_t narrow[2];
    plain.narrow(&near, 1, &narrow[0]);
    tested.narrow(&near, 1, &narrow[1]);
    if (narrow[0] != narrow[1]) return false;
  }
  return true;
}

// Returns the number of products compared; 0 after the first that is wrong.
int compare(const Kernels& plain, const Kernels& tested) {
  std::mt19937 random(20);
  int compared = 0;
  for (int number = 0; number < kNumFormats; ++number) {
    for (int64_t depth : kDepths) {
      for (int count = 1; count <= kTile; ++count, ++compared) {
        const Format format = static_cast<Format>(number);
        if (product_is_right(plain, tested, format, depth, count, 1, &random) &&
            product_is_right(plain, tested, format, depth, count, 2, &random)) {
          continue;
        }
        std::printf("%s: a product in %s of depth %d and %d rows is wrong\n", tested.name,
                    facts_of(format).name, static_cast<int>(depth), count);
        return 0;
      }
    }
  }
  const char* wrong = !quantization_is_right(plain, tested, 170, &random) ? "quantization"
                      : !activations_are_right(plain, tested, &random)    ? "an activation"
                      : !halves_are_right(plain, tested)                  ? "a half"
                      : tested.product_of_halves != nullptr ? wrong_halves(tested.name, "i8mm")
                                                            : nullptr;
  if (wrong != nullptr) std::printf("%s: %s is wrong\n", tested.name, wrong);
  return wrong == nullptr ? compared : 0;
}

}  // namespace

int main() {
  std::printf("takes %s\n", process_choice().kernels->name);
  bool all = true;
  for (const char* name : {"neon", "dotprod", "i8mm", "fhm"}) {
    const Choice choice = choose(name, processor());
    if (choice.kernels == nullptr) continue;
    const int compared = compare(*portable_kernels(), *choice.kernels);
    std::printf("%s: compared %d\n", name, compared);
    all = all && compared > 0;
  }
  return all ? 0 : 1;
}
