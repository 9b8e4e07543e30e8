#include "cuda_layer.h"

#include <algorithm>
#include <cstring>

#include "half.h"
#include "pages.h"

namespace moe_export::cuda {
namespace {

// Depths that share a scale at least, and that share a nibble's place in int4: byte j of a row's
// block of 64 holds depth j in its lower nibble and depth 32 + j in the upper one.
constexpr int64_t kRun = 32;

// Parts of the device's memory begin at multiples of this.
constexpr size_t kAlignment = 256;

// Rows and columns that are turned over at a time, to stay within the cache.
constexpr int64_t kTurn = 64;

size_t row_bytes(int64_t depth, Format format) {
  const size_t stored = static_cast<size_t>(padded_depth(depth, format));
  switch (format) {
    case Format::kFloat32:
      return stored * 4;
    case Format::kFloat16:
    case Format::kBfloat16:
      return stored * 2;
    case Format::kInt8:
      return stored;
    case Format::kInt4:
      return stored / 2;
    case Format::kUint8:
    case Format::kUint4:
    case Format::kNf4:
      break;  // refused
  }
  return 0;
}

int64_t groups_of(int64_t depth, int64_t group_size) {
  return group_size == 0 ? 0 : (depth + group_size - 1) / group_size;
}

template <typename Body>
void for_blocks(int64_t depth, int64_t columns, const Body& body) {
  for (int64_t d0 = 0; d0 < depth; d0 += kTurn) {
    for (int64_t c0 = 0; c0 < columns; c0 += kTurn) {
      for (int64_t c = c0; c < std::min(columns, c0 + kTurn); ++c) {
        for (int64_t d = d0; d < std::min(depth, d0 + kTurn); ++d) body(d, c);
      }
    }
  }
}

template <typename Word>
void turn_words(const void* from, int64_t depth, int64_t columns, int64_t stride, void* to) {
  const Word* values = static_cast<const Word*>(from);
  Word* rows = static_cast<Word*>(to);
  for_blocks(depth, columns,
             [&](int64_t d, int64_t c) { rows[c * stride + d] = values[d * columns + c]; });
}

// [depth, columns] to `columns` rows, the codes made unsigned by adding the half of their range.
std::vector<uint8_t> by_output(const void* data, int64_t depth, int64_t columns, Format format) {
  const int64_t stored = padded_depth(depth, format);
  // Zero as a code.
  const uint8_t zero = format == Format::kInt4 ? 0x88 : format == Format::kInt8 ? 0x80 : 0;
  std::vector<uint8_t> rows(row_bytes(depth, format) * static_cast<size_t>(columns), zero);
  const uint8_t* codes = static_cast<const uint8_t*>(data);
  switch (format) {
    case Format::kFloat32:
      turn_words<uint32_t>(data, depth, columns, stored, rows.data());
      break;
    case Format::kFloat16:
    case Format::kBfloat16:
      turn_words<uint16_t>(data, depth, columns, stored, rows.data());
      break;
    case Format::kInt8:
      for_blocks(depth, columns, [&](int64_t d, int64_t c) {
        rows[static_cast<size_t>(c * stored + d)] = codes[d * columns + c] ^ 0x80;
      });
      break;
    case Format::kInt4:
      for_blocks(depth, columns, [&](int64_t d, int64_t c) {
        const int64_t index = d * columns + c;
        const int code = ((codes[index / 2] >> (index % 2 * 4)) & 15) ^ 8;
        const int64_t at = c * (stored / 2) + d / (2 * kRun) * kRun + d % kRun;
        uint8_t& byte = rows[static_cast<size_t>(at)];
        const bool upper = d % (2 * kRun) >= kRun;
        byte = static_cast<uint8_t>(upper ? (byte & 0x0f) | code << 4 : (byte & 0xf0) | code);
      });
      break;
    case Format::kUint8:
    case Format::kUint4:
    case Format::kNf4:
      break;  // refused
  }
  return rows;
}

// [groups, columns] to [columns, groups] in float16; empty if one is no float16 number.
std::vector<uint16_t> turned_scales(const void* data, int32_t type, int64_t groups,
                                    int64_t columns) {
  std::vector<uint16_t> turned(static_cast<size_t>(groups * columns));
  bool exact = true;
  for_blocks(groups, columns, [&](int64_t g, int64_t c) {
    const int64_t index = g * columns + c;
    uint16_t half;
    if (type == kFloat16) {
      half = static_cast<const uint16_t*>(data)[index];
    } else {
      const float scale = static_cast<const float*>(data)[index];
      half = half_of_float(scale);
      exact &= float_of_half(half) == scale;
    }
    turned[static_cast<size_t>(c * groups + g)] = half;
  });
  return exact ? turned : std::vector<uint16_t>();
}

size_t data_bytes(const MoeTensor& tensor) {
  const size_t count = static_cast<size_t>(tensor.shape[0] * tensor.shape[1]);
  return tensor.type == kFloat32 ? count * 4
         : tensor.type == kInt8  ? count
         : tensor.type == kInt4  ? (count + 1) / 2
                                 : count * 2;
}

// A tensor's values in host memory, wherever they were.
class HostCopy {
 public:
  HostCopy(const MoeTensor& tensor, bool on_device) : data_(tensor.data) {
    const size_t bytes = data_bytes(tensor);
    if (!on_device) {
      pages_ = bytes;
      return;
    }
    copy_.resize(bytes);
    data_ = copy_.data();
    if (bytes == 0) return;
    check(driver().copy_to_host(copy_.data(), reinterpret_cast<Pointer>(tensor.data), bytes),
          "read weights from the device");
  }
  ~HostCopy() { give_back_pages(data_, pages_); }
  HostCopy(const HostCopy&) = delete;
  HostCopy& operator=(const HostCopy&) = delete;

