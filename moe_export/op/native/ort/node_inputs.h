// What the CPU and the CUDA node read from ONNX Runtime: stored weights, and the inputs of a call.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "common/ragged_moe.h"
#include "ort/objects.h"

namespace moe_export {

constexpr const char* kRaggedMoe = "RaggedMoE";

// Inputs of every node, and where those of RaggedMoE go on.
constexpr size_t kX = 0, kExpertIndices = 1, kRoutingWeights = 2;
constexpr size_t kFirstWeight = 3;

// Places of the inputs that only some nodes have; 0 for those that are not there.
struct ExtraPlaces {
  size_t shared_weight = 0, input_scale = 0, up_scale = 0, hidden_scale = 0, units = 0;
};

// Reads the attribute extra_inputs of a node whose activation is known. Fails if it has unknown
// names, or names that do not go together.
class ExtraInputs {
 public:
  ExtraInputs(Api api, const Info& info, const Problem& problem);

  size_t count() const { return names_.size(); }

  // Places of the inputs from `first` on: shared_weight if there is one, then those of the
  // attribute.
  ExtraPlaces places(size_t first, bool has_shared) const;

 private:
  std::vector<std::string> names_;
};

// Copies a stored input to host memory; gives nothing if it is there.
using ToHost = std::function<std::vector<uint8_t>(size_t input, const View& view)>;

// The attributes and stored weights of a RaggedMoE node, checked. Fails if they do not fit.
class StoredWeights {
 public:
  StoredWeights(Api api, const Info& info, int32_t x_type, bool exact_activations,
                const ToHost& to_host = nullptr);
  StoredWeights(const StoredWeights&) = delete;
  StoredWeights& operator=(const StoredWeights&) = delete;

  const Problem& problem() const { return problem_; }
  const MoeWeights& weights() const { return weights_; }

  // The input of the first weight. Computed inputs stand before the stored ones.
  size_t first_input() const { return first_input_; }

  const ExtraPlaces& places() const { return places_; }

 private:
  std::string activation_, format_;
  std::unique_ptr<View> units_;
  std::vector<uint8_t> units_copy_;  // empty if they are in host memory
  std::vector<View> views_;
  std::vector<MoeTensor> tensors_;
  MoeWeights weights_;
  Problem problem_;
  size_t first_input_;
  ExtraPlaces places_;
};

// The inputs of one call.
class CallInputs {
 public:
  CallInputs(Api api, ort::KernelContext* context, const ExtraPlaces& places);

  const MoeCall& call() const { return call_; }

  // The call with an output in x's shape, once its inputs are checked.
  const MoeCall& with_output();

 private:
  View input(size_t index) const;
  MoeTensor extra(size_t place, std::optional<View>* view) const;

  Api api_;
  ort::KernelContext* context_;
  View x_, expert_indices_, routing_weights_;
  std::optional<View> shared_weight_, input_scale_, up_scale_, hidden_scale_;
  MoeCall call_;
};

}  // namespace moe_export
