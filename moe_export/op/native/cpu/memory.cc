#include "cpu/memory.h"

#include <cstdlib>
#include <new>

#if defined(_WIN32)
#include <malloc.h>
#endif

#include "common/pages.h"

namespace moe_export {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;

#if defined(_WIN32)
void* aligned(size_t alignment, size_t bytes) { return _aligned_malloc(bytes, alignment); }
void free_aligned(void* memory) { _aligned_free(memory); }
#else
void* aligned(size_t alignment, size_t bytes) { return std::aligned_alloc(alignment, bytes); }
void free_aligned(void* memory) { std::free(memory); }
#endif

}  // namespace

void Free::operator()(void* memory) const { free_aligned(memory); }

Memory allocate(size_t bytes) {
  const bool is_large = bytes >= 2 * kHugePage;
  const size_t alignment = is_large ? kHugePage : kCacheLine;
  const size_t rounded = (bytes + alignment) / alignment * alignment;
  void* memory = aligned(alignment, rounded);
  if (memory == nullptr) throw std::bad_alloc();
  if (is_large) use_huge_pages(memory, rounded);
  return Memory(static_cast<uint8_t*>(memory));
}

}  // namespace moe_export
