// Runs one product some times: count KERNEL FORMAT ROWS BLOCKS TIMES. Prints the panel's bytes. The
// emulator counts instructions; the difference of two numbers of times is what the product takes.
// Rows for weights of float16 are of float16 where the kernel takes them.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../tests/native/random_panel.h"
#include "cpu/dispatch.h"

using namespace moe_export;

int main(int count, char** words) {
  if (count < 6) return 2;
  const Choice choice = choose(words[1], processor());
  int number = 0;
  while (number < kNumFormats && std::strcmp(kFormats[number].name, words[2]) != 0) ++number;
  if (choice.kernels == nullptr || number == kNumFormats) return 3;
  const Format format = static_cast<Format>(number);
  const int rows = std::atoi(words[3]), times = std::atoi(words[5]);
  const int64_t depth = std::atoi(words[4]) * kBlock;
  std::mt19937 random(1);
  const std::vector<uint8_t> panel = random_panel(format, depth, &random);
  const RandomRows x(depth, *choice.kernels, &random);
  std::vector<const void*> at = x.rows(format);
  Product* product = choice.kernels->products[0][format];
  std::vector<uint16_t> halves(static_cast<size_t>(rows * depth));
  if (format == Format::kFloat16 && choice.kernels->product_of_halves != nullptr) {
    product = choice.kernels->product_of_halves;
    for (int row = 0; row < rows; ++row) {
      at[row] = halves.data() + row * depth;
      choice.kernels->narrow(x.values[row].data(), depth, halves.data() + row * depth);
    }
  }
  float sums[kTile * kColumns];
  for (int time = 0; time < times; ++time) product(panel.data(), depth, at.data(), rows, sums);
  std::printf("%d\n", static_cast<int>(panel.size()));
  return 0;
}
