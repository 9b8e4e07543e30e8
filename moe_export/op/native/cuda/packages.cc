#include "cuda/packages.h"

// The packages are for Linux.
#if defined(__linux__)

// MOE_EXPORT_CUBINS is the folder of the packages, set by CMakeLists.txt.
#define MOE_EXPORT_PACKAGE(number)                                                                 \
  __asm__(                                                                                         \
      ".section .rodata\n.balign 16\n"                                                             \
      "moe_export_sm_" #number                                                                     \
      "_begin:\n"                                                                                  \
      ".incbin \"" MOE_EXPORT_CUBINS "/sm_" #number                                                \
      ".bin\"\n"                                                                                   \
      "moe_export_sm_" #number                                                                     \
      "_end:\n"                                                                                    \
      ".previous\n");                                                                              \
  extern "C" __attribute__((visibility("hidden"))) const uint8_t moe_export_sm_##number##_begin[]; \
  extern "C" __attribute__((visibility("hidden"))) const uint8_t moe_export_sm_##number##_end[];

MOE_EXPORT_PACKAGE(80)
MOE_EXPORT_PACKAGE(86)
MOE_EXPORT_PACKAGE(89)
MOE_EXPORT_PACKAGE(90)
MOE_EXPORT_PACKAGE(100)
MOE_EXPORT_PACKAGE(120)

#define MOE_EXPORT_ENTRY(number)                             \
  {number / 10, number % 10, moe_export_sm_##number##_begin, \
   static_cast<size_t>(moe_export_sm_##number##_end - moe_export_sm_##number##_begin)}

namespace moe_export::cuda {

const Package kPackages[kNumPackages] = {
    MOE_EXPORT_ENTRY(80), MOE_EXPORT_ENTRY(86),  MOE_EXPORT_ENTRY(89),
    MOE_EXPORT_ENTRY(90), MOE_EXPORT_ENTRY(100), MOE_EXPORT_ENTRY(120),
};

}  // namespace moe_export::cuda

#else

const moe_export::cuda::Package moe_export::cuda::kPackages[kNumPackages] = {};

#endif
