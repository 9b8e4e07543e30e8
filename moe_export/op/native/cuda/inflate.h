// Decompresses zlib streams (RFC 1950 and 1951), so that the library needs no zlib.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moe_export {

// Content of a zlib stream that holds `size` bytes; empty if the stream is damaged.
std::vector<uint8_t> inflate(const uint8_t* data, size_t data_bytes, size_t size);

}  // namespace moe_export
