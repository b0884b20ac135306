#pragma once
// Pages of items: the query parameters after, limit and order, and OpenAI's list object. Pure.

#include <string_view>
#include <vector>

#include "gateway/bridge.h"
#include "gateway/exchange.h"

namespace mainstay {

/// after, limit (1 to limits::list_page_max) and order (asc, desc) of a query.
Result<ItemQuery> read_page(std::string_view query, bool ascending_default);
/// The page of `entries` (oldest first) that `query` asks for.
ItemPage take_page(std::vector<ItemEntry> entries, const ItemQuery& query);
/// {"object":"list","data":[...],"first_id","last_id","has_more"}
Answer item_list_answer(const ItemPage& page);
/// limit alone, for other lists.
Result<size_t> read_limit(std::string_view query, size_t fallback);

}  // namespace mainstay
