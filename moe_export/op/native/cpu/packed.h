// The tensor `packed` of a RaggedMoEPacked node: a whole layer in the layout of the kernels, which
// they read in the mapped file. It is the same for all CPU kernels.
//
//   header        PackedHeader, 48 bytes
//   widths        int64 for each expert, the shared one last
//   zeros         up to a multiple of 64 bytes
//   panels        of each expert, as in packing.h; their numbers follow from its width
//
// All numbers are little-endian. `moe_export/op/packed.py` writes the tensor.
#pragma once

#include "common/ragged_moe.h"

namespace moe_export {

struct PackedHeader {
  char magic[8];  // kPackedMagic
  uint32_t version;
  uint32_t format;      // number in `Format`
  uint32_t activation;  // number in `Activation`
  uint32_t group_size;  // depths that shared a scale in the model; 0 in the float formats
  uint32_t num_experts;
  uint32_t has_shared_expert;
  uint64_t hidden_size;
  uint64_t total_bytes;  // of the whole tensor
};
static_assert(sizeof(PackedHeader) == 48, "as in moe_export/op/packed.py");

constexpr char kPackedMagic[8] = {'m', 'o', 'e', 'p', 'a', 'c', 'k', '\0'};
constexpr uint32_t kPackedVersion = 1;

// Reads the header and widths into `problem`, and the offset of the first panel. Refuses bytes that
// are no packed layer.
Refusal read_packed(const uint8_t* packed, uint64_t bytes, int32_t x_type, bool exact_activations,
                    Problem* problem, size_t* first_panel);

}  // namespace moe_export
