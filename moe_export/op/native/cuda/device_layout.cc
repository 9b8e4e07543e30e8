#include "cuda/device_layout.h"

#include <algorithm>
#include <exception>

#include "common/half.h"
#include "common/threads.h"

namespace moe_export::cuda {
namespace {

// Shortest group of depths that share a scale. In 4-bit formats, byte j of a row's block of 64
// holds depth j in its lower nibble and depth 32 + j in the upper one.
constexpr int64_t kRun = 32;

// Rows and columns that are transposed at a time, to stay within the cache.
constexpr int64_t kTile = 64;

// More threads than this would only wait for memory.
constexpr unsigned kMostThreads = 16;

template <typename Body>
void for_blocks(int64_t depth, int64_t columns, const Body& body) {
  for (int64_t d0 = 0; d0 < depth; d0 += kTile) {
    for (int64_t c0 = 0; c0 < columns; c0 += kTile) {
      for (int64_t c = c0; c < std::min(columns, c0 + kTile); ++c) {
        for (int64_t d = d0; d < std::min(depth, d0 + kTile); ++d) body(d, c);
      }
    }
  }
}

template <typename Word>
void transpose_words(const void* from, int64_t depth, int64_t columns, int64_t stride, void* to) {
  const Word* values = static_cast<const Word*>(from);
  Word* rows = static_cast<Word*>(to);
  for_blocks(depth, columns,
             [&](int64_t d, int64_t c) { rows[c * stride + d] = values[d * columns + c]; });
}

// The float16 number for each bfloat16 number; infinity beyond the largest.
const uint16_t* halves() {
  static const std::vector<uint16_t> table = [] {
    std::vector<uint16_t> values(1 << 16);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = half_of_float(float_of_bfloat16(static_cast<uint16_t>(i)));
    }
    return values;
  }();
  return table.data();
}

// Returns false if a value, finite or not, becomes infinite.
bool transpose_to_half(const void* from, int64_t depth, int64_t columns, int64_t stride, void* to) {
  const uint16_t* values = static_cast<const uint16_t*>(from);
  const uint16_t* table = halves();
  uint16_t* rows = static_cast<uint16_t*>(to);
  bool fits = true;
  for_blocks(depth, columns, [&](int64_t d, int64_t c) {
    const uint16_t half = table[values[d * columns + c]];
    fits &= (half & 0x7fff) != 0x7c00;
    rows[c * stride + d] = half;
  });
  return fits;
}

// The code at `index`; 4-bit formats have two in a byte, the lower one first.
int code_at(const uint8_t* codes, int64_t index, bool four_bits) {
  return four_bits ? (codes[index / 2] >> (index % 2 * 4)) & 15 : codes[index];
}

// Codes of 4 bits. Flipping the bits of `half` makes those of int4 unsigned; beyond the depth the
// code is `half`.
void transpose_nibbles(const uint8_t* codes, int64_t depth, int64_t columns, int half,
                       uint8_t* rows) {
  const int64_t row = padded_depth(depth, Format::kInt4) / 2;
  const auto code = [&](int64_t d, int64_t c) {
    return d < depth ? code_at(codes, d * columns + c, true) ^ half : half;
  };
  for (int64_t d0 = 0; d0 < depth; d0 += 2 * kRun) {
    for (int64_t c0 = 0; c0 < columns; c0 += kTile) {
      for (int64_t c = c0; c < std::min(columns, c0 + kTile); ++c) {
        uint8_t* bytes = rows + c * row + d0 / 2;
        for (int64_t j = 0; j < kRun; ++j) {
          bytes[j] = static_cast<uint8_t>(code(d0 + j, c) | code(d0 + kRun + j, c) << 4);
        }
      }
    }
  }
}

// Transposes [depth, columns] to `columns` rows. Beyond the depth they hold zeros, or the code of
// zero in formats without zero points. Empty if a value does not fit.
std::vector<uint8_t> by_output(const MoeTensor& tensor, Format format, bool is_bfloat16) {
  const int64_t depth = tensor.shape[0], columns = tensor.shape[1];
  const int64_t stored = padded_depth(depth, format);
  const int half = format == Format::kInt4 ? 8 : format == Format::kInt8 ? 128 : 0;
  std::vector<uint8_t> rows(row_bytes(depth, format) * static_cast<size_t>(columns),
                            static_cast<uint8_t>(has_four_bits(format) ? half << 4 | half : half));
  const uint8_t* codes = static_cast<const uint8_t*>(tensor.data);
  if (format == Format::kFloat32) {
    transpose_words<uint32_t>(tensor.data, depth, columns, stored, rows.data());
  } else if (format == Format::kFloat16 && is_bfloat16) {
    if (!transpose_to_half(tensor.data, depth, columns, stored, rows.data())) rows.clear();
  } else if (!is_quantized(format)) {
    transpose_words<uint16_t>(tensor.data, depth, columns, stored, rows.data());
  } else if (has_four_bits(format)) {
    transpose_nibbles(codes, depth, columns, half, rows.data());
  } else {
    for_blocks(depth, columns, [&](int64_t d, int64_t c) {
      rows[static_cast<size_t>(c * stored + d)] =
          static_cast<uint8_t>(codes[d * columns + c] ^ half);
    });
  }
  return rows;
}

// Transposes zero points [groups, columns] to [columns, groups], a byte each.
std::vector<uint8_t> transposed_zeros(const MoeTensor& zeros, int64_t groups, int64_t columns,
                                      bool four_bits) {
  const uint8_t* codes = static_cast<const uint8_t*>(zeros.data);
  std::vector<uint8_t> transposed(static_cast<size_t>(groups * columns));
  for_blocks(groups, columns, [&](int64_t g, int64_t c) {
    transposed[static_cast<size_t>(c * groups + g)] =
        static_cast<uint8_t>(code_at(codes, g * columns + c, four_bits));
  });
  return transposed;
}

// Transposes scales [groups, columns] to [columns, groups] in float16; empty if one is no float16
// number.
std::vector<uint16_t> transposed_scales(const MoeTensor& scales) {
  const int64_t groups = scales.shape[0], columns = scales.shape[1];
  std::vector<uint16_t> transposed(static_cast<size_t>(groups * columns));
  bool exact = true;
  for_blocks(groups, columns, [&](int64_t g, int64_t c) {
    const int64_t index = g * columns + c;
    uint16_t half;
    if (scales.type == kFloat16) {
      half = static_cast<const uint16_t*>(scales.data)[index];
    } else {
      const float scale = static_cast<const float*>(scales.data)[index];
      half = half_of_float(scale);
      exact &= float_of_half(half) == scale;
    }
    transposed[static_cast<size_t>(c * groups + g)] = half;
  });
  return exact ? transposed : std::vector<uint16_t>();
}

}  // namespace

