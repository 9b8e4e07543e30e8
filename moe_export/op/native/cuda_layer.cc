#include "cuda_layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"
#include "pages.h"

namespace moe_export::cuda {
namespace {

// Depths that share a scale at least, and that share a nibble's place in four bits: byte j of a
// row's block of 64 holds depth j in its lower nibble and depth 32 + j in the upper one.
constexpr int64_t kRun = 32;

// What rounds to no float16 number.
constexpr float kBeyondHalf = 65520;

// Parts of the device's memory begin at multiples of this.
constexpr size_t kAlignment = 256;

// Rows and columns that are turned over at a time, to stay within the cache.
constexpr int64_t kTurn = 64;

size_t row_bytes(int64_t depth, Format format) {
  const size_t stored = static_cast<size_t>(padded_depth(depth, format));
  if (is_quantized(format)) return has_four_bits(format) ? stored / 2 : stored;
  return stored * (format == Format::kFloat32 ? 4 : 2);
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

// The code in place `index`; two are in a byte in the formats of four bits, the lower one first.
int code_at(const uint8_t* codes, int64_t index, bool four_bits) {
  return four_bits ? (codes[index / 2] >> (index % 2 * 4)) & 15 : codes[index];
}

// [depth, columns] to `columns` rows, the codes of int8 and int4 made unsigned by adding the half
// of their range. Beyond the depth are zeros, or the code that means zero without a zero point.
std::vector<uint8_t> by_output(const void* data, int64_t depth, int64_t columns, Format format) {
  const int64_t stored = padded_depth(depth, format);
  const int half = format == Format::kInt4 ? 8 : format == Format::kInt8 ? 128 : 0;
  const bool four_bits = has_four_bits(format);
  std::vector<uint8_t> rows(row_bytes(depth, format) * static_cast<size_t>(columns),
                            static_cast<uint8_t>(four_bits ? half << 4 | half : half));
  const uint8_t* codes = static_cast<const uint8_t*>(data);
  if (format == Format::kFloat32) {
    turn_words<uint32_t>(data, depth, columns, stored, rows.data());
  } else if (!is_quantized(format)) {
    turn_words<uint16_t>(data, depth, columns, stored, rows.data());
  } else if (!four_bits) {
    for_blocks(depth, columns, [&](int64_t d, int64_t c) {
      rows[static_cast<size_t>(c * stored + d)] =
          static_cast<uint8_t>(codes[d * columns + c] ^ half);
    });
  } else {
    for_blocks(depth, columns, [&](int64_t d, int64_t c) {
      const int code = code_at(codes, d * columns + c, true) ^ half;
      const int64_t at = c * (stored / 2) + d / (2 * kRun) * kRun + d % kRun;
      uint8_t& byte = rows[static_cast<size_t>(at)];
      const bool upper = d % (2 * kRun) >= kRun;
      byte = static_cast<uint8_t>(upper ? (byte & 0x0f) | code << 4 : (byte & 0xf0) | code);
    });
  }
  return rows;
}

// Zero points [groups, columns] to [columns, groups], a byte each.
std::vector<uint8_t> turned_zeros(const void* data, int64_t groups, int64_t columns,
                                  bool four_bits) {
  const uint8_t* codes = static_cast<const uint8_t*>(data);
  std::vector<uint8_t> turned(static_cast<size_t>(groups * columns));
  for_blocks(groups, columns, [&](int64_t g, int64_t c) {
    turned[static_cast<size_t>(c * groups + g)] =
        static_cast<uint8_t>(code_at(codes, g * columns + c, four_bits));
  });
  return turned;
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
  switch (tensor.type) {
    case kFloat32:
      return count * 4;
    case kInt8:
    case kUint8:
      return count;
    case kInt4:
    case kUint4:
      return (count + 1) / 2;
    default:
      return count * 2;
  }
}

// bfloat16 to float16, exact but for what is below float16's normal numbers; empty if one is beyond
// the largest.
std::vector<uint16_t> halves(const void* data, size_t count) {
  const uint16_t* values = static_cast<const uint16_t*>(data);
  std::vector<uint16_t> rounded(count);
  for (size_t i = 0; i < count; ++i) {
    const float value = float_of_bfloat16(values[i]);
    if (std::abs(value) >= kBeyondHalf) return {};
    rounded[i] = half_of_float(value);
  }
  return rounded;
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
  return round_up(depth, has_four_bits(format) ? 2 * kRun : kRun);
}

Layer::Layer(const Problem& problem, const MoeWeights& weights, const OnDevice& on_device)
    : problem_(problem),
      kernels_(Kernels::of_current_context()),
      format_(problem.format == Format::kBfloat16 && problem.x_type == kFloat16 ? Format::kFloat16
                                                                                 : problem.format) {
  const Format format = format_;
  if (format >= Format::kUint8 && problem.x_type != kFloat16) {
    throw Error{std::string("the CUDA kernels of format '") +
                format_name(static_cast<uint32_t>(format)) +
                "' are for models in float16, since ONNX Runtime's CUDA provider has no attention "
                "in float32; export in float16, or run on the CPU"};
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
    rows += width;
    depths += padded_depth(width, format);
    groups += groups_of(width, problem.group_size);
  }

  const auto bytes = [](int64_t count) { return static_cast<size_t>(count); };
  const int64_t across_groups = rows * groups_of(hidden, problem.group_size);
  const int64_t back_groups = groups * hidden;
  size_t depth_bytes = 0;
  for (const int64_t width : problem.widths) depth_bytes += row_bytes(width, format);
  size_t parts[kNumParts] = {};
  for (size_t role = 0; role < 3; ++role) {
    if (role == 0 && !is_gated(problem.activation)) continue;
    const bool down = role == 2;
    const int64_t each_group = down ? back_groups : across_groups;
    parts[kWeights + role] =
        down ? depth_bytes * bytes(hidden) : row_bytes(hidden, format) * bytes(rows);
    parts[kScales + role] = bytes(each_group) * 2;
    parts[kZeros + role] = has_zero_points(format) ? bytes(each_group) : 0;
  }
  parts[kCodebook] = format == Format::kNf4 ? sizeof kNf4 : 0;
  parts[kTable] = table.size() * 4;
  for (size_t i = 0; i < kNumParts; ++i) {
    offsets_[i] = bytes_;
    bytes_ += (parts[i] + kAlignment - 1) / kAlignment * kAlignment;
  }
  check(driver().memory_allocate(&data_, bytes_), "allocate the weights of a layer");
  try {
    upload(this->table(), table.data(), parts[kTable]);
    upload(codebook(), kNf4, parts[kCodebook]);
    Pointer to[kNumParts];
    for (size_t i = 0; i < kNumParts; ++i) to[i] = data_ + offsets_[i];
    const size_t step = static_cast<size_t>(problem.tensors_per_matrix());
    for (size_t index = 0; index < weights.num_tensors; index += step) {
      upload_matrix(weights, index, on_device, to);
    }
  } catch (...) {
    driver().memory_free(data_);
    throw;
  }
}

// The matrix whose codes or values are the tensor `index`; `to` is where each part goes on.
void Layer::upload_matrix(const MoeWeights& weights, size_t index, const OnDevice& on_device,
                          Pointer (&to)[kNumParts]) const {
  const auto put = [&](size_t part, const auto& values) {
    const size_t bytes = values.size() * sizeof values[0];
    upload(to[part], values.data(), bytes);
    to[part] += bytes;
  };
  const size_t each = static_cast<size_t>(problem_.tensors_per_expert());
  const size_t step = static_cast<size_t>(problem_.tensors_per_matrix());
  const size_t role = index % each / step + (is_gated(problem_.activation) ? 0 : 1);
  const MoeTensor& tensor = weights.tensors[index];
  const HostCopy values(tensor, on_device(index));
  put(kWeights + role, values_by_output(values.data(), tensor, index));
  if (step == 1) return;
  const MoeTensor& scales = weights.tensors[index + 1];
  const int64_t groups = scales.shape[0], columns = scales.shape[1];
  const HostCopy scale_values(scales, on_device(index + 1));
  const std::vector<uint16_t> turned =
      turned_scales(scale_values.data(), scales.type, groups, columns);
  if (turned.empty() && groups * columns > 0) {
    throw Error{weight_name(problem_, index + 1) +
                " holds a value that is not a float16 number, as all scales have to be"};
  }
  put(kScales + role, turned);
  if (step == 2) return;
  const HostCopy zeros(weights.tensors[index + 2], on_device(index + 2));
  put(kZeros + role, turned_zeros(zeros.data(), groups, columns, has_four_bits(problem_.format)));
}

std::vector<uint8_t> Layer::values_by_output(const void* data, const MoeTensor& tensor,
                                             size_t index) const {
  const int64_t depth = tensor.shape[0], columns = tensor.shape[1];
  if (format_ == problem_.format) return by_output(data, depth, columns, format_);
  const std::vector<uint16_t> rounded = halves(data, static_cast<size_t>(depth * columns));
  if (rounded.empty() && depth * columns > 0) {
    throw Error{weight_name(problem_, index) +
                " holds a value that float16 does not reach, in which the CUDA kernels multiply; "
                "export the experts in another format, or run on the CPU"};
  }
  return by_output(rounded.data(), depth, columns, format_);
}

int64_t Layer::pair_stride() const {
  int64_t widest = 0;
  for (const int64_t width : problem_.widths) widest = std::max(widest, width);
  return padded_depth(widest, format_);
}

int64_t Layer::token_stride(int64_t top_k) const {
  int64_t widest = 0;
  for (int64_t e = 0; e < problem_.num_experts; ++e) {
    widest = std::max(widest, problem_.widths[static_cast<size_t>(e)]);
  }
  const int64_t shared = problem_.has_shared_expert() ? problem_.widths.back() : 0;
  return top_k * padded_depth(widest, format_) + padded_depth(shared, format_);
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
