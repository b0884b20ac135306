#pragma once
// Base64 of RFC 4648, section 4: the standard alphabet with padding, as JSON APIs carry bytes. Pure; any thread.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mainstay {

std::string to_base64(std::string_view bytes);
/// Nothing for text that is not base64 from its first to its last character.
std::optional<std::string> from_base64(std::string_view text);

}  // namespace mainstay
