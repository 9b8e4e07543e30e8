#include "ort/cpu_node.h"

#include <cstdlib>

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

const Kernels* kernels_or_fail(Api api, const std::string& node) {
  const Choice& choice = process_choice();
  if (choice.kernels == nullptr) fail(api, node, choice.reason);
  return choice.kernels;
}

View packed_bytes(Api api, const Info& info, size_t input) {
  View packed = info.weight(input);
  if (packed.tensor().type != kUint8 || packed.tensor().rank != 1) {
    fail(api, info.name(), "packed is not of one axis and uint8");
  }
  return packed;
}

}  // namespace moe_export
