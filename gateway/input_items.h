#pragma once
// Items as clients send them, turned into Items: messages (with or without `type`), results of client functions,
// approvals. What this version cannot keep (images, files, audio, references) is refused by name, never dropped.

#include <boost/json.hpp>
#include <string_view>
#include <vector>

#include "gateway/request_json.h"
#include "runtime/base/item.h"

namespace mainstay {

/// Reads `key` ("input" or "items") of `fields`: a text is one user message, an array is items. Bounds:
/// limits::input_items_max, limits::input_bytes_max. Wrong items become the error of `fields`, named by position.
std::vector<ItemPtr> read_input_items(FieldReader& fields, std::string_view key);

}  // namespace mainstay