Format device_format(const Problem& problem) {
  const bool rounds = problem.format == Format::kBfloat16 && problem.x_type == kFloat16;
  return rounds ? Format::kFloat16 : problem.format;
}

int64_t padded_depth(int64_t depth, Format format) {
  return round_up(depth, has_four_bits(format) ? 2 * kRun : kRun);
}

size_t row_bytes(int64_t depth, Format format) {
  const size_t stored = static_cast<size_t>(padded_depth(depth, format));
  if (is_quantized(format)) return has_four_bits(format) ? stored / 2 : stored;
  return stored * (format == Format::kFloat32 ? 4 : 2);
}

int64_t groups_of(int64_t depth, int64_t group_size) {
  return group_size == 0 ? 0 : (depth + group_size - 1) / group_size;
}

DeviceMatrix lay_out_matrix(const Problem& problem, const std::vector<MoeTensor>& tensors,
                            size_t index) {
  const MoeTensor& matrix = tensors[index];
  const bool is_empty = matrix.shape[0] * matrix.shape[1] == 0;
  DeviceMatrix result;
  result.values = by_output(matrix, device_format(problem), problem.format == Format::kBfloat16);
  if (result.values.empty() && !is_empty) {
    throw Error{weight_name(problem, index) +
                " holds a value that float16 does not reach, in which the CUDA kernels multiply; "
                "export the experts in another format, or run on the CPU"};
  }
  if (problem.tensors_per_matrix() == 1) return result;
  const MoeTensor& scales = tensors[index + 1];
  result.scales = transposed_scales(scales);
  if (result.scales.empty() && !is_empty) {
    throw Error{weight_name(problem, index + 1) +
                " holds a value that is not a float16 number, as all scales have to be"};
  }
  if (problem.tensors_per_matrix() == 2) return result;
  result.zeros = transposed_zeros(tensors[index + 2], scales.shape[0], scales.shape[1],
                                  has_four_bits(problem.format));
  return result;
}

void in_parallel(size_t count, const std::function<void(size_t)>& item) {
  std::vector<std::exception_ptr> failures(count);
  const size_t processors = std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads);
  share_out(std::min(processors, count), count, [&](size_t i) {
    try {
      item(i);
    } catch (...) {
      failures[i] = std::current_exception();
    }
  });
  for (const std::exception_ptr& failure : failures) {
    if (failure != nullptr) std::rethrow_exception(failure);
  }
}

}  // namespace moe_export::cuda
