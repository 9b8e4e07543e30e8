// The packaged kernels, loaded for the device of a context.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "cuda/driver.h"

namespace moe_export::cuda {

// A kernel, ready to be launched.
struct Kernel {
  Function function = nullptr;
  unsigned shared_bytes = 0;
  unsigned threads = 0;
  int64_t pairs = 0;  // pairs that a program takes
  int64_t rows = 0;   // rows of the weights that a program takes

  // Launches without waiting; `arguments` point to the values.
  void launch(Stream stream, int64_t grid_x, int64_t grid_y, std::vector<void*> arguments) const;
};

// The kernels for the device of a context, loaded once per context and kept.
class Kernels {
 public:
  // Throws Error if no context is current, or there are no kernels for its device.
  static const Kernels& of_current_context();

  // The kernel with this key of the package, such as `gate_up_tiles.float16.int4.128`.
  const Kernel& operator[](const std::string& key) const;

  Context context() const { return context_; }
  // The architecture that the kernels were compiled for, such as "sm_90".
  const std::string& architecture() const { return architecture_; }

 private:
  explicit Kernels(Context context);
  void load(const uint8_t* package, size_t bytes);

  Context context_;
  std::string architecture_;
  std::map<std::string, Kernel> kernels_;
};

}  // namespace moe_export::cuda
