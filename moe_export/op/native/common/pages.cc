#include "common/pages.h"

#if defined(__linux__)

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <vector>

namespace moe_export {
namespace {

// Bits of an entry of /proc/self/pagemap. A file's page that was written, and so copied, lacks the
// second.
constexpr uint64_t kPresent = uint64_t{1} << 63;
constexpr uint64_t kOfFile = uint64_t{1} << 61;

constexpr size_t kPagesAtOnce = 4096;

}  // namespace

void give_back_pages(const void* data, size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  size_t first = (start + page - 1) / page;
  const size_t last = (start + bytes) / page;
  if (first >= last) return;
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) return;
  std::vector<uint64_t> entries(kPagesAtOnce);
  while (first < last) {
    const size_t wanted = last - first < kPagesAtOnce ? last - first : kPagesAtOnce;
    const ssize_t got = pread(pagemap, entries.data(), wanted * sizeof(uint64_t),
                              static_cast<off_t>(first * sizeof(uint64_t)));
    if (got < static_cast<ssize_t>(sizeof(uint64_t))) break;
    const size_t count = static_cast<size_t>(got) / sizeof(uint64_t);
    for (size_t i = 0; i < count;) {
      size_t end = i;
      while (end < count && (entries[end] & kPresent) && (entries[end] & kOfFile)) ++end;
      if (end > i) {
        madvise(reinterpret_cast<void*>((first + i) * page), (end - i) * page, MADV_DONTNEED);
      }
      i = end + 1;
    }
    first += count;
  }
  close(pagemap);
}

void use_huge_pages(void* data, size_t bytes) { madvise(data, bytes, MADV_HUGEPAGE); }

}  // namespace moe_export

#else

void moe_export::give_back_pages(const void*, size_t) {}
void moe_export::use_huge_pages(void*, size_t) {}

#endif
