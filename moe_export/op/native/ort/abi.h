// The part of ONNX Runtime's C interface that this library uses, declared by us.
//
// ONNX Runtime hands every library a table of function pointers. The table grows only at its end,
// so a slot's number is part of the stable interface, and building against it needs no header of
// ONNX Runtime. The numbers hold from version 18 of the table (ONNX Runtime 1.18) on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe_export::ort {

constexpr uint32_t kApiVersion = 18;
constexpr const char* kOldestVersion = "1.18";

struct Status;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct CustomOpDomain;
struct Value;
struct TypeAndShape;
struct MemoryInfo;
struct Allocator;

using Api = const void* const*;

struct ApiBase {
  Api (*get_api)(uint32_t version);
  const char* (*get_version_string)();
};

enum ErrorCode { kFail = 1, kInvalidArgument = 2 };

// Element types, by their numbers in ONNX.
enum ElementType { kUndefined = 0, kFloat32 = 1, kUint8 = 2, kInt64 = 7, kFloat16 = 10 };

enum Characteristic { kRequired = 0, kOptional = 1, kVariadic = 2 };

// Place of an input: host memory, or the operator's device.
enum MemoryType { kHostInput = -2, kDefaultMemory = 0 };

// A slot of the table: its number and the type of the function in it.
template <size_t Number, typename Function>
struct Slot {
  static Function* of(Api api) {
    return reinterpret_cast<Function*>(const_cast<void*>(api[Number]));
  }
};

using CreateStatus = Slot<0, Status*(int, const char*)>;
using CreateCustomOpDomain = Slot<26, Status*(const char*, CustomOpDomain**)>;
using CustomOpDomainAdd = Slot<27, Status*(CustomOpDomain*, const void*)>;
using AddCustomOpDomain = Slot<28, Status*(SessionOptions*, CustomOpDomain*)>;
using GetTensorMutableData = Slot<51, Status*(Value*, void**)>;
using GetTensorElementType = Slot<60, Status*(const TypeAndShape*, int*)>;
using GetDimensionsCount = Slot<61, Status*(const TypeAndShape*, size_t*)>;
using GetDimensions = Slot<62, Status*(const TypeAndShape*, int64_t*, size_t)>;
using GetTensorTypeAndShape = Slot<65, Status*(const Value*, TypeAndShape**)>;
using MemoryInfoGetName = Slot<71, Status*(const MemoryInfo*, const char**)>;
using AllocatorAlloc = Slot<75, Status*(Allocator*, size_t, void**)>;
using AllocatorFree = Slot<76, Status*(Allocator*, void*)>;
using KernelInfoGetInt64 = Slot<86, Status*(const KernelInfo*, const char*, int64_t*)>;
using KernelInfoGetString = Slot<87, Status*(const KernelInfo*, const char*, char*, size_t*)>;
using KernelContextGetInputCount = Slot<88, Status*(const KernelContext*, size_t*)>;
using KernelContextGetInput = Slot<90, Status*(const KernelContext*, size_t, const Value**)>;
using KernelContextGetOutput =
    Slot<91, Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>;
using ReleaseStatus = Slot<93, void(Status*)>;
using ReleaseTypeAndShape = Slot<99, void(TypeAndShape*)>;
using ReleaseAllocator = Slot<132, void(Allocator*)>;
using KernelContextGetStream = Slot<193, Status*(const KernelContext*, void**)>;
using GetTensorMemoryInfo = Slot<194, Status*(const Value*, const MemoryInfo**)>;
using KernelInfoGetInputCount = Slot<230, Status*(const KernelInfo*, size_t*)>;
using KernelInfoGetNodeName = Slot<244, Status*(const KernelInfo*, char*, size_t*)>;
using KernelInfoGetConstantInput =
    Slot<249, Status*(const KernelInfo*, size_t, int*, const Value**)>;
using KernelContextParallelFor =
    Slot<274, Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>;
using KernelInfoGetAllocator = Slot<278, Status*(const KernelInfo*, int, Allocator**)>;

// A custom operator's functions. ONNX Runtime does not call those that are null.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, Api, const KernelInfo*);
  const char* (*get_name)(const CustomOp*);
  const char* (*get_execution_provider_type)(const CustomOp*);
  int (*get_input_type)(const CustomOp*, size_t);
  size_t (*get_input_type_count)(const CustomOp*);
  int (*get_output_type)(const CustomOp*, size_t);
  size_t (*get_output_type_count)(const CustomOp*);
  void (*kernel_compute)(void*, KernelContext*);
  void (*kernel_destroy)(void*);
  int (*get_input_characteristic)(const CustomOp*, size_t);
  int (*get_output_characteristic)(const CustomOp*, size_t);
  int (*get_input_memory_type)(const CustomOp*, size_t);
  int (*get_variadic_input_min_arity)(const CustomOp*);
  int (*get_variadic_input_homogeneity)(const CustomOp*);
  int (*get_variadic_output_min_arity)(const CustomOp*);
  int (*get_variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, Api, const KernelInfo*, void**);
  Status* (*kernel_compute_v2)(void*, KernelContext*);
  Status* (*infer_output_shape)(const CustomOp*, void*);
  int (*get_start_version)(const CustomOp*);
  int (*get_end_version)(const CustomOp*);
  size_t (*get_may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  size_t (*get_alias_map)(int**, int**);
  void (*release_alias_map)(int*, int*);
};
static_assert(sizeof(CustomOp) == 26 * sizeof(void*), "as in ONNX Runtime 1.18 and up");

}  // namespace moe_export::ort
