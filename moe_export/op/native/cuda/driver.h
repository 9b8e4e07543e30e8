// The part of the CUDA driver's interface that this library uses, opened on first use. Without a
// driver the library loads all the same, and the CPU kernels work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace moe_export::cuda {

using Result = int;
using Pointer = uint64_t;
struct ContextState;
struct ModuleState;
struct FunctionState;
struct StreamState;
using Context = ContextState*;
using Module = ModuleState*;
using Function = FunctionState*;
using Stream = StreamState*;

enum DeviceAttribute { kComputeMajor = 75, kComputeMinor = 76 };
enum FunctionAttribute { kMaxDynamicSharedBytes = 8 };

// CUDA 12.0, whose binary format the packaged kernels have.
constexpr int kOldestDriver = 12000;

struct Driver {
  Result (*init)(unsigned flags);
  Result (*driver_version)(int* version);
  Result (*error_name)(Result error, const char** name);
  Result (*context_current)(Context* context);
  Result (*context_push)(Context context);
  Result (*context_pop)(Context* context);
  Result (*context_device)(int* device);
  Result (*device_name)(char* name, int bytes, int device);
  Result (*device_attribute)(int* value, int attribute, int device);
  Result (*memory_allocate)(Pointer* pointer, size_t bytes);
  Result (*memory_free)(Pointer pointer);
  Result (*copy_to_device)(Pointer to, const void* from, size_t bytes);
  Result (*copy_to_host)(void* to, Pointer from, size_t bytes);
  Result (*module_load)(Module* module, const void* image);
  Result (*module_unload)(Module module);
  Result (*module_function)(Function* function, Module module, const char* name);
  Result (*function_set)(Function function, int attribute, int value);
  Result (*launch)(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                   Stream stream, void** arguments, void** extra);
};

// An error in one sentence, for the user who runs the model.
struct Error {
  std::string sentence;
};

// True if this machine has a driver of any version.
bool has_driver();

// The driver's functions. Throws Error if there is no driver, or it is too old.
const Driver& driver();

// Throws Error if a call failed; `what` completes "CUDA failed to …".
void check(Result result, const char* what);

// Makes a context current during its lifetime.
class Current {
 public:
  explicit Current(Context context);
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  bool pushed_ = false;
};

}  // namespace moe_export::cuda
