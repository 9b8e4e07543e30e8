// Requests to the operating system about memory pages.
#pragma once

#include <cstddef>

namespace moe_export {

// Lets the system drop pages of a mapped file that lie wholly within [data, data + bytes) and were
// never written; a later access reads the file again. Other memory is untouched.
void give_back_pages(const void* data, size_t bytes);

// Asks for 2 MB pages for memory that was not touched yet.
void use_huge_pages(void* data, size_t bytes);

}  // namespace moe_export
