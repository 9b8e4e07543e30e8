// Nodes put together at random, most of them nearly right, given to the operator through a stand-in
// for ONNX Runtime's table. A node has to be either refused with a sentence or run; what is read
// beyond a tensor's end, overflows or leaks is found by the sanitizers.
//
//   fuzz CASES SEED      prints "ran N refused N"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/formats.h"
#include "cpu/linear.h"
#include "cpu/packed.h"
#include "cpu/packed_linear.h"
#include "cpu/packing.h"
#include "ort/abi.h"
#include "ort/linear_node.h"
#include "ort/moe_node.h"

namespace ort = moe_export::ort;

// ---- the stand-in: the types that ort/abi.h leaves open, and a function for each slot ----

struct ort::Status {
  std::string message;
};

struct ort::Value {
  int type = 0;
  std::vector<int64_t> shape;
  std::unique_ptr<uint8_t[]> data;
};

struct ort::TypeAndShape {
  const ort::Value* value;
};

struct ort::KernelInfo {
  std::map<std::string, std::string> texts;
  std::map<std::string, int64_t> numbers;
  std::vector<const ort::Value*> inputs;  // null where the input is not a constant
};

struct ort::KernelContext {
  std::vector<const ort::Value*> inputs;
  ort::Value y;
};

namespace {

using ort::Status;
using ort::Value;

size_t bytes_of(int type, const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t size : shape) count *= size > 0 ? static_cast<size_t>(size) : 0;
  switch (type) {
    case moe_export::kInt64:
      return count * 8;
    case moe_export::kFloat32:
    case moe_export::kInt32:
      return count * 4;
    case moe_export::kInt8:
    case moe_export::kUint8:
      return count;
    case moe_export::kInt4:
    case moe_export::kUint4:
      return (count + 1) / 2;
    default:
      return count * 2;
  }
}

Status* no(const char* message) { return new Status{message}; }

Status* copy_text(const std::string& text, char* out, size_t* size) {
  if (out == nullptr) {
    *size = text.size() + 1;
    return nullptr;
  }
  if (*size < text.size() + 1) return no("the buffer is too small");
  std::memcpy(out, text.c_str(), text.size() + 1);
  return nullptr;
}

Status* create_status(int, const char* message) { return no(message); }
void release_status(Status* status) { delete status; }
Status* get_data(Value* value, void** data) {
  *data = value->data.get();
  return nullptr;
}
Status* get_type_and_shape(const Value* value, ort::TypeAndShape** info) {
  *info = new ort::TypeAndShape{value};
  return nullptr;
}
void release_type_and_shape(ort::TypeAndShape* info) { delete info; }
Status* get_element_type(const ort::TypeAndShape* info, int* type) {
  *type = info->value->type;
  return nullptr;
}
Status* get_dimensions_count(const ort::TypeAndShape* info, size_t* rank) {
  *rank = info->value->shape.size();
  return nullptr;
}
Status* get_dimensions(const ort::TypeAndShape* info, int64_t* shape, size_t rank) {
  for (size_t axis = 0; axis < rank; ++axis) shape[axis] = info->value->shape[axis];
  return nullptr;
}
Status* get_int64(const ort::KernelInfo* info, const char* name, int64_t* value) {
  const auto found = info->numbers.find(name);
  if (found == info->numbers.end()) return no("no such attribute");
  *value = found->second;
  return nullptr;
}
Status* get_string(const ort::KernelInfo* info, const char* name, char* out, size_t* size) {
  const auto found = info->texts.find(name);
  return found == info->texts.end() ? no("no such attribute") : copy_text(found->second, out, size);
}
Status* get_node_name(const ort::KernelInfo*, char* out, size_t* size) {
  return copy_text("fuzz", out, size);
}
Status* get_info_input_count(const ort::KernelInfo* info, size_t* count) {
  *count = info->inputs.size();
  return nullptr;
}
Status* get_constant(const ort::KernelInfo* info, size_t index, int* constant,
                     const Value** value) {
  *value = info->inputs.at(index);
  *constant = *value != nullptr;
  return nullptr;
}
Status* get_input(const ort::KernelContext* context, size_t index, const Value** value) {
  *value = context->inputs.at(index);
  return nullptr;
}
Status* get_output(ort::KernelContext* context, size_t, const int64_t* shape, size_t rank,
                   Value** value) {
  Value& y = context->y;
  y.type = context->inputs[0]->type;
  y.shape.assign(shape, shape + rank);
  y.data.reset(new uint8_t[bytes_of(y.type, y.shape)]);
  *value = &y;
  return nullptr;
}
// Backwards, as no order is promised.
Status* parallel_for(const ort::KernelContext*, void (*item)(void*, size_t), size_t items, size_t,
                     void* job) {
  for (size_t i = items; i-- > 0;) item(job, i);
  return nullptr;
}

