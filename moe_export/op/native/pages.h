// What the kernels ask of the system about memory.
#pragma once

#include <cstddef>

namespace moe_export {

// Lets the system drop the pages wholly within [data, data + bytes) that come from a file and were
// never written to; they would be read from the file again. All other memory is left as it is.
void give_back_pages(const void* data, size_t bytes);

// Where the system offers it, memory that was not touched yet will be of 2 MB pages.
void use_huge_pages(void* data, size_t bytes);

}  // namespace moe_export
