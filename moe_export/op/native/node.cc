#include "node.h"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "dispatch.h"
#include "layer.h"
#include "run.h"

namespace moe_export {
namespace {

using ort::Api;
using ort::Status;

constexpr size_t kX = 0, kExpertIndices = 1, kRoutingWeights = 2, kSharedWeight = 3,
                 kFirstWeight = 3;

// Leaves a function that ONNX Runtime called.
struct Failure {
  Status* status;
};

void succeed(Status* status) {
  if (status != nullptr) throw Failure{status};
}

[[noreturn]] void fail(Api api, const std::string& node, const std::string& sentence) {
  const std::string text = "RaggedMoE node '" + node + "': " + sentence;
  throw Failure{ort::CreateStatus::of(api)(ort::kInvalidArgument, text.c_str())};
}

template <typename Body>
Status* guarded(Api api, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::bad_alloc&) {
    return ort::CreateStatus::of(api)(ort::kFail, "RaggedMoE: memory does not suffice");
  }
}

// A tensor of ONNX Runtime; the shape lives as long as this object does.
class View {
 public:
  View(Api api, const ort::Value* value) {
    ort::TypeAndShape* info = nullptr;
    succeed(ort::GetTensorTypeAndShape::of(api)(value, &info));
    const std::unique_ptr<ort::TypeAndShape, void (*)(ort::TypeAndShape*)> owner(
        info, ort::ReleaseTypeAndShape::of(api));
    size_t rank = 0;
    int type = 0;
    void* data = nullptr;
    succeed(ort::GetDimensionsCount::of(api)(info, &rank));
    shape_.resize(rank);
    succeed(ort::GetDimensions::of(api)(info, shape_.data(), rank));
    succeed(ort::GetTensorElementType::of(api)(info, &type));
    succeed(ort::GetTensorMutableData::of(api)(const_cast<ort::Value*>(value), &data));
    tensor_ = {data, shape_.data(), static_cast<int32_t>(rank), type};
  }
  View(View&& other) = default;

  const MoeTensor& tensor() const { return tensor_; }
  const std::vector<int64_t>& shape() const { return shape_; }

 private:
  std::vector<int64_t> shape_;
  MoeTensor tensor_;
};

// What is known of a node when its session is created.
class Info {
 public:
  Info(Api api, const ort::KernelInfo* info) : api_(api), info_(info) {
    size_t size = 0;
    succeed(ort::KernelInfoGetNodeName::of(api)(info, nullptr, &size));
    name_.resize(size);
    succeed(ort::KernelInfoGetNodeName::of(api)(info, name_.data(), &size));
    name_.resize(std::strlen(name_.c_str()));
  }

  const std::string& name() const { return name_; }

  std::string text(const char* attribute) const {
    size_t size = 0;
    require(ort::KernelInfoGetString::of(api_)(info_, attribute, nullptr, &size), attribute);
    std::string value(size, '\0');
    require(ort::KernelInfoGetString::of(api_)(info_, attribute, value.data(), &size), attribute);
    value.resize(std::strlen(value.c_str()));
    return value;
  }

  int64_t number(const char* attribute) const {
    int64_t value = 0;
    require(ort::KernelInfoGetInt64::of(api_)(info_, attribute, &value), attribute);
    return value;
  }

  size_t num_inputs() const {
    size_t count = 0;
    succeed(ort::KernelInfoGetInputCount::of(api_)(info_, &count));
    return count;
  }

  View weight(size_t input) const {
    int is_constant = 0;
    const ort::Value* value = nullptr;
    Status* status = ort::KernelInfoGetConstantInput::of(api_)(info_, input, &is_constant, &value);
    if (status != nullptr) ort::ReleaseStatus::of(api_)(status);
    if (status != nullptr || !is_constant || value == nullptr) {
      fail(api_, name_,
           "input " + std::to_string(input) +
               " is not a constant, as weights have to be; make it an initializer");
    }
    return View(api_, value);
  }

 private:
  void require(Status* status, const char* attribute) const {
    if (status == nullptr) return;
    ort::ReleaseStatus::of(api_)(status);
    fail(api_, name_, "attribute " + std::string(attribute) + " is missing or of another type");
  }

