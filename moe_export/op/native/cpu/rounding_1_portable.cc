#include "cpu/rounding_on_lanes.h"

namespace moe_export {
namespace {

const Rounding kRounding = {"portable", is_finite, fit, round};

}  // namespace

const Rounding* portable_rounding() { return &kRounding; }

}  // namespace moe_export
