// Parallel loops on threads of the library's own, for callers of the C interface.
#pragma once

#include "common/threads.h"
#include "cpu/parallel.h"

namespace moe_export {

// `num_threads` must outlive the result.
inline ParallelFor on_own_threads(const int32_t* num_threads) {
  const auto call = [](void* pool, size_t items, void (*item)(void*, size_t), void* job) {
    const size_t count = static_cast<size_t>(*static_cast<const int32_t*>(pool));
    share_out(count, items, [&](size_t i) { item(job, i); });
  };
  return {call, const_cast<int32_t*>(num_threads)};
}

}  // namespace moe_export
