#include "node.h"

#include <cstdlib>

#include "dispatch.h"
#include "layer.h"
#include "ort_objects.h"
#include "packed.h"
#include "run.h"

namespace moe_export {
namespace {

using Op = const ort::CustomOp*;

constexpr const char* kRaggedMoe = "RaggedMoE";
constexpr const char* kRaggedMoePacked = "RaggedMoEPacked";

constexpr size_t kX = 0, kExpertIndices = 1, kRoutingWeights = 2;
constexpr size_t kSharedWeight = 3, kFirstWeight = 3;   // of RaggedMoE
constexpr size_t kPacked = 3, kPackedSharedWeight = 4;  // of RaggedMoEPacked

bool wants_exact_activations(Api api, const std::string& node) {
  const char* setting = std::getenv("MOE_EXPORT_ACTIVATIONS");
  if (setting == nullptr || std::strcmp(setting, "int8") == 0) return false;
  if (std::strcmp(setting, "exact") == 0) return true;
  fail(api, node,
       "MOE_EXPORT_ACTIVATIONS is '" + std::string(setting) + "', expected int8 or exact");
}

const Kernels* kernels_or_fail(Api api, const std::string& node) {
  const Choice& choice = process_choice();
  if (choice.kernels == nullptr) fail(api, node, choice.reason);
  return choice.kernels;
}

// An operator's kernel: a layer, and where the node's inputs are.
class Node {
 public:
  // Of a RaggedMoE node.
  static Node* of_weights(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) {
    const Info info(api, kernel_info, kRaggedMoe);
    const std::string activation = info.text("activation"), format = info.text("format");
    MoeWeights weights = {
        info.number("num_experts"),
        activation.c_str(),
        format.c_str(),
        has_group_size(format) ? info.number("group_size") : 0,
        x_type,
        wants_exact_activations(api, info.name()),
        nullptr,
        0,
    };
    Problem problem;
    std::string error = check_attributes(weights, &problem);
    if (!error.empty()) fail(api, info.name(), error);
    // With a shared expert its weight, which is computed, stands before the stored ones.
    const size_t each = static_cast<size_t>(problem.tensors_per_expert());
    const size_t num_inputs = info.num_inputs();
    const bool has_shared = num_inputs > kFirstWeight && (num_inputs - kFirstWeight) % each == 1;
    const size_t first = has_shared ? kFirstWeight + 1 : kFirstWeight;

    std::vector<View> views;
    std::vector<MoeTensor> tensors;
    for (size_t input = first; input < num_inputs; ++input) {
      views.push_back(info.weight(input));
      tensors.push_back(views.back().tensor());
    }
    weights.tensors = tensors.data();
    weights.num_tensors = tensors.size();
    const Kernels* kernels = kernels_or_fail(api, info.name());
    error = check_weights(weights, &problem);
    if (!error.empty()) fail(api, info.name(), error);
    if (problem.has_shared_expert() != has_shared) {
      fail(api, info.name(),
           "the weights of a shared expert and its input shared_weight go together");
    }
    std::unique_ptr<Layer> layer = Layer::pack(problem, weights, kernels, &error);
    if (layer == nullptr) fail(api, info.name(), error);
    return new Node(api, info.name(), kSharedWeight, std::move(layer));
  }

  // Of a RaggedMoEPacked node. The bytes stay where ONNX Runtime has them, which is the mapped file
  // if they lie in one; it keeps constants for as long as the kernel.
  static Node* of_packed(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) {
    const Info info(api, kernel_info, kRaggedMoePacked);
    const View packed = info.weight(kPacked);
    if (packed.tensor().type != kUint8 || packed.tensor().rank != 1) {
      fail(api, info.name(), "packed is not of one axis and uint8");
    }
    const uint8_t* data = static_cast<const uint8_t*>(packed.tensor().data);
    const bool exact = wants_exact_activations(api, info.name());
    const Kernels* kernels = kernels_or_fail(api, info.name());
    Problem problem;
    size_t first_panel = 0;
    const std::string error = read_packed(data, static_cast<uint64_t>(packed.shape()[0]), x_type,
                                          exact, &problem, &first_panel);
    if (!error.empty()) fail(api, info.name(), error);
    if (problem.has_shared_expert() != (info.num_inputs() > kPackedSharedWeight)) {
      fail(api, info.name(),
           "a shared expert in packed and the last input shared_weight go together");
    }
    return new Node(api, info.name(), kPackedSharedWeight,
                    Layer::over(problem, data + first_panel, kernels));
  }

