// ONNX Runtime's objects and errors in C++.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "common/c_types.h"
#include "ort/abi.h"

namespace moe_export {

using ort::Api;
using ort::Status;

// An exception that carries a status to ONNX Runtime.
struct Failure {
  Status* status;
};

inline void succeed(Status* status) {
  if (status != nullptr) throw Failure{status};
}

// `node` names the operator and the node.
[[noreturn]] inline void fail(Api api, const std::string& node, const std::string& sentence) {
  const std::string text = node + ": " + sentence;
  throw Failure{ort::CreateStatus::of(api)(ort::kInvalidArgument, text.c_str())};
}

template <typename Body>
Status* guarded(Api api, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::bad_alloc&) {
    return ort::CreateStatus::of(api)(ort::kFail, "moe_export: memory does not suffice");
  }
}

// A tensor of ONNX Runtime; its shape lives as long as this object.
class View {
 public:
  View(Api api, const ort::Value* value) {
    ort::TypeAndShape* info = nullptr;
    succeed(ort::GetTensorTypeAndShape::of(api)(value, &info));
    const std::unique_ptr<ort::TypeAndShape, void (*)(ort::TypeAndShape*)> owner(
        info, ort::ReleaseTypeAndShape::of(api));
    size_t rank = 0;
    int type = 0;
    void* data = nullptr;
    succeed(ort::GetDimensionsCount::of(api)(info, &rank));
    shape_.resize(rank);
    succeed(ort::GetDimensions::of(api)(info, shape_.data(), rank));
    succeed(ort::GetTensorElementType::of(api)(info, &type));
    succeed(ort::GetTensorMutableData::of(api)(const_cast<ort::Value*>(value), &data));
    tensor_ = {data, shape_.data(), static_cast<int32_t>(rank), type};
  }
  View(View&& other) = default;

  const MoeTensor& tensor() const { return tensor_; }
  const std::vector<int64_t>& shape() const { return shape_; }

 private:
  std::vector<int64_t> shape_;
  MoeTensor tensor_;
};

// A node's attributes and constant inputs, at the creation of its session.
class Info {
 public:
  Info(Api api, const ort::KernelInfo* info, const char* op) : api_(api), info_(info) {
    size_t size = 0;
    succeed(ort::KernelInfoGetNodeName::of(api)(info, nullptr, &size));
    std::string name(size, '\0');
    succeed(ort::KernelInfoGetNodeName::of(api)(info, name.data(), &size));
    name_ = std::string(op) + " node '" + name.c_str() + "'";
  }

  const std::string& name() const { return name_; }

  std::string text(const char* attribute) const {
    size_t size = 0;
    require(ort::KernelInfoGetString::of(api_)(info_, attribute, nullptr, &size), attribute);
    std::string value(size, '\0');
    require(ort::KernelInfoGetString::of(api_)(info_, attribute, value.data(), &size), attribute);
    value.resize(std::strlen(value.c_str()));
    return value;
  }

  // A text that need not be there; empty without it.
  std::string optional_text(const char* attribute) const {
    size_t size = 0;
    Status* status = ort::KernelInfoGetString::of(api_)(info_, attribute, nullptr, &size);
    if (status == nullptr) return text(attribute);
    ort::ReleaseStatus::of(api_)(status);
    return "";
  }

  int64_t number(const char* attribute) const {
    int64_t value = 0;
    require(ort::KernelInfoGetInt64::of(api_)(info_, attribute, &value), attribute);
    return value;
  }

  size_t num_inputs() const {
    size_t count = 0;
    succeed(ort::KernelInfoGetInputCount::of(api_)(info_, &count));
    return count;
  }

  // A constant input, in host memory or on a device.
  const ort::Value* constant(size_t input) const {
    int is_constant = 0;
    const ort::Value* value = nullptr;
    Status* status = ort::KernelInfoGetConstantInput::of(api_)(info_, input, &is_constant, &value);
    if (status != nullptr) ort::ReleaseStatus::of(api_)(status);
    if (status != nullptr || !is_constant || value == nullptr) {
      fail(api_, name_,
           "input " + std::to_string(input) +
               " is not a constant, as weights have to be; make it an initializer");
    }
    return value;
  }

  View weight(size_t input) const { return View(api_, constant(input)); }

 private:
  void require(Status* status, const char* attribute) const {
    if (status == nullptr) return;
    ort::ReleaseStatus::of(api_)(status);
    fail(api_, name_, "attribute " + std::string(attribute) + " is missing or of another type");
  }

  Api api_;
  const ort::KernelInfo* info_;
  std::string name_;
};

}  // namespace moe_export