  Api api_;
  const ort::KernelInfo* info_;
  std::string name_;
};

bool wants_exact_activations(Api api, const std::string& node) {
  const char* setting = std::getenv("MOE_EXPORT_ACTIVATIONS");
  if (setting == nullptr || std::strcmp(setting, "int8") == 0) return false;
  if (std::strcmp(setting, "exact") == 0) return true;
  fail(api, node,
       "MOE_EXPORT_ACTIVATIONS is '" + std::string(setting) + "', expected int8 or exact");
}

class Node {
 public:
  Node(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) : api_(api) {
    const Info info(api, kernel_info);
    name_ = info.name();
    const std::string activation = info.text("activation"), format = info.text("format");
    const bool quantized = format == "int8" || format == "int4";
    const int64_t num_experts = info.number("num_experts");
    const size_t num_inputs = info.num_inputs();
    // With a shared expert its weight, which is computed, stands before the stored ones.
    const size_t each = quantized ? 6 : 3;
    has_shared_expert_ = num_inputs > kFirstWeight && (num_inputs - kFirstWeight) % each == 1;
    const size_t first = has_shared_expert_ ? kFirstWeight + 1 : kFirstWeight;

    std::vector<View> views;
    std::vector<MoeTensor> tensors;
    for (size_t input = first; input < num_inputs; ++input) {
      views.push_back(info.weight(input));
      tensors.push_back(views.back().tensor());
    }
    const MoeWeights weights = {
        num_experts,    activation.c_str(),
        format.c_str(), quantized ? info.number("group_size") : 0,
        x_type,         wants_exact_activations(api, name_),
        tensors.data(), tensors.size(),
    };
    const Choice& choice = process_choice();
    if (choice.kernels == nullptr) fail(api, name_, choice.reason);
    Problem problem;
    std::string error = check_weights(weights, &problem);
    if (!error.empty()) fail(api, name_, error);
    if (problem.has_shared_expert() != has_shared_expert_) {
      fail(api, name_,
           "the weights of a shared expert and its input shared_weight go together");
    }
    layer_ = Layer::pack(problem, weights, choice.kernels, &error);
    if (layer_ == nullptr) fail(api, name_, error);
  }

  Status* compute(ort::KernelContext* context) const {
    return guarded(api_, [&] {
      const View x = input(context, kX), indices = input(context, kExpertIndices);
      const View weights = input(context, kRoutingWeights);
      std::unique_ptr<View> shared;
      if (has_shared_expert_) shared.reset(new View(input(context, kSharedWeight)));
      MoeCall call = {x.tensor(), indices.tensor(), weights.tensor(),
                      shared ? shared->tensor() : MoeTensor{}, nullptr};
      const std::string error = check_call(layer_->problem(), call);
      if (!error.empty()) fail(api_, name_, error);
      ort::Value* y = nullptr;
      succeed(ort::KernelContextGetOutput::of(api_)(context, 0, x.shape().data(), x.shape().size(),
                                                    &y));
      succeed(ort::GetTensorMutableData::of(api_)(y, &call.y));
      Pool pool = {api_, context, nullptr};
      run(*layer_, call, {Pool::call, &pool});
      succeed(pool.status);
    });
  }

 private:
  // The threads of the session.
  struct Pool {
    Api api;
    const ort::KernelContext* context;
    Status* status;

    static void call(void* pool, size_t items, void (*item)(void*, size_t), void* job) {
      Pool& self = *static_cast<Pool*>(pool);
      if (self.status != nullptr) return;
      self.status = ort::KernelContextParallelFor::of(self.api)(self.context, item, items, 0, job);
    }
  };

  View input(const ort::KernelContext* context, size_t index) const {
    const ort::Value* value = nullptr;
    succeed(ort::KernelContextGetInput::of(api_)(context, index, &value));
    return View(api_, value);
  }

  Api api_;
  std::string name_;
  bool has_shared_expert_ = false;
  std::unique_ptr<Layer> layer_;
};

const RaggedMoeOp& self(const ort::CustomOp* op) { return *static_cast<const RaggedMoeOp*>(op); }

}  // namespace

RaggedMoeOp::RaggedMoeOp(ort::ElementType type) : CustomOp(), x_type(type) {
  using Op = const ort::CustomOp*;
  version = ort::kApiVersion;
  get_name = [](Op) { return "RaggedMoE"; };
  get_execution_provider_type = [](Op) { return "CPUExecutionProvider"; };
  get_input_type_count = [](Op) -> size_t { return kFirstWeight + 1; };
  get_input_type = [](Op op, size_t input) -> int {
    if (input == kExpertIndices) return ort::kInt64;
    return input < kFirstWeight ? self(op).x_type : ort::kUndefined;
  };
  get_input_characteristic = [](Op, size_t input) -> int {
    return input < kFirstWeight ? ort::kRequired : ort::kVariadic;
  };
  get_variadic_input_min_arity = [](Op) { return 3; };
  get_variadic_input_homogeneity = [](Op) { return 0; };
  get_input_memory_type = [](Op, size_t) { return 0; };
  get_output_type_count = [](Op) -> size_t { return 1; };
  get_output_type = [](Op op, size_t) -> int { return self(op).x_type; };
  get_output_characteristic = [](Op, size_t) -> int { return ort::kRequired; };
  get_variadic_output_min_arity = [](Op) { return 0; };
  get_variadic_output_homogeneity = [](Op) { return 0; };
  get_start_version = [](Op) { return 1; };
  get_end_version = [](Op) { return 1; };
  create_kernel_v2 = [](Op op, Api api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = new Node(api, info, self(op).x_type); });
  };
  kernel_compute_v2 = [](void* kernel, ort::KernelContext* context) {
    return static_cast<const Node*>(kernel)->compute(context);
  };
  kernel_destroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
}

}  // namespace moe_export
