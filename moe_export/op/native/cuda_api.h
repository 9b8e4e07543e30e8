// The CUDA kernels behind the plain C interface of c_api.h. The context has to be current.
#pragma once

#include "c_api.h"

extern "C" {

struct MoeCudaLayer;

}  // extern "C"

// As moe_export_create; the weights are in host memory and go to the device.
MOE_EXPORT_API int moe_export_cuda_create(const struct MoeWeights* weights,
                                          struct MoeCudaLayer** layer, char* message,
                                          size_t message_bytes);

// As moe_export_run, with all data on the device; enqueues the work on `stream`, a CUstream.
MOE_EXPORT_API int moe_export_cuda_run(const struct MoeCudaLayer* layer, const struct MoeCall* call,
                                       void* stream, char* message, size_t message_bytes);

MOE_EXPORT_API void moe_export_cuda_destroy(struct MoeCudaLayer* layer);

MOE_EXPORT_API uint64_t moe_export_cuda_layer_bytes(const struct MoeCudaLayer* layer);

// Whether there is a driver, and why not: 0 and "the driver is there", or 1 and a sentence.
MOE_EXPORT_API int moe_export_cuda_describe(char* message, size_t message_bytes);
