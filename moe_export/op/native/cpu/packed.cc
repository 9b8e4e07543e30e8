#include "cpu/packed.h"

#include <cstring>

#include "cpu/memory.h"
#include "cpu/packing.h"

namespace moe_export {

Refusal read_packed(const uint8_t* packed, uint64_t bytes, int32_t x_type, bool exact_activations,
                    Problem* problem, size_t* first_panel) {
  PackedHeader header;
  if (bytes < sizeof header) {
    return "packed has " + std::to_string(bytes) + " bytes, expected a header of " +
           std::to_string(sizeof header);
  }
  std::memcpy(&header, packed, sizeof header);
  if (std::memcmp(header.magic, kPackedMagic, sizeof kPackedMagic) != 0) {
    return "packed does not begin with 'moepack', so it is no packed layer";
  }
  if (header.version != kPackedVersion) {
    return "packed is of version " + std::to_string(header.version) + ", expected " +
           std::to_string(kPackedVersion) + "; export the model with this version of moe-export";
  }
  if (header.total_bytes != bytes) {
    return "packed has " + std::to_string(bytes) + " bytes, its header says " +
           std::to_string(header.total_bytes);
  }
  const MoeWeights attributes = {
      header.num_experts,
      activation_name(header.activation),
      format_name(header.format),
      header.group_size,
      x_type,
      exact_activations,
      nullptr,
      0,
      {},
  };
  Refusal refusal = check_attributes(attributes, problem);
  if (refusal) return "the header of packed: " + *refusal;
  refusal = check_sizes(static_cast<int64_t>(header.hidden_size), 0);
  if (refusal) return "the header of packed: " + *refusal;
  problem->hidden_size = static_cast<int64_t>(header.hidden_size);

  const uint64_t experts = header.num_experts + (header.has_shared_expert != 0 ? 1 : 0);
  const uint64_t end_of_widths = sizeof header + experts * sizeof(int64_t);
  uint64_t at = static_cast<uint64_t>(round_up(static_cast<int64_t>(end_of_widths), kCacheLine));
  *first_panel = static_cast<size_t>(at);
  for (uint64_t expert = 0; expert < experts && at <= bytes; ++expert) {
    int64_t width = 0;
    std::memcpy(&width, packed + sizeof header + expert * sizeof width, sizeof width);
    refusal = check_sizes(problem->hidden_size, width);
    if (refusal) return "expert " + std::to_string(expert) + " of packed: " + *refusal;
    problem->widths.push_back(width);
    // Cannot overflow: sizes below 2^28 give less than 2^61 bytes, and `at` is within the tensor.
    at += expert_bytes(*problem, width);
  }
  if (at != bytes) {
    return "packed has " + std::to_string(bytes) + " bytes, its widths make " +
           (at > bytes ? "more" : std::to_string(at));
  }
  return std::nullopt;
}

}  // namespace moe_export
