#pragma once
// Server-sent events: framing only. JSON never holds a raw line end, so an event is one data line.

#include <string>
#include <string_view>

namespace mainstay {

/// `json` must be free of line ends, which every JSON of the writer is.
inline void append_sse_event(std::string& out, std::string_view name, std::string_view json) {
    out.append("event: ").append(name).append("\ndata: ").append(json).append("\n\n");
}

}  // namespace mainstay
