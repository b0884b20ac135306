#pragma once
// What a tool answered (the result of tools/call) as the text that a model reads. Nothing is dropped silently: what is
// no text is described in one line with its type and size. Pure; any thread.

#include <boost/json/fwd.hpp>

#include "runtime/tool/tool.h"

namespace mainstay {

/// Kind::result with the joined content, or structuredContent as JSON where there is no text; Kind::failed with
/// tool_result_too_large beyond limits::tool_result_bytes_max, or with tool_protocol_error for what is no result.
ToolOutcome read_tool_result(const boost::json::value& result);

}  // namespace mainstay
