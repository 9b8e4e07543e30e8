// Tokens are grouped by expert, so a panel of weights is read once for all its tokens; with one
// token each group has one row. Then three steps run, each in parallel:
//
//   1. prepare   an item is a token: its row of x, scaled if the call says so, in the form that the
//                products take; the row for up, if its scale is another; and the row as it is for
//                the shared expert, which is not scaled
//   2. gate_up   an item is a panel of an expert: 32 hidden units, or 64 without a gate, for all
//                rows of its group; hidden values are scaled before they are quantized
//   3. down      an item is a range of 64-column panels of y for all tokens, expert after expert
//
// Two passes over the experts cost one more synchronization than gate, up and down of a panel's
// units at once, but need no copy of y per thread and give the same bits on any number of threads.
#include "cpu/run.h"

#include <algorithm>
#include <cstring>

#include "cpu/rows.h"

namespace moe_export {
namespace {

// Items of the last step per thread: enough for the threads to end together, few enough to read
// each expert's panels in long runs. Long runs matter where a panel is read for few tokens.
constexpr size_t kItemsPerThread = 4;
constexpr size_t kDecodingItemsPerThread = 2;
constexpr size_t kDecodingTokens = 6;

// The tokens of one expert, whose width is at least 1.
struct Group {
  size_t expert;
  size_t first_pair;
  size_t count;
  size_t first_item;
  size_t hidden_offset;
  size_t first_unit;  // place of the expert's first row in R
};

class LayerRun {
 public:
  LayerRun(const Layer& layer, const MoeCall& call)
      : layer_(layer),
        problem_(layer.problem()),
        kernels_(layer.kernels()),
        call_(call),
        x_form_(kernels_, problem_.format, problem_.exact_activations,
                scales_x() ? kFloat32 : problem_.x_type),
        hidden_form_(kernels_, problem_.format, problem_.exact_activations, kFloat32),
        tokens_(static_cast<size_t>(call.x.shape[0])),
        row_bytes_(x_form_.bytes(problem_.hidden_size)),
        down_items_(std::min(
            static_cast<size_t>(layer.down_panels()),
            threads() * (tokens_ <= kDecodingTokens ? kDecodingItemsPerThread : kItemsPerThread))) {
    group_pairs();
    if (scales_x() || !x_is_ready()) x_rows_ = allocate(tokens_ * row_bytes_);
    if (call.up_scale.type != 0) up_rows_ = allocate(tokens_ * row_bytes_);
    if (scales_x() && !x_is_ready() && problem_.has_shared_expert()) {
      shared_rows_ = allocate(tokens_ * row_bytes_);
    }
    if (call.hidden_scale.type == kFloat32) {
      hidden_scale_ = static_cast<const float*>(call.hidden_scale.data);
    } else if (call.hidden_scale.type != 0) {
      wide_scale_ = widened(call.hidden_scale, tokens_ * scale_columns());
      hidden_scale_ = wide_scale_.data();
    }
    hidden_ = allocate(hidden_bytes_);
    y_ = allocate(tokens_ * static_cast<size_t>(layer.down_panels()) * kColumns * sizeof(float));
  }

  void execute(const ParallelFor& parallel_for) {
    if (scales_x()) {
      step<&LayerRun::prepare_scaled>(parallel_for, tokens_);
    } else if (!x_is_ready()) {
      step<&LayerRun::prepare>(parallel_for, tokens_);
    }
    step<&LayerRun::gate_up>(parallel_for, items_);
    step<&LayerRun::down>(parallel_for, down_items_);
  }

 private:
  template <void (LayerRun::*method)(size_t)>
  void step(const ParallelFor& parallel_for, size_t items) {
    if (work_bytes_ < kSerialBytes || items < 2) {
      for (size_t i = 0; i < items; ++i) (this->*method)(i);
      return;
    }
    const auto item = [](void* job, size_t i) { (static_cast<LayerRun*>(job)->*method)(i); };
    parallel_for.call(parallel_for.pool, items, item, this);
  }

  // True if unscaled rows of x serve as they are.
  bool x_is_ready() const { return x_form_.is(problem_.x_type); }

  bool scales_x() const { return call_.input_scale.type != 0; }

  size_t scale_columns() const { return static_cast<size_t>(call_.hidden_scale.shape[1]); }

  bool is_shared(const Group& group) const {
    return group.expert == static_cast<size_t>(problem_.num_experts);
  }

  std::vector<float> widened(const MoeTensor& tensor, size_t count) const {
    std::vector<float> values(count);
    if (problem_.x_type == kFloat32) {
      std::memcpy(values.data(), tensor.data, count * sizeof(float));
    } else {
      kernels_.widen(static_cast<const uint16_t*>(tensor.data), static_cast<int64_t>(count),
                     values.data());
    }
    return values;
  }

