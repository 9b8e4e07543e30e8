// One execution of a layer.
#pragma once

#include "cpu/layer.h"
#include "cpu/parallel.h"

namespace moe_export {

// Runs a call that passed the check. The result does not depend on the threads: one thread computes
// each number, in a fixed order.
void run(const Layer& layer, const MoeCall& call, const ParallelFor& parallel_for);

}  // namespace moe_export
