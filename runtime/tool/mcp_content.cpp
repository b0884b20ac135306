#include "runtime/tool/mcp_content.h"

#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include "runtime/base/limits.h"

namespace mainstay {

namespace json = boost::json;

namespace {

std::string_view word(const json::object& object, std::string_view key) {
    const auto* value = object.if_contains(key);
    return value && value->is_string() ? std::string_view(value->get_string()) : std::string_view{};
}

size_t decoded_bytes(std::string_view base64) {
    while (!base64.empty() && base64.back() == '=') base64.remove_suffix(1);
    const size_t rest = base64.size() % 4;
    return base64.size() / 4 * 3 + (rest > 1 ? rest - 1 : 0);
}

/// "[image: image/png, 1234 bytes]"
std::string described(std::string_view what, std::string_view mime, size_t bytes, std::string_view name = {}) {
    std::string text = "[" + std::string(what) + ": ";
    if (!name.empty()) text += std::string(name) + ", ";
    text += mime.empty() ? std::string_view("type not given") : mime;
    return text + ", " + std::to_string(bytes) + " bytes]";
}

std::string resource_text(const json::object& part) {
    const auto* value = part.if_contains("resource");
    const auto* resource = value ? value->if_object() : nullptr;
    if (!resource) return "[resource without content]";
    const auto* text = resource->if_contains("text");
    if (text && text->is_string()) {
        return "[resource: " + std::string(word(*resource, "uri")) + "]\n" + std::string(text->get_string());
    }
    return described("resource", word(*resource, "mimeType"), decoded_bytes(word(*resource, "blob")),
                     word(*resource, "uri"));
}

std::string link_text(const json::object& part) {
    std::string text = "[resource link: " + std::string(word(part, "uri"));
    if (auto name = word(part, "name"); !name.empty()) text += ", " + std::string(name);
    if (auto mime = word(part, "mimeType"); !mime.empty()) text += ", " + std::string(mime);
    if (const auto* size = part.if_contains("size"); size && size->is_int64()) {
        text += ", " + std::to_string(size->get_int64()) + " bytes";
    }
    return text + "]";
}

std::string part_text(const json::object& part) {
    const auto type = word(part, "type");
    if (type == "text") return std::string(word(part, "text"));
    if (type == "image" || type == "audio") {
        return described(type, word(part, "mimeType"), decoded_bytes(word(part, "data")));
    }
    if (type == "resource") return resource_text(part);
    if (type == "resource_link") return link_text(part);
    return "[content of unknown type \"" + std::string(type.substr(0, 64)) + "\"]";
}

ToolOutcome failed(ErrorClass error_class, ErrorCode code, std::string message) {
    ToolOutcome outcome;
    outcome.kind = ToolOutcome::Kind::failed;
    outcome.error_class = error_class;
    outcome.code = code;
    outcome.message = std::move(message);
    return outcome;
}

ToolOutcome too_large() {
    return failed(ErrorClass::invalid, ErrorCode::tool_result_too_large,
                  "The tool ran, but its result is longer than tool_result_bytes_max = " +
                      std::to_string(limits::tool_result_bytes_max) + " bytes.");
}

}  // namespace

ToolOutcome read_tool_result(const json::value& value) {
    const auto* result = value.if_object();
    const auto* content_value = result ? result->if_contains("content") : nullptr;
    const auto* structured = result ? result->if_contains("structuredContent") : nullptr;
    const auto* content = content_value ? content_value->if_array() : nullptr;
    if (!content && !structured) {
        // It answered as a tool does that ran: what it did cannot be read, and must not be taken for nothing.
        ToolOutcome unreadable = failed(ErrorClass::protocol, ErrorCode::tool_protocol_error,
                                        "The tool server answered with neither content nor structuredContent.");
        unreadable.kind = ToolOutcome::Kind::lost;
        return unreadable;
    }
    ToolOutcome outcome;
    const auto* is_error = result->if_contains("isError");
    outcome.is_error = is_error && is_error->is_bool() && is_error->get_bool();

    bool has_text = false;
    bool first = true;
    if (content) {
        for (const auto& one : *content) {
            const auto* part = one.if_object();
            std::string text = part ? part_text(*part) : "[content that is no object]";
            has_text |= part && word(*part, "type") == "text";
            if (!first) outcome.output += '\n';
            first = false;
            if (outcome.output.size() + text.size() > limits::tool_result_bytes_max) return too_large();
            outcome.output += text;
        }
    }
    // A server that gives structured content should repeat it as text; where it does not, the model still sees it.
    if (structured && !structured->is_null() && !has_text) {
        std::string text = json::serialize(*structured);
        if (outcome.output.size() + text.size() + 1 > limits::tool_result_bytes_max) return too_large();
        outcome.output = outcome.output.empty() ? std::move(text) : text + "\n" + outcome.output;
    }
    return outcome;
}

}  // namespace mainstay