  // Sorts the pairs of a token and an expert by expert.
  void group_pairs() {
    const size_t top_k = static_cast<size_t>(call_.expert_indices.shape[1]);
    const size_t routed = tokens_ * top_k;
    const int64_t* indices = static_cast<const int64_t*>(call_.expert_indices.data);
    const std::vector<float> weights = widened(call_.routing_weights, routed);
    std::vector<size_t> count(problem_.widths.size());
    for (size_t pair = 0; pair < routed; ++pair) ++count[static_cast<size_t>(indices[pair])];
    if (problem_.has_shared_expert()) count.back() = tokens_;

    std::vector<size_t> place(count.size());
    size_t pairs = 0, rows = 0;
    for (size_t expert = 0; expert < count.size(); ++expert) {
      place[expert] = pairs;
      const int64_t width = problem_.widths[expert];
      if (count[expert] > 0 && width > 0) {
        groups_.push_back({expert, pairs, count[expert], items_, hidden_bytes_, rows});
        items_ += static_cast<size_t>(layer_.gate_up_panels(expert));
        hidden_bytes_ += count[expert] * hidden_form_.bytes(width);
        work_bytes_ += layer_.gate_up_panels(expert) *
                       panel_bytes(problem_.format, problem_.hidden_size) *
                       static_cast<int64_t>((count[expert] + kTile - 1) / kTile);
      }
      pairs += count[expert];
      rows += static_cast<size_t>(width);
    }
    pair_token_.resize(pairs);
    pair_weight_.resize(pairs);
    for (size_t pair = 0; pair < routed; ++pair) {
      const size_t at = place[static_cast<size_t>(indices[pair])]++;
      pair_token_[at] = pair / top_k;
      pair_weight_[at] = weights[pair];
    }
    if (!problem_.has_shared_expert()) return;
    const std::vector<float> shared = widened(call_.shared_weight, tokens_);
    for (size_t token = 0; token < tokens_; ++token) {
      pair_token_[routed + token] = token;
      pair_weight_[routed + token] = shared[token];
    }
  }

  const void* x_row(const Group& group, size_t token) const {
    const bool is_scaled = scales_x() && !is_shared(group);
    if (is_scaled || (!scales_x() && !x_is_ready())) return x_rows_.get() + token * row_bytes_;
    if (!x_is_ready()) return shared_rows_.get() + token * row_bytes_;
    return x_form_.row(call_.x, token);
  }

  // Rows that each token has in a product of gate and up.
  int sides_of(const Group& group) const { return up_rows_ && !is_shared(group) ? 2 : 1; }

  uint8_t* hidden_row(const Group& group, size_t row) const {
    const int64_t width = problem_.widths[group.expert];
    return hidden_.get() + group.hidden_offset + row * hidden_form_.bytes(width);
  }

  void prepare(size_t token) {
    x_form_.prepare(call_.x, token, x_rows_.get() + token * row_bytes_);
  }

  void prepare_scaled(size_t token) {
    x_form_.prepare_scaled(call_.x, call_.input_scale, token, x_rows_.get() + token * row_bytes_);
    if (up_rows_) {
      x_form_.prepare_scaled(call_.x, call_.up_scale, token, up_rows_.get() + token * row_bytes_);
    }
    if (shared_rows_) x_form_.prepare(call_.x, token, shared_rows_.get() + token * row_bytes_);
  }

  // Multiplies the hidden values of a token by its scale; `first` is the first of them in the
  // expert.
  void scale_hidden(const Group& group, size_t token, int64_t first, int64_t units,
                    float* hidden) const {
    const float* scale = hidden_scale_ + token * scale_columns();
    if (problem_.units.empty()) {
      for (int64_t unit = 0; unit < units; ++unit) hidden[unit] *= scale[first + unit];
      return;
    }
    const int32_t* columns = problem_.units.data() + group.first_unit + first;
    for (int64_t unit = 0; unit < units; ++unit) hidden[unit] *= scale[columns[unit]];
  }

