#pragma once
// The release that this program is built as: one number, from the build, for the daemon, the CLI, the metrics and the
// handshake with tool servers.

#include <string_view>

namespace mainstay {

/// "major.minor.patch".
std::string_view build_version();

}  // namespace mainstay
