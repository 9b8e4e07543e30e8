// Packs an expert's matrices into panels (panels.h).
//
// The panels of an expert follow each other: those of gate and up (or of up alone), of depth D,
// then those of down, of depth w.
#pragma once

#include "common/ragged_moe.h"
#include "cpu/panels.h"

namespace moe_export {

// Numbers of panels of an expert.
int64_t gate_up_panels(const Problem& problem, int64_t width);
int64_t down_panels(const Problem& problem);

// Bytes of all panels of an expert.
uint64_t expert_bytes(const Problem& problem, int64_t width);

// Packs expert number `expert` of weights that passed the check into `expert_bytes` bytes. Refuses
// a scale that is not a float16 number.
Refusal pack_expert(const Problem& problem, const MoeWeights& weights, size_t expert,
                    uint8_t* panels);

}  // namespace moe_export
