#include <new>

#include "common/message.h"
#include "cpu/c_api.h"
#include "cpu/dispatch.h"
#include "cpu/linear.h"
#include "cpu/own_threads.h"
#include "cpu/packed_linear.h"

struct MoeLinear {
  std::unique_ptr<moe_export::Linear> linear;
};

using moe_export::Linear;
using moe_export::LinearProblem;
using moe_export::Refusal;
using moe_export::refuse;

int moe_export_linear_create(const LinearWeights* weights, const char* kernel, MoeLinear** linear,
                             char* message, size_t message_bytes) try {
  const moe_export::Choice choice = moe_export::choose_or_process(kernel);
  if (choice.kernels == nullptr) return refuse(choice.reason, message, message_bytes);
  LinearProblem problem;
  Refusal refusal = moe_export::check_linear(*weights, &problem);
  if (refusal) return refuse(*refusal, message, message_bytes);
  std::unique_ptr<Linear> packed;
  refusal = Linear::pack(problem, *weights, choice.kernels, &packed);
  if (refusal) return refuse(*refusal, message, message_bytes);
  *linear = new MoeLinear{std::move(packed)};
  return 0;
} catch (const std::bad_alloc&) {
  return refuse("the packed weights do not fit into memory", message, message_bytes);
}

int moe_export_linear_pack(const LinearWeights* weights, void* panels, uint64_t bytes,
                           char* message, size_t message_bytes) try {
  LinearProblem problem;
  Refusal refusal = moe_export::check_linear(*weights, &problem);
  if (refusal) return refuse(*refusal, message, message_bytes);
  const uint64_t needed = moe_export::linear_panel_bytes(problem);
  if (problem.has_bias || bytes != needed) {
    return refuse("the panels take " + std::to_string(needed) + " bytes and no bias, given are " +
                      std::to_string(bytes) + (problem.has_bias ? " and a bias" : ""),
                  message, message_bytes);
  }
  refusal = moe_export::pack_linear(problem, *weights, static_cast<uint8_t*>(panels));
  return refusal ? refuse(*refusal, message, message_bytes) : 0;
} catch (const std::bad_alloc&) {
  return refuse("memory does not suffice", message, message_bytes);
}

int moe_export_linear_open(const void* packed, uint64_t bytes, int32_t x_type,
                           int32_t exact_activations, const char* kernel, MoeLinear** linear,
                           char* message, size_t message_bytes) try {
  const moe_export::Choice choice = moe_export::choose_or_process(kernel);
  if (choice.kernels == nullptr) return refuse(choice.reason, message, message_bytes);
  LinearProblem problem;
  const uint8_t* data = static_cast<const uint8_t*>(packed);
  const Refusal refusal =
      moe_export::read_packed_linear(data, bytes, x_type, exact_activations != 0, &problem);
  if (refusal) return refuse(*refusal, message, message_bytes);
  const uint8_t* body = data + sizeof(moe_export::PackedLinearHeader);
  *linear = new MoeLinear{Linear::over(problem, body, choice.kernels)};
  return 0;
} catch (const std::bad_alloc&) {
  return refuse("memory does not suffice", message, message_bytes);
}

int moe_export_linear_run(const MoeLinear* linear, const MoeTensor* x, void* y, int32_t num_threads,
                          char* message, size_t message_bytes) try {
  const Refusal refusal = moe_export::check_linear_x(linear->linear->problem(), *x);
  if (refusal) return refuse(*refusal, message, message_bytes);
  moe_export::run(*linear->linear, *x, y, moe_export::on_own_threads(&num_threads));
  return 0;
} catch (const std::bad_alloc&) {
  return refuse("the intermediate values do not fit into memory", message, message_bytes);
}

void moe_export_linear_destroy(MoeLinear* linear) { delete linear; }

uint64_t moe_export_linear_bytes(const MoeLinear* linear) { return linear->linear->bytes(); }