  const void* data() const { return data_; }

 private:
  const void* data_;
  size_t pages_ = 0;
  std::vector<uint8_t> copy_;
};

void upload(Pointer to, const void* from, size_t bytes) {
  if (bytes > 0) check(driver().copy_to_device(to, from, bytes), "write weights to the device");
}

}  // namespace

int64_t padded_depth(int64_t depth, Format format) {
  return round_up(depth, format == Format::kInt4 ? 2 * kRun : kRun);
}

Layer::Layer(const Problem& problem, const MoeWeights& weights, const OnDevice& on_device)
    : problem_(problem), kernels_(Kernels::of_current_context()) {
  const Format format = problem.format;
  if (format >= Format::kUint8) {
    throw Error{std::string("the CUDA kernels know no format '") +
                format_name(static_cast<uint32_t>(format)) +
                "', only the floats, int8 and int4; run on the CPU, or without the native library"};
  }
  const int64_t hidden = problem.hidden_size;
  const size_t experts = problem.widths.size();
  std::vector<int32_t> table(4 * experts);
  int64_t rows = 0, depths = 0, groups = 0;
  for (size_t e = 0; e < experts; ++e) {
    const int64_t width = problem.widths[e];
    const int64_t entry[] = {width, rows, depths, groups};
    for (size_t i = 0; i < 4; ++i) {
      if (entry[i] > INT32_MAX) throw Error{"the layer has more rows than CUDA kernels can count"};
      table[i * experts + e] = static_cast<int32_t>(entry[i]);
    }
    widest_ = std::max(widest_, width);
    rows += width;
    depths += padded_depth(width, format);
    groups += groups_of(width, problem.group_size);
  }

  const size_t scale_row = static_cast<size_t>(groups_of(hidden, problem.group_size)) * 2;
  const size_t across = static_cast<size_t>(rows) * row_bytes(hidden, format);
  const size_t across_scales = static_cast<size_t>(rows) * scale_row;
  size_t depth_bytes = 0;
  for (const int64_t width : problem.widths) depth_bytes += row_bytes(width, format);
  const size_t back = depth_bytes * static_cast<size_t>(hidden);
  const size_t back_scales = static_cast<size_t>(groups * hidden) * 2;
  const size_t parts[] = {across,      across,          back, across_scales, across_scales,
                          back_scales, table.size() * 4};
  for (size_t i = 0; i < 7; ++i) {
    offsets_[i] = bytes_;
    bytes_ += (parts[i] + kAlignment - 1) / kAlignment * kAlignment;
  }
  check(driver().memory_allocate(&data_, bytes_), "allocate the weights of a layer");
  try {
    upload(this->table(), table.data(), table.size() * 4);
    Pointer to[6];
    for (size_t i = 0; i < 6; ++i) to[i] = data_ + offsets_[i];
    const size_t each = static_cast<size_t>(problem.tensors_per_expert()), step = each / 3;
    for (size_t index = 0; index < experts * each; index += step) {
      const size_t role = index % each / step;
      const MoeTensor& tensor = weights.tensors[index];
      const HostCopy values(tensor, on_device(index));
      const std::vector<uint8_t> packed =
          by_output(values.data(), tensor.shape[0], tensor.shape[1], format);
      upload(to[role], packed.data(), packed.size());
      to[role] += packed.size();
      if (step == 1) continue;
      const MoeTensor& scales = weights.tensors[index + 1];
      const HostCopy scale_values(scales, on_device(index + 1));
      const std::vector<uint16_t> turned =
          turned_scales(scale_values.data(), scales.type, scales.shape[0], scales.shape[1]);
      if (turned.empty() && scales.shape[0] * scales.shape[1] > 0) {
        throw Error{weight_name(problem, index + 1) +
                    " holds a value that is not a float16 number, as all scales have to be"};
      }
      upload(to[3 + role], turned.data(), turned.size() * 2);
      to[3 + role] += turned.size() * 2;
    }
  } catch (...) {
    driver().memory_free(data_);
    throw;
  }
}

Layer::~Layer() {
  // The process may be ending, with the driver gone already; there is nobody to tell.
  try {
    const Current current(kernels_.context());
    driver().memory_free(data_);
  } catch (const Error&) {
  }
}

}  // namespace moe_export::cuda
