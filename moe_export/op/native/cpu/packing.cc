#include "cpu/packing.h"

#include <cstring>

#include "common/half.h"

namespace moe_export {
namespace {

// A matrix [depth, columns] of the model and, if it is quantized, its scales and zero points
// [groups, columns].
struct Matrix {
  const MoeTensor* values;
  const MoeTensor* scales;
  const MoeTensor* zero_points;
};

// Columns [from, from + room) of a matrix, which become columns [to, to + room) of a panel. Columns
// beyond the matrix are zero.
struct Part {
  const Matrix* matrix;
  int64_t from;
  int64_t to;
  int64_t room;

  int64_t count() const {
    const int64_t left = matrix->values->shape[1] - from;
    return left < room ? left : room;
  }
};

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

bool pack_part(const Problem& problem, const Part& part, uint8_t* panel) {
  const Format format = problem.format;
  if (!is_quantized(format)) {
    pack_floats(part, format == Format::kFloat32 ? 4 : 2, panel);
    return true;
  }
  if (has_zero_points(format)) pack_zero_points(part, problem.group_size, format, panel);
  pack_codes(part, format, panel);
  return pack_scales(part, problem.group_size, format, panel);
}

}  // namespace

int64_t gate_up_panels(const Problem& problem, int64_t width) {
  const int64_t units = units_per_panel(problem.activation);
  return round_up(width, units) / units;
}

int64_t down_panels(const Problem& problem) {
  return round_up(problem.hidden_size, kColumns) / kColumns;
}

uint64_t expert_bytes(const Problem& problem, int64_t width) {
  const int64_t gate_up_bytes =
      gate_up_panels(problem, width) * panel_bytes(problem.format, problem.hidden_size);
  return static_cast<uint64_t>(gate_up_bytes +
                               down_panels(problem) * panel_bytes(problem.format, width));
}

Refusal pack_expert(const Problem& problem, const MoeWeights& weights, size_t expert,
                    uint8_t* panels) {
  const size_t each = static_cast<size_t>(problem.tensors_per_expert());
  const size_t step = static_cast<size_t>(problem.tensors_per_matrix());
  const size_t down = static_cast<size_t>(problem.matrices_per_expert()) - 1;
  const int64_t units = units_per_panel(problem.activation);
  const int64_t width = problem.widths[expert];
  const MoeTensor* tensors = weights.tensors + expert * each;
  Matrix matrices[3];
  for (size_t role = 0; role <= down; ++role) {
    const MoeTensor* values = tensors + role * step;
    matrices[role] = {values, step > 1 ? values + 1 : nullptr, step > 2 ? values + 2 : nullptr};
  }
  bool fits[3] = {true, true, true};
  for (int64_t panel = 0; panel < gate_up_panels(problem, width); ++panel) {
    for (size_t role = 0; role < down; ++role) {
      const int64_t column = static_cast<int64_t>(role) * units;
      fits[role] &= pack_part(problem, {&matrices[role], panel * units, column, units}, panels);
    }
    panels += panel_bytes(problem.format, problem.hidden_size);
  }
  for (int64_t panel = 0; panel < down_panels(problem); ++panel) {
    fits[down] &= pack_part(problem, {&matrices[down], panel * kColumns, 0, kColumns}, panels);
    panels += panel_bytes(problem.format, width);
  }
  for (size_t role = 0; role <= down; ++role) {
    if (fits[role]) continue;
    return weight_name(problem, expert * each + role * step + 1) +
           " holds a value that is not a float16 number, as all scales have to be";
  }
  return std::nullopt;
}

}  // namespace moe_export
