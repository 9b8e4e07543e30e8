// Runs an exported model in ONNX Runtime from C++: a batch of prompts, padded on the left, and
// greedy decoding with a KV cache.
//
//   generate_cpp FOLDER NEW_TOKENS [END_TOKEN ...] < prompts > answers
//
// FOLDER is one exported model. Each line of the input is a prompt as token ids, each line of the
// output is its answer as token ids. The objects are those of ONNX Runtime's C interface; with the
// official onnxruntime_cxx_api.h the calls are the same.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime_c_api.h"

namespace {

constexpr uint32_t kApiVersion = 18;
constexpr size_t kBatchSize = 8;

using Tokens = std::vector<int64_t>;

const OrtApi* ort = OrtGetApiBase()->GetApi(kApiVersion);

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = ort->GetErrorMessage(status);
  ort->ReleaseStatus(status);
  throw std::runtime_error(message);
}

struct Release {
  void operator()(OrtEnv* env) const { ort->ReleaseEnv(env); }
  void operator()(OrtSession* session) const { ort->ReleaseSession(session); }
  void operator()(OrtSessionOptions* options) const { ort->ReleaseSessionOptions(options); }
  void operator()(OrtTypeInfo* type) const { ort->ReleaseTypeInfo(type); }
  void operator()(OrtTensorTypeAndShapeInfo* info) const {
    ort->ReleaseTensorTypeAndShapeInfo(info);
  }
  void operator()(OrtValue* value) const { ort->ReleaseValue(value); }
};

template <typename Object>
using Owned = std::unique_ptr<Object, Release>;

// What a function of the interface makes, which has its place for the result as last argument.
template <typename Object, typename... Parameters, typename... Arguments>
Owned<Object> made(OrtStatus* (*function)(Parameters...), Arguments... arguments) {
  Object* object = nullptr;
  check(function(arguments..., &object));
  return Owned<Object>(object);
}

OrtAllocator* memory() {
  OrtAllocator* allocator = nullptr;
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  return allocator;
}

Owned<OrtValue> tensor(const std::vector<int64_t>& shape, ONNXTensorElementDataType dtype) {
  return made<OrtValue>(ort->CreateTensorAsOrtValue, memory(), shape.data(), shape.size(), dtype);
}

template <typename Number>
Number* data_of(OrtValue* value) {
  void* data = nullptr;
  check(ort->GetTensorMutableData(value, &data));
  return static_cast<Number*>(data);
}