std::vector<const void*> table() {
  std::vector<const void*> slots(300, nullptr);
  const auto set = [&](size_t slot, auto* function) {
    slots[slot] = reinterpret_cast<const void*>(function);
  };
  set(0, create_status), set(51, get_data), set(60, get_element_type);
  set(61, get_dimensions_count), set(62, get_dimensions), set(65, get_type_and_shape);
  set(86, get_int64), set(87, get_string), set(90, get_input), set(91, get_output);
  set(93, release_status), set(99, release_type_and_shape), set(230, get_info_input_count);
  set(244, get_node_name), set(249, get_constant), set(274, parallel_for);
  return slots;
}

// ---- the nodes ----

class Fuzzer {
 public:
  explicit Fuzzer(uint64_t seed) : random_(seed) {}

  int ran = 0, refused = 0;

  void one_case(ort::Api api) {
    // A case has no defect or a few, so that refusals come from everywhere.
    defects_ = pick({0, 0, 1, 1, 2}) / 100.0;
    const int64_t number = upto(moe_export::kNumFormats);
    const std::string format = moe_export::format_name(static_cast<uint32_t>(number));
    const int weight_type = moe_export::kFormats[number].weight_type;
    const bool quantized = moe_export::is_quantized(static_cast<moe_export::Format>(number));
    const bool zero_points = moe_export::has_zero_points(static_cast<moe_export::Format>(number));
    const int x_type = x_type_for(moe_export::kFormats[number]);
    const int64_t num_experts = upto(5) + 1, hidden = upto(150) + 1,
                  group_size = pick<int64_t>({32, 64, 128});
    const bool shared = upto(2) == 0;
    const std::string activation = pick<std::string>({"swiglu", "geglu", "silu", "relu", "relu2"});
    const int down = activation == "swiglu" || activation == "geglu" ? 2 : 1;

    ort::KernelInfo info;
    info.texts = {{"format", broken() ? "int5" : format},
                  {"activation", broken() ? "" : activation}};
    info.numbers = {{"num_experts", size(num_experts)}, {"group_size", size(group_size)}};
    if (broken()) info.numbers.erase("group_size");
    if (broken()) info.texts.erase("format");
    std::vector<std::unique_ptr<Value>> weights;
    std::vector<int64_t> widths;
    const size_t routed = static_cast<size_t>(num_experts);
    for (int64_t expert = 0; expert < num_experts + shared; ++expert) {
      const int64_t width = pick<int64_t>({0, 1, upto(40), upto(130), 64});
      widths.push_back(width);
      for (int role = 0; role <= down; ++role) {
        const int64_t depth = role < down ? hidden : width;
        const int64_t columns = role < down ? width : hidden;
        weights.push_back(value(weight_type, {depth, columns}));
        const int64_t groups = (depth + group_size - 1) / group_size;
        if (quantized) weights.push_back(value(x_type, {groups, columns}));
        if (zero_points) weights.push_back(value(weight_type, {groups, columns}));
      }
    }
    if (broken()) weights.pop_back();
    if (broken()) weights.push_back(value(weight_type, {upto(4), hidden}));
    int64_t rows = 0;
    for (size_t i = 0; i < routed; ++i) rows += widths[i];
    const int64_t columns = 130 + upto(3);
    const Scales scales = some_scales(&info, down == 2, rows, columns);
    info.inputs.resize((shared ? 4 : 3) + scales.computed());
    if (scales.units) info.inputs.push_back(broken() ? nullptr : scales.units.get());
    for (const auto& weight : weights) info.inputs.push_back(broken() ? nullptr : weight.get());

    static const moe_export::RaggedMoeOp ops[] = {moe_export::RaggedMoeOp(ort::kFloat32),
                                                  moe_export::RaggedMoeOp(ort::kFloat16)};
    const moe_export::RaggedMoeOp& op = ops[(x_type == moe_export::kFloat16) != broken()];
    run_calls(api, op, info, {x_type, hidden, num_experts, columns, shared, 3}, scales);
  }

