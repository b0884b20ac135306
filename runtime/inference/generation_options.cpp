#include "runtime/inference/generation_options.h"

#include <algorithm>
#include <boost/json.hpp>

#include "runtime/base/limits.h"
#include "runtime/inference/chat_request.h"

namespace mainstay {
namespace {

namespace json = boost::json;

class Reader {
  public:
    Reader(const ModelRequest& request, GenerationOptions& out) : request_(request), out_(out) {}

    Result<void> read() {
        out_.new_tokens_max = request_.max_output_tokens;
        if (request_.options.empty()) return {};
        json::error_code failed;
        json::parse_options bounds;
        bounds.max_depth = limits::json_depth_max;
        const json::value options = json::parse(request_.options, failed, {}, bounds);
        if (failed || !options.is_object()) return invalid("the request's options are no JSON object", "");
        fields_ = &options.get_object();
        read_sampling();
        if (auto read = read_stops(); !read) return read;
        if (const json::value* parallel = find("parallel_tool_calls"); parallel && parallel->is_bool())
            out_.parallel_calls = parallel->get_bool();
        if (auto read = read_tool_choice(); !read) return read;
        if (auto read = read_format(); !read) return read;
        return read_tier();
    }

  private:
    static Error invalid(std::string message, std::string param) {
        return {ErrorCode::invalid_request, std::move(message), std::move(param)};
    }

    /// Null stands for absent, as in the API.
    const json::value* find(std::string_view name) const {
        const json::value* value = fields_->if_contains(name);
        return value && !value->is_null() ? value : nullptr;
    }

    template <class T>
    std::optional<T> number(std::string_view name) const {
        const json::value* value = find(name);
        if (!value || !value->is_number()) return std::nullopt;
        json::error_code failed;
        const T number = value->to_number<T>(failed);
        return failed ? std::nullopt : std::optional<T>(number);
    }

    static std::string_view text(const json::object& object, std::string_view name) {
        const json::value* value = object.if_contains(name);
        return value && value->is_string() ? std::string_view(value->get_string()) : std::string_view();
    }

    void read_sampling() {
        if (const auto temperature = number<double>("temperature")) out_.sampling.temperature = float(*temperature);
        if (const auto top_p = number<double>("top_p")) out_.sampling.top_p = float(*top_p);
        if (const auto top_k = number<uint32_t>("top_k")) out_.sampling.top_k = *top_k;
        out_.seed = number<uint64_t>("seed");
        if (const auto asked = number<uint32_t>("max_output_tokens"); asked && *asked > 0)
            out_.new_tokens_max = out_.new_tokens_max == 0 ? *asked : std::min(out_.new_tokens_max, *asked);
    }

    Result<void> read_stops() {
        const json::value* stop = find("stop");
        if (!stop) return {};
        if (stop->is_string()) {
            out_.stops.emplace_back(stop->get_string());
            return {};
        }
        const json::array* list = stop->if_array();
        if (!list) return invalid("stop must be a text or a list of texts", "stop");
        for (const json::value& one : *list) {
            if (!one.is_string()) return invalid("stop must be a text or a list of texts", "stop");
            out_.stops.emplace_back(one.get_string());
        }
        return {};
    }

    Result<void> read_tool_choice() {
        const json::value* choice = find("tool_choice");
        if (!choice) return {};
        if (const json::string* word = choice->if_string()) {
            if (*word == "none")
                out_.tool_use = ToolUse::none;
            else if (*word == "required")
                require({});
            else if (*word != "auto")
                return invalid("tool_choice is none of auto, none, required", "tool_choice");
            return {};
        }
        const json::object* object = choice->if_object();
        if (!object || text(*object, "name").empty()) return invalid("tool_choice names no tool", "tool_choice");
        require(offered_name(request_.tools, text(*object, "server_label"), text(*object, "name")));
        return {};
    }

    void require(std::string only) {
        if (request_.step > 0) return;
        out_.tool_use = ToolUse::required;
        out_.only_tool = std::move(only);
    }

    Result<void> read_format() {
        const json::value* text_value = find("text");
        const json::object* text_object = text_value ? text_value->if_object() : nullptr;
        const json::value* format = text_object ? text_object->if_contains("format") : nullptr;
        if (!format || !format->is_object()) return {};
        const json::object& object = format->get_object();
        const std::string_view type = text(object, "type");
        if (type == "text") return {};
        if (type != "json_object" && type != "json_schema")
            return Error{ErrorCode::unsupported_value, "text.format.type is none of text, json_object, json_schema",
                         "text.format"};
        out_.json = true;
        if (type == "json_object") return {};
        const json::value* schema = object.if_contains("schema");
        if (!schema || !schema->is_object()) return invalid("text.format has no schema", "text.format");
        out_.schema = json::serialize(*schema);
        return {};
    }

    /// OpenAI's words for how urgent a request is.
    Result<void> read_tier() {
        const json::value* tier = find("service_tier");
        if (!tier || !tier->is_string()) return {};
        if (tier->get_string() == "flex") out_.priority = PriorityClass::batch;
        if (tier->get_string() == "priority") out_.priority = PriorityClass::interactive;
        return {};
    }

    const ModelRequest& request_;
    GenerationOptions& out_;
    const json::object* fields_ = nullptr;
};

}  // namespace

Result<GenerationOptions> read_generation_options(const ModelRequest& request) {
    GenerationOptions options;
    if (auto read = Reader(request, options).read(); !read) return read.error();
    return options;
}

}  // namespace mainstay
