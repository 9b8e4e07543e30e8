#include "ort/cuda_node.h"

#include "cuda/run.h"
#include "ort/node_inputs.h"

namespace moe_export {
namespace {

// ONNX Runtime asks once per declared input where it must lie, and puts what a variadic input takes
// beyond its first on the device, where it would keep a second copy of the weights. So the inputs
// are declared one by one: the first seven come on the device, stored weights stay in the file.
// These suffice for 682 experts in int4 and 454 in the formats with zero points.
constexpr size_t kPlacedInputs = 4096;

// x, indices, routing weights, shared_weight, input_scale, up_scale and hidden_scale. In a node
// that lacks some, as many stored weights come on the device too.
constexpr size_t kDeviceInputs = 7;

bool is_on_device(Api api, const ort::Value* value) {
  const ort::MemoryInfo* memory = nullptr;
  const char* name = "";
  succeed(ort::GetTensorMemoryInfo::of(api)(value, &memory));
  succeed(ort::MemoryInfoGetName::of(api)(memory, &name));
  return std::strcmp(name, "Cuda") == 0;
}

// The values of `units` in host memory; nothing if they are not int32, which is refused later.
std::vector<uint8_t> host_copy(const View& view) {
  size_t bytes = view.tensor().type == kInt32 ? sizeof(int32_t) : 0;
  for (const int64_t size : view.shape()) bytes *= static_cast<size_t>(size);
  std::vector<uint8_t> copy(bytes);
  if (bytes == 0) return copy;
  const auto from = reinterpret_cast<cuda::Pointer>(view.tensor().data);
  cuda::check(cuda::driver().copy_to_host(copy.data(), from, bytes), "read units from the device");
  return copy;
}

class CudaNode {
 public:
  CudaNode(Api api, const ort::KernelInfo* kernel_info, int32_t x_type) : api_(api) {
    const Info info(api, kernel_info, kRaggedMoe);
    name_ = info.name();
    const StoredWeights stored(api, info, x_type, false, [&](size_t input, const View& view) {
      return is_on_device(api, info.constant(input)) ? host_copy(view) : std::vector<uint8_t>();
    });
    places_ = stored.places();
    const Refusal refusal =
        cuda::check_factors(x_type, places_.input_scale != 0, places_.hidden_scale != 0);
    if (refusal) fail(api, name_, *refusal);
    layer_.reset(new cuda::DeviceLayer(stored.problem(), stored.weights(), [&](size_t tensor) {
      return is_on_device(api, info.constant(stored.first_input() + tensor));
    }));
    ort::Allocator* allocator = nullptr;
    succeed(ort::KernelInfoGetAllocator::of(api)(kernel_info, ort::kDefaultMemory, &allocator));
    allocator_ = {allocator, ort::ReleaseAllocator::of(api)};
  }

  Status* compute(ort::KernelContext* context) const {
    return caught(api_, name_, [&] {
      CallInputs inputs(api_, context, places_);
      const Refusal refusal = check_call_shapes(layer_->problem(), inputs.call());
      if (refusal) fail(api_, name_, *refusal);
      const MoeCall& call = inputs.with_output();
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
  ExtraPlaces places_;
  std::unique_ptr<cuda::DeviceLayer> layer_;
  std::unique_ptr<ort::Allocator, void (*)(ort::Allocator*)> allocator_{nullptr, nullptr};
};

const RaggedMoeOp& self(const ort::CustomOp* op) { return *static_cast<const RaggedMoeOp*>(op); }

}  // namespace

void take_placed_inputs(ort::CustomOp* op) {
  using Op = const ort::CustomOp*;
  op->get_input_type_count = [](Op) -> size_t { return kPlacedInputs; };
  op->get_input_characteristic = [](Op, size_t input) -> int {
    return input < kFirstWeight ? ort::kRequired : ort::kOptional;
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
      const std::string name = Info(api, info, kRaggedMoe).name();
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
