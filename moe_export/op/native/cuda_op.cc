#include "cuda_op.h"

#include "cuda_run.h"
#include "ort_objects.h"

namespace moe_export {
namespace {

constexpr size_t kX = 0, kExpertIndices = 1, kRoutingWeights = 2, kSharedWeight = 3;

// ONNX Runtime asks once for each declared input where it has to be, and puts what a variadic input
// takes beyond its first on the device, where it would keep a copy of the weights besides ours. So
// the inputs are declared one by one: the first four come on the device, the stored weights stay in
// the file. These suffice for 682 experts in int4 and 454 in the formats with zero points.
constexpr size_t kPlacedInputs = 4096;

// gate_0 too comes on the device, in a node that has no shared expert.
constexpr size_t kDeviceInputs = 4;

bool is_on_device(Api api, const ort::Value* value) {
  const ort::MemoryInfo* memory = nullptr;
  const char* name = "";
  succeed(ort::GetTensorMemoryInfo::of(api)(value, &memory));
  succeed(ort::MemoryInfoGetName::of(api)(memory, &name));
  return std::strcmp(name, "Cuda") == 0;
}

class CudaNode {
 public:
  CudaNode(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) : api_(api) {
    const Info info(api, kernel_info, "RaggedMoE");
    name_ = info.name();
    const std::string activation = info.text("activation"), format = info.text("format");
    MoeWeights weights = {
        info.number("num_experts"),
        activation.c_str(),
        format.c_str(),
        has_group_size(format) ? info.number("group_size") : 0,
        x_type,
        0,
        nullptr,
        0,
    };
    Problem problem;
    std::string error = check_attributes(weights, &problem);
    if (!error.empty()) fail(api, name_, error);
    const size_t num_inputs = info.num_inputs();
    const size_t each = static_cast<size_t>(problem.tensors_per_expert());
    has_shared_expert_ = num_inputs > kSharedWeight && (num_inputs - kSharedWeight) % each == 1;
    std::vector<View> views;
    std::vector<MoeTensor> tensors;
    std::vector<bool> on_device;
    for (size_t i = kSharedWeight + (has_shared_expert_ ? 1 : 0); i < num_inputs; ++i) {
      views.push_back(info.weight(i));
      tensors.push_back(views.back().tensor());
      on_device.push_back(is_on_device(api, info.constant(i)));
    }
    weights.tensors = tensors.data();
    weights.num_tensors = tensors.size();
    error = check_weights(weights, &problem);
    if (!error.empty()) fail(api, name_, error);
    if (problem.has_shared_expert() != has_shared_expert_) {
      fail(api, name_, "the weights of a shared expert and its input shared_weight go together");
    }
    layer_.reset(
        new cuda::Layer(problem, weights, [&](size_t tensor) { return on_device[tensor]; }));
    ort::Allocator* allocator = nullptr;
    succeed(ort::KernelInfoGetAllocator::of(api)(kernel_info, ort::kDefaultMemory, &allocator));
    allocator_ = {allocator, ort::ReleaseAllocator::of(api)};
  }

  Status* compute(ort::KernelContext* context) const {
    return caught(api_, name_, [&] {
      const View x = input(context, kX), indices = input(context, kExpertIndices);
      const View weights = input(context, kRoutingWeights);
      std::unique_ptr<View> shared;
      if (has_shared_expert_) shared.reset(new View(input(context, kSharedWeight)));
      MoeCall call = {x.tensor(), indices.tensor(), weights.tensor(),
                      shared ? shared->tensor() : MoeTensor{}, nullptr};
      const std::string error = check_call_shapes(layer_->problem(), call);
      if (!error.empty()) fail(api_, name_, error);
      ort::Value* y = nullptr;
      succeed(ort::KernelContextGetOutput::of(api_)(context, 0, x.shape().data(), x.shape().size(),
                                                    &y));
      succeed(ort::GetTensorMutableData::of(api_)(y, &call.y));
      void* stream = nullptr;
      succeed(ort::KernelContextGetStream::of(api_)(context, &stream));
      const cuda::Scratch scratch = {allocate, release, const_cast<CudaNode*>(this)};
      cuda::run(*layer_, call, static_cast<cuda::Stream>(stream), scratch);
    });
  }

  template <typename Body>
  static Status* caught(Api api, const std::string& node, const Body& body) {
    return guarded(api, [&] {
      try {
        body();
      } catch (const cuda::Error& error) {
        fail(api, node, error.sentence);
      }
    });
  }

 private:
  View input(const ort::KernelContext* context, size_t index) const {
    const ort::Value* value = nullptr;
    succeed(ort::KernelContextGetInput::of(api_)(context, index, &value));
    return View(api_, value);
  }

  static void* allocate(void* owner, size_t bytes) {
    const CudaNode& self = *static_cast<CudaNode*>(owner);
    void* memory = nullptr;
    succeed(ort::AllocatorAlloc::of(self.api_)(self.allocator_.get(), bytes, &memory));
    return memory;
  }

  static void release(void* owner, void* memory) {
    const CudaNode& self = *static_cast<CudaNode*>(owner);
    Status* status = ort::AllocatorFree::of(self.api_)(self.allocator_.get(), memory);
    if (status != nullptr) ort::ReleaseStatus::of(self.api_)(status);
  }

  Api api_;
  std::string name_;
  bool has_shared_expert_ = false;
  std::unique_ptr<cuda::Layer> layer_;
  std::unique_ptr<ort::Allocator, void (*)(ort::Allocator*)> allocator_{nullptr, nullptr};
};

const RaggedMoeOp& self(const ort::CustomOp* op) { return *static_cast<const RaggedMoeOp*>(op); }

}  // namespace

void take_placed_inputs(ort::CustomOp* op) {
  using Op = const ort::CustomOp*;
  op->get_input_type_count = [](Op) -> size_t { return kPlacedInputs; };
  op->get_input_characteristic = [](Op, size_t input) -> int {
    return input < kSharedWeight ? ort::kRequired : ort::kOptional;
  };
}

CudaRaggedMoeOp::CudaRaggedMoeOp(ort::ElementType type) : RaggedMoeOp(type) {
  using Op = const ort::CustomOp*;
  take_placed_inputs(this);
  get_execution_provider_type = [](Op) { return "CUDAExecutionProvider"; };
  get_input_memory_type = [](Op, size_t input) -> int {
    return input < kDeviceInputs ? ort::kDefaultMemory : ort::kHostInput;
  };
  create_kernel_v2 = [](Op op, Api api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, [&] {
      const std::string name = Info(api, info, "RaggedMoE").name();
      Status* const status =
          CudaNode::caught(api, name, [&] { *kernel = new CudaNode(api, info, self(op).x_type); });
      succeed(status);
    });
  };
  kernel_compute_v2 = [](void* kernel, ort::KernelContext* context) {
    return static_cast<const CudaNode*>(kernel)->compute(context);
  };
  kernel_destroy = [](void* kernel) { delete static_cast<CudaNode*>(kernel); };
}

}  // namespace moe_export
