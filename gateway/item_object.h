#pragma once
// Items as OpenAI's clients read them: messages, function calls, mcp_call for tools that ran here, approvals. Pure
// appending; the shapes are those of the Responses and Conversations APIs.

#include <string>
#include <string_view>

#include "runtime/base/item.h"

namespace mainstay {

void append_item(std::string& out, const Item& item, const ItemId& id);
/// The same with another status, and a message's text replaced: what a stream shows before the item is settled.
void append_item(std::string& out, const Item& item, const ItemId& id, std::string_view status, std::string_view text);
/// {"type":"output_text",...}
void append_output_text(std::string& out, std::string_view text);
/// Word in the API; "unknown" is ours: the outcome of a tool that must not be repeated is not known.
std::string_view item_status(const Item& item);

}  // namespace mainstay
