// A layer in the kernels' own layout as one tensor of bytes, which a model's file holds and the
// kernels read where it is mapped. The layout is the same for all kernels.
//
//   header        below
//   widths        int64 of each expert, that of a shared one last
//   zeros         to a multiple of 64 bytes
//   panels        of each expert as in layer.h; its numbers of panels follow from its width
//
// All numbers are little-endian. `moe_export/op/packed.py` writes it.
#pragma once

#include <string>

#include "ragged_moe.h"

namespace moe_export {

struct PackedHeader {
  char magic[8];  // kPackedMagic
  uint32_t version;
  uint32_t format;      // in the order of `Format`
  uint32_t activation;  // in the order of `Activation`
  uint32_t group_size;  // that the scales were made with, 0 in the float formats
  uint32_t num_experts;
  uint32_t has_shared_expert;
  uint64_t hidden_size;
  uint64_t total_bytes;  // of header, widths, zeros and panels
};
static_assert(sizeof(PackedHeader) == 48, "as in moe_export/op/packed.py");

constexpr char kPackedMagic[8] = {'m', 'o', 'e', 'p', 'a', 'c', 'k', '\0'};
constexpr uint32_t kPackedVersion = 1;

// Fills `problem` and where the first panel lies. Gives an empty string, or one sentence saying
// what is wrong with the bytes.
std::string read_packed(const uint8_t* packed, uint64_t bytes, int32_t x_type,
                        bool exact_activations, Problem* problem, size_t* first_panel);

}  // namespace moe_export
