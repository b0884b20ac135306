#include "runtime/inference/request_options.h"

#include <boost/json.hpp>

#include "runtime/base/limits.h"
#include "runtime/inference/chat_request.h"

namespace mainstay {

namespace json = boost::json;

Result<json::object> request_options(const ModelRequest& request) {
    if (request.options.empty()) return json::object();
    json::error_code failed;
    json::parse_options bounds;
    bounds.max_depth = limits::json_depth_max;
    json::value options = json::parse(request.options, failed, {}, bounds);
    if (failed || !options.is_object())
        return {ErrorCode::invalid_request, "the request's options are no JSON object", ""};
    return std::move(options.get_object());
}

const json::value* option(const json::object& fields, std::string_view name) {
    const json::value* value = fields.if_contains(name);
    return value && !value->is_null() ? value : nullptr;
}

std::string_view text_option(const json::object& fields, std::string_view name) {
    const json::value* value = fields.if_contains(name);
    return value && value->is_string() ? std::string_view(value->get_string()) : std::string_view();
}

Result<ToolChoice> tool_choice(const ModelRequest& request, const json::object& fields) {
    const auto invalid = [](const char* message) { return Error{ErrorCode::invalid_request, message, "tool_choice"}; };
    ToolChoice out;
    const json::value* choice = option(fields, "tool_choice");
    if (!choice) return out;
    if (const json::string* word = choice->if_string()) {
        if (*word == "none")
            out.use = ToolUse::none;
        else if (*word == "required")
            out.use = request.step == 0 ? ToolUse::required : ToolUse::optional;
        else if (*word != "auto")
            return invalid("tool_choice is none of auto, none, required");
        return out;
    }
    const json::object* object = choice->if_object();
    if (!object) return invalid("tool_choice must be a word or an object");
    const std::string_view name = text_option(*object, "name");
    if (name.empty()) return invalid("tool_choice names no tool");
    if (request.step > 0) return out;
    out.use = ToolUse::required;
    out.only = offered_name(request.tools, text_option(*object, "server_label"), name);
    return out;
}

}  // namespace mainstay
