#include "ort/moe_node.h"

#include "cpu/layer.h"
#include "cpu/packed.h"
#include "cpu/run.h"
#include "ort/node_inputs.h"

namespace moe_export {
namespace {

using Op = const ort::CustomOp*;

constexpr const char* kRaggedMoePacked = "RaggedMoEPacked";
constexpr size_t kPacked = 3, kPackedSharedWeight = 4;  // inputs of RaggedMoEPacked

// A node on the CPU: its layer, and the place of its input shared_weight.
class MoeNode {
 public:
  static MoeNode* of_weights(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) {
    const Info info(api, kernel_info, kRaggedMoe);
    const bool exact = wants_exact_activations(api, info.name());
    const Kernels* kernels = kernels_or_fail(api, info.name());
    const StoredWeights stored(api, info, x_type, exact);
    std::unique_ptr<Layer> layer;
    const Refusal refusal = Layer::pack(stored.problem(), stored.weights(), kernels, &layer);
    if (refusal) fail(api, info.name(), *refusal);
    return new MoeNode(api, info.name(), kSharedWeight, std::move(layer));
  }

  static MoeNode* of_packed(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) {
    const Info info(api, kernel_info, kRaggedMoePacked);
    PackedBytes packed(api, info, kPacked);
    const bool exact = wants_exact_activations(api, info.name());
    const Kernels* kernels = kernels_or_fail(api, info.name());
    Problem problem;
    size_t first_panel = 0;
    const Refusal refusal =
        read_packed(packed.data(), packed.size(), x_type, exact, &problem, &first_panel);
    if (refusal) fail(api, info.name(), *refusal);
    if (problem.has_shared_expert() != (info.num_inputs() > kPackedSharedWeight)) {
      fail(api, info.name(),
           "a shared expert in packed and the last input shared_weight go together");
    }
    auto layer = Layer::over(problem, packed.data() + first_panel, kernels);
    return new MoeNode(api, info.name(), kPackedSharedWeight, std::move(layer), packed.take_copy());
  }

  Status* compute(ort::KernelContext* context) const {
    return guarded(api_, [&] {
      CallInputs inputs(api_, context, layer_->problem(), shared_weight_);
      const Refusal refusal = check_call(layer_->problem(), inputs.call());
      if (refusal) fail(api_, name_, *refusal);
      Pool pool(api_, context);
      run(*layer_, inputs.with_output(), pool.parallel_for());
      pool.check();
    });
  }

 private:
  MoeNode(Api api, const std::string& name, size_t shared_weight, std::unique_ptr<Layer> layer,
          Memory packed = nullptr)
      : api_(api),
        name_(name),
        shared_weight_(shared_weight),
        packed_(std::move(packed)),
        layer_(std::move(layer)) {}

  Api api_;
  std::string name_;
  size_t shared_weight_;  // place of that input
  Memory packed_;         // empty if the layer reads memory of its own or of ONNX Runtime
  std::unique_ptr<Layer> layer_;
};

void set_node_functions(ort::CustomOp* op) {
  op->kernel_compute_v2 = [](void* kernel, ort::KernelContext* context) {
    return static_cast<const MoeNode*>(kernel)->compute(context);
  };
  op->kernel_destroy = [](void* kernel) { delete static_cast<MoeNode*>(kernel); };
}

}  // namespace

RaggedMoeOp::RaggedMoeOp(ort::ElementType type) : CpuOp(type) {
  set_node_functions(this);
  get_name = [](Op) { return kRaggedMoe; };
  get_variadic_input_min_arity = [](Op) { return 2; };
  get_input_type_count = [](Op) -> size_t { return kFirstWeight + 1; };
  get_input_type = [](Op op, size_t input) -> int {
    if (input == kExpertIndices) return ort::kInt64;
    return input < kFirstWeight ? x_type_of(op) : ort::kUndefined;
  };
  get_input_characteristic = [](Op, size_t input) -> int {
    return input < kFirstWeight ? ort::kRequired : ort::kVariadic;
  };
  create_kernel_v2 = [](Op op, Api api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = MoeNode::of_weights(api, info, x_type_of(op)); });
  };
}

RaggedMoePackedOp::RaggedMoePackedOp(ort::ElementType type) : CpuOp(type) {
  set_node_functions(this);
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
    return guarded(api, [&] { *kernel = MoeNode::of_packed(api, info, x_type_of(op)); });
  };
}

}  // namespace moe_export
