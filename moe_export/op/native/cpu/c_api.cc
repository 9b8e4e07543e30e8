#include "cpu/c_api.h"

#include <new>

#include "common/message.h"
#include "cpu/dispatch.h"
#include "cpu/layer.h"
#include "cpu/own_threads.h"
#include "cpu/packed.h"
#include "cpu/packing.h"
#include "cpu/run.h"

struct MoeLayer {
  std::unique_ptr<moe_export::Layer> layer;
};

namespace {

using moe_export::Layer;
using moe_export::Refusal;
using moe_export::refuse;

}  // namespace

int moe_export_create(const MoeWeights* weights, const char* kernel, MoeLayer** layer,
                      char* message, size_t message_bytes) try {
  const moe_export::Choice choice = moe_export::choose_or_process(kernel);
  if (choice.kernels == nullptr) return refuse(choice.reason, message, message_bytes);
  moe_export::Problem problem;
  Refusal refusal = moe_export::check_weights(*weights, &problem);
  if (refusal) return refuse(*refusal, message, message_bytes);
  std::unique_ptr<Layer> packed;
  refusal = Layer::pack(problem, *weights, choice.kernels, &packed);
  if (refusal) return refuse(*refusal, message, message_bytes);
  *layer = new MoeLayer{std::move(packed)};
  return 0;
} catch (const std::bad_alloc&) {
  return refuse("the packed weights do not fit into memory", message, message_bytes);
}

int moe_export_pack_expert(const MoeWeights* weights, void* packed, uint64_t bytes, char* message,
                           size_t message_bytes) try {
  moe_export::Problem problem;
  Refusal refusal = moe_export::check_weights(*weights, &problem);
  if (refusal) return refuse(*refusal, message, message_bytes);
  if (problem.widths.size() != 1) {
    return refuse(
        "experts are packed one at a time, these are " + std::to_string(problem.widths.size()),
        message, message_bytes);
  }
  const uint64_t needed = moe_export::expert_bytes(problem, problem.widths[0]);
  if (bytes != needed) {
    return refuse("the packed expert takes " + std::to_string(needed) + " bytes, not " +
                      std::to_string(bytes),
                  message, message_bytes);
  }
  refusal = moe_export::pack_expert(problem, *weights, 0, static_cast<uint8_t*>(packed));
  return refusal ? refuse(*refusal, message, message_bytes) : 0;
} catch (const std::bad_alloc&) {
  return refuse("memory does not suffice", message, message_bytes);
}

int moe_export_open(const void* packed, uint64_t bytes, const MoeTensor* units, int32_t x_type,
                    int32_t exact_activations, const char* kernel, MoeLayer** layer, char* message,
                    size_t message_bytes) try {
  const moe_export::Choice choice = moe_export::choose_or_process(kernel);
  if (choice.kernels == nullptr) return refuse(choice.reason, message, message_bytes);
  moe_export::Problem problem;
  size_t first_panel = 0;
  const uint8_t* data = static_cast<const uint8_t*>(packed);
  Refusal refusal =
      moe_export::read_packed(data, bytes, x_type, exact_activations != 0, &problem, &first_panel);
  if (!refusal) {
    refusal = moe_export::check_units(units == nullptr ? MoeTensor{} : *units, &problem);
  }
  if (refusal) return refuse(*refusal, message, message_bytes);
  *layer = new MoeLayer{Layer::over(problem, data + first_panel, choice.kernels)};
  return 0;
} catch (const std::bad_alloc&) {
  return refuse("memory does not suffice", message, message_bytes);
}

int moe_export_run(const MoeLayer* layer, const MoeCall* call, int32_t num_threads, char* message,
                   size_t message_bytes) try {
  const Refusal refusal = moe_export::check_call(layer->layer->problem(), *call);
  if (refusal) return refuse(*refusal, message, message_bytes);
  moe_export::run(*layer->layer, *call, moe_export::on_own_threads(&num_threads));
  return 0;
} catch (const std::bad_alloc&) {
  return refuse("the intermediate values do not fit into memory", message, message_bytes);
}

void moe_export_destroy(MoeLayer* layer) { delete layer; }

uint64_t moe_export_layer_bytes(const MoeLayer* layer) { return layer->layer->bytes(); }

void moe_export_kernels(char* message, size_t message_bytes) {
  moe_export::write_message(moe_export::available_kernels(moe_export::processor()), message,
                            message_bytes);
}

int moe_export_describe(char* message, size_t message_bytes) {
  const moe_export::Choice& choice = moe_export::process_choice();
  if (choice.kernels == nullptr) return refuse(choice.reason, message, message_bytes);
  const std::string text = std::string(choice.kernels->name) + ": " + choice.reason;
  moe_export::write_message(text, message, message_bytes);
  return 0;
}
