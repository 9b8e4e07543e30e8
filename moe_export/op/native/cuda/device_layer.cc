#include "cuda/device_layer.h"

#include <algorithm>

#include "common/pages.h"
#include "cuda/device_layout.h"

namespace moe_export::cuda {
namespace {

// Arrays on the device begin at multiples of this many bytes.
constexpr size_t kAlignment = 256;

// Matrices that are laid out before they are uploaded together.
constexpr size_t kAtOnce = 32;

// A tensor's values in host memory; copied if they are on the device.
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

DeviceLayer::DeviceLayer(const Problem& problem, const MoeWeights& weights,
                         const OnDevice& on_device)
    : problem_(problem), kernels_(Kernels::of_current_context()), format_(device_format(problem)) {
  const Format format = format_;
  if (format >= Format::kUint8 && problem.x_type != kFloat16) {
    throw Error{std::string("the CUDA kernels of format '") + facts_of(format).name +
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
  const int64_t gate_up_groups = rows * groups_of(hidden, problem.group_size);
  const int64_t down_groups = groups * hidden;
  size_t depth_bytes = 0;
  for (const int64_t width : problem.widths) depth_bytes += row_bytes(width, format);
  size_t parts[kNumParts] = {};
  for (size_t role = 0; role < 3; ++role) {
    if (role == 0 && !is_gated(problem.activation)) continue;
    const bool down = role == 2;
    const int64_t each_group = down ? down_groups : gate_up_groups;
    parts[kWeights + role] =
        down ? depth_bytes * bytes(hidden) : row_bytes(hidden, format) * bytes(rows);
    parts[kScales + role] = bytes(each_group) * 2;
    parts[kZeros + role] = has_zero_points(format) ? bytes(each_group) : 0;
  }
  parts[kCodebook] = format == Format::kNf4 ? sizeof kNf4 : 0;
  parts[kTable] = table.size() * 4;
  parts[kColumnsOfScale] = problem.units.size() * 4;
  for (size_t i = 0; i < kNumParts; ++i) {
    offsets_[i] = bytes_;
    bytes_ += (parts[i] + kAlignment - 1) / kAlignment * kAlignment;
  }
  check(driver().memory_allocate(&data_, bytes_), "allocate the weights of a layer");
  try {
    upload(this->table(), table.data(), parts[kTable]);
    upload(columns(), problem.units.data(), parts[kColumnsOfScale]);
    upload(codebook(), kNf4, parts[kCodebook]);
    upload_matrices(weights, on_device);
  } catch (...) {
    driver().memory_free(data_);
    throw;
  }
}

void DeviceLayer::upload_matrices(const MoeWeights& weights, const OnDevice& on_device) const {
  Pointer to[kNumParts];
  for (size_t i = 0; i < kNumParts; ++i) to[i] = data_ + offsets_[i];
  const auto put = [&](size_t part, const auto& values) {
    const size_t bytes = values.size() * sizeof values[0];
    upload(to[part], values.data(), bytes);
    to[part] += bytes;
  };
  std::vector<MoeTensor> tensors(weights.tensors, weights.tensors + weights.num_tensors);
  const size_t step = static_cast<size_t>(problem_.tensors_per_matrix());
  const size_t each = static_cast<size_t>(problem_.matrices_per_expert());
  const size_t num_matrices = tensors.size() / step;
  for (size_t first = 0; first < num_matrices; first += kAtOnce) {
    const size_t count = std::min(kAtOnce, num_matrices - first);
    std::vector<std::unique_ptr<HostCopy>> held;
    for (size_t i = first * step; i < (first + count) * step; ++i) {
      held.emplace_back(new HostCopy(tensors[i], on_device(i)));
      tensors[i].data = held.back()->data();
    }
    std::vector<DeviceMatrix> matrices(count);
    in_parallel(count, [&](size_t i) {
      matrices[i] = lay_out_matrix(problem_, tensors, (first + i) * step);
    });
    for (size_t i = 0; i < count; ++i) {
      const size_t role = (first + i) % each + (is_gated(problem_.activation) ? 0 : 1);
      put(kWeights + role, matrices[i].values);
      put(kScales + role, matrices[i].scales);
      put(kZeros + role, matrices[i].zeros);
    }
  }
}

int64_t DeviceLayer::pair_stride() const {
  int64_t widest = 0;
  for (const int64_t width : problem_.widths) widest = std::max(widest, width);
  return padded_depth(widest, format_);
}

int64_t DeviceLayer::token_stride(int64_t top_k) const {
  int64_t widest = 0;
  for (int64_t e = 0; e < problem_.num_experts; ++e) {
    widest = std::max(widest, problem_.widths[static_cast<size_t>(e)]);
  }
  const int64_t shared = problem_.has_shared_expert() ? problem_.widths.back() : 0;
  return top_k * padded_depth(widest, format_) + padded_depth(shared, format_);
}

DeviceLayer::~DeviceLayer() {
  // If the process is ending the driver may be gone, and nobody can be told.
  try {
    const Current current(kernels_.context());
    driver().memory_free(data_);
  } catch (const Error&) {
  }
}

}  // namespace moe_export::cuda