  // A packed layer of which the header is nearly right and the panels are any bytes.
  void one_packed_case(ort::Api api) {
    defects_ = pick({0, 0, 1, 3, 6}) / 100.0;
    moe_export::Problem problem;
    problem.format = static_cast<moe_export::Format>(upto(moe_export::kNumFormats));
    problem.activation = static_cast<moe_export::Activation>(upto(moe_export::kNumActivations));
    problem.num_experts = upto(5) + 1;
    problem.hidden_size = upto(150) + 1;
    const bool shared = upto(2) == 0;
    const int x_type = x_type_for(moe_export::facts_of(problem.format));
    std::vector<int64_t> widths;
    int64_t rows = 0;
    moe_export::PackedHeader header = {};
    uint64_t bytes = sizeof header;
    for (int64_t expert = 0; expert < problem.num_experts + shared; ++expert) {
      widths.push_back(pick<int64_t>({0, 1, upto(40), upto(130), 64}));
      if (expert < problem.num_experts) rows += widths.back();
      bytes += sizeof(int64_t);
    }
    bytes = (bytes + 63) / 64 * 64;
    for (int64_t& width : widths) {
      bytes += moe_export::expert_bytes(problem, width);
      width = size(width);
    }
    if (broken()) bytes = static_cast<uint64_t>(upto(200));
    std::memcpy(header.magic, moe_export::kPackedMagic, sizeof header.magic);
    if (broken()) header.magic[upto(8)] ^= 1;
    header.version = broken() ? 2 : 1;
    header.format = static_cast<uint32_t>(size(static_cast<int64_t>(problem.format)));
    header.activation = static_cast<uint32_t>(size(static_cast<int64_t>(problem.activation)));
    header.group_size = static_cast<uint32_t>(size(32));
    header.num_experts = static_cast<uint32_t>(size(problem.num_experts));
    header.has_shared_expert = static_cast<uint32_t>(size(shared));
    header.hidden_size = static_cast<uint64_t>(size(problem.hidden_size));
    header.total_bytes = broken() ? bytes + 1 : bytes;

    const bool right = !broken();
    const std::unique_ptr<Value> packed =
        value(right ? moe_export::kUint8 : moe_export::kInt8, {static_cast<int64_t>(bytes)});
    std::vector<uint8_t> head(sizeof header + widths.size() * sizeof(int64_t));
    std::memcpy(head.data(), &header, sizeof header);
    std::memcpy(head.data() + sizeof header, widths.data(), widths.size() * sizeof(int64_t));
    std::memcpy(packed->data.get(), head.data(),
                std::min(head.size(), bytes_of(packed->type, packed->shape)));
    ort::KernelInfo info;
    info.inputs = {nullptr, nullptr, nullptr, broken() ? nullptr : packed.get()};
    if (shared != broken()) info.inputs.push_back(nullptr);
    const int64_t columns = 130 + upto(3);
    const Scales scales =
        some_scales(&info, moe_export::is_gated(problem.activation), rows, columns);
    info.inputs.resize(info.inputs.size() + scales.computed());
    if (scales.units) info.inputs.push_back(broken() ? nullptr : scales.units.get());
    static const moe_export::RaggedMoePackedOp ops[] = {
        moe_export::RaggedMoePackedOp(ort::kFloat32), moe_export::RaggedMoePackedOp(ort::kFloat16)};
    const moe_export::RaggedMoePackedOp& op = ops[(x_type == moe_export::kFloat16) != broken()];
    run_calls(api, op, info, {x_type, problem.hidden_size, problem.num_experts, columns, shared, 4},
              scales);
  }

