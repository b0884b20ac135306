#include "runtime/inference/generation_options.h"

#include <algorithm>
#include <boost/json.hpp>

namespace mainstay {
namespace {

namespace json = boost::json;

class Reader {
  public:
    Reader(const json::object& fields, GenerationOptions& out) : fields_(fields), out_(out) {}

    Result<void> read() {
        read_sampling();
        if (auto read = read_stops(); !read) return read;
        if (const json::value* parallel = option(fields_, "parallel_tool_calls"); parallel && parallel->is_bool())
            out_.parallel_calls = parallel->get_bool();
        read_tier();
        return read_format();
    }

  private:
    static Error invalid(std::string message, std::string param) {
        return {ErrorCode::invalid_request, std::move(message), std::move(param)};
    }

    template <class T>
    std::optional<T> number(std::string_view name) const {
        const json::value* value = option(fields_, name);
        if (!value || !value->is_number()) return std::nullopt;
        json::error_code failed;
        const T number = value->to_number<T>(failed);
        return failed ? std::nullopt : std::optional<T>(number);
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
        const json::value* stop = option(fields_, "stop");
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

    Result<void> read_format() {
        const json::value* text_value = option(fields_, "text");
        const json::object* text_object = text_value ? text_value->if_object() : nullptr;
        const json::value* format = text_object ? text_object->if_contains("format") : nullptr;
        if (!format || !format->is_object()) return {};
        const json::object& object = format->get_object();
        const std::string_view type = text_option(object, "type");
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
    void read_tier() {
        const std::string_view tier = text_option(fields_, "service_tier");
        if (tier == "flex") out_.priority = PriorityClass::batch;
        if (tier == "priority") out_.priority = PriorityClass::interactive;
    }

    const json::object& fields_;
    GenerationOptions& out_;
};

}  // namespace

Result<GenerationOptions> read_generation_options(const ModelRequest& request) {
    const auto fields = request_options(request);
    if (!fields) return fields.error();
    GenerationOptions options;
    options.new_tokens_max = request.max_output_tokens;
    if (auto read = Reader(*fields, options).read(); !read) return read.error();
    auto choice = tool_choice(request, *fields);
    if (!choice) return choice.error();
    options.tool_choice = std::move(*choice);
    return options;
}

}  // namespace mainstay
