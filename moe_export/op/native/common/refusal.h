// The result of a check.
#pragma once

#include <optional>
#include <string>

namespace moe_export {

// One sentence that says what does not fit; nothing where all is well.
using Refusal = std::optional<std::string>;

}  // namespace moe_export
