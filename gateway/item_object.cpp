#include "gateway/item_object.h"

#include "gateway/json_writer.h"
#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

void append_part(JsonWriter& writer, bool output, std::string_view text) {
    if (output)
        append_output_text(writer.out(), text);
    else
        writer.raw("{\"type\":\"input_text\",\"text\":").string(text).raw("}");
}

void append_message(JsonWriter& writer, const Item& item, const ItemId& id, std::string_view status,
                    std::string_view text) {
    const bool output = item.role == Role::assistant;
    writer.raw("{\"type\":\"message\",\"id\":").id(id, std::string_view("msg"));
    writer.raw(",\"status\":\"").raw(status).raw("\",\"role\":\"").raw(to_word(item.role)).raw("\",\"content\":[");
    append_part(writer, output, text);
    for (const auto& part : item.more_parts) {
        writer.raw(",");
        append_part(writer, output, part);
    }
    writer.raw("]}");
}

void append_call(JsonWriter& writer, const Item& item, const ItemId& id, std::string_view status) {
    writer.raw("{\"type\":\"function_call\",\"id\":").id(id, std::string_view("fc"));
    writer.raw(",\"call_id\":").string(item.call_id).raw(",\"name\":").string(item.name);
    writer.raw(",\"arguments\":").string(item.arguments).raw(",\"status\":\"").raw(status).raw("\"}");
}

void append_tool_call(JsonWriter& writer, const Item& item, const ItemId& id, std::string_view status) {
    writer.raw("{\"type\":\"mcp_call\",\"id\":").id(id, std::string_view("mcp"));
    writer.raw(",\"approval_request_id\":null,\"server_label\":").string(item.server_label);
    writer.raw(",\"name\":").string(item.name).raw(",\"arguments\":").string(item.arguments);
    // A call that is settled has an output, though it may be empty; one that failed says why.
    const bool settled = status == "completed";
    writer.raw(",\"output\":");
    settled || !item.text.empty() ? writer.string(item.text) : writer.raw("null");
    writer.raw(",\"error\":").string_or_null(item.error).raw(",\"status\":\"").raw(status).raw("\"}");
}

}  // namespace

std::string_view item_status(const Item& item) { return to_word(item.status); }

void append_output_text(std::string& out, std::string_view text) {
    JsonWriter(out).raw("{\"type\":\"output_text\",\"text\":").string(text).raw(",\"annotations\":[],\"logprobs\":[]}");
}

void append_item(std::string& out, const Item& item, const ItemId& id) {
    append_item(out, item, id, item_status(item), item.text);
}

void append_item(std::string& out, const Item& item, const ItemId& id, std::string_view status, std::string_view text) {
    JsonWriter writer(out);
    switch (item.kind) {
        case ItemKind::message: append_message(writer, item, id, status, text); return;
        case ItemKind::function_call: append_call(writer, item, id, status); return;
        case ItemKind::function_call_output:
            writer.raw("{\"type\":\"function_call_output\",\"id\":").id(id, std::string_view("fco"));
            writer.raw(",\"call_id\":").string(item.call_id).raw(",\"output\":").string(item.text);
            writer.raw(",\"status\":\"").raw(status).raw("\"}");
            return;
        case ItemKind::tool_call: append_tool_call(writer, item, id, status); return;
        case ItemKind::compaction:
            writer.raw("{\"type\":\"compaction\",\"id\":").id(id, std::string_view("cmp"));
            writer.raw(",\"summary\":").string(item.text).raw(",\"encrypted_content\":\"\"}");
            return;
        case ItemKind::approval_request:
            writer.raw("{\"type\":\"mcp_approval_request\",\"id\":").id(id, std::string_view("mcpr"));
            writer.raw(",\"server_label\":").string(item.server_label).raw(",\"name\":").string(item.name);
            writer.raw(",\"arguments\":").string(item.arguments).raw("}");
            return;
        case ItemKind::approval_response:
            writer.raw("{\"type\":\"mcp_approval_response\",\"id\":").id(id, std::string_view("mcpa"));
            writer.raw(",\"approval_request_id\":").string(item.call_id);
            writer.raw(",\"approve\":").boolean(item.text == "approve");
            writer.raw(",\"reason\":").string_or_null(item.error).raw("}");
            return;
    }
    INVARIANT(false, "every kind of item has a shape");
}

}  // namespace mainstay
