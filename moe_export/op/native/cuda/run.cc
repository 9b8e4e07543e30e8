// Chooses kernels and grids, as moe_export/op/triton/plan.py and driver.py do.
#include "cuda/run.h"

#include <algorithm>

#include "cuda/device_layout.h"

namespace moe_export::cuda {
namespace {

// As in plan.py.
constexpr int64_t kRowsPathTokens = 8;
constexpr int64_t kPairsPerExpert = 16;
constexpr int64_t kSmallTilePairs = 16;
constexpr int64_t kLargeTilePairs = 128;
constexpr int64_t kUpTilePairs = kSmallTilePairs;
constexpr int64_t kMostSlots = 16;
constexpr int64_t kCopyBlock = 1024;
constexpr int64_t kGroupBlock = 1024;

// End of the key of a kernel in which up has factors of its own.
constexpr const char* kUpScaled = ".up_scaled";

// Rows of a token's unit map, after the number of its units: MAP_ROWS of kernels_2_rows.py.
constexpr int64_t kMapRows = 6;

// Rows of x and of scratch are rounded up to a multiple of this many values; x must begin at a
// multiple of this many bytes.
constexpr int64_t kAlignedValues = 16;
constexpr Pointer kAlignedBytes = 16;
constexpr size_t kPartAlignment = 256;

int64_t ceil_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

Pointer pointer(const MoeTensor& tensor) { return reinterpret_cast<Pointer>(tensor.data); }

// The arguments of a launch, at addresses that stay.
class Arguments {
 public:
  Arguments& pointers(std::initializer_list<Pointer> values) {
    for (const Pointer value : values) add(value);
    return *this;
  }
  Arguments& numbers(std::initializer_list<int64_t> values) {
    for (const int64_t value : values) {
      if (value > INT32_MAX) throw Error{"a size is too large for the CUDA kernels"};
      add(static_cast<uint64_t>(static_cast<uint32_t>(value)));
    }
    return *this;
  }
  void launch(const Kernel& kernel, Stream stream, int64_t grid_x, int64_t grid_y) {
    std::vector<void*> addresses;
    for (size_t i = 0; i < count_; ++i) addresses.push_back(&values_[i]);
    kernel.launch(stream, grid_x, grid_y, addresses);
  }

 private:
  // A 32-bit argument is the lower half of its entry.
  void add(uint64_t value) { values_[count_++] = value; }

  uint64_t values_[40];
  size_t count_ = 0;
};

class DeviceRun {
 public:
  DeviceRun(const DeviceLayer& layer, const MoeCall& call, Stream stream)
      : layer_(layer),
        problem_(layer.problem()),
        call_(call),
        stream_(stream),
        tokens_(call.x.shape[0]),
        top_k_(call.expert_indices.shape[1]),
        slots_(top_k_ + (problem_.has_shared_expert() ? 1 : 0)),
        rows_path_(tokens_ <= kRowsPathTokens && slots_ <= kMostSlots),
        x_columns_(round_up(problem_.hidden_size, kAlignedValues)),
        pads_(x_columns_ != problem_.hidden_size || pointer(call.x) % kAlignedBytes != 0),
        hidden_stride_(rows_path_ ? layer.token_stride(top_k_) : layer.pair_stride()),
        depth_(padded_depth(problem_.hidden_size, layer.format())),
        scales_x_(call.input_scale.type != 0),
        scales_up_(call.up_scale.type != 0),
        scales_hidden_(call.hidden_scale.type != 0),
        x_rows_(!rows_path_ && scales_x_ && problem_.has_shared_expert() ? 2 * tokens_ : tokens_),
        pads_scale_(rows_path_ && pads(call.input_scale)),
        pads_up_scale_(rows_path_ && pads(call.up_scale)) {
    const int64_t value_bytes = problem_.x_type == kFloat16 ? 2 : 4, pairs = tokens_ * slots_;
    const int64_t capacity = hidden_stride_ / padded_depth(1, layer.format());
    const int64_t rows_bytes = x_rows_ * x_columns_ * value_bytes;
    padded_ = reserve(pads_ || scales_rows() ? rows_bytes : 0);
    up_rows_ = reserve(scales_rows() && scales_up_ ? rows_bytes : 0);
    padded_scale_ = reserve(pads_scale_ ? rows_bytes : 0);
    padded_up_scale_ = reserve(pads_up_scale_ ? rows_bytes : 0);
    hidden_ = reserve((rows_path_ ? tokens_ : pairs) * hidden_stride_ * value_bytes);
    unit_map_ = reserve(rows_path_ ? tokens_ * (1 + kMapRows * capacity) * 4 : 0);
    out_ = reserve(rows_path_ ? 0 : pairs * x_columns_ * value_bytes);
    pairs_ = reserve(rows_path_ ? 0 : pairs * 4);
    shifted_ = reserve(x_rows_ > tokens_ ? pairs * 4 : 0);
    starts_ = reserve(rows_path_ ? 0 : layer.num_experts() * 4);
    counts_ = reserve(rows_path_ ? 0 : layer.num_experts() * 4);
    for (int64_t size = problem_.group_size; size > 32; size /= 2) ++group_shift_;
    if (problem_.group_size > 0) scale_stride_ = ceil_of(problem_.hidden_size, problem_.group_size);
  }

