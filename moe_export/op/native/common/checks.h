// Checks of tensors, sizes and formats, shared by the operators.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <string>

#include "common/c_types.h"
#include "common/formats.h"
#include "common/refusal.h"

namespace moe_export {

// No product of sizes within these bounds overflows 64 bits, for tensors that are in memory.
constexpr int64_t kLargestSize = (int64_t{1} << 28) - 1;
constexpr int64_t kLargestCount = int64_t{1} << 16;

// An expected size that fits any.
constexpr int64_t kAny = -1;

// "[3, 4]"; sizes below zero are shown as `open`.
std::string shape_text(const int64_t* shape, size_t rank, const char* open);

// Name of an element type.
std::string type_name(int32_t type);

// Checks type and shape of a tensor. Messages show the size kAny as `open`.
Refusal check_tensor(const std::string& name, const MoeTensor& tensor, int32_t type,
                     std::initializer_list<int64_t> shape, const char* open);

Refusal check_size(const std::string& what, int64_t size, int64_t smallest, int64_t largest);

using NameOf = const char*(uint32_t number);

// The number with this name, or -1.
int find(int count, const std::string& name, NameOf* name_of);

// "swiglu, geglu, silu, relu or relu2".
std::string listed(int count, NameOf* name_of);

// Name of a format by number; "?" beyond the last.
const char* format_name(uint32_t format);

// True if nodes of the format with this name have the attribute group_size.
bool has_group_size(const std::string& name);

// Finds the format with this name. Refuses a type of x or a group size that does not go with it.
Refusal check_format(const std::string& name, int32_t x_type, int64_t group_size, Format* format);

// Bytes of a matrix's data in the model.
size_t data_bytes(const MoeTensor& tensor);

}  // namespace moe_export
