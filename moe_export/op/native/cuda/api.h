// The CUDA kernels behind the plain C interface of cpu/c_api.h. A context must be current.
#pragma once

#include "common/c_types.h"

extern "C" {

struct MoeCudaLayer;

}  // extern "C"

// As moe_export_create; the weights are in host memory and are copied to the device.
MOE_EXPORT_API int moe_export_cuda_create(const struct MoeWeights* weights,
                                          struct MoeCudaLayer** layer, char* message,
                                          size_t message_bytes);

// As moe_export_run, with all data on the device. Enqueues the work on `stream`, a CUstream.
MOE_EXPORT_API int moe_export_cuda_run(const struct MoeCudaLayer* layer, const struct MoeCall* call,
                                       void* stream, char* message, size_t message_bytes);

MOE_EXPORT_API void moe_export_cuda_destroy(struct MoeCudaLayer* layer);

// Bytes of a layer on the device.
MOE_EXPORT_API uint64_t moe_export_cuda_layer_bytes(const struct MoeCudaLayer* layer);

// Returns 0 and "the driver is there", or 1 and a sentence that says why there is none.
MOE_EXPORT_API int moe_export_cuda_describe(char* message, size_t message_bytes);
