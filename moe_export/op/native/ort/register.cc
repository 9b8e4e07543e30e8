// The function that ONNX Runtime calls in a library of custom operators.
#include <string>
#include <type_traits>
#include <vector>

#include "common/c_types.h"
#include "cuda/driver.h"
#include "ort/abi.h"
#include "ort/cuda_node.h"
#include "ort/linear_node.h"
#include "ort/moe_node.h"

namespace ort = moe_export::ort;

// The version of ONNX Runtime's C interface that the library asks for.
MOE_EXPORT_API uint32_t moe_export_ort_api_version() { return ort::kApiVersion; }

MOE_EXPORT_API ort::Status* RegisterCustomOps(ort::SessionOptions* options,
                                              const ort::ApiBase* base) {
  const ort::Api api = base->get_api(ort::kApiVersion);
  if (api == nullptr) {
    // The slot for this message is as old as the table.
    const std::string sentence = std::string("moe_export needs ONNX Runtime ") +
                                 ort::kOldestVersion + " or newer, this is " +
                                 base->get_version_string();
    return ort::CreateStatus::of(base->get_api(1))(ort::kFail, sentence.c_str());
  }
  // A destructor could be called after the library is gone.
  static_assert(std::is_trivially_destructible_v<moe_export::CudaRaggedMoeOp> &&
                std::is_trivially_destructible_v<moe_export::RaggedMoePackedOp>);
  static moe_export::RaggedMoeOp float32_op(ort::kFloat32), float16_op(ort::kFloat16);
  static const moe_export::RaggedMoePackedOp packed_float32_op(ort::kFloat32),
      packed_float16_op(ort::kFloat16);
  static const moe_export::LinearOp linear_float32_op(ort::kFloat32),
      linear_float16_op(ort::kFloat16);
  static const moe_export::LinearPackedOp packed_linear_float32_op(ort::kFloat32),
      packed_linear_float16_op(ort::kFloat16);
  static const moe_export::CudaRaggedMoeOp cuda_float32_op(ort::kFloat32);
  static const moe_export::CudaRaggedMoeOp cuda_float16_op(ort::kFloat16);
  // Created once; session options only refer to it.
  static ort::CustomOpDomain* domain = nullptr;
  static ort::Status* const failure = [&]() -> ort::Status* {
    ort::Status* status = ort::CreateCustomOpDomain::of(api)("moe_export", &domain);
    std::vector<const ort::CustomOp*> ops = {
        &float32_op,
        &float16_op,
        &packed_float32_op,
        &packed_float16_op,
        &linear_float32_op,
        &linear_float16_op,
        &packed_linear_float32_op,
        &packed_linear_float16_op,
    };
    // Only with a driver: the inputs that CUDA declares make a session load 0.2 s longer.
    if (moe_export::cuda::has_driver()) {
      moe_export::take_placed_inputs(&float32_op);
      moe_export::take_placed_inputs(&float16_op);
      ops.push_back(&cuda_float32_op);
      ops.push_back(&cuda_float16_op);
    }
    for (const ort::CustomOp* op : ops) {
      if (status == nullptr) status = ort::CustomOpDomainAdd::of(api)(domain, op);
    }
    return status;
  }();
  if (failure != nullptr) {
    return ort::CreateStatus::of(api)(ort::kFail, "moe_export could not create its domain");
  }
  return ort::AddCustomOpDomain::of(api)(options, domain);
}