std::vector<int64_t> shape_of(const OrtTensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  check(ort->GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  check(ort->GetDimensions(info, shape.data(), rank));
  return shape;
}

ONNXTensorElementDataType dtype_of(const OrtTensorTypeAndShapeInfo* info) {
  ONNXTensorElementDataType dtype{};
  check(ort->GetTensorElementType(info, &dtype));
  return dtype;
}

// Rows of equal length as a tensor [rows, length].
Owned<OrtValue> tensor_of(const std::vector<Tokens>& rows) {
  auto value =
      tensor({int64_t(rows.size()), int64_t(rows[0].size())}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
  int64_t* to = data_of<int64_t>(value.get());
  for (const Tokens& row : rows) to = std::copy(row.begin(), row.end(), to);
  return value;
}

// Integer that orders float16 numbers as their values do.
int order_of(uint16_t bits) { return bits & 0x8000 ? -(bits & 0x7fff) : bits; }
float order_of(float value) { return value; }

// Token with the largest logit after the last position, for each row of [rows, tokens, vocabulary].
template <typename Number>
Tokens best_tokens(OrtValue* logits, const std::vector<int64_t>& shape) {
  Tokens best;
  for (int64_t row = 0; row < shape[0]; row++) {
    const Number* first = data_of<Number>(logits) + ((row + 1) * shape[1] - 1) * shape[2];
    const auto less = [](Number a, Number b) { return order_of(a) < order_of(b); };
    best.push_back(std::max_element(first, first + shape[2], less) - first);
  }
  return best;
}

#if defined(_WIN32)
constexpr char kLibrary[] = "moe_export_ops.dll";
#elif defined(__APPLE__)
constexpr char kLibrary[] = "libmoe_export_ops.dylib";
#else
constexpr char kLibrary[] = "libmoe_export_ops.so";
#endif

class Model {
 public:
  Model(const OrtEnv* env, const std::filesystem::path& folder) {
    auto options = made<OrtSessionOptions>(ort->CreateSessionOptions);
    const auto library = folder / kLibrary, path = folder / "model.onnx";
    // Faster with the library; without it the same answers come from standard operators.
    if (exists(library)) check(ort->RegisterCustomOpsLibrary_V2(options.get(), library.c_str()));
    session_ = made<OrtSession>(ort->CreateSession, env, path.c_str(), options.get());
    size_t count = 0;
    check(ort->SessionGetInputCount(session_.get(), &count));
    for (size_t i = 0; i < count; i++) inputs_.push_back(name(ort->SessionGetInputName, i));
    for (size_t i = 0; i + 1 < count; i++) outputs_.push_back(name(ort->SessionGetOutputName, i));
    for (size_t i = 2; i < count; i++) empty_.push_back(empty(i));
  }

  // Answers of a batch, with the token that ended each.
  std::vector<Tokens> answers(const std::vector<Tokens>& prompts, size_t new_tokens,
                              const Tokens& ends) const {
    std::vector<Tokens> ids = prompts, mask, answers(prompts.size());
    pad_left(ids, mask);
    std::vector<bool> ended(prompts.size());
    auto cache = empty_cache(prompts.size());
    for (size_t made = 0; made < new_tokens; made++) {
      const Tokens next = step(ids, mask, cache);
      for (size_t row = 0; row < prompts.size(); row++) {
        if (!ended[row]) answers[row].push_back(next[row]);
        ended[row] = ended[row] || std::count(ends.begin(), ends.end(), next[row]);
        ids[row] = {next[row]};
        mask[row].push_back(1);
      }
      if (std::count(ended.begin(), ended.end(), false) == 0) break;
    }
    return answers;
  }

 private:
  using NameOf = OrtStatus* (*)(const OrtSession*, size_t, OrtAllocator*, char**);
  using Cache = std::vector<Owned<OrtValue>>;

  // A part of the cache at the start of a text: keys, values, or a state of fixed size.
  struct Empty {
    ONNXTensorElementDataType dtype;
    std::vector<int64_t> shape;
  };

  // Type and shape of an input. Axes without a size are the batch and, for keys and values, the
  // tokens so far, of which there are none.
  Empty empty(size_t input) const {
    const auto type = made<OrtTypeInfo>(ort->SessionGetInputTypeInfo, session_.get(), input);
    const OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort->CastTypeInfoToTensorInfo(type.get(), &info));
    Empty found{dtype_of(info), shape_of(info)};
    for (int64_t& size : found.shape) size = std::max<int64_t>(size, 0);
    return found;
  }

  std::string name(NameOf function, size_t index) const {
    char* text = nullptr;
    check(function(session_.get(), index, memory(), &text));
    const std::string copy = text;
    check(ort->AllocatorFree(memory(), text));
    return copy;
  }

  // Fills rows up with token 0 on the left, and makes the mask, which is 0 there.
  static void pad_left(std::vector<Tokens>& ids, std::vector<Tokens>& mask) {
    size_t longest = 0;
    for (const Tokens& row : ids) longest = std::max(longest, row.size());
    for (Tokens& row : ids) {
      const size_t padding = longest - row.size();
      mask.emplace_back(longest, 1);
      std::fill_n(mask.back().begin(), padding, 0);
      row.insert(row.begin(), padding, 0);
    }
  }

  Cache empty_cache(size_t rows) const {
    Cache cache;
    for (Empty part : empty_) {
      part.shape[0] = int64_t(rows);
      cache.push_back(tensor(part.shape, part.dtype));
      int64_t bytes = part.dtype == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? 4 : 2;
      for (const int64_t size : part.shape) bytes *= size;
      std::fill_n(data_of<char>(cache.back().get()), bytes, 0);
    }
    return cache;
  }

  // Runs new ids [rows, tokens], replaces the cache, and returns the next token of each row.
  Tokens step(const std::vector<Tokens>& ids, const std::vector<Tokens>& mask, Cache& cache) const {
    const auto ids_value = tensor_of(ids), mask_value = tensor_of(mask);
    std::vector<const OrtValue*> inputs = {ids_value.get(), mask_value.get()};
    for (const auto& value : cache) inputs.push_back(value.get());
    std::vector<OrtValue*> outputs(outputs_.size());
    const auto input_names = pointers(inputs_), output_names = pointers(outputs_);
    check(ort->Run(session_.get(), nullptr, input_names.data(), inputs.data(), inputs.size(),
                   output_names.data(), outputs.size(), outputs.data()));
    const Owned<OrtValue> logits(outputs[0]);
    for (size_t i = 0; i < cache.size(); i++) cache[i].reset(outputs[i + 1]);
    const auto info = made<OrtTensorTypeAndShapeInfo>(ort->GetTensorTypeAndShape,
                                                      static_cast<const OrtValue*>(logits.get()));
    return dtype_of(info.get()) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
               ? best_tokens<float>(logits.get(), shape_of(info.get()))
               : best_tokens<uint16_t>(logits.get(), shape_of(info.get()));
  }

  static std::vector<const char*> pointers(const std::vector<std::string>& names) {
    std::vector<const char*> found;
    for (const std::string& name : names) found.push_back(name.c_str());
    return found;
  }

  Owned<OrtSession> session_;
  std::vector<std::string> inputs_, outputs_;
  std::vector<Empty> empty_;
};

std::vector<Tokens> read_prompts(std::istream& in) {
  std::vector<Tokens> prompts;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    Tokens ids;
    for (int64_t id; words >> id;) ids.push_back(id);
    if (!ids.empty()) prompts.push_back(ids);
  }
  return prompts;
}

void run(const char* folder, size_t new_tokens, const Tokens& ends) {
  if (ort == nullptr) throw std::runtime_error("ONNX Runtime 1.18 or newer is needed");
  // A warning would tell of the input logits_from, which has a default.
  const auto env = made<OrtEnv>(ort->CreateEnv, ORT_LOGGING_LEVEL_ERROR, "generate_cpp");
  const Model model(env.get(), folder);
  const std::vector<Tokens> prompts = read_prompts(std::cin);
  for (size_t first = 0; first < prompts.size(); first += kBatchSize) {
    const size_t last = std::min(first + kBatchSize, prompts.size());
    const std::vector<Tokens> batch(prompts.begin() + first, prompts.begin() + last);
    for (const Tokens& answer : model.answers(batch, new_tokens, ends)) {
      for (size_t i = 0; i < answer.size(); i++) std::cout << (i ? " " : "") << answer[i];
      std::cout << "\n";
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: generate_cpp FOLDER NEW_TOKENS [END_TOKEN ...] < prompts\n";
    return 2;
  }
  Tokens ends;
  for (int i = 3; i < argc; i++) ends.push_back(std::atoll(argv[i]));
  try {
    run(argv[1], std::strtoull(argv[2], nullptr, 10), ends);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
