// Rows of x are converted first; then an item is a range of panels for all rows, tile after tile,
// so that a panel stays in cache while it is used. With one row the weights are read once, in
// order.
#include "cpu/linear.h"
#include "cpu/rows.h"

namespace moe_export {
namespace {

// Items per thread: enough for the threads to end together, few enough to read weights in long runs
// where there are few rows.
constexpr size_t kItemsPerThread = 16;
constexpr size_t kDecodingItemsPerThread = 4;
constexpr size_t kDecodingRows = 6;

class LinearRun {
 public:
  LinearRun(const Linear& linear, const MoeTensor& x, void* y)
      : linear_(linear),
        problem_(linear.problem()),
        form_(linear.kernels(), problem_.format, problem_.exact_activations, problem_.x_type),
        x_(x),
        y_(y),
        rows_(static_cast<size_t>(rows_of(x))),
        row_bytes_(form_.bytes(problem_.depth)),
        panels_(static_cast<size_t>(linear_panels(problem_))),
        items_(std::min(panels_, threads() * (rows_ <= kDecodingRows ? kDecodingItemsPerThread
                                                                     : kItemsPerThread))) {
    if (!form_.is(problem_.x_type)) x_rows_ = allocate(rows_ * row_bytes_);
  }

  void execute(const ParallelFor& parallel_for) {
    const int64_t tiles = static_cast<int64_t>((rows_ + kTile - 1) / kTile);
    const bool serial = static_cast<int64_t>(linear_panel_bytes(problem_)) * tiles < kSerialBytes;
    // A few rows are converted sooner than other threads wake up.
    if (x_rows_) step<&LinearRun::prepare>(parallel_for, rows_, serial || rows_ <= kDecodingRows);
    step<&LinearRun::product>(parallel_for, items_, serial);
  }

 private:
  template <void (LinearRun::*method)(size_t)>
  void step(const ParallelFor& parallel_for, size_t items, bool serial) {
    if (serial || items < 2) {
      for (size_t i = 0; i < items; ++i) (this->*method)(i);
      return;
    }
    const auto item = [](void* job, size_t i) { (static_cast<LinearRun*>(job)->*method)(i); };
    parallel_for.call(parallel_for.pool, items, item, this);
  }

  void prepare(size_t row) { form_.prepare(x_, row, x_rows_.get() + row * row_bytes_); }

  const void* row(size_t index) const {
    if (x_rows_) return x_rows_.get() + index * row_bytes_;
    return form_.row(x_, index);
  }

  void product(size_t item) {
    const size_t last = panels_ * (item + 1) / items_;
    for (size_t panel = panels_ * item / items_; panel < last; ++panel) {
      for_tiles(rows_, [&](size_t first, int count) { add(panel, first, count); });
    }
  }

  // Computes 64 columns of a tile of rows.
  void add(size_t panel, size_t first, int count) {
    const void* rows[kTile] = {};
    for (int i = 0; i < count; ++i) rows[i] = row(first + static_cast<size_t>(i));
    alignas(64) float sums[kTile * kColumns];
    form_.product(linear_.panel(panel), problem_.depth, rows, count, sums);
    const size_t columns = static_cast<size_t>(problem_.columns);
    const size_t column = panel * kColumns, width = std::min<size_t>(kColumns, columns - column);
    for (int i = 0; i < count; ++i) {
      float* from = sums + i * kColumns;
      if (linear_.bias() != nullptr) {
        for (size_t c = 0; c < width; ++c) from[c] += linear_.bias()[column + c];
      }
      const size_t at = (first + static_cast<size_t>(i)) * columns + column;
      store(linear_.kernels(), problem_.x_type, from, width, y_, at);
    }
  }

  const Linear& linear_;
  const LinearProblem& problem_;
  const RowForm form_;
  const MoeTensor& x_;
  void* const y_;
  const size_t rows_;
  const size_t row_bytes_;  // of a converted row of x
  const size_t panels_;
  const size_t items_;

  Memory x_rows_;  // converted rows of x; empty if x itself serves
};

}  // namespace

void run(const Linear& linear, const MoeTensor& x, void* y, const ParallelFor& parallel_for) {
  if (rows_of(x) > 0) LinearRun(linear, x, y).execute(parallel_for);
}

}  // namespace moe_export
