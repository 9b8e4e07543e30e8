// A stand-in for libcuda.so.1 on machines without a GPU: device memory is host memory, and a launch
// is handed to whoever called fake_cuda_on_launch. It shows what a program asks of the driver, and
// lets the launches be carried out by other means; it says nothing about a GPU.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kInvalidValue = 1, kOutOfMemory = 2, kInvalidContext = 201, kNotFound = 500;

struct Module {
  std::string image;
};
struct Function {
  const Module* module;
  std::string name;
  int shared_limit = 48 * 1024;
};

using OnLaunch = int (*)(const void* image, size_t image_bytes, const char* name, unsigned grid_x,
                         unsigned grid_y, unsigned threads, unsigned shared_bytes, void* stream,
                         void** arguments);

int version = 13000, major_number = 9, minor_number = 0;
size_t memory_limit = SIZE_MAX;
OnLaunch on_launch = nullptr;
std::map<uint64_t, size_t> allocations;
size_t allocated = 0;
int contexts[2];
std::vector<void*> current = {&contexts[0]};  // a stack, as the driver has for each thread

// A cubin is an ELF file, which ends with one of its two tables.
size_t bytes_of_elf(const char* image) {
  const auto number = [&](size_t at, size_t bytes) {
    uint64_t value = 0;
    std::memcpy(&value, image + at, bytes);
    return value;
  };
  const uint64_t segments = number(32, 8) + number(54, 2) * number(56, 2);
  const uint64_t sections = number(40, 8) + number(58, 2) * number(60, 2);
  return segments > sections ? segments : sections;
}

}  // namespace

API void fake_cuda_configure(int driver_version, int major, int minor, size_t memory_bytes) {
  version = driver_version;
  major_number = major;
  minor_number = minor;
  memory_limit = memory_bytes;
}
API void fake_cuda_on_launch(OnLaunch callback) { on_launch = callback; }
API size_t fake_cuda_allocated() { return allocated; }
// How many allocations there are, and the first of them.
API int fake_cuda_allocation(uint64_t* pointer, size_t* bytes) {
  if (!allocations.empty()) {
    *pointer = allocations.begin()->first;
    *bytes = allocations.begin()->second;
  }
  return static_cast<int>(allocations.size());
}
API void fake_cuda_leave_context() { current.clear(); }

API int cuInit(unsigned) { return 0; }
API int cuDriverGetVersion(int* out) {
  *out = version;
  return 0;
}
API int cuGetErrorName(int error, const char** name) {
  *name = error == kOutOfMemory ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_STAND_IN";
  return 0;
}
API int cuCtxGetCurrent(void** context) {
  *context = current.empty() ? nullptr : current.back();
  return 0;
}
API int cuCtxPushCurrent_v2(void* context) {
  current.push_back(context);
  return 0;
}
API int cuCtxPopCurrent_v2(void** context) {
  if (current.empty()) return kInvalidContext;
  *context = current.back();
  current.pop_back();
  return 0;
}
API int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? 0 : kInvalidValue;
}
API int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &contexts[0];
  return 0;
}
API int cuMemGetInfo_v2(size_t* free, size_t* total) {
  if (current.empty()) return kInvalidContext;
  *free = memory_limit - allocated;
  *total = memory_limit;
  return 0;
}
API int cuCtxGetDevice(int* device) {
  *device = 0;
  return 0;
}
API int cuDeviceGetName(char* name, int bytes, int) {
  std::strncpy(name, "Stand-in", static_cast<size_t>(bytes));
  return 0;
}
API int cuDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute != 75 && attribute != 76) return kInvalidValue;
  *value = attribute == 75 ? major_number : minor_number;
  return 0;
}
API int cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
  if (bytes == 0) return kInvalidValue;
  if (bytes > memory_limit - allocated) return kOutOfMemory;
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(memory, 0xff, bytes);  // NaN in every format of floats
  *pointer = reinterpret_cast<uint64_t>(memory);
  allocations[*pointer] = bytes;
  allocated += bytes;
  return 0;
}
API int cuMemFree_v2(uint64_t pointer) {
  const auto found = allocations.find(pointer);
  if (found == allocations.end()) return kInvalidValue;
  allocated -= found->second;
  allocations.erase(found);
  std::free(reinterpret_cast<void*>(pointer));
  return 0;
}
API int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return 0;
}
API int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return 0;
}
API int cuModuleLoadData(Module** module, const char* image) {
  if (std::memcmp(image,
                  "\x7f"
                  "ELF",
                  4) != 0)
    return kInvalidValue;
  *module = new Module{std::string(image, bytes_of_elf(image))};
  return 0;
}
API int cuModuleUnload(Module* module) {
  delete module;
  return 0;
}
API int cuModuleGetFunction(Function** function, const Module* module, const char* name) {
  if (module->image.find(name) == std::string::npos) return kNotFound;
  *function = new Function{module, name};
  return 0;
}
API int cuFuncSetAttribute(Function* function, int attribute, int value) {
  if (attribute != 8) return kInvalidValue;
  function->shared_limit = value;
  return 0;
}
API int cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                       void* stream, void** arguments, void** extra) {
  if (grid_x == 0 || grid_y == 0 || grid_z != 1 || block_y != 1 || block_z != 1)
    return kInvalidValue;
  if (static_cast<int>(shared_bytes) > function->shared_limit || extra != nullptr) {
    return kInvalidValue;
  }
  if (on_launch == nullptr) return 0;
  const std::string& image = function->module->image;
  return on_launch(image.data(), image.size(), function->name.c_str(), grid_x, grid_y, block_x,
                   shared_bytes, stream, arguments);
}
