#pragma once
// The process's log: spdlog's default logger, set up once by tools/mainstayd, on stderr because stdout is data. An
// entry is one line whatever is in it: control characters are escaped, bytes that are not UTF-8 are replaced, and what
// looks like a key is masked. That last is a second fence; the first is not to log keys.
//
// Formatting is pure; spdlog's sink serialises threads. Nothing on the path of a step logs at info or above.

#include <memory>
#include <string>
#include <string_view>

namespace spdlog {
class formatter;
}

namespace mainstay {

/// `level`: trace, debug, info, warn, error, off; anything else is info. Before threads start.
void init_log(std::string_view level, bool json);

/// "2026-01-31T12:00:00.123Z info message", or {"time":...,"level":...,"message":...} as one JSON object.
std::unique_ptr<spdlog::formatter> make_log_formatter(bool json);

/// Bearer and Basic credentials, and words that begin like a key (msk_, sk-), with their rest replaced by ***.
std::string mask_secrets(std::string_view text);

}  // namespace mainstay
