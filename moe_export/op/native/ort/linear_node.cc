#include "ort/linear_node.h"

#include "cpu/linear.h"
#include "cpu/packed_linear.h"

namespace moe_export {
namespace {

using Op = const ort::CustomOp*;

constexpr const char* kLinear = "Linear";
constexpr const char* kLinearPacked = "LinearPacked";
constexpr size_t kInput = 0, kWeight = 1;  // of both operators

// The attributes and stored weights of a Linear node.
class StoredMatrix {
 public:
  StoredMatrix(const Info& info, int32_t x_type, bool exact) : format_(info.text("format")) {
    for (size_t input = kWeight; input < info.num_inputs(); ++input) {
      views_.push_back(info.weight(input));
      tensors_.push_back(views_.back().tensor());
    }
    weights_ = {format_.c_str(), has_group_size(format_) ? info.number("group_size") : 0,
                x_type,          exact,
                tensors_.data(), tensors_.size()};
  }
  StoredMatrix(const StoredMatrix&) = delete;
  StoredMatrix& operator=(const StoredMatrix&) = delete;

  const LinearWeights& weights() const { return weights_; }

 private:
  std::string format_;
  std::vector<View> views_;
  std::vector<MoeTensor> tensors_;
  LinearWeights weights_;
};

class LinearNode {
 public:
  static LinearNode* of_weights(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) {
    const Info info(api, kernel_info, kLinear);
    const bool exact = wants_exact_activations(api, info.name());
    const Kernels* kernels = kernels_or_fail(api, info.name());
    const StoredMatrix stored(info, x_type, exact);
    LinearProblem problem;
    std::unique_ptr<Linear> linear;
    Refusal refusal = check_linear(stored.weights(), &problem);
    if (!refusal) refusal = Linear::pack(problem, stored.weights(), kernels, &linear);
    if (refusal) fail(api, info.name(), *refusal);
    return new LinearNode(api, info.name(), std::move(linear));
  }

  static LinearNode* of_packed(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) {
    const Info info(api, kernel_info, kLinearPacked);
    PackedBytes packed(api, info, kWeight);
    const bool exact = wants_exact_activations(api, info.name());
    const Kernels* kernels = kernels_or_fail(api, info.name());
    LinearProblem problem;
    const Refusal refusal =
        read_packed_linear(packed.data(), packed.size(), x_type, exact, &problem);
    if (refusal) fail(api, info.name(), *refusal);
    auto linear = Linear::over(problem, packed.data() + sizeof(PackedLinearHeader), kernels);
    return new LinearNode(api, info.name(), std::move(linear), packed.take_copy());
  }

  Status* compute(ort::KernelContext* context) const {
    return guarded(api_, [&] {
      const ort::Value* value = nullptr;
      succeed(ort::KernelContextGetInput::of(api_)(context, kInput, &value));
      const View x(api_, value);
      const Refusal refusal = check_linear_x(linear_->problem(), x.tensor());
      if (refusal) fail(api_, name_, *refusal);
      std::vector<int64_t> shape = x.shape();
      shape.back() = linear_->problem().columns;
      ort::Value* y = nullptr;
      void* data = nullptr;
      succeed(ort::KernelContextGetOutput::of(api_)(context, 0, shape.data(), shape.size(), &y));
      succeed(ort::GetTensorMutableData::of(api_)(y, &data));
      Pool pool(api_, context);
      run(*linear_, x.tensor(), data, pool.parallel_for());
      pool.check();
    });
  }

 private:
  LinearNode(Api api, const std::string& name, std::unique_ptr<Linear> linear,
             Memory packed = nullptr)
      : api_(api), name_(name), packed_(std::move(packed)), linear_(std::move(linear)) {}

  Api api_;
  std::string name_;
  Memory packed_;  // empty if the matrix lies in memory of its own or of ONNX Runtime
  std::unique_ptr<Linear> linear_;
};

void set_node_functions(ort::CustomOp* op) {
  op->get_input_type_count = [](Op) -> size_t { return 2; };
  op->kernel_compute_v2 = [](void* kernel, ort::KernelContext* context) {
    return static_cast<const LinearNode*>(kernel)->compute(context);
  };
  op->kernel_destroy = [](void* kernel) { delete static_cast<LinearNode*>(kernel); };
}

}  // namespace

LinearOp::LinearOp(ort::ElementType type) : CpuOp(type) {
  set_node_functions(this);
  get_name = [](Op) { return kLinear; };
  get_input_type = [](Op op, size_t input) -> int {
    return input == kInput ? x_type_of(op) : ort::kUndefined;
  };
  get_input_characteristic = [](Op, size_t input) -> int {
    return input == kInput ? ort::kRequired : ort::kVariadic;
  };
  create_kernel_v2 = [](Op op, Api api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = LinearNode::of_weights(api, info, x_type_of(op)); });
  };
}

LinearPackedOp::LinearPackedOp(ort::ElementType type) : CpuOp(type) {
  set_node_functions(this);
  get_name = [](Op) { return kLinearPacked; };
  get_input_type = [](Op op, size_t input) -> int {
    return input == kInput ? x_type_of(op) : static_cast<int>(ort::kUint8);
  };
  get_input_characteristic = [](Op, size_t) -> int { return ort::kRequired; };
  create_kernel_v2 = [](Op op, Api api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = LinearNode::of_packed(api, info, x_type_of(op)); });
  };
}

}  // namespace moe_export
