// Rows of activations, in the form that products take.
#pragma once

#include <cstddef>

#include "common/c_types.h"
#include "cpu/kernels.h"

namespace moe_export {

// QuantizedBlocks for formats of integer codes, floats for the others and for exact activations.
// Rows of float16 stay so for weights of float16 if the kernels have a product for both.
class RowForm {
 public:
  // `type` is that of the values before they are converted.
  RowForm(const Kernels& kernels, Format format, bool exact_activations, int32_t type)
      : kernels_(kernels),
        format_(format),
        is_quantized_(has_integer_codes(format) && !exact_activations),
        is_half_(type == kFloat16 && format == Format::kFloat16 &&
                 kernels.product_of_halves != nullptr) {}

  bool is_quantized() const { return is_quantized_; }

  // True if rows of x serve as they are.
  bool is(int32_t x_type) const {
    return !is_quantized_ && x_type == (is_half_ ? kFloat16 : kFloat32);
  }

  // A row of x that serves as it is; its last axis is the depth.
  const void* row(const MoeTensor& x, size_t index) const {
    const size_t depth = static_cast<size_t>(x.shape[x.rank - 1]);
    const size_t size = is_half_ ? sizeof(uint16_t) : sizeof(float);
    return static_cast<const uint8_t*>(x.data) + index * depth * size;
  }

  // Bytes of a converted row, up to a whole block.
  size_t bytes(int64_t depth) const {
    const size_t blocks = static_cast<size_t>(round_up(depth, kBlock) / kBlock);
    return blocks * (is_quantized_ ? sizeof(QuantizedBlock) : kBlock * sizeof(float));
  }

  // Converts a row of x.
  void prepare(const MoeTensor& x, size_t row, uint8_t* to) const;

  // Converts a row of x times the same row of `scale`, which is of x's type and shape.
  void prepare_scaled(const MoeTensor& x, const MoeTensor& scale, size_t row, uint8_t* to) const;

  // The product of rows with a panel; 1 <= count <= kTile. With two sides gate's columns and up's
  // read rows of their own (kernels.h).
  void product(const uint8_t* panel, int64_t depth, const void* const* rows, int count, float* sums,
               int sides = 1) const;

 private:
  const Kernels& kernels_;
  Format format_;
  bool is_quantized_;
  bool is_half_;
};

// Calls body(first, count) for tiles of rows of nearly equal size.
template <typename Body>
void for_tiles(size_t rows, const Body& body) {
  const size_t tiles = (rows + kTile - 1) / kTile;
  for (size_t tile = 0; tile < tiles; ++tile) {
    const size_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
    body(first, static_cast<int>(last - first));
  }
}

// Writes floats to y[at ...], which is of type `type`.
void store(const Kernels& kernels, int32_t type, const float* from, size_t count, void* y,
           size_t at);

}  // namespace moe_export
