#include "ort/cpu_node.h"

#include <cstdlib>
#include <cstring>

#include "common/pages.h"
#include "cpu/dispatch.h"

namespace moe_export {

CpuOp::CpuOp(ort::ElementType type) : CustomOp(), x_type(type) {
  using Op = const ort::CustomOp*;
  version = ort::kApiVersion;
  get_execution_provider_type = [](Op) { return "CPUExecutionProvider"; };
  get_input_memory_type = [](Op, size_t) { return 0; };
  get_output_type_count = [](Op) -> size_t { return 1; };
  get_output_type = [](Op op, size_t) -> int { return x_type_of(op); };
  get_output_characteristic = [](Op, size_t) -> int { return ort::kRequired; };
  get_variadic_input_min_arity = [](Op) { return 1; };
  get_variadic_input_homogeneity = [](Op) { return 0; };
  get_variadic_output_min_arity = [](Op) { return 0; };
  get_variadic_output_homogeneity = [](Op) { return 0; };
  get_start_version = [](Op) { return 1; };
  get_end_version = [](Op) { return 1; };
}

bool wants_exact_activations(Api api, const std::string& node) {
  const char* setting = std::getenv("MOE_EXPORT_ACTIVATIONS");
  if (setting == nullptr || std::strcmp(setting, "int8") == 0) return false;
  if (std::strcmp(setting, "exact") == 0) return true;
  fail(api, node,
       "MOE_EXPORT_ACTIVATIONS is '" + std::string(setting) + "', expected int8 or exact");
}

namespace {

bool wants_copy(Api api, const std::string& node) {
  const char* setting = std::getenv("MOE_EXPORT_WEIGHTS");
  if (setting == nullptr || std::strcmp(setting, "mapped") == 0) return false;
  if (std::strcmp(setting, "copy") == 0) return true;
  fail(api, node, "MOE_EXPORT_WEIGHTS is '" + std::string(setting) + "', expected mapped or copy");
}

}  // namespace

const Kernels* kernels_or_fail(Api api, const std::string& node) {
  const Choice& choice = process_choice();
  if (choice.kernels == nullptr) fail(api, node, choice.reason);
  return choice.kernels;
}

PackedBytes::PackedBytes(Api api, const Info& info, size_t input) {
  const View packed = info.weight(input);
  if (packed.tensor().type != kUint8 || packed.tensor().rank != 1) {
    fail(api, info.name(), "packed is not of one axis and uint8");
  }
  data_ = static_cast<const uint8_t*>(packed.tensor().data);
  size_ = static_cast<uint64_t>(packed.shape()[0]);
  if (!wants_copy(api, info.name())) return;
  copy_ = allocate(size_);
  std::memcpy(copy_.get(), data_, size_);
  give_back_pages(data_, size_);
  data_ = copy_.get();
}

}  // namespace moe_export
