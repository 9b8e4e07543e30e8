#include "node.h"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "dispatch.h"
#include "layer.h"
#include "ort_node.h"
#include "run.h"

namespace moe_export {
namespace {

constexpr size_t kX = 0, kExpertIndices = 1, kRoutingWeights = 2, kSharedWeight = 3,
                 kFirstWeight = 3;

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
      fail(api, name_, "the weights of a shared expert and its input shared_weight go together");
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
