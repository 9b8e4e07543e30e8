#include "cpu/dispatch.h"

#include <cstdlib>
#include <vector>

namespace moe_export {
namespace {

const char* reason_for(const Kernels* fastest) {
  if (fastest != portable_kernels()) return "the fastest that this processor has";
  return "plain C++, as there are no kernels for this processor; models in integer formats are "
         "likely faster without the library, as standard operators";
}

// The kernels that run on a processor, from fast to plain.
std::vector<const Kernels*> kernels_for(const Processor& has) {
  struct Candidate {
    const Kernels* kernels;
    bool available;
  };
  const Candidate candidates[] = {
      {avx512_kernels(), has.has_avx512}, {avxvnni_kernels(), has.has_avxvnni},
      {avx2_kernels(), has.has_avx2},     {fhm_kernels(), has.has_fhm},
      {i8mm_kernels(), has.has_i8mm},     {dotprod_kernels(), has.has_dotprod},
      {neon_kernels(), has.has_neon},     {portable_kernels(), true}};
  std::vector<const Kernels*> found;
  for (const Candidate& candidate : candidates) {
    if (candidate.kernels != nullptr && candidate.available) found.push_back(candidate.kernels);
  }
  return found;
}

}  // namespace

std::string available_kernels(const Processor& has) {
  std::string names;
  for (const Kernels* kernels : kernels_for(has)) {
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  return names;
}

Choice choose(const std::string& name, const Processor& has) {
  for (const Kernels* kernels : kernels_for(has)) {
    if (name.empty()) return {kernels, reason_for(kernels)};
    if (name == kernels->name) return {kernels, "asked for by name"};
  }
  return {nullptr, "there is no kernel '" + name +
                       "' for this processor, set MOE_EXPORT_KERNEL to one of " +
                       available_kernels(has) + ", or not at all"};
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
