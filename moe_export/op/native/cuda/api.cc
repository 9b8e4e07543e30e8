#include "cuda/api.h"

#include <new>

#include "common/message.h"
#include "cuda/run.h"

struct MoeCudaLayer {
  moe_export::cuda::DeviceLayer layer;
};

namespace {

namespace cuda = moe_export::cuda;

using moe_export::Refusal;
using moe_export::refuse;

// Freeing device memory waits for the kernels that use it.
void* allocate(void*, size_t bytes) {
  cuda::Pointer memory = 0;
  cuda::check(cuda::driver().memory_allocate(&memory, bytes), "allocate intermediate values");
  return reinterpret_cast<void*>(memory);
}

void release(void*, void* memory) {
  cuda::driver().memory_free(reinterpret_cast<cuda::Pointer>(memory));
}

}  // namespace

int moe_export_cuda_create(const MoeWeights* weights, MoeCudaLayer** layer, char* message,
                           size_t message_bytes) try {
  moe_export::Problem problem;
  const Refusal refusal = moe_export::check_weights(*weights, &problem);
  if (refusal) return refuse(*refusal, message, message_bytes);
  *layer = new MoeCudaLayer{{problem, *weights, [](size_t) { return false; }}};
  return 0;
} catch (const cuda::Error& error) {
  return refuse(error.sentence, message, message_bytes);
} catch (const std::bad_alloc&) {
  return refuse("the packed weights do not fit into memory", message, message_bytes);
}

int moe_export_cuda_run(const MoeCudaLayer* layer, const MoeCall* call, void* stream, char* message,
                        size_t message_bytes) try {
  Refusal refusal = moe_export::check_call_shapes(layer->layer.problem(), *call);
  if (refusal) return refuse(*refusal, message, message_bytes);
  refusal =
      cuda::check_factors(call->x.type, call->input_scale.type != 0, call->hidden_scale.type != 0);
  if (refusal) return refuse(*refusal, message, message_bytes);
  cuda::run(layer->layer, *call, static_cast<cuda::Stream>(stream), {allocate, release, nullptr});
  return 0;
} catch (const cuda::Error& error) {
  return refuse(error.sentence, message, message_bytes);
}

void moe_export_cuda_destroy(MoeCudaLayer* layer) { delete layer; }

uint64_t moe_export_cuda_layer_bytes(const MoeCudaLayer* layer) { return layer->layer.bytes(); }

int moe_export_cuda_describe(char* message, size_t message_bytes) try {
  cuda::driver();
  moe_export::write_message("the driver is there", message, message_bytes);
  return 0;
} catch (const cuda::Error& error) {
  return refuse(error.sentence, message, message_bytes);
}
