#include "ort/node_inputs.h"

namespace moe_export {

StoredWeights::StoredWeights(Api api, const Info& info, int32_t x_type, bool exact_activations)
    : activation_(info.text("activation")), format_(info.text("format")) {
  weights_ = {
      info.number("num_experts"),
      activation_.c_str(),
      format_.c_str(),
      has_group_size(format_) ? info.number("group_size") : 0,
      x_type,
      exact_activations,
      nullptr,
      0,
  };
  Refusal refusal = check_attributes(weights_, &problem_);
  if (refusal) fail(api, info.name(), *refusal);
  const size_t each = static_cast<size_t>(problem_.tensors_per_expert());
  const size_t num_inputs = info.num_inputs();
  const bool has_shared = num_inputs > kFirstWeight && (num_inputs - kFirstWeight) % each == 1;
  first_input_ = has_shared ? kFirstWeight + 1 : kFirstWeight;
  for (size_t input = first_input_; input < num_inputs; ++input) {
    views_.push_back(info.weight(input));
    tensors_.push_back(views_.back().tensor());
  }
  weights_.tensors = tensors_.data();
  weights_.num_tensors = tensors_.size();
  refusal = check_weights(weights_, &problem_);
  if (refusal) fail(api, info.name(), *refusal);
  if (problem_.has_shared_expert() != has_shared) {
    fail(api, info.name(),
         "the weights of a shared expert and its input shared_weight go together");
  }
}

CallInputs::CallInputs(Api api, ort::KernelContext* context, const Problem& problem,
                       size_t shared_weight)
    : api_(api),
      context_(context),
      x_(input(kX)),
      expert_indices_(input(kExpertIndices)),
      routing_weights_(input(kRoutingWeights)) {
  if (problem.has_shared_expert()) shared_weight_.reset(new View(input(shared_weight)));
  call_ = {x_.tensor(), expert_indices_.tensor(), routing_weights_.tensor(),
           shared_weight_ ? shared_weight_->tensor() : MoeTensor{}, nullptr};
}

const MoeCall& CallInputs::with_output() {
  const std::vector<int64_t>& shape = x_.shape();
  ort::Value* y = nullptr;
  succeed(ort::KernelContextGetOutput::of(api_)(context_, 0, shape.data(), shape.size(), &y));
  succeed(ort::GetTensorMutableData::of(api_)(y, &call_.y));
  return call_;
}

View CallInputs::input(size_t index) const {
  const ort::Value* value = nullptr;
  succeed(ort::KernelContextGetInput::of(api_)(context_, index, &value));
  return View(api_, value);
}

}  // namespace moe_export
