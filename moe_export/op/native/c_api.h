// The kernels behind a plain C interface, for callers that are not ONNX Runtime.
//
// Functions that can refuse give 0 when all is well; otherwise `message` holds one sentence.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define MOE_EXPORT_API extern "C" __attribute__((visibility("default")))

extern "C" {

// `type` is the number of the element type in ONNX: 1 float32, 2 uint8, 3 int8, 7 int64, 10
// float16, 16 bfloat16, 21 uint4 and 22 int4 (two to a byte, the lower nibble first).
struct MoeTensor {
  const void* data;
  const int64_t* shape;
  int32_t rank;
  int32_t type;
};

// The experts of a layer. `tensors` are the node's inputs from gate_0 on, without shared_weight.
struct MoeWeights {
  int64_t num_experts;
  const char* activation;
  const char* format;
  int64_t group_size;  // of the quantized formats; 0 otherwise
  int32_t x_type;
  int32_t exact_activations;  // 1: weights of integer codes meet x in float32, not in int8
  const struct MoeTensor* tensors;
  size_t num_tensors;
};

// One execution. `shared_weight` is used if the layer has a shared expert, else its data is null.
// `y` has the shape and type of `x`.
struct MoeCall {
  struct MoeTensor x;
  struct MoeTensor expert_indices;
  struct MoeTensor routing_weights;
  struct MoeTensor shared_weight;
  void* y;
};

struct MoeLayer;

}  // extern "C"

// Copies the weights into the layout of the kernels; the tensors are not needed afterwards.
// `kernel` is "portable", "avx2" or "avx512"; null takes the one that the process uses.
MOE_EXPORT_API int moe_export_create(const struct MoeWeights* weights, const char* kernel,
                                     struct MoeLayer** layer, char* message, size_t message_bytes);

// Packs one expert (num_experts is 1) into `bytes` bytes of the layout of packed.h.
MOE_EXPORT_API int moe_export_pack_expert(const struct MoeWeights* weights, void* packed,
                                          uint64_t bytes, char* message, size_t message_bytes);

// A layer over packed bytes, header and all, which stay where they are and have to outlive it.
MOE_EXPORT_API int moe_export_open(const void* packed, uint64_t bytes, int32_t x_type,
                                   int32_t exact_activations, const char* kernel,
                                   struct MoeLayer** layer, char* message, size_t message_bytes);

MOE_EXPORT_API int moe_export_run(const struct MoeLayer* layer, const struct MoeCall* call,
                                  int32_t num_threads, char* message, size_t message_bytes);

MOE_EXPORT_API void moe_export_destroy(struct MoeLayer* layer);

// What a layer holds in memory, packed.
MOE_EXPORT_API uint64_t moe_export_layer_bytes(const struct MoeLayer* layer);

// The kernel that the process uses and why: "avx512: the fastest that this processor has".
MOE_EXPORT_API int moe_export_describe(char* message, size_t message_bytes);

// The version of ONNX Runtime's C interface that the library asks for.
MOE_EXPORT_API uint32_t moe_export_ort_api_version(void);