  size_t scratch_bytes() const { return scratch_bytes_; }

  void execute(Pointer scratch) {
    scratch_ = scratch;
    x_ = pads_ || scales_rows() ? scratch_ + padded_ : pointer(call_.x);
    if (scales_rows()) {
      scale_rows(call_.input_scale, x_);
      if (scales_up_) scale_rows(call_.up_scale, scratch_ + up_rows_);
    } else if (pads_) {
      pad(pointer(call_.x), x_);
    }
    if (rows_path_) {
      rows();
    } else {
      tiles();
    }
  }

 private:
  size_t reserve(int64_t bytes) {
    const size_t offset = scratch_bytes_;
    scratch_bytes_ +=
        (static_cast<size_t>(bytes) + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
    return offset;
  }

  // True if x is scaled before the products, as tiles need it; rows scale what they load.
  bool scales_rows() const { return !rows_path_ && scales_x_; }

  bool is_scaled() const { return scales_x_ || scales_hidden_; }

  // True if factors of x are given and have to be copied to aligned rows.
  bool pads(const MoeTensor& scale) const {
    return scale.type != 0 &&
           (x_columns_ != problem_.hidden_size || pointer(scale) % kAlignedBytes != 0);
  }

  // Aligned rows of factors of x, which are copied to an offset in scratch if they have to be.
  Pointer aligned_rows(const MoeTensor& scale, bool copies, size_t offset) const {
    if (!copies) return pointer(scale);
    pad(pointer(scale), scratch_ + offset);
    return scratch_ + offset;
  }

  void scale_rows(const MoeTensor& scale, Pointer rows) const {
    Arguments()
        .pointers({pointer(call_.x), pointer(scale), rows})
        .numbers({tokens_, problem_.hidden_size, x_columns_})
        .launch(kernel("scale_rows", false), stream_, x_rows_, ceil_of(x_columns_, kCopyBlock));
  }

  void pad(Pointer from, Pointer to) const {
    Arguments()
        .pointers({from, to})
        .numbers({problem_.hidden_size, x_columns_})
        .launch(kernel("pad_rows", false), stream_, tokens_, ceil_of(x_columns_, kCopyBlock));
  }

  int64_t scale_columns() const { return scales_hidden_ ? call_.hidden_scale.shape[1] : 0; }

  // A kernel takes no null pointer; it does not read this one where nothing is scaled.
  const MoeTensor& scale_or_x(const MoeTensor& scale) const {
    return scale.type != 0 ? scale : call_.x;
  }

  const Kernel& kernel(const std::string& name, bool by_format, int64_t pairs = 0,
                       const char* factors = "") const {
    std::string key = name + (problem_.x_type == kFloat16 ? ".float16" : ".float32");
    if (by_format) key += std::string(".") + facts_of(layer_.format()).name;
    if (pairs > 0) key += "." + std::to_string(pairs);
    key += factors;
    return layer_.kernels()[key];
  }

  int64_t activation() const { return static_cast<int64_t>(problem_.activation); }

  // A kernel takes no null pointer; without a shared expert it does not read this one.
  Pointer shared_weight() const {
    return problem_.has_shared_expert() ? pointer(call_.shared_weight)
                                        : pointer(call_.routing_weights);
  }

  void rows() {
    const int64_t experts = layer_.num_experts();
    const char* const factors = scales_up_ ? kUpScaled : is_scaled() ? ".scaled" : "";
    const Kernel& gate_up = kernel("gate_up_rows", true, 0, factors);
    Arguments arguments;
    arguments
        .pointers({x_, pointer(call_.expert_indices), pointer(call_.routing_weights),
                   shared_weight(), scratch_ + hidden_, scratch_ + unit_map_, layer_.weights(0),
                   layer_.weights(1), layer_.scales(0), layer_.scales(1), layer_.zeros(0),
                   layer_.zeros(1), layer_.codebook(), layer_.table()})
        .numbers({problem_.hidden_size, x_columns_, depth_, hidden_stride_, scale_stride_,
                  group_shift_, top_k_, slots_, problem_.num_experts, experts, activation()});
    if (is_scaled()) {
      arguments
          .pointers({aligned_rows(scale_or_x(call_.input_scale), pads_scale_, padded_scale_),
                     pointer(scale_or_x(call_.hidden_scale)), layer_.columns()})
          .numbers({scale_columns(), scales_x_ ? top_k_ : 0, scales_hidden_ ? top_k_ : 0,
                    layer_.has_columns() ? top_k_ : 0});
    }
    if (scales_up_) {
      arguments.pointers({aligned_rows(call_.up_scale, pads_up_scale_, padded_up_scale_)});
    }
    // At least one program, which writes the map where all widths are 0.
    arguments.launch(gate_up, stream_, std::max<int64_t>(ceil_of(hidden_stride_, gate_up.rows), 1),
                     tokens_);
    const Kernel& down = kernel("down_rows", true);
    Arguments()
        .pointers({scratch_ + hidden_, scratch_ + unit_map_, reinterpret_cast<Pointer>(call_.y),
                   layer_.weights(2), layer_.scales(2), layer_.zeros(2), layer_.codebook()})
        .numbers({problem_.hidden_size, hidden_stride_})
        .launch(down, stream_, ceil_of(problem_.hidden_size, down.rows), tokens_);
  }

  void tiles() {
    const int64_t experts = layer_.num_experts(), pairs = tokens_ * slots_;
    const int64_t kind = pairs <= kPairsPerExpert * experts ? kSmallTilePairs : kLargeTilePairs;
    const Pointer sorted = scratch_ + pairs_, starts = scratch_ + starts_,
                  counts = scratch_ + counts_;
    Arguments()
        .pointers({pointer(call_.expert_indices), sorted, starts, counts})
        .numbers({tokens_, top_k_, slots_, problem_.num_experts})
        .launch(layer_.kernels()["group_pairs.any"], stream_, experts, 1);
    const bool shifts = x_rows_ > tokens_;
    if (shifts) {
      Arguments()
          .pointers({sorted, scratch_ + shifted_})
          .numbers({pairs, tokens_, top_k_, slots_})
          .launch(layer_.kernels()["shift_pairs.any"], stream_, ceil_of(pairs, kGroupBlock), 1);
    }
    const auto most_tiles = [&](const Kernel& k) {
      return std::min(pairs, experts + pairs / k.pairs);
    };
    const Kernel& gate_up = scales_up_ ? kernel("gate_up_tiles", true, kUpTilePairs, kUpScaled)
                                       : kernel("gate_up_tiles", true, kind);
    Arguments arguments;
    arguments
        .pointers({x_, shifts ? scratch_ + shifted_ : sorted, starts, counts, scratch_ + hidden_,
                   layer_.weights(0), layer_.weights(1), layer_.scales(0), layer_.scales(1),
                   layer_.zeros(0), layer_.zeros(1), layer_.codebook(), layer_.table()})
        .numbers({x_columns_, depth_, hidden_stride_, scale_stride_, group_shift_, slots_, experts,
                  activation()});
    if (scales_up_) arguments.pointers({scratch_ + up_rows_});
    arguments.launch(gate_up, stream_, ceil_of(hidden_stride_, gate_up.rows), most_tiles(gate_up));
    if (scales_hidden_) {
      Arguments()
          .pointers({scratch_ + hidden_, pointer(call_.expert_indices), sorted, starts, counts,
                     pointer(call_.hidden_scale), layer_.columns(), layer_.table()})
          .numbers({hidden_stride_, scale_columns(), layer_.has_columns() ? 1 : 0, top_k_, slots_,
                    problem_.num_experts, experts})
          .launch(kernel("scale_pairs", false), stream_, pairs,
                  ceil_of(hidden_stride_, kCopyBlock));
    }
    const Kernel& down = kernel("down_tiles", true, kind);
    Arguments()
        .pointers({scratch_ + hidden_, sorted, starts, counts, scratch_ + out_, layer_.weights(2),
                   layer_.scales(2), layer_.zeros(2), layer_.codebook(), layer_.table()})
        .numbers({problem_.hidden_size, hidden_stride_, x_columns_, group_shift_, experts})
        .launch(down, stream_, ceil_of(problem_.hidden_size, down.rows), most_tiles(down));
    Arguments()
        .pointers({scratch_ + out_, pointer(call_.expert_indices), pointer(call_.routing_weights),
                   shared_weight(), reinterpret_cast<Pointer>(call_.y), layer_.table()})
        .numbers({problem_.hidden_size, x_columns_, top_k_, slots_, problem_.num_experts})
        .launch(kernel("add_pairs", false), stream_, tokens_,
                ceil_of(problem_.hidden_size, kCopyBlock));
  }

  const DeviceLayer& layer_;
  const Problem& problem_;
  const MoeCall& call_;
  const Stream stream_;
  const int64_t tokens_;
  const int64_t top_k_;
  const int64_t slots_;
  const bool rows_path_;
  const int64_t x_columns_;
  const bool pads_;
  const int64_t hidden_stride_;
  const int64_t depth_;
  const bool scales_x_;
  const bool scales_up_;
  const bool scales_hidden_;
  const int64_t x_rows_;      // rows of x in scratch: twice the tokens if some are scaled, some not
  const bool pads_scale_;     // input_scale is copied to aligned rows
  const bool pads_up_scale_;  // up_scale is, likewise
  int64_t group_shift_ = 0;
  int64_t scale_stride_ = 0;

  size_t scratch_bytes_ = 0;
  // Offsets in scratch.
  size_t padded_, up_rows_, padded_scale_, padded_up_scale_, hidden_, unit_map_, out_, pairs_,
      shifted_, starts_, counts_;
  Pointer scratch_ = 0;
  Pointer x_ = 0;
};

}  // namespace

Refusal check_factors(int32_t x_type, bool has_input_scale, bool has_hidden_scale) {
  if ((has_input_scale || has_hidden_scale) && x_type != kFloat16) {
    return "the CUDA kernels for the inputs input_scale, up_scale and hidden_scale are for models "
           "in float16; export in float16, or run on the CPU";
  }
  return std::nullopt;
}

void run(const DeviceLayer& layer, const MoeCall& call, Stream stream, const Scratch& scratch) {
  if (call.x.shape[0] == 0) return;
  const Current current(layer.kernels().context());
  DeviceRun run(layer, call, stream);
  const size_t bytes = std::max(run.scratch_bytes(), kPartAlignment);
  void* const memory = scratch.allocate(scratch.owner, bytes);
  try {
    run.execute(reinterpret_cast<Pointer>(memory));
  } catch (...) {
    scratch.release(scratch.owner, memory);
    throw;
  }
  // Later work on the stream may reuse the memory, since it runs after these kernels.
  scratch.release(scratch.owner, memory);
}

}  // namespace moe_export::cuda
