// What the CPU and the CUDA node read from ONNX Runtime: stored weights, and the inputs of a call.
#pragma once

#include "common/ragged_moe.h"
#include "ort/objects.h"

namespace moe_export {

constexpr const char* kRaggedMoe = "RaggedMoE";

// Inputs of every node, and where those of RaggedMoE go on.
constexpr size_t kX = 0, kExpertIndices = 1, kRoutingWeights = 2;
constexpr size_t kSharedWeight = 3, kFirstWeight = 3;

// The attributes and stored weights of a RaggedMoE node, checked. Fails if they do not fit.
class StoredWeights {
 public:
  StoredWeights(Api api, const Info& info, int32_t x_type, bool exact_activations);
  StoredWeights(const StoredWeights&) = delete;
  StoredWeights& operator=(const StoredWeights&) = delete;

  const Problem& problem() const { return problem_; }
  const MoeWeights& weights() const { return weights_; }

  // The input of the first weight. With a shared expert its weight, which is computed, stands
  // before the stored ones.
  size_t first_input() const { return first_input_; }

 private:
  std::string activation_, format_;
  std::vector<View> views_;
  std::vector<MoeTensor> tensors_;
  MoeWeights weights_;
  Problem problem_;
  size_t first_input_;
};

// The inputs of one call. `shared_weight` is the place of that input, read with a shared expert.
class CallInputs {
 public:
  CallInputs(Api api, ort::KernelContext* context, const Problem& problem, size_t shared_weight);

  const MoeCall& call() const { return call_; }

  // The call with an output in x's shape, once its inputs are checked.
  const MoeCall& with_output();

 private:
  View input(size_t index) const;

  Api api_;
  ort::KernelContext* context_;
  View x_, expert_indices_, routing_weights_;
  std::unique_ptr<View> shared_weight_;
  MoeCall call_;
};

}  // namespace moe_export
