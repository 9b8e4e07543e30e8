// Parallel loops on threads of the library's own; in ONNX Runtime its thread pool does this.
#pragma once

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

namespace moe_export {

// Calls item(i) for each i below `items`, on this thread and on num_threads - 1 others. Items must
// not throw.
template <typename Item>
void share_out(size_t num_threads, size_t items, const Item& item) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < items; i = next++) item(i);
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < num_threads; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace moe_export
