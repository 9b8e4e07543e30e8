// Runs one product some times: count KERNEL FORMAT ROWS BLOCKS TIMES. Prints the panel's bytes. The
// emulator counts instructions; the difference of two numbers of times is what the product takes.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../tests/native/random_panel.h"
#include "cpu/dispatch.h"

using namespace moe_export;

int main(int count, char** words) {
  if (count < 6) return 2;
  const Choice choice = choose(words[1], processor());
  int format = 0;
  while (format < kNumFormats && std::strcmp(kFormats[format].name, words[2]) != 0) ++format;
  if (choice.kernels == nullptr || format == kNumFormats) return 3;
  const int rows = std::atoi(words[3]), times = std::atoi(words[5]);
  const int64_t depth = std::atoi(words[4]) * kBlock;
  std::mt19937 random(1);
  const std::vector<uint8_t> panel = random_panel(static_cast<Format>(format), depth, &random);
  const RandomRows x(depth, *choice.kernels, &random);
  const std::vector<const void*> at = x.rows(static_cast<Format>(format));
  float sums[kTile * kColumns];
  for (int time = 0; time < times; ++time) {
    choice.kernels->products[0][static_cast<Format>(format)](panel.data(), depth, at.data(), rows,
                                                             sums);
  }
  std::printf("%d\n", static_cast<int>(panel.size()));
  return 0;
}
