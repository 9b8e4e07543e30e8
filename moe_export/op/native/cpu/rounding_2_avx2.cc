#include "cpu/rounding.h"

#if defined(__AVX2__)

#include "cpu/rounding_on_lanes.h"

namespace moe_export {
namespace {

const Rounding kRounding = {"avx2", is_finite, fit, round};

}  // namespace

const Rounding* avx2_rounding() { return &kRounding; }

}  // namespace moe_export

#else

const moe_export::Rounding* moe_export::avx2_rounding() { return nullptr; }

#endif
