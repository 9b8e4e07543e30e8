// The CPU kernels behind a plain C interface, for callers other than ONNX Runtime.
//
// Functions with a `message` return 0 on success. On refusal they return 1 and write one sentence.
#pragma once

#include "common/c_types.h"

extern "C" {

struct MoeLayer;
struct MoeLinear;

// A matrix [depth, columns], its codes and its scales. The values lie column by column, as in the
// weight [outputs, inputs] of a linear layer.
struct MoeRounding {
  const void* values;  // [columns, depth]
  const char* format;
  int32_t type;    // element type of the values: 1, 10 or 16
  int32_t search;  // 1: choose each group's scale by the least error
  int64_t depth;
  int64_t columns;
  int64_t group_size;   // 32, 64 or 128
  uint8_t* codes;       // [depth, columns], one byte each; signed codes in two's complement
  uint16_t* scale;      // [groups, columns], float16
  uint8_t* zero_point;  // [groups, columns] in uint8 and uint4; null otherwise
};

}  // extern "C"

// Copies the weights into the layout of the kernels; the tensors are not needed afterwards.
// `kernel` is "portable", "avx2", "avxvnni", "avx512", "neon", "dotprod", "i8mm" or "fhm"; null
// takes the kernel of the process.
MOE_EXPORT_API int moe_export_create(const struct MoeWeights* weights, const char* kernel,
                                     struct MoeLayer** layer, char* message, size_t message_bytes);

// Packs one expert (num_experts is 1) into `bytes` bytes of the layout in packed.h.
MOE_EXPORT_API int moe_export_pack_expert(const struct MoeWeights* weights, void* packed,
                                          uint64_t bytes, char* message, size_t message_bytes);

// Opens a layer over packed bytes, header included. The bytes are not copied and must outlive it.
// `units` is as in MoeWeights, or null.
MOE_EXPORT_API int moe_export_open(const void* packed, uint64_t bytes,
                                   const struct MoeTensor* units, int32_t x_type,
                                   int32_t exact_activations, const char* kernel,
                                   struct MoeLayer** layer, char* message, size_t message_bytes);

MOE_EXPORT_API int moe_export_run(const struct MoeLayer* layer, const struct MoeCall* call,
                                  int32_t num_threads, char* message, size_t message_bytes);

MOE_EXPORT_API void moe_export_destroy(struct MoeLayer* layer);

// Bytes of the packed weights of a layer.
MOE_EXPORT_API uint64_t moe_export_layer_bytes(const struct MoeLayer* layer);

// The same for a Linear node.
MOE_EXPORT_API int moe_export_linear_create(const struct LinearWeights* weights, const char* kernel,
                                            struct MoeLinear** linear, char* message,
                                            size_t message_bytes);

// Packs a matrix without a bias into the `bytes` bytes of its panels.
MOE_EXPORT_API int moe_export_linear_pack(const struct LinearWeights* weights, void* panels,
                                          uint64_t bytes, char* message, size_t message_bytes);

// Opens a packed matrix, header included.
MOE_EXPORT_API int moe_export_linear_open(const void* packed, uint64_t bytes, int32_t x_type,
                                          int32_t exact_activations, const char* kernel,
                                          struct MoeLinear** linear, char* message,
                                          size_t message_bytes);

// Computes y [..., N] of x [..., K], in x's type.
MOE_EXPORT_API int moe_export_linear_run(const struct MoeLinear* linear, const struct MoeTensor* x,
                                         void* y, int32_t num_threads, char* message,
                                         size_t message_bytes);

MOE_EXPORT_API void moe_export_linear_destroy(struct MoeLinear* linear);

// Bytes of bias and panels.
MOE_EXPORT_API uint64_t moe_export_linear_bytes(const struct MoeLinear* linear);

// Writes codes, scales and zero points. Returns 0; 1 if a value is infinite or NaN; 2 if a value is
// too large for a scale in float16; 3 if the format is unknown.
MOE_EXPORT_API int moe_export_quantize(const struct MoeRounding* job);

// Sums over each column the squared differences between decoded codes and values (`lost`), and the
// squared values (`norm`); each has room for all columns. Returns 0, or 3 as above.
MOE_EXPORT_API int moe_export_squared_error(const struct MoeRounding* job, double* lost,
                                            double* norm);

// Writes the names of the kernels that run here, from fast to plain: "avx512, avx2, portable".
MOE_EXPORT_API void moe_export_kernels(char* message, size_t message_bytes);

// Writes the kernel of the process and the reason: "avx512: the fastest that this processor has".
MOE_EXPORT_API int moe_export_describe(char* message, size_t message_bytes);
