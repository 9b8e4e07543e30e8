// One execution of a layer.
#pragma once

#include <cstddef>

#include "cpu/layer.h"

namespace moe_export {

// Calls item(job, i) for every i < items, on any threads, and returns when all are done.
struct ParallelFor {
  void (*call)(void* pool, size_t items, void (*item)(void* job, size_t i), void* job);
  void* pool;
};

// Runs a call that passed the check. The result does not depend on the threads: one thread computes
// each number, in a fixed order.
void run(const Layer& layer, const MoeCall& call, const ParallelFor& parallel_for);

}  // namespace moe_export
