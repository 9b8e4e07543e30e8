#include "cpu/panel_part.h"

#include <cstring>

#include "common/half.h"

namespace moe_export {
namespace {

void pack_floats(const Part& part, size_t bytes_each, uint8_t* panel) {
  const MoeTensor& values = *part.matrix->values;
  const size_t used = static_cast<size_t>(part.count()) * bytes_each;
  const size_t room = static_cast<size_t>(part.room) * bytes_each;
  const size_t row_bytes = static_cast<size_t>(values.shape[1]) * bytes_each;
  const uint8_t* from =
      static_cast<const uint8_t*>(values.data) + static_cast<size_t>(part.from) * bytes_each;
  uint8_t* to = panel + static_cast<size_t>(part.to) * bytes_each;
  for (int64_t d = 0; d < values.shape[0]; ++d) {
    std::memcpy(to, from, used);
    std::memset(to + used, 0, room - used);
    from += row_bytes;
    to += kColumns * bytes_each;
  }
}

// The code at `index` of a tensor, in the lower bits.
uint8_t code_at(const MoeTensor& tensor, bool four_bits, int64_t index) {
  const uint8_t* data = static_cast<const uint8_t*>(tensor.data);
  return four_bits ? (data[index / 2] >> (index % 2 * 4)) & 15 : data[index];
}

// Runs after pack_zero_points: codes that fill up a block are zero points.
void pack_codes(const Part& part, Format format, uint8_t* panel) {
  const MoeTensor& values = *part.matrix->values;
  const int64_t depth = values.shape[0], columns = values.shape[1], count = part.count();
  const bool four_bits = has_four_bits(format);
  // Flipping the sign bit adds the offset that makes a code unsigned.
  const uint8_t sign = format == Format::kInt8 ? 0x80 : format == Format::kInt4 ? 8 : 0;
  for (int64_t d = 0; d < round_up(depth, kBlock); ++d) {
    uint8_t* block = panel + d / kBlock * block_bytes(format);
    const uint8_t* zero_points = block + kScaleBytes + part.to;
    const int64_t in_block = d % kBlock, step = in_block / (four_bits ? 8 : 4);
    uint8_t* to = block + codes_offset(format) + (step * kColumns + part.to) * 4 + in_block % 4;
    const bool high = four_bits && in_block % 8 >= 4;
    for (int64_t c = 0; c < part.room; ++c, to += 4) {
      uint8_t code = has_zero_points(format) ? zero_points[c] : zero_code(format);
      if (d < depth && c < count) {
        code = code_at(values, four_bits, d * columns + part.from + c) ^ sign;
      }
      *to = static_cast<uint8_t>(high ? *to | code << 4 : code);
    }
  }
}

void pack_zero_points(const Part& part, int64_t group_size, Format format, uint8_t* panel) {
  const MoeTensor& zero_points = *part.matrix->zero_points;
  const int64_t depth = part.matrix->values->shape[0], columns = zero_points.shape[1];
  for (int64_t d = 0; d < depth; d += kBlock, panel += block_bytes(format)) {
    for (int64_t c = 0; c < part.room; ++c) {
      const int64_t index = d / group_size * columns + part.from + c;
      panel[kScaleBytes + part.to + c] =
          c < part.count() ? code_at(zero_points, has_four_bits(format), index) : 0;
    }
  }
}

// Returns false if a scale is not a float16 number.
bool pack_scales(const Part& part, int64_t group_size, Format format, uint8_t* panel) {
  const MoeTensor& scales = *part.matrix->scales;
  const int64_t depth = part.matrix->values->shape[0], columns = scales.shape[1];
  for (int64_t d = 0; d < depth; d += kBlock, panel += block_bytes(format)) {
    for (int64_t c = 0; c < part.room; ++c) {
      const int64_t index = d / group_size * columns + part.from + c;
      uint16_t half = 0;
      if (c < part.count() && scales.type == kFloat16) {
        half = static_cast<const uint16_t*>(scales.data)[index];
      } else if (c < part.count()) {
        const float scale = static_cast<const float*>(scales.data)[index];
        half = half_of_float(scale);
        if (float_of_half(half) != scale) return false;
      }
      std::memcpy(panel + 2 * (part.to + c), &half, sizeof half);
    }
  }
  return true;
}

}  // namespace

Matrix matrix_of(Format format, const MoeTensor* parts) {
  const int count = tensors_per_matrix(format);
  return {parts, count > 1 ? parts + 1 : nullptr, count > 2 ? parts + 2 : nullptr};
}

bool pack_part(Format format, int64_t group_size, const Part& part, uint8_t* panel) {
  if (!is_quantized(format)) {
    pack_floats(part, format == Format::kFloat32 ? 4 : 2, panel);
    return true;
  }
  if (has_zero_points(format)) pack_zero_points(part, group_size, format, panel);
  pack_codes(part, format, panel);
  return pack_scales(part, group_size, format, panel);
}

}  // namespace moe_export
