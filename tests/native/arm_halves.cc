#include "arm_halves.h"

#include <vector>

#include "cpu/c_api.h"
#include "cpu/dispatch.h"
#include "cpu/rows.h"
#include "random_panel.h"

namespace moe_export {
namespace {

using Halves = std::vector<uint16_t>;

// Any finite numbers, subnormal ones among them: the mask keeps exponents below that of infinity.
Halves finite_halves(int64_t count, std::mt19937* random) {
  Halves halves;
  for (int64_t i = 0; i < count; ++i) halves.push_back((*random)() & 0xfbff);
  return halves;
}

// From the normal distribution, so that nothing overflows on its way through a layer.
Halves normal_halves(int64_t count, std::mt19937* random) {
  std::normal_distribution<float> normal;
  Halves halves;
  for (int64_t i = 0; i < count; ++i) halves.push_back(half_of_float(normal(*random)));
  return halves;
}

bool product_is_equal(const Kernels& halves, const Kernels& widening, int64_t depth, int count,
                      std::mt19937* random) {
  const Halves panel = finite_halves(depth * kColumns, random);
  const Halves x = finite_halves(count * depth, random);
  std::vector<float> wide(x.size());
  widening.widen(x.data(), count * depth, wide.data());
  const void *rows[kTile], *wide_rows[kTile];
  for (int row = 0; row < count; ++row) {
    rows[row] = x.data() + row * depth;
    wide_rows[row] = wide.data() + row * depth;
  }
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(panel.data());
  float sums[2][kTile * kColumns] = {};
  halves.product_of_halves(bytes, depth, rows, count, sums[0]);
  widening.products[0][Format::kFloat16](bytes, depth, wide_rows, count, sums[1]);
  return sums[0][0] != 0 && std::memcmp(sums[0], sums[1], sizeof sums[0]) == 0;
}

constexpr int64_t kTokens = 9, kDepth = 70, kWidth = 45;  // no multiples of a block or a panel

// y of a layer of one routed and one shared expert; empty if it is refused.
Halves layer_output(const char* kernel, bool scales) {
  std::mt19937 random(7);
  const int64_t in[] = {kDepth, kWidth}, out[] = {kWidth, kDepth}, x_shape[] = {kTokens, kDepth};
  const int64_t one[] = {kTokens, 1};
  std::vector<Halves> values;
  std::vector<MoeTensor> tensors;
  for (int i = 0; i < 6; ++i) values.push_back(normal_halves(kDepth * kWidth, &random));
  for (int i = 0; i < 6; ++i)
    tensors.push_back({values[i].data(), i % 3 < 2 ? in : out, 2, kFloat16});
  char message[256];
  MoeLayer* layer = nullptr;
  const MoeWeights weights = {1, "swiglu", "float16", 0, kFloat16, 0, tensors.data(), 6, {}};
  if (moe_export_create(&weights, kernel, &layer, message, sizeof message) != 0) return {};
  const Halves x = normal_halves(kTokens * kDepth, &random);
  const Halves scale = normal_halves(kTokens * kDepth, &random);
  const Halves routing = normal_halves(kTokens, &random);
  const std::vector<int64_t> indices(kTokens);
  Halves y(x.size());
  MoeCall call = {};
  call.x = {x.data(), x_shape, 2, kFloat16};
  call.expert_indices = {indices.data(), one, 2, kInt64};
  call.routing_weights = call.shared_weight = {routing.data(), one, 2, kFloat16};
  if (scales) call.input_scale = {scale.data(), x_shape, 2, kFloat16};
  call.y = y.data();
  if (moe_export_run(layer, &call, 1, message, sizeof message) != 0) y.clear();
  moe_export_destroy(layer);
  return y;
}

// y of a matrix; empty if it is refused.
Halves matrix_output(const char* kernel) {
  std::mt19937 random(8);
  const int64_t shape[] = {kDepth, kWidth}, x_shape[] = {kTokens, kDepth};
  const Halves values = normal_halves(kDepth * kWidth, &random);
  const MoeTensor tensor = {values.data(), shape, 2, kFloat16};
  char message[256];
  MoeLinear* matrix = nullptr;
  const LinearWeights weights = {"float16", 0, kFloat16, 0, &tensor, 1};
  if (moe_export_linear_create(&weights, kernel, &matrix, message, sizeof message) != 0) return {};
  const Halves x = normal_halves(kTokens * kDepth, &random);
  const MoeTensor rows = {x.data(), x_shape, 2, kFloat16};
  Halves y(kTokens * kWidth);
  if (moe_export_linear_run(matrix, &rows, y.data(), 1, message, sizeof message) != 0) y.clear();
  moe_export_linear_destroy(matrix);
  return y;
}

bool are_equal(const Halves& one, const Halves& other) { return !one.empty() && one == other; }

}  // namespace

const char* wrong_halves(const char* halves, const char* widening) {
  const Kernels& tested = *choose(halves, processor()).kernels;
  const Kernels& plain = *choose(widening, processor()).kernels;
  std::mt19937 random(6);
  if (!RowForm(tested, Format::kFloat16, false, kFloat16).is(kFloat16)) return "the form of rows";
  for (int64_t depth : {1, 3, 4, 31, 32, 33, 95, 170}) {
    for (int count = 1; count <= kTile; ++count) {
      if (!product_is_equal(tested, plain, depth, count, &random)) return "a product of halves";
    }
  }
  for (bool scales : {false, true}) {
    if (!are_equal(layer_output(halves, scales), layer_output(widening, scales))) {
      return scales ? "a layer with scales" : "a layer";
    }
  }
  return are_equal(matrix_output(halves), matrix_output(widening)) ? nullptr : "a matrix";
}

}  // namespace moe_export
