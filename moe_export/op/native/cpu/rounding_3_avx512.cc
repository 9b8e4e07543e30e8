#include "cpu/rounding.h"

#if defined(__AVX512F__)

#include "cpu/rounding_on_lanes.h"

namespace moe_export {
namespace {

const Rounding kRounding = {"avx512", is_finite, fit, round};

}  // namespace

const Rounding* avx512_rounding() { return &kRounding; }

}  // namespace moe_export

#else

const moe_export::Rounding* moe_export::avx512_rounding() { return nullptr; }

#endif