  void gate_up(size_t item) {
    const auto next =
        std::upper_bound(groups_.begin(), groups_.end(), item,
                         [](size_t value, const Group& group) { return value < group.first_item; });
    const Group& group = *(next - 1);
    const int64_t index = static_cast<int64_t>(item - group.first_item);
    const uint8_t* panel = layer_.gate_up_panel(group.expert, index);
    const int64_t most = units_per_panel(problem_.activation);
    const int64_t units = std::min(most, problem_.widths[group.expert] - index * most);
    // Rows have room for whole blocks, with zeros beyond the units.
    const int64_t room = round_up(units, kBlock);
    const bool scales_hidden = hidden_scale_ != nullptr && !is_shared(group);
    const int sides = sides_of(group);
    for_tiles(group.count, [&](size_t first, int count) {
      const void* rows[2 * kTile] = {};
      for (int i = 0; i < count; ++i) {
        const size_t token = pair_token_[group.first_pair + first + static_cast<size_t>(i)];
        rows[sides * i] = x_row(group, token);
        if (sides == 2) rows[2 * i + 1] = up_rows_.get() + token * row_bytes_;
      }
      alignas(64) float sums[kTile * kColumns];
      x_form_.product(panel, problem_.hidden_size, rows, count, sums, sides);
      for (int i = 0; i < count; ++i) {
        alignas(64) float hidden[kColumns];
        kernels_.activate[static_cast<int>(problem_.activation)](sums + i * kColumns, hidden);
        const size_t at = first + static_cast<size_t>(i);
        if (scales_hidden) {
          scale_hidden(group, pair_token_[group.first_pair + at], index * most, units, hidden);
        }
        uint8_t* row = hidden_row(group, at);
        if (hidden_form_.is_quantized()) {
          kernels_.quantize(hidden, units,
                            reinterpret_cast<QuantizedBlock*>(row) + index * most / kBlock);
        } else {
          std::memcpy(reinterpret_cast<float*>(row) + index * most, hidden,
                      static_cast<size_t>(room) * sizeof(float));
        }
      }
    });
  }

  void down(size_t item) {
    const size_t panels = static_cast<size_t>(layer_.down_panels());
    const size_t first_panel = panels * item / down_items_;
    const size_t last_panel = panels * (item + 1) / down_items_;
    const size_t tile = tokens_ * kColumns;
    float* y = reinterpret_cast<float*>(y_.get());
    std::memset(y + first_panel * tile, 0, (last_panel - first_panel) * tile * sizeof(float));
    for (const Group& group : groups_) {
      for (size_t panel = first_panel; panel < last_panel; ++panel) {
        add_down(group, panel, y + panel * tile);
      }
    }
    for (size_t panel = first_panel; panel < last_panel; ++panel) {
      write_y(panel * kColumns, y + panel * tile);
    }
  }

  // Adds an expert's weighted output to 64 columns of y, [T][64].
  void add_down(const Group& group, size_t index, float* y) {
    const uint8_t* panel = layer_.down_panel(group.expert, static_cast<int64_t>(index));
    for_tiles(group.count, [&](size_t first, int count) {
      const void* rows[kTile] = {};
      for (int i = 0; i < count; ++i) {
        rows[i] = hidden_row(group, first + static_cast<size_t>(i));
      }
      alignas(64) float sums[kTile * kColumns];
      hidden_form_.product(panel, problem_.widths[group.expert], rows, count, sums);
      for (int i = 0; i < count; ++i) {
        const size_t pair = group.first_pair + first + static_cast<size_t>(i);
        float* to = y + pair_token_[pair] * kColumns;
        const float* from = sums + i * kColumns;
        const float weight = pair_weight_[pair];
        for (int64_t c = 0; c < kColumns; ++c) to[c] += weight * from[c];
      }
    });
  }

  void write_y(size_t column, const float* columns) {
    const size_t hidden_size = static_cast<size_t>(problem_.hidden_size);
    const size_t count = std::min<size_t>(kColumns, hidden_size - column);
    for (size_t token = 0; token < tokens_; ++token) {
      const float* from = columns + token * kColumns;
      const size_t at = token * hidden_size + column;
      store(kernels_, problem_.x_type, from, count, call_.y, at);
    }
  }

  const Layer& layer_;
  const Problem& problem_;
  const Kernels& kernels_;
  const MoeCall& call_;
  const RowForm x_form_;
  const RowForm hidden_form_;
  const size_t tokens_;
  const size_t row_bytes_;  // of a prepared row of x
  const size_t down_items_;

  std::vector<Group> groups_;
  std::vector<size_t> pair_token_;
  std::vector<float> pair_weight_;
  size_t items_ = 0;
  size_t hidden_bytes_ = 0;
  int64_t work_bytes_ = 0;

  const float* hidden_scale_ = nullptr;  // [T, W]; null if hidden values are not scaled
  std::vector<float> wide_scale_;        // holds it if it is not float32 in the call

  Memory x_rows_;       // [T] prepared rows of x, scaled if asked for; empty if x itself serves
  Memory up_rows_;      // [T] rows of x for up; empty if up reads those of gate
  Memory shared_rows_;  // [T] unscaled rows, if the shared expert needs others than x_rows_ and x
  Memory hidden_;       // one row per pair: silu(x gate) * (x up)
  Memory y_;            // [panels of y][T][64] floats
};

}  // namespace

void run(const Layer& layer, const MoeCall& call, const ParallelFor& parallel_for) {
  if (call.x.shape[0] > 0) LayerRun(layer, call).execute(parallel_for);
}

}  // namespace moe_export
