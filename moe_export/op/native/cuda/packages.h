// The packages of kernels in `cubins/`, which are part of the library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe_export::cuda {

struct Package {
  int major;
  int minor;
  const uint8_t* data;
  size_t bytes;
};

constexpr size_t kNumPackages = 6;

// By rising compute capability.
extern const Package kPackages[kNumPackages];

}  // namespace moe_export::cuda
