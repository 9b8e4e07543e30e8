// How fast memory can be read: the limit of a decoding step. Compiled by the benchmark.
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

typedef uint64_t Vector __attribute__((vector_size(64), aligned(64), may_alias));

uint64_t read(const uint8_t* data, size_t bytes) {
  Vector sums[4] = {};
  for (size_t i = 0; i + 256 <= bytes; i += 256) {
    for (size_t v = 0; v < 4; ++v) {
      __builtin_prefetch(data + i + 64 * v + 4096);
      sums[v] += *reinterpret_cast<const Vector*>(data + i + 64 * v);
    }
  }
  uint64_t sum = 0;
  for (const Vector& part : sums) {
    for (int lane = 0; lane < 8; ++lane) sum += part[lane];
  }
  return sum;
}

}  // namespace

extern "C" uint64_t read_bytes(const uint8_t* data, size_t bytes, int num_threads) {
  const size_t share = bytes / static_cast<size_t>(num_threads) / 256 * 256;
  std::vector<uint64_t> sums(static_cast<size_t>(num_threads));
  std::vector<std::thread> threads;
  for (size_t i = 1; i < sums.size(); ++i) {
    threads.emplace_back([&, i] { sums[i] = read(data + i * share, share); });
  }
  sums[0] = read(data, share);
  for (std::thread& thread : threads) thread.join();
  uint64_t sum = 0;
  for (uint64_t part : sums) sum += part;
  return sum;
}
