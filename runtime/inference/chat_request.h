#pragma once
// The prompt as a Chat Completions request. Pure; cost is linear in the prompt, the text is written once, front to
// back. A longer conversation only appends to what an earlier step of it was sent (compaction aside), so an upstream
// that caches prefixes keeps its cache. docs/MODELS.md says what is sent and what is left out.

#include <string>
#include <string_view>

#include "runtime/base/result.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

/// The request's body. `prompt_cache_key`, where it is not empty, goes along as the field of that name. Errors:
/// invalid_request where `options` is no JSON object or one of its fields that is used has the wrong shape.
Result<std::string> render_chat_request(const ModelRequest& request, std::string_view prompt_cache_key = {});

/// Whether the server at `base_url` is known to take prompt_cache_key: OpenAI's own. Others refuse a request for a
/// field that they do not know (docs/MODELS.md).
bool takes_prompt_cache_key(std::string_view base_url);

/// Quoted and escaped; bytes that are no UTF-8 become U+FFFD, because an upstream would refuse the whole prompt.
void append_json_string(std::string& out, std::string_view text);

/// The name under which `tools` offer a tool of a server: "<server>__<tool>" where that is offered, else the tool's.
std::string offered_name(const ToolDefinitions& tools, std::string_view server, std::string_view tool);

}  // namespace mainstay
