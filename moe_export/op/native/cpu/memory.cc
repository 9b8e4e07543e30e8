#include "cpu/memory.h"

#include <new>

#include "common/pages.h"

namespace moe_export {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;

}  // namespace

Memory allocate(size_t bytes) {
  const bool is_large = bytes >= 2 * kHugePage;
  const size_t alignment = is_large ? kHugePage : kCacheLine;
  const size_t rounded = (bytes + alignment) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded);
  if (memory == nullptr) throw std::bad_alloc();
  if (is_large) use_huge_pages(memory, rounded);
  return Memory(static_cast<uint8_t*>(memory));
}

}  // namespace moe_export
