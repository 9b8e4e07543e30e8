#include "common/checks.h"

namespace moe_export {

std::string type_name(int32_t type) {
  switch (type) {
    case kFloat32:
      return "float32";
    case kUint8:
      return "uint8";
    case kInt8:
      return "int8";
    case kInt32:
      return "int32";
    case kInt64:
      return "int64";
    case kFloat16:
      return "float16";
    case kBfloat16:
      return "bfloat16";
    case kUint4:
      return "uint4";
    case kInt4:
      return "int4";
    default:
      return "element type " + std::to_string(type);
  }
}

std::string shape_text(const int64_t* shape, size_t rank, const char* open) {
  std::string text = "[";
  for (size_t axis = 0; axis < rank; ++axis) {
    if (axis > 0) text += ", ";
    text += shape[axis] < 0 ? open : std::to_string(shape[axis]);
  }
  return text + "]";
}

Refusal check_tensor(const std::string& name, const MoeTensor& tensor, int32_t type,
                     std::initializer_list<int64_t> shape, const char* open) {
  bool fits = tensor.type == type && tensor.rank == static_cast<int32_t>(shape.size());
  for (size_t axis = 0; fits && axis < shape.size(); ++axis) {
    const int64_t expected = shape.begin()[axis];
    fits = tensor.shape[axis] >= 0 && (expected == kAny || tensor.shape[axis] == expected);
  }
  if (fits) return std::nullopt;
  const size_t rank = tensor.rank < 0 ? 0 : static_cast<size_t>(tensor.rank);
  return name + " is " + type_name(tensor.type) + " " + shape_text(tensor.shape, rank, "?") +
         ", expected " + type_name(type) + " " + shape_text(shape.begin(), shape.size(), open);
}

Refusal check_size(const std::string& what, int64_t size, int64_t smallest, int64_t largest) {
  if (smallest <= size && size <= largest) return std::nullopt;
  return what + " is " + std::to_string(size) + ", expected " + std::to_string(smallest) + " to " +
         std::to_string(largest);
}

int find(int count, const std::string& name, NameOf* name_of) {
  for (int i = 0; i < count; ++i) {
    if (name == name_of(static_cast<uint32_t>(i))) return i;
  }
  return -1;
}

std::string listed(int count, NameOf* name_of) {
  std::string text = name_of(0);
  for (int i = 1; i < count; ++i) {
    text += (i + 1 < count ? ", " : " or ") + std::string(name_of(static_cast<uint32_t>(i)));
  }
  return text;
}

const char* format_name(uint32_t format) {
  return format < kNumFormats ? kFormats[format].name : "?";
}

bool has_group_size(const std::string& name) {
  const int number = find(kNumFormats, name, format_name);
  return number >= 0 && is_quantized(static_cast<Format>(number));
}

Refusal check_format(const std::string& name, int32_t x_type, int64_t group_size, Format* format) {
  const int number = find(kNumFormats, name, format_name);
  if (number < 0) {
    return "attribute format is '" + name + "', expected " + listed(kNumFormats, format_name);
  }
  *format = static_cast<Format>(number);
  const FormatFacts& facts = facts_of(*format);
  const bool fits =
      (x_type == kFloat32 && facts.takes_float32) || (x_type == kFloat16 && facts.takes_float16);
  if (!fits) return "x is " + type_name(x_type) + ", which does not go with the format " + name;
  if (facts.is_quantized && group_size != 32 && group_size != 64 && group_size != 128) {
    return "attribute group_size is " + std::to_string(group_size) + ", expected 32, 64 or 128";
  }
  return std::nullopt;
}

size_t data_bytes(const MoeTensor& tensor) {
  const size_t count = static_cast<size_t>(tensor.shape[0]) * static_cast<size_t>(tensor.shape[1]);
  switch (tensor.type) {
    case kFloat32:
      return count * 4;
    case kInt8:
    case kUint8:
      return count;
    case kInt4:
    case kUint4:
      return (count + 1) / 2;
    default:
      return count * 2;
  }
}

}  // namespace moe_export
