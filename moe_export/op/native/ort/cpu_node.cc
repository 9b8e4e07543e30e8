#include "ort/cpu_node.h"

#include <cstdlib>

#include "cpu/dispatch.h"
#include "cpu/layer.h"
#include "cpu/packed.h"
#include "cpu/run.h"
#include "ort/node_inputs.h"

namespace moe_export {
namespace {

using Op = const ort::CustomOp*;

constexpr const char* kRaggedMoePacked = "RaggedMoEPacked";
constexpr size_t kPacked = 3, kPackedSharedWeight = 4;  // inputs of RaggedMoEPacked

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

// A node on the CPU: its layer, and the place of its input shared_weight.
class CpuNode {
 public:
  static CpuNode* of_weights(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) {
    const Info info(api, kernel_info, kRaggedMoe);
    const bool exact = wants_exact_activations(api, info.name());
    const Kernels* kernels = kernels_or_fail(api, info.name());
    const StoredWeights stored(api, info, x_type, exact);
    std::unique_ptr<Layer> layer;
    const Refusal refusal = Layer::pack(stored.problem(), stored.weights(), kernels, &layer);
    if (refusal) fail(api, info.name(), *refusal);
    return new CpuNode(api, info.name(), kSharedWeight, std::move(layer));
  }

  // The packed bytes stay in ONNX Runtime's memory, or in the mapped file; ONNX Runtime keeps
  // constants as long as the node.
  static CpuNode* of_packed(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) {
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
    const Refusal refusal = read_packed(data, static_cast<uint64_t>(packed.shape()[0]), x_type,
                                        exact, &problem, &first_panel);
    if (refusal) fail(api, info.name(), *refusal);
    if (problem.has_shared_expert() != (info.num_inputs() > kPackedSharedWeight)) {
      fail(api, info.name(),
           "a shared expert in packed and the last input shared_weight go together");
    }
    return new CpuNode(api, info.name(), kPackedSharedWeight,
                       Layer::over(problem, data + first_panel, kernels));
  }

  Status* compute(ort::KernelContext* context) const {
    return guarded(api_, [&] {
      CallInputs inputs(api_, context, layer_->problem(), shared_weight_);
      const Refusal refusal = check_call(layer_->problem(), inputs.call());
      if (refusal) fail(api_, name_, *refusal);
      Pool pool = {api_, context, nullptr};
      run(*layer_, inputs.with_output(), {Pool::call, &pool});
      succeed(pool.status);
    });
  }

 private:
  CpuNode(Api api, const std::string& name, size_t shared_weight, std::unique_ptr<Layer> layer)
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

  Api api_;
  std::string name_;
  size_t shared_weight_;  // place of that input
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
    return static_cast<const CpuNode*>(kernel)->compute(context);
  };
  kernel_destroy = [](void* kernel) { delete static_cast<CpuNode*>(kernel); };
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
    return guarded(api, [&] { *kernel = CpuNode::of_weights(api, info, x_type_of(op)); });
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
    return guarded(api, [&] { *kernel = CpuNode::of_packed(api, info, x_type_of(op)); });
  };
}

}  // namespace moe_export