  void one_linear_case(ort::Api api) {
    defects_ = pick({0, 0, 1, 3, 6}) / 100.0;
    const moe_export::FormatFacts& facts = moe_export::kFormats[upto(moe_export::kNumFormats)];
    const int x_type = x_type_for(facts);
    const int64_t depth = upto(150) + 1, columns = upto(200) + 1,
                  group_size = pick<int64_t>({32, 64, 128});
    ort::KernelInfo info;
    info.texts = {{"format", broken() ? "int5" : facts.name}};
    info.numbers = {{"group_size", size(group_size)}};
    if (broken()) info.texts.erase("format");
    if (broken()) info.numbers.erase("group_size");
    const int64_t groups = (depth + group_size - 1) / group_size;
    std::vector<std::unique_ptr<Value>> weights;
    weights.push_back(value(facts.weight_type, {depth, columns}));
    if (facts.is_quantized) weights.push_back(value(x_type, {groups, columns}));
    if (facts.has_zero_point) weights.push_back(value(facts.weight_type, {groups, columns}));
    if (upto(2) == 0) weights.push_back(value(x_type, {columns}));
    if (broken()) weights.pop_back();
    info.inputs = {nullptr};
    for (const auto& weight : weights) info.inputs.push_back(broken() ? nullptr : weight.get());
    static const moe_export::LinearOp ops[] = {moe_export::LinearOp(ort::kFloat32),
                                               moe_export::LinearOp(ort::kFloat16)};
    run_linear(api, ops[(x_type == moe_export::kFloat16) != broken()], info, x_type, depth);
  }

  // A packed matrix of which the header is nearly right and the rest is any bytes.
  void one_packed_linear_case(ort::Api api) {
    defects_ = pick({0, 0, 1, 3, 6}) / 100.0;
    moe_export::LinearProblem problem;
    problem.format = static_cast<moe_export::Format>(upto(moe_export::kNumFormats));
    problem.depth = upto(150) + 1;
    problem.columns = upto(200) + 1;
    problem.has_bias = upto(2) == 0;
    const int x_type = x_type_for(moe_export::facts_of(problem.format));
    moe_export::PackedLinearHeader header = {};
    uint64_t bytes = sizeof header + moe_export::linear_bias_bytes(problem) +
                     moe_export::linear_panel_bytes(problem);
    if (broken()) bytes = static_cast<uint64_t>(upto(200));
    std::memcpy(header.magic, moe_export::kPackedLinearMagic, sizeof header.magic);
    if (broken()) header.magic[upto(8)] ^= 1;
    header.version = broken() ? 2 : 1;
    header.format = static_cast<uint32_t>(size(static_cast<int64_t>(problem.format)));
    header.group_size = static_cast<uint32_t>(size(32));
    header.has_bias = static_cast<uint32_t>(size(problem.has_bias));
    header.depth = static_cast<uint64_t>(size(problem.depth));
    header.columns = static_cast<uint64_t>(size(problem.columns));
    header.total_bytes = broken() ? bytes + 1 : bytes;
    const bool right = !broken();
    const std::unique_ptr<Value> packed =
        value(right ? moe_export::kUint8 : moe_export::kInt8, {static_cast<int64_t>(bytes)});
    std::memcpy(packed->data.get(), &header,
                std::min(sizeof header, bytes_of(packed->type, packed->shape)));
    ort::KernelInfo info;
    info.inputs = {nullptr, broken() ? nullptr : packed.get()};
    static const moe_export::LinearPackedOp ops[] = {moe_export::LinearPackedOp(ort::kFloat32),
                                                     moe_export::LinearPackedOp(ort::kFloat16)};
    run_linear(api, ops[(x_type == moe_export::kFloat16) != broken()], info, x_type, problem.depth);
  }

