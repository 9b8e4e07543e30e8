#include "cpu/packed_linear.h"

#include <cstring>

#include "cpu/linear.h"

namespace moe_export {

Refusal read_packed_linear(const uint8_t* packed, uint64_t bytes, int32_t x_type,
                           bool exact_activations, LinearProblem* problem) {
  PackedLinearHeader header;
  if (bytes < sizeof header) {
    return "packed has " + std::to_string(bytes) + " bytes, expected a header of " +
           std::to_string(sizeof header);
  }
  std::memcpy(&header, packed, sizeof header);
  if (std::memcmp(header.magic, kPackedLinearMagic, sizeof kPackedLinearMagic) != 0) {
    return "packed does not begin with 'moelin', so it is no packed matrix";
  }
  if (header.version != kPackedLinearVersion) {
    return "packed is of version " + std::to_string(header.version) + ", expected " +
           std::to_string(kPackedLinearVersion) +
           "; export the model with this version of moe-export";
  }
  if (header.total_bytes != bytes) {
    return "packed has " + std::to_string(bytes) + " bytes, its header says " +
           std::to_string(header.total_bytes);
  }
  const LinearWeights attributes = {
      format_name(header.format), header.group_size, x_type, exact_activations, nullptr, 0,
  };
  Refusal refusal = check_linear_attributes(attributes, problem);
  if (refusal) return "the header of packed: " + *refusal;
  problem->depth = static_cast<int64_t>(header.depth);
  problem->columns = static_cast<int64_t>(header.columns);
  problem->has_bias = header.has_bias != 0;
  refusal = check_linear_sizes(problem->depth, problem->columns);
  if (refusal) return "the header of packed: " + *refusal;
  // Cannot overflow: sizes below 2^28 give less than 2^60 bytes.
  const uint64_t needed =
      sizeof header + linear_bias_bytes(*problem) + linear_panel_bytes(*problem);
  if (needed != bytes) {
    return "packed has " + std::to_string(bytes) + " bytes, its sizes make " +
           std::to_string(needed);
  }
  return std::nullopt;
}

}  // namespace moe_export
