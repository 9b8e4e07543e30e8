#include "cpu/dispatch.h"

#include <cstdlib>

namespace moe_export {
namespace {

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

}  // namespace

Choice choose(const std::string& name) {
  struct Candidate {
    const Kernels* kernels;
    bool available;
  };
  // From fast to plain.
  const Candidate candidates[] = {
      {avx512_kernels(), has_avx512()}, {avx2_kernels(), has_avx2()}, {portable_kernels(), true}};
  std::string available;
  for (const Candidate& candidate : candidates) {
    if (candidate.kernels == nullptr || !candidate.available) continue;
    if (name.empty()) return {candidate.kernels, "the fastest that this processor has"};
    if (name == candidate.kernels->name) return {candidate.kernels, "asked for by name"};
    available += (available.empty() ? "" : ", ") + std::string(candidate.kernels->name);
  }
  return {nullptr, "there is no kernel '" + name +
                       "' for this processor, set MOE_EXPORT_KERNEL to " + "one of " + available +
                       ", or not at all"};
}

const Choice& process_choice() {
  static const Choice choice = [] {
    const char* name = std::getenv("MOE_EXPORT_KERNEL");
    return choose(name == nullptr ? "" : name);
  }();
  return choice;
}

}  // namespace moe_export
