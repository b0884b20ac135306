#include "gateway/input_items.h"

#include "runtime/base/limits.h"

namespace mainstay {
namespace {

namespace json = boost::json;

/// One content part; only text can be kept.
void read_part(const json::value& value, const std::string& path, Item& item, bool first, FieldReader& outer) {
    const auto* object = value.if_object();
    if (object == nullptr) {
        outer.fail(Error{ErrorCode::invalid_request, "'" + path + "' must be an object.", path});
        return;
    }
    FieldReader part(*object, path);
    const auto type = part.required_text("type");
    if (type == "input_text" || type == "output_text" || type == "text" || type == "refusal") {
        const auto text = part.required_text(type == "refusal" ? "refusal" : "text");
        if (first)
            item.text = text;
        else
            item.more_parts.emplace_back(text);
    } else if (!part.failed()) {
        part.fail(ErrorCode::unsupported_value, "'" + quoted_back(type) + "' is not supported: only text parts are",
                  "type");
    }
    if (part.failed()) outer.fail(part.take_error());
}

void read_content(FieldReader& fields, const std::string& path, std::string_view key, Item& item) {
    const auto* value = fields.find(key);
    if (value == nullptr) {
        fields.fail(ErrorCode::invalid_request, "is required", key);
    } else if (const auto* text = value->if_string()) {
        item.text.assign(text->data(), text->size());
    } else if (const auto* parts = value->if_array()) {
        const auto base = path + "." + std::string(key);
        for (size_t i = 0; i < parts->size() && !fields.failed(); ++i)
            read_part((*parts)[i], base + "[" + std::to_string(i) + "]", item, i == 0, fields);
    } else {
        fields.fail(ErrorCode::invalid_request, "must be a string or an array of parts", key);
    }
}

void read_status(FieldReader& fields, Item& item) {
    const auto status = fields.text("status");
    if (!status || *status == "completed") return;
    if (*status == "incomplete")
        item.status = ItemStatus::incomplete;
    else if (*status != "in_progress")  // an agent's client sends it back as it last saw it: it is settled now
        fields.fail(ErrorCode::unsupported_value, "must be completed, incomplete or in_progress", "status");
}

void read_message(FieldReader& fields, const std::string& path, Item& item) {
    const auto role = fields.required_text("role");
    if (role == "user")
        item.role = Role::user;
    else if (role == "assistant")
        item.role = Role::assistant;
    else if (role == "system")
        item.role = Role::system;
    else if (role == "developer")
        item.role = Role::developer;
    else if (!fields.failed())
        fields.fail(ErrorCode::unsupported_value, "must be user, assistant, system or developer", "role");
    read_content(fields, path, "content", item);
    read_status(fields, item);
}

ItemPtr read_item(const json::object& object, const std::string& path, FieldReader& outer) {
    FieldReader fields(object, path);
    auto item = std::make_shared<Item>();
    const auto type = fields.text("type").value_or("message");
    if (type == "message") {
        read_message(fields, path, *item);
    } else if (type == "function_call_output") {
        item->kind = ItemKind::function_call_output;
        item->call_id = fields.required_text("call_id");
        read_content(fields, path, "output", *item);
        read_status(fields, *item);
    } else if (type == "function_call") {
        item->kind = ItemKind::function_call;
        item->role = Role::assistant;
        item->call_id = fields.required_text("call_id");
        item->name = fields.required_text("name");
        item->arguments = fields.required_text("arguments");
        read_status(fields, *item);
    } else if (type == "mcp_approval_response") {
        item->kind = ItemKind::approval_response;
        item->call_id = fields.required_text("approval_request_id");
        const auto approve = fields.boolean("approve");
        if (!approve) fields.fail(ErrorCode::invalid_request, "is required", "approve");
        item->text = approve.value_or(false) ? "approve" : "deny";
        item->error = fields.text("reason").value_or("");
    } else if (!fields.failed()) {
        fields.fail(ErrorCode::unsupported_value, "'" + quoted_back(type) + "' is not supported as input", "type");
    }
    if (item->arguments.size() > limits::tool_arguments_bytes_max)
        fields.fail(ErrorCode::invalid_request,
                    "exceeds " + std::to_string(limits::tool_arguments_bytes_max) + " bytes", "arguments");
    if (fields.failed()) outer.fail(fields.take_error());
    return item;
}

}  // namespace

std::vector<ItemPtr> read_input_items(FieldReader& fields, std::string_view key) {
    std::vector<ItemPtr> items;
    const auto* value = fields.find(key);
    if (value == nullptr) return items;
    if (const auto* text = value->if_string()) {
        auto item = std::make_shared<Item>();
        item->text.assign(text->data(), text->size());
        items.push_back(std::move(item));
    } else if (const auto* array = value->if_array()) {
        if (array->size() > limits::input_items_max) {
            fields.fail(ErrorCode::invalid_request,
                        "has more than " + std::to_string(limits::input_items_max) + " items", key);
            return items;
        }
        items.reserve(array->size());
        for (size_t i = 0; i < array->size() && !fields.failed(); ++i) {
            auto path = fields.param(key) + "[" + std::to_string(i) + "]";
            if (const auto* object = (*array)[i].if_object())
                items.push_back(read_item(*object, path, fields));
            else
                fields.fail(Error{ErrorCode::invalid_request, "'" + path + "' must be an object.", path});
        }
    } else {
        fields.fail(ErrorCode::invalid_request, "must be a string or an array of items", key);
    }
    size_t bytes = 0;
    for (const auto& item : items) bytes += item->bytes();
    if (bytes > limits::input_bytes_max)
        fields.fail(ErrorCode::body_too_large,
                    "holds more than " + std::to_string(limits::input_bytes_max) + " bytes of text", key);
    return items;
}

}  // namespace mainstay
