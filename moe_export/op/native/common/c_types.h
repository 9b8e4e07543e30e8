// Structures of the library's plain C interface, shared by its CPU and CUDA sides.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MOE_EXPORT_API extern "C" __declspec(dllexport)
#else
#define MOE_EXPORT_API extern "C" __attribute__((visibility("default")))
#endif

extern "C" {

// A tensor in row-major order. `type` is the number of the element type in ONNX: 0 if there is no
// tensor, 1 float32, 2 uint8, 3 int8, 6 int32, 7 int64, 10 float16, 16 bfloat16, 21 uint4 and 22
// int4 (two to a byte, the lower nibble first).
struct MoeTensor {
  const void* data;
  const int64_t* shape;
  int32_t rank;
  int32_t type;
};

// The experts of a layer. `tensors` are the node's inputs from gate_0 on. `units` [R] int32 has the
// column of hidden_scale for each hidden unit of the routed experts; without it, an expert of width
// w takes the columns 0 to w - 1.
struct MoeWeights {
  int64_t num_experts;
  const char* activation;
  const char* format;
  int64_t group_size;  // 32, 64 or 128 in the quantized formats; 0 otherwise
  int32_t x_type;
  int32_t exact_activations;  // 1: multiply integer codes by x in float32 instead of int8
  const struct MoeTensor* tensors;
  size_t num_tensors;
  struct MoeTensor units;
};

// The weights of a Linear node: a matrix [K, N] with its scales and zero points, then the bias if
// there is one.
struct LinearWeights {
  const char* format;
  int64_t group_size;  // 32, 64 or 128 in the quantized formats; 0 otherwise
  int32_t x_type;
  int32_t exact_activations;  // as in MoeWeights
  const struct MoeTensor* tensors;
  size_t num_tensors;
};

// One execution of a RaggedMoE node. `shared_weight` is read if the layer has a shared expert.
// `input_scale`, `up_scale` and `hidden_scale` are of type 0 where nothing is scaled; without
// `up_scale`, up reads what gate reads. `y` has the shape and type of `x`.
struct MoeCall {
  struct MoeTensor x;
  struct MoeTensor expert_indices;
  struct MoeTensor routing_weights;
  struct MoeTensor shared_weight;
  struct MoeTensor input_scale;
  struct MoeTensor up_scale;
  struct MoeTensor hidden_scale;
  void* y;
};

}  // extern "C"
