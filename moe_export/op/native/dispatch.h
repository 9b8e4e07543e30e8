// Which kernels this process uses.
#pragma once

#include <string>

#include "kernels.h"

namespace moe_export {

struct Choice {
  const Kernels* kernels;  // null: `reason` says why there are none
  std::string reason;
};

// The kernels of that name; an empty name takes the fastest that this processor has.
Choice choose(const std::string& name);

// The choice of the process, made once: that of the environment variable MOE_EXPORT_KERNEL.
const Choice& process_choice();

}  // namespace moe_export