 private:
  int x_type_for(const moe_export::FormatFacts& facts) {
    const int type = pick({moe_export::kFloat32, moe_export::kFloat16});
    const bool fits = type == moe_export::kFloat32 ? facts.takes_float32 : facts.takes_float16;
    return fits ? type : moe_export::kFloat32 + moe_export::kFloat16 - type;
  }

  void run_linear(ort::Api api, const ort::CustomOp& op, const ort::KernelInfo& info, int x_type,
                  int64_t depth) {
    void* kernel = nullptr;
    if (!accepted(op.create_kernel_v2(&op, api, &info, &kernel))) return;
    for (int call = 0; call < 2; ++call) {
      ort::KernelContext context;
      std::vector<int64_t> shape = {depth};
      if (upto(4) > 0) shape.insert(shape.begin(), pick<int64_t>({0, 1, 2, upto(30)}));
      if (upto(2) > 0) shape.insert(shape.begin(), pick<int64_t>({0, 1, 3}));
      const std::unique_ptr<Value> x = value(x_type, shape);
      context.inputs = {x.get()};
      context.inputs.resize(info.inputs.size());
      if (accepted(op.kernel_compute_v2(kernel, &context))) look_at(context.y);
    }
    op.kernel_destroy(kernel);
  }

  // The inputs behind shared_weight that a node has.
  struct Scales {
    bool input = false, up = false, hidden = false;
    std::unique_ptr<Value> units;

    size_t computed() const { return static_cast<size_t>(input) + up + hidden; }
  };

  // Half of the nodes have none.
  Scales some_scales(ort::KernelInfo* info, bool gated, int64_t rows, int64_t columns) {
    Scales scales;
    if (upto(2) == 0) return scales;
    scales.input = upto(3) > 0;
    scales.up = scales.input && gated && upto(2) == 0;
    scales.hidden = upto(3) > 0;
    std::string names = scales.input ? "input_scale" : "";
    if (scales.up) names += " up_scale";
    if (scales.hidden) names += scales.input ? " hidden_scale" : "hidden_scale";
    if (scales.hidden && upto(3) > 0) {
      scales.units = value(moe_export::kInt32, {rows});
      names += " units";
      int32_t* unit = reinterpret_cast<int32_t*>(scales.units->data.get());
      for (size_t i = 0; i < bytes_of(scales.units->type, scales.units->shape) / 4; ++i) {
        unit[i] = static_cast<int32_t>(broken() ? upto(INT64_MAX) : upto(columns));
      }
    }
    if (broken()) names += pick<std::string>({" units", " up_scale", "x", " "});
    if (!names.empty() && !broken()) info->texts["extra_inputs"] = names;
    return scales;
  }

  struct Sizes {
    int x_type;
    int64_t hidden, num_experts, columns;
    bool shared;
    size_t share_input;
  };

  void run_calls(ort::Api api, const ort::CustomOp& op, const ort::KernelInfo& info,
                 const Sizes& sizes, const Scales& scales) {
    const int x_type = sizes.x_type;
    const int64_t hidden = sizes.hidden, num_experts = sizes.num_experts;
    void* kernel = nullptr;
    if (!accepted(op.create_kernel_v2(&op, api, &info, &kernel))) return;
    for (int call = 0; call < 2; ++call) {
      const int64_t tokens = pick<int64_t>({0, 1, 2, upto(30)}), top_k = 1 + upto(num_experts);
      ort::KernelContext context;
      const std::unique_ptr<Value> x = value(x_type, {tokens, hidden});
      const std::unique_ptr<Value> indices = value(moe_export::kInt64, {tokens, top_k});
      const std::unique_ptr<Value> routing = value(x_type, {tokens, top_k});
      const std::unique_ptr<Value> share = value(x_type, {tokens, 1});
      const std::unique_ptr<Value> input_scale = value(x_type, {tokens, hidden});
      const std::unique_ptr<Value> up_scale = value(x_type, {tokens, hidden});
      const std::unique_ptr<Value> hidden_scale = value(x_type, {tokens, sizes.columns});
      int64_t* index = reinterpret_cast<int64_t*>(indices->data.get());
      for (size_t i = 0; i < bytes_of(indices->type, indices->shape) / 8; ++i) {
        index[i] = broken() ? static_cast<int64_t>(random_()) : upto(num_experts);
      }
      context.inputs = {x.get(), indices.get(), routing.get()};
      context.inputs.resize(info.inputs.size());
      // Where weights are constants, no value is asked for; the computed inputs are in a row.
      std::vector<const Value*> computed;
      if (sizes.shared) computed.push_back(share.get());
      if (scales.input) computed.push_back(input_scale.get());
      if (scales.up) computed.push_back(up_scale.get());
      if (scales.hidden) computed.push_back(hidden_scale.get());
      for (size_t i = 0; i < computed.size() && sizes.share_input + i < info.inputs.size(); ++i) {
        context.inputs[sizes.share_input + i] = broken() ? nullptr : computed[i];
      }
      if (accepted(op.kernel_compute_v2(kernel, &context))) look_at(context.y);
    }
    op.kernel_destroy(kernel);
  }

