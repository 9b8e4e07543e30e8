// Memory of the kernels' own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace moe_export {

constexpr int64_t kCacheLine = 64;

struct Free {
  void operator()(void* memory) const;
};
using Memory = std::unique_ptr<uint8_t, Free>;

// Uninitialized memory at the start of a cache line. Large blocks ask for huge pages, which are
// read about a fifth faster. Throws std::bad_alloc.
Memory allocate(size_t bytes);

}  // namespace moe_export
