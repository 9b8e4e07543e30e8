// The choice of kernels for this process.
#pragma once

#include <string>

#include "cpu/kernels.h"
#include "cpu/processor.h"

namespace moe_export {

struct Choice {
  const Kernels* kernels;  // null if there are none; `reason` says why
  std::string reason;
};

// Chooses the kernels with this name; an empty name takes the fastest that the processor has.
Choice choose(const std::string& name, const Processor& has);

// Names of the kernels that run on a processor, from fast to plain: "avx512, avx2, portable".
std::string available_kernels(const Processor& has);

// The choice of the process, made once by the environment variable MOE_EXPORT_KERNEL.
const Choice& process_choice();

// Chooses the kernels with this name; null takes the choice of the process.
inline Choice choose_or_process(const char* name) {
  return name == nullptr ? process_choice() : choose(name, processor());
}

// The arithmetic of rounding for the same instruction set; every one gives the same codes.
const Rounding& process_rounding();

}  // namespace moe_export