  Status* compute(ort::KernelContext* context) const {
    return guarded(api_, [&] {
      const View x = input(context, kX), indices = input(context, kExpertIndices);
      const View weights = input(context, kRoutingWeights);
      std::unique_ptr<View> shared;
      if (layer_->problem().has_shared_expert()) {
        shared.reset(new View(input(context, shared_weight_)));
      }
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
  Node(Api api, const std::string& name, size_t shared_weight, std::unique_ptr<Layer> layer)
      : api_(api), name_(name), shared_weight_(shared_weight), layer_(std::move(layer)) {}

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
  size_t shared_weight_;  // the input, if there is a shared expert
  std::unique_ptr<Layer> layer_;
};

int x_type_of(const ort::CustomOp* op) { return static_cast<const MoeOp*>(op)->x_type; }

}  // namespace

MoeOp::MoeOp(ort::ElementType type) : CustomOp(), x_type(type) {
  version = ort::kApiVersion;
  get_execution_provider_type = [](Op) { return "CPUExecutionProvider"; };
  get_input_memory_type = [](Op, size_t) { return 0; };
  get_output_type_count = [](Op) -> size_t { return 1; };
  get_output_type = [](Op op, size_t) -> int { return x_type_of(op); };
  get_output_characteristic = [](Op, size_t) -> int { return ort::kRequired; };
  get_variadic_input_min_arity = [](Op) { return 2; };
  get_variadic_input_homogeneity = [](Op) { return 0; };
  get_variadic_output_min_arity = [](Op) { return 0; };
  get_variadic_output_homogeneity = [](Op) { return 0; };
  get_start_version = [](Op) { return 1; };
  get_end_version = [](Op) { return 1; };
  kernel_compute_v2 = [](void* kernel, ort::KernelContext* context) {
    return static_cast<const Node*>(kernel)->compute(context);
  };
  kernel_destroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
}

RaggedMoeOp::RaggedMoeOp(ort::ElementType type) : MoeOp(type) {
  get_name = [](Op) { return kRaggedMoe; };
  get_input_type_count = [](Op) -> size_t { return kFirstWeight + 1; };
  get_input_type = [](Op op, size_t input) -> int {
    if (input == kExpertIndices) return ort::kInt64;
    return input < kFirstWeight ? x_type_of(op) : ort::kUndefined;
  };
  get_input_characteristic = [](Op, size_t input) -> int {
    return input < kFirstWeight ? ort::kRequired : ort::kVariadic;
  };
  create_kernel_v2 = [](Op op, Api api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = Node::of_weights(api, info, x_type_of(op)); });
  };
}

RaggedMoePackedOp::RaggedMoePackedOp(ort::ElementType type) : MoeOp(type) {
  get_name = [](Op) { return kRaggedMoePacked; };
  get_input_type_count = [](Op) -> size_t { return kPackedSharedWeight + 1; };
  get_input_type = [](Op op, size_t input) -> int {
    if (input == kExpertIndices) return ort::kInt64;
    return input == kPacked ? ort::kUint8 : x_type_of(op);
  };
  get_input_characteristic = [](Op, size_t input) -> int {
    return input == kPackedSharedWeight ? ort::kOptional : ort::kRequired;
  };
  create_kernel_v2 = [](Op op, Api api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = Node::of_packed(api, info, x_type_of(op)); });
  };
}

}  // namespace moe_export
