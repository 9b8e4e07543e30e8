#include "cpu/rows.h"

#include <algorithm>
#include <cstring>

#include "cpu/exact_product.h"

namespace moe_export {
namespace {

// Floats from `at` on, of a tensor of float32 or float16.
void load(const Kernels& kernels, const MoeTensor& from, size_t at, int64_t count, float* values) {
  if (from.type == kFloat32) {
    std::memcpy(values, static_cast<const float*>(from.data) + at,
                static_cast<size_t>(count) * sizeof(float));
  } else {
    kernels.widen(static_cast<const uint16_t*>(from.data) + at, count, values);
  }
}

}  // namespace

void RowForm::prepare(const MoeTensor& x, size_t row, uint8_t* to) const {
  const int64_t depth = x.shape[x.rank - 1];
  const size_t first = row * static_cast<size_t>(depth);
  if (x.type == kFloat32) {
    kernels_.quantize(static_cast<const float*>(x.data) + first, depth,
                      reinterpret_cast<QuantizedBlock*>(to));
    return;
  }
  const uint16_t* halves = static_cast<const uint16_t*>(x.data) + first;
  if (!is_quantized_) return kernels_.widen(halves, depth, reinterpret_cast<float*>(to));
  for (int64_t d = 0; d < depth; d += kBlock, to += sizeof(QuantizedBlock)) {
    float values[kBlock];
    const int64_t count = std::min(kBlock, depth - d);
    kernels_.widen(halves + d, count, values);
    kernels_.quantize(values, count, reinterpret_cast<QuantizedBlock*>(to));
  }
}

void RowForm::prepare_scaled(const MoeTensor& x, const MoeTensor& scale, size_t row,
                             uint8_t* to) const {
  const int64_t depth = x.shape[x.rank - 1];
  const size_t first = row * static_cast<size_t>(depth);
  const size_t block_bytes = bytes(kBlock);
  for (int64_t d = 0; d < depth; d += kBlock, to += block_bytes) {
    float values[kBlock], factors[kBlock];
    const int64_t count = std::min(kBlock, depth - d);
    const size_t at = first + static_cast<size_t>(d);
    load(kernels_, x, at, count, values);
    load(kernels_, scale, at, count, factors);
    for (int64_t i = 0; i < count; ++i) values[i] *= factors[i];
    if (is_quantized_) {
      kernels_.quantize(values, count, reinterpret_cast<QuantizedBlock*>(to));
    } else {
      std::memcpy(to, values, static_cast<size_t>(count) * sizeof(float));
    }
  }
}

void RowForm::product(const uint8_t* panel, int64_t depth, const void* const* rows, int count,
                      float* sums, int sides) const {
  if (has_integer_codes(format_) && !is_quantized_) {
    return exact_product(kernels_, format_, panel, depth, rows, count, sides, sums);
  }
  if (is_half_) return kernels_.product_of_halves(panel, depth, rows, count, sums);
  kernels_.products[sides - 1][format_](panel, depth, rows, count, sums);
}

void store(const Kernels& kernels, int32_t type, const float* from, size_t count, void* y,
           size_t at) {
  if (type == kFloat32) {
    std::memcpy(static_cast<float*>(y) + at, from, count * sizeof(float));
  } else {
    kernels.narrow(from, static_cast<int64_t>(count), static_cast<uint16_t*>(y) + at);
  }
}

}  // namespace moe_export
