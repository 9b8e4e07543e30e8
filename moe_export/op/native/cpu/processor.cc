#include "cpu/processor.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(_WIN32)
#include <windows.h>
#endif

namespace moe_export {

#if defined(__x86_64__)

namespace {

// Intel's manual, volume 2, CPUID, and volume 1, 13.3 (XGETBV); AMD's has the same bits.
enum Register { kEax, kEbx, kEcx, kEdx };

struct Leaf {
  uint32_t registers[4] = {};
  bool has(Register name, int bit) const { return registers[name] >> bit & 1; }
};

// All zeros where the processor has no such leaf.
Leaf leaf(uint32_t number, uint32_t part = 0) {
  Leaf a;
  __get_cpuid_count(number, part, &a.registers[kEax], &a.registers[kEbx], &a.registers[kEcx],
                    &a.registers[kEdx]);
  return a;
}

// The registers that the operating system saves when it switches threads, one bit for each kind.
uint32_t saved_registers() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

constexpr uint32_t kSavesAvx = 0x06;     // XMM and YMM
constexpr uint32_t kSavesAvx512 = 0xe6;  // these, masks and ZMM

}  // namespace

Processor processor() {
  const Leaf basic = leaf(1), extended = leaf(7);
  constexpr int kXgetbv = 27, kFma = 12, kAvx = 28, kF16c = 29;
  constexpr int kAvx2 = 5, kAvx512f = 16, kAvx512dq = 17, kAvx512bw = 30, kAvx512vl = 31;
  constexpr int kAvx512vnni = 11, kAvxvnni = 4;
  const uint32_t saved = basic.has(kEcx, kXgetbv) ? saved_registers() : 0;
  Processor found;
  found.has_avx2 = (saved & kSavesAvx) == kSavesAvx && basic.has(kEcx, kAvx) &&
                   basic.has(kEcx, kFma) && basic.has(kEcx, kF16c) && extended.has(kEbx, kAvx2);
  found.has_avx512 = found.has_avx2 && (saved & kSavesAvx512) == kSavesAvx512 &&
                     extended.has(kEbx, kAvx512f) && extended.has(kEbx, kAvx512bw) &&
                     extended.has(kEbx, kAvx512vl) && extended.has(kEbx, kAvx512dq) &&
                     extended.has(kEcx, kAvx512vnni);
  // A processor without this part of the leaf answers with zeros.
  found.has_avxvnni = found.has_avx2 && leaf(7, 1).has(kEax, kAvxvnni);
  return found;
}

#elif defined(__aarch64__)

namespace {

#if defined(__linux__)

// Linux: Documentation/arch/arm64/elf_hwcaps.rst. Older headers lack the names.
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
bool has_fhm() { return getauxval(AT_HWCAP) >> 23 & 1; }

#elif defined(__APPLE__)

bool has_feature(const char* name) {
  int value = 0;
  size_t bytes = sizeof value;
  return sysctlbyname(name, &value, &bytes, nullptr, 0) == 0 && value != 0;
}

bool has_dotprod() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_feature("hw.optional.arm.FEAT_I8MM"); }
bool has_fhm() { return has_feature("hw.optional.arm.FEAT_FHM"); }

#elif defined(_WIN32)

// PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE and PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE. A Windows that
// does not know a number answers no. It has no number for FEAT_FHM.
bool has_dotprod() { return IsProcessorFeaturePresent(43); }
bool has_i8mm() { return IsProcessorFeaturePresent(66); }
bool has_fhm() { return false; }

#else

bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
bool has_fhm() { return false; }

#endif

}  // namespace

Processor processor() {
  Processor found;
  found.has_neon = true;
  found.has_dotprod = has_dotprod();
  found.has_i8mm = found.has_dotprod && has_i8mm();
  found.has_fhm = found.has_i8mm && has_fhm();
  return found;
}

#else

Processor processor() { return {}; }

#endif

}  // namespace moe_export
