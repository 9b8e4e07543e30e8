#include "cpu/dispatch.h"

#include <cstdlib>

namespace moe_export {
namespace {

const char* reason_for(const Kernels* fastest) {
  if (fastest != portable_kernels()) return "the fastest that this processor has";
  return "plain C++, as there are no kernels for this processor; models in integer formats are "
         "likely faster without the library, as standard operators";
}

}  // namespace

Choice choose(const std::string& name, const Processor& has) {
  struct Candidate {
    const Kernels* kernels;
    bool available;
  };
  // From fast to plain.
  const Candidate candidates[] = {{avx512_kernels(), has.has_avx512},
                                  {avxvnni_kernels(), has.has_avxvnni},
                                  {avx2_kernels(), has.has_avx2},
                                  {portable_kernels(), true}};
  std::string available;
  for (const Candidate& candidate : candidates) {
    if (candidate.kernels == nullptr || !candidate.available) continue;
    if (name.empty()) return {candidate.kernels, reason_for(candidate.kernels)};
    if (name == candidate.kernels->name) return {candidate.kernels, "asked for by name"};
    available += (available.empty() ? "" : ", ") + std::string(candidate.kernels->name);
  }
  return {nullptr, "there is no kernel '" + name +
                       "' for this processor, set MOE_EXPORT_KERNEL to " + "one of " + available +
                       ", or not at all"};
}

// Never destroyed: the library may be unloaded while threads still use it.
const Choice& process_choice() {
  static const Choice& choice = *[] {
    const char* name = std::getenv("MOE_EXPORT_KERNEL");
    return new Choice(choose(name == nullptr ? "" : name, processor()));
  }();
  return choice;
}

const Rounding& process_rounding() {
  const Kernels* kernels = process_choice().kernels;
  return *(kernels == nullptr ? portable_rounding() : kernels->rounding());
}

}  // namespace moe_export
