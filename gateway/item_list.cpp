#include "gateway/item_list.h"

#include <algorithm>
#include <charconv>

#include "gateway/item_object.h"
#include "gateway/json_writer.h"
#include "gateway/routes.h"
#include "runtime/base/limits.h"

namespace mainstay {

Result<size_t> read_limit(std::string_view query, size_t fallback) {
    const auto text = query_parameter(query, "limit");
    if (text.empty()) return fallback;
    size_t limit = 0;
    const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), limit);
    if (ec != std::errc() || end != text.data() + text.size() || limit == 0 || limit > limits::list_page_max)
        return {ErrorCode::invalid_request,
                "'limit' must be a number from 1 to " + std::to_string(limits::list_page_max) + ".", "limit"};
    return limit;
}

Result<ItemQuery> read_page(std::string_view query, bool ascending_default) {
    ItemQuery page;
    page.ascending = ascending_default;
    auto limit = read_limit(query, page.limit);
    if (!limit) return limit.error();
    page.limit = *limit;
    if (const auto order = query_parameter(query, "order"); !order.empty()) {
        if (order != "asc" && order != "desc")
            return {ErrorCode::invalid_request, "'order' must be asc or desc.", "order"};
        page.ascending = order == "asc";
    }
    if (const auto after = query_parameter(query, "after"); !after.empty()) {
        page.after = parse_item_id(after);
        if (!page.after) return {ErrorCode::invalid_request, "'after' is not the id of an item.", "after"};
    }
    return page;
}

ItemPage take_page(std::vector<ItemEntry> entries, const ItemQuery& query) {
    if (!query.ascending) std::ranges::reverse(entries);
    auto first = entries.begin();
    if (query.after) {
        first = std::ranges::find(entries, *query.after, &ItemEntry::id);
        if (first != entries.end()) ++first;
    }
    const auto count = std::min(query.limit, static_cast<size_t>(entries.end() - first));
    ItemPage page;
    page.items.assign(first, first + static_cast<std::ptrdiff_t>(count));
    page.has_more = first + static_cast<std::ptrdiff_t>(count) != entries.end();
    return page;
}

Answer item_list_answer(const ItemPage& page) {
    Answer answer;
    JsonWriter writer(answer.body);
    writer.raw("{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < page.items.size(); ++i) {
        if (i > 0) writer.raw(",");
        append_item(answer.body, *page.items[i].item, page.items[i].id);
    }
    const auto id = [&](const ItemEntry& entry) { writer.id(entry.id, item_id_prefix(entry.item->kind)); };
    writer.raw("],\"first_id\":");
    page.items.empty() ? void(writer.raw("null")) : id(page.items.front());
    writer.raw(",\"last_id\":");
    page.items.empty() ? void(writer.raw("null")) : id(page.items.back());
    writer.raw(",\"has_more\":").boolean(page.has_more).raw("}");
    return answer;
}

}  // namespace mainstay