  int64_t upto(int64_t end) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(end)); }

  bool broken() { return std::uniform_real_distribution<double>()(random_) < defects_; }

  template <typename T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[upto(static_cast<int64_t>(choices.size()))];
  }

  int64_t size(int64_t right) {
    if (!broken()) return right;
    return pick<int64_t>({0, -1, right + 1, right - 1, INT64_MAX, INT64_MIN, 1 << 20});
  }

  std::unique_ptr<Value> value(int type, std::vector<int64_t> shape) {
    if (broken()) type = pick({1, 2, 3, 7, 10, 16, 21, 22, 11});
    if (broken()) shape.push_back(1);
    if (broken()) shape.pop_back();
    for (int64_t& extent : shape) {
      if (broken()) extent += pick<int64_t>({-1, 1, 32});
    }
    // Too large to be in memory, but of no elements.
    if (broken()) shape = {pick<int64_t>({INT64_MAX, int64_t{1} << 32, -7}), 0};
    std::unique_ptr<Value> made(new Value);
    made->type = type;
    made->shape = shape;
    const size_t bytes = bytes_of(type, shape);
    made->data.reset(new uint8_t[bytes]);
    fill(made.get(), bytes);
    return made;
  }

  // Mostly numbers of moderate size; now and then any bits, NaN and infinity among them.
  void fill(Value* made, size_t bytes) {
    const bool any = upto(20) == 0;
    for (size_t i = 0; i < bytes; ++i) made->data[i] = static_cast<uint8_t>(random_());
    if (any) return;
    if (made->type == moe_export::kFloat32) {
      for (size_t i = 0; i < bytes / 4; ++i) {
        const float number = static_cast<float>(upto(512) - 256) / 256;
        std::memcpy(&made->data[4 * i], &number, 4);
      }
    }
    if (made->type == moe_export::kFloat16 || made->type == moe_export::kBfloat16) {
      for (size_t i = 0; i < bytes / 2; ++i) made->data[2 * i + 1] &= 0xbb;
    }
  }

  bool accepted(Status* status) {
    if (status == nullptr) {
      ++ran;
      return true;
    }
    ++refused;
    if (status->message.size() < 20) {
      std::printf("refused without a sentence: '%s'\n", status->message.c_str());
      std::exit(1);
    }
    delete status;
    return false;
  }

  // Reads every byte of y.
  void look_at(const Value& y) {
    const size_t bytes = bytes_of(y.type, y.shape);
    for (size_t i = 0; i < bytes; ++i) sink_ = static_cast<uint8_t>(sink_ + y.data[i]);
  }

  std::mt19937_64 random_;
  double defects_ = 0;
  volatile uint8_t sink_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::vector<const void*> slots = table();
  Fuzzer fuzzer(static_cast<uint64_t>(std::atoll(argv[2])));
  for (int i = 0; i < std::atoi(argv[1]); ++i) {
    fuzzer.one_case(slots.data());
    fuzzer.one_packed_case(slots.data());
    fuzzer.one_linear_case(slots.data());
    fuzzer.one_packed_linear_case(slots.data());
  }
  std::printf("ran %d refused %d\n", fuzzer.ran, fuzzer.refused);
}
