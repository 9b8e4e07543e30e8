#include "ort/moe_node.h"

#include "cpu/layer.h"
#include "cpu/packed.h"
#include "cpu/run.h"
#include "ort/node_inputs.h"

namespace moe_export {
namespace {

using Op = const ort::CustomOp*;

constexpr const char* kRaggedMoePacked = "RaggedMoEPacked";
// Inputs of RaggedMoEPacked: behind `packed`, shared_weight and those of the attribute
// extra_inputs.
constexpr size_t kPacked = 3, kBehindPacked = 4, kMostPackedInputs = 9;

// A node on the CPU: its layer, and the places of the inputs that only some nodes have.
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
    return new MoeNode(api, info.name(), stored.places(), std::move(layer));
  }

  static MoeNode* of_packed(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) {
    const Info info(api, kernel_info, kRaggedMoePacked);
    PackedBytes packed(api, info, kPacked);
    const bool exact = wants_exact_activations(api, info.name());
    const Kernels* kernels = kernels_or_fail(api, info.name());
    Problem problem;
    size_t first_panel = 0;
    Refusal refusal =
        read_packed(packed.data(), packed.size(), x_type, exact, &problem, &first_panel);
    if (refusal) fail(api, info.name(), *refusal);
    const ExtraInputs extra(api, info, problem);
    const size_t expected = kBehindPacked + (problem.has_shared_expert() ? 1 : 0) + extra.count();
    if (info.num_inputs() != expected) {
      fail(api, info.name(),
           "a shared expert in packed and the input shared_weight go together, and the attribute "
           "extra_inputs names those behind it: the node has " +
               std::to_string(info.num_inputs()) + " inputs, expected " + std::to_string(expected));
    }
    const ExtraPlaces places = extra.places(kBehindPacked, problem.has_shared_expert());
    std::unique_ptr<View> units;
    if (places.units != 0) units.reset(new View(info.weight(places.units)));
    refusal = check_units(units ? units->tensor() : MoeTensor{}, &problem);
    if (refusal) fail(api, info.name(), *refusal);
    auto layer = Layer::over(problem, packed.data() + first_panel, kernels);
    return new MoeNode(api, info.name(), places, std::move(layer), packed.take_copy());
  }

  Status* compute(ort::KernelContext* context) const {
    return guarded(api_, [&] {
      CallInputs inputs(api_, context, places_);
      const Refusal refusal = check_call(layer_->problem(), inputs.call());
      if (refusal) fail(api_, name_, *refusal);
      Pool pool(api_, context);
      run(*layer_, inputs.with_output(), pool.parallel_for());
      pool.check();
    });
  }

 private:
  MoeNode(Api api, const std::string& name, const ExtraPlaces& places, std::unique_ptr<Layer> layer,
          Memory packed = nullptr)
      : api_(api),
        name_(name),
        places_(places),
        packed_(std::move(packed)),
        layer_(std::move(layer)) {}

  Api api_;
  std::string name_;
  ExtraPlaces places_;
  Memory packed_;  // empty if the layer reads memory of its own or of ONNX Runtime
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
  get_input_type_count = [](Op) -> size_t { return kMostPackedInputs; };
  get_input_type = [](Op op, size_t input) -> int {
    if (input == kExpertIndices) return ort::kInt64;
    if (input == kPacked) return ort::kUint8;
    return input < kPacked ? x_type_of(op) : ort::kUndefined;
  };
  get_input_characteristic = [](Op, size_t input) -> int {
    return input < kBehindPacked ? ort::kRequired : ort::kOptional;
  };
  create_kernel_v2 = [](Op op, Api api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = MoeNode::of_packed(api, info, x_type_of(op)); });
  };
}

}  // namespace moe_export
