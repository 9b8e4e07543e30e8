// Parallel loops on the threads of the caller.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <thread>

namespace moe_export {

// Calls item(job, i) for every i < items, on any threads, and returns when all are done.
struct ParallelFor {
  void (*call)(void* pool, size_t items, void (*item)(void* job, size_t i), void* job);
  void* pool;
};

// Work below this, in bytes of weights times tiles of rows, ends before other threads wake up.
constexpr int64_t kSerialBytes = 1 << 16;

inline size_t threads() {
  static const size_t count = std::max(1u, std::thread::hardware_concurrency());
  return count;
}

}  // namespace moe_export
