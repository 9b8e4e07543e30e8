#include "cuda/kernels.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <sstream>

#include "cuda/inflate.h"
#include "cuda/packages.h"

namespace moe_export::cuda {
namespace {

// Shared memory of a block that needs no attribute.
constexpr unsigned kUsualSharedBytes = 48 * 1024;

constexpr const char* kMagic = "moe_export cubins 1";

// Code runs on devices of the same major and an equal or later minor version.
const Package* package_for(int major, int minor) {
  const Package* latest = nullptr;
  for (const Package& package : kPackages) {
    if (package.major == major && package.minor <= minor) latest = &package;
  }
  return latest;
}

std::string name_of(int major, int minor) {
  return "sm_" + std::to_string(major) + std::to_string(minor);
}

}  // namespace

void Kernel::launch(Stream stream, int64_t grid_x, int64_t grid_y,
                    std::vector<void*> arguments) const {
  if (grid_x == 0 || grid_y == 0) return;
  if (grid_x > 0x7fffffff || grid_y > 65535) {
    throw Error{"a call has too many tokens for one launch: a grid of " + std::to_string(grid_x) +
                " by " + std::to_string(grid_y) + " programs; run fewer tokens at a time"};
  }
  // Triton's kernels take two more pointers to scratch memory, which these do not use.
  Pointer none = 0;
  arguments.push_back(&none);
  arguments.push_back(&none);
  check(driver().launch(function, static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y), 1,
                        threads, 1, 1, shared_bytes, stream, arguments.data(), nullptr),
        "launch a kernel");
}

const Kernels& Kernels::of_current_context() {
  static std::mutex mutex;
  static std::map<Context, std::unique_ptr<Kernels>> loaded;
  Context context = nullptr;
  check(driver().context_current(&context), "tell the current context");
  if (context == nullptr) throw Error{"no CUDA device is in use by this thread"};
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Kernels>& kernels = loaded[context];
  if (kernels == nullptr) kernels.reset(new Kernels(context));
  return *kernels;
}

Kernels::Kernels(Context context) : context_(context) {
  int device = 0, major = 0, minor = 0;
  char name[256] = "";
  check(driver().context_device(&device), "tell the device");
  check(driver().device_attribute(&major, kComputeMajor, device), "ask for the architecture");
  check(driver().device_attribute(&minor, kComputeMinor, device), "ask for the architecture");
  check(driver().device_name(name, sizeof name, device), "ask for the device's name");
  const Package* package = package_for(major, minor);
  if (package == nullptr) {
    std::string supported;
    for (const Package& p : kPackages) {
      supported += (supported.empty() ? "" : ", ") + name_of(p.major, p.minor);
    }
    throw Error{"there are no kernels for the device " + std::string(name) + " (" +
                name_of(major, minor) + "): they are for " + supported + "; run on the CPU"};
  }
  architecture_ = name_of(package->major, package->minor);
  load(package->data, package->bytes);
}

void Kernels::load(const uint8_t* package, size_t bytes) {
  const std::string damaged = "the kernels for " + architecture_ + " in this library are damaged";
  const char* text = reinterpret_cast<const char*>(package);
  const char* const end = text + bytes;
  const auto line = [&] {
    const char* stop =
        static_cast<const char*>(std::memchr(text, '\n', static_cast<size_t>(end - text)));
    if (stop == nullptr) throw Error{damaged};
    std::string result(text, stop);
    text = stop + 1;
    return result;
  };
  const std::string head = line();
  size_t code_bytes = 0, count = 0;
  if (head.rfind(kMagic, 0) != 0 ||
      !(std::istringstream(head.substr(std::strlen(kMagic))) >> code_bytes >> count)) {
    throw Error{damaged};
  }
  std::vector<std::string> lines;
  for (size_t i = 0; i < count; ++i) lines.push_back(line());
  const std::vector<uint8_t> code =
      inflate(reinterpret_cast<const uint8_t*>(text), static_cast<size_t>(end - text), code_bytes);
  if (code.size() != code_bytes) throw Error{damaged};
  for (const std::string& entry : lines) {
    std::istringstream fields(entry);
    std::string key, name;
    Kernel kernel;
    size_t offset = 0, size = 0;
    fields >> key >> name >> kernel.shared_bytes >> kernel.threads >> kernel.pairs >> kernel.rows >>
        offset >> size;
    if (!fields || offset > code_bytes || size > code_bytes - offset) throw Error{damaged};
    Module module = nullptr;
    check(driver().module_load(&module, code.data() + offset), "load a kernel");
    check(driver().module_function(&kernel.function, module, name.c_str()), "find a kernel");
    if (kernel.shared_bytes > kUsualSharedBytes) {
      check(driver().function_set(kernel.function, kMaxDynamicSharedBytes,
                                  static_cast<int>(kernel.shared_bytes)),
            "give a kernel shared memory");
    }
    kernels_[key] = kernel;
  }
}

const Kernel& Kernels::operator[](const std::string& key) const {
  const auto entry = kernels_.find(key);
  if (entry == kernels_.end()) throw Error{"there is no CUDA kernel " + key};
  return entry->second;
}

}  // namespace moe_export::cuda
