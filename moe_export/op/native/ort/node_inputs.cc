#include "ort/node_inputs.h"

#include <algorithm>
#include <iterator>
#include <sstream>

namespace moe_export {
namespace {

// In the order of `SCALE_INPUTS` in op/spec.py.
constexpr const char* kExtraInputs[] = {"input_scale", "up_scale", "hidden_scale", "units"};

std::vector<std::string> words(const std::string& text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

bool contains(const std::vector<std::string>& names, const char* name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

ExtraInputs::ExtraInputs(Api api, const Info& info, const Problem& problem) {
  const std::string text = info.optional_text("extra_inputs");
  names_ = words(text);
  std::vector<std::string> known;
  for (const char* name : kExtraInputs) {
    if (contains(names_, name)) known.push_back(name);
  }
  if (known != names_) {
    fail(api, info.name(),
         "attribute extra_inputs is '" + text +
             "', expected some of input_scale up_scale hidden_scale units, in this order");
  }
  if (contains(names_, "up_scale") &&
      (!contains(names_, "input_scale") || !is_gated(problem.activation))) {
    fail(api, info.name(), kUpScaleAlone);
  }
  if (contains(names_, "units") && !contains(names_, "hidden_scale")) {
    fail(api, info.name(),
         "the input units is given without hidden_scale, whose columns it numbers");
  }
}

ExtraPlaces ExtraInputs::places(size_t first, bool has_shared) const {
  ExtraPlaces places;
  if (has_shared) places.shared_weight = first++;
  for (const std::string& name : names_) {
    if (name == "input_scale") places.input_scale = first++;
    if (name == "up_scale") places.up_scale = first++;
    if (name == "hidden_scale") places.hidden_scale = first++;
    if (name == "units") places.units = first++;
  }
  return places;
}

StoredWeights::StoredWeights(Api api, const Info& info, int32_t x_type, bool exact_activations,
                             const ToHost& to_host)
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
      {},
  };
  Refusal refusal = check_attributes(weights_, &problem_);
  if (refusal) fail(api, info.name(), *refusal);
  const size_t each = static_cast<size_t>(problem_.tensors_per_expert());
  const size_t num_inputs = info.num_inputs();
  const ExtraInputs extra(api, info, problem_);
  const size_t before = kFirstWeight + extra.count();
  const bool has_shared = num_inputs > before && (num_inputs - before) % each == 1;
  first_input_ = has_shared ? before + 1 : before;
  places_ = extra.places(kFirstWeight, has_shared);
  if (places_.units != 0 && num_inputs > before) {
    units_.reset(new View(info.weight(places_.units)));
    weights_.units = units_->tensor();
    if (to_host) units_copy_ = to_host(places_.units, *units_);
    if (!units_copy_.empty()) weights_.units.data = units_copy_.data();
  }
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

CallInputs::CallInputs(Api api, ort::KernelContext* context, const ExtraPlaces& places)
    : api_(api),
      context_(context),
      x_(input(kX)),
      expert_indices_(input(kExpertIndices)),
      routing_weights_(input(kRoutingWeights)) {
  call_ = {x_.tensor(),
           expert_indices_.tensor(),
           routing_weights_.tensor(),
           extra(places.shared_weight, &shared_weight_),
           extra(places.input_scale, &input_scale_),
           extra(places.up_scale, &up_scale_),
           extra(places.hidden_scale, &hidden_scale_),
           nullptr};
}

MoeTensor CallInputs::extra(size_t place, std::optional<View>* view) const {
  if (place == 0) return {};
  view->emplace(input(place));
  return (*view)->tensor();
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
  if (value == nullptr) {
    const std::string sentence = "moe_export: input " + std::to_string(index) +
                                 " is left out; the node's attributes say that it is there";
    throw Failure{ort::CreateStatus::of(api_)(ort::kInvalidArgument, sentence.c_str())};
  }
  return View(api_, value);
}

}  // namespace moe_export
