#include "cuda/driver.h"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace moe_export::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

struct Opened {
  Driver driver{};
  std::string error;
};

#if defined(__linux__)
void* open_library() { return dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL); }
void* symbol(void* library, const char* name) { return dlsym(library, name); }
constexpr const char* kAbsent =
    "the NVIDIA driver is not installed here; install it, or run on the CPU";
#else
void* open_library() { return nullptr; }
void* symbol(void*, const char*) { return nullptr; }
constexpr const char* kAbsent = "the CUDA kernels are for Linux; run on the CPU";
#endif

template <typename F>
void find(void* library, const char* name, F** function, std::string* missing) {
  *function = reinterpret_cast<F*>(symbol(library, name));
  if (*function == nullptr && missing->empty()) *missing = name;
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

void* library() {
  static void* const handle = open_library();
  return handle;
}

Opened open() {
  Opened opened;
  void* handle = library();
  if (handle == nullptr) {
    opened.error = std::string(kLibrary) + " cannot be opened: " + kAbsent;
    return opened;
  }
  Driver& d = opened.driver;
  std::string missing;
  find(handle, "cuInit", &d.init, &missing);
  find(handle, "cuDriverGetVersion", &d.driver_version, &missing);
  find(handle, "cuGetErrorName", &d.error_name, &missing);
  find(handle, "cuCtxGetCurrent", &d.context_current, &missing);
  find(handle, "cuCtxPushCurrent_v2", &d.context_push, &missing);
  find(handle, "cuCtxPopCurrent_v2", &d.context_pop, &missing);
  find(handle, "cuCtxGetDevice", &d.context_device, &missing);
  find(handle, "cuDeviceGetName", &d.device_name, &missing);
  find(handle, "cuDeviceGetAttribute", &d.device_attribute, &missing);
  find(handle, "cuMemAlloc_v2", &d.memory_allocate, &missing);
  find(handle, "cuMemFree_v2", &d.memory_free, &missing);
  find(handle, "cuMemcpyHtoD_v2", &d.copy_to_device, &missing);
  find(handle, "cuMemcpyDtoH_v2", &d.copy_to_host, &missing);
  find(handle, "cuModuleLoadData", &d.module_load, &missing);
  find(handle, "cuModuleUnload", &d.module_unload, &missing);
  find(handle, "cuModuleGetFunction", &d.module_function, &missing);
  find(handle, "cuFuncSetAttribute", &d.function_set, &missing);
  find(handle, "cuLaunchKernel", &d.launch, &missing);
  if (!missing.empty()) {
    opened.error = std::string(kLibrary) + " has no function " + missing +
                   ": it is too old or no NVIDIA driver; install a driver for CUDA " +
                   version_text(kOldestDriver) + " or newer";
    return opened;
  }
  int version = 0;
  if (d.init(0) != 0 || d.driver_version(&version) != 0) {
    opened.error = "the NVIDIA driver does not start: no GPU is visible to this process";
  } else if (version < kOldestDriver) {
    opened.error = "the NVIDIA driver is for CUDA " + version_text(version) +
                   ", too old for the kernels; install one for CUDA " +
                   version_text(kOldestDriver) + " or newer";
  }
  return opened;
}

}  // namespace

bool has_driver() { return library() != nullptr; }

const Driver& driver() {
  static const Opened opened = open();
  if (!opened.error.empty()) throw Error{opened.error};
  return opened.driver;
}

void check(Result result, const char* what) {
  if (result == 0) return;
  const char* name = nullptr;
  if (driver().error_name(result, &name) != 0 || name == nullptr) name = "an unknown error";
  throw Error{std::string("CUDA failed to ") + what + ": " + name + " (" + std::to_string(result) +
              ")"};
}

Current::Current(Context context) {
  Context current = nullptr;
  check(driver().context_current(&current), "tell the current context");
  if (current == context) return;
  check(driver().context_push(context), "make a context current");
  pushed_ = true;
}

Current::~Current() {
  Context popped = nullptr;
  if (pushed_) driver().context_pop(&popped);
}

}  // namespace moe_export::cuda
