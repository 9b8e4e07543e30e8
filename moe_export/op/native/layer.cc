#include "layer.h"

#include <cstring>
#include <new>

#include "half.h"
#include "pages.h"

namespace moe_export {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;

// A [depth, columns] matrix of the model and, if it is quantized, its [groups, columns] scales and
// zero points.
struct Matrix {
  const MoeTensor* values;
  const MoeTensor* scales;
  const MoeTensor* zero_points;
};

// Columns [from, from + count) of `matrix` become columns [to, to + room) of a panel; those beyond
// the matrix are zero.
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

// Number `index` of a tensor of codes, in its lower bits.
uint8_t code_at(const MoeTensor& tensor, bool four_bits, int64_t index) {
  const uint8_t* data = static_cast<const uint8_t*>(tensor.data);
  return four_bits ? (data[index / 2] >> (index % 2 * 4)) & 15 : data[index];
}

// After the zero points, as codes that fill a block up stand for zero.
void pack_codes(const Part& part, Format format, uint8_t* panel) {
  const MoeTensor& values = *part.matrix->values;
  const int64_t depth = values.shape[0], columns = values.shape[1], count = part.count();
  const bool four_bits = has_four_bits(format);
  // The sign bit turned over adds the offset that makes a code unsigned.
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

// False if a scale is not a float16 number.
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

Memory allocate(size_t bytes) {
  const bool is_large = bytes >= 2 * kHugePage;
  const size_t alignment = is_large ? kHugePage : kCacheLine;
  const size_t rounded = (bytes + alignment) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded);
  if (memory == nullptr) throw std::bad_alloc();
  if (is_large) use_huge_pages(memory, rounded);
  return Memory(static_cast<uint8_t*>(memory));
}

int64_t gate_up_panels(const Problem& problem, int64_t width) {
  const int64_t units = units_per_panel(problem.activation);
  return round_up(width, units) / units;
}

int64_t down_panels(const Problem& problem) {
  return round_up(problem.hidden_size, kColumns) / kColumns;
}

uint64_t expert_bytes(const Problem& problem, int64_t width) {
  const int64_t into =
      gate_up_panels(problem, width) * panel_bytes(problem.format, problem.hidden_size);
  return static_cast<uint64_t>(into + down_panels(problem) * panel_bytes(problem.format, width));
}

std::string pack_expert(const Problem& problem, const MoeWeights& weights, size_t expert,
                        uint8_t* packed) {
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
      fits[role] &= pack_part(problem, {&matrices[role], panel * units, column, units}, packed);
    }
    packed += panel_bytes(problem.format, problem.hidden_size);
  }
  for (int64_t panel = 0; panel < down_panels(problem); ++panel) {
    fits[down] &= pack_part(problem, {&matrices[down], panel * kColumns, 0, kColumns}, packed);
    packed += panel_bytes(problem.format, width);
  }
  for (size_t role = 0; role <= down; ++role) {
    if (fits[role]) continue;
    return weight_name(problem, expert * each + role * step + 1) +
           " holds a value that is not a float16 number, as all scales have to be";
  }
  return "";
}

Layer::Layer(const Problem& problem, const Kernels* kernels)
    : problem_(problem), kernels_(kernels) {
  for (int64_t width : problem_.widths) {
    offsets_.push_back(bytes_);
    bytes_ += static_cast<size_t>(expert_bytes(problem_, width));
  }
}

std::unique_ptr<Layer> Layer::over(const Problem& problem, const uint8_t* panels,
                                   const Kernels* kernels) {
  std::unique_ptr<Layer> layer(new Layer(problem, kernels));
  layer->panels_ = panels;
  return layer;
}

std::unique_ptr<Layer> Layer::pack(const Problem& problem, const MoeWeights& weights,
                                   const Kernels* kernels, std::string* error) {
  std::unique_ptr<Layer> layer(new Layer(problem, kernels));
  layer->owned_ = allocate(layer->bytes_);
  layer->panels_ = layer->owned_.get();
  const size_t each = static_cast<size_t>(problem.tensors_per_expert());
  for (size_t expert = 0; expert < problem.widths.size(); ++expert) {
    uint8_t* to = layer->owned_.get() + layer->offsets_[expert];
    *error = pack_expert(problem, weights, expert, to);
    if (!error->empty()) return nullptr;
    for (size_t i = 0; i < each; ++i) {
      const MoeTensor& tensor = weights.tensors[expert * each + i];
      give_back_pages(tensor.data, data_bytes(tensor));
    }
  }
  return layer;
}

}  // namespace moe_export
