// Sentences written into the buffers of C callers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

namespace moe_export {

// Copies what fits, with a final zero; a null buffer takes nothing.
inline void write_message(const std::string& text, char* message, size_t message_bytes) {
  if (message == nullptr || message_bytes == 0) return;
  const size_t length = std::min(text.size(), message_bytes - 1);
  std::memcpy(message, text.data(), length);
  message[length] = '\0';
}

// Writes the sentence and returns 1, the result of a C function that refuses.
inline int refuse(const std::string& text, char* message, size_t message_bytes) {
  write_message(text, message, message_bytes);
  return 1;
}

}  // namespace moe_export
