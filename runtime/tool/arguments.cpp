#include "runtime/tool/arguments.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>

#include "runtime/base/limits.h"

namespace mainstay {

namespace json = boost::json;

namespace {

json::parse_options bounded() {
    json::parse_options options;
    options.max_depth = limits::json_depth_max;
    return options;
}

bool is_word(std::string_view word) {
    return word == "object" || word == "array" || word == "string" || word == "boolean" || word == "null" ||
           word == "number" || word == "integer";
}

bool has_type(const json::value& value, std::string_view word) {
    if (word == "object") return value.is_object();
    if (word == "array") return value.is_array();
    if (word == "string") return value.is_string();
    if (word == "boolean") return value.is_bool();
    if (word == "null") return value.is_null();
    if (word == "number") return value.is_number();
    // JSON Schema: 1.0 is an integer too.
    return value.is_int64() || value.is_uint64() ||
           (value.is_double() && std::trunc(value.get_double()) == value.get_double());
}

/// Empty when the value has one of the types that `type` names, or when `type` is not understood.
std::string check_type(const json::value& value, const json::value& type) {
    std::string words;
    auto fits = [&](const json::value& word) {
        if (!word.is_string() || !is_word(word.get_string())) return true;
        if (!words.empty()) words += " or ";
        words += word.get_string();
        return has_type(value, word.get_string());
    };
    if (const auto* list = type.if_array()) {
        for (const auto& word : *list) {
            if (fits(word)) return {};
        }
    } else if (fits(type)) {
        return {};
    }
    return words.empty() ? std::string{} : "must be of type " + words;
}

std::string check_enum(const json::value& value, const json::array& allowed) {
    if (allowed.empty()) return {};
    for (const auto& one : allowed) {
        if (one == value) return {};
    }
    std::string text = "must be one of ";
    constexpr size_t text_bytes_max = 512;
    for (const auto& one : allowed) {
        if (&one != allowed.begin()) text += ", ";
        text += json::serialize(one);
        if (text.size() > text_bytes_max) return text.substr(0, text_bytes_max) + " ...";
    }
    return text;
}

std::string quoted(std::string_view name) {
    constexpr size_t name_bytes_max = 128;
    return json::serialize(json::string(name.substr(0, name_bytes_max)));
}

}  // namespace

Result<json::object> parse_arguments(std::string_view text) {
    if (text.size() > limits::tool_arguments_bytes_max) {
        return {ErrorCode::invalid_request, "The arguments are longer than tool_arguments_bytes_max = " +
                                                std::to_string(limits::tool_arguments_bytes_max) + " bytes."};
    }
    if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) return json::object{};
    boost::system::error_code problem;
    json::value value = json::parse(text, problem, {}, bounded());
    if (problem) {
        return {ErrorCode::invalid_request, "The arguments are not valid JSON: " + problem.message() + "."};
    }
    if (!value.is_object()) return {ErrorCode::invalid_request, "The arguments must be a JSON object."};
    return std::move(value.get_object());
}

std::string check_arguments(const json::object& arguments, std::string_view schema_text) {
    boost::system::error_code problem;
    const json::value schema = json::parse(schema_text, problem, {}, bounded());
    return problem || !schema.is_object() ? std::string{} : check_arguments(arguments, schema.get_object());
}

std::string check_arguments(const json::object& arguments, const json::object& schema) {
    if (const auto* required = schema.if_contains("required"); required && required->is_array()) {
        for (const auto& name : required->get_array()) {
            if (name.is_string() && !arguments.contains(name.get_string())) {
                return "The parameter " + quoted(name.get_string()) + " is missing.";
            }
        }
    }
    const auto* properties = schema.if_contains("properties");
    const auto* described = properties ? properties->if_object() : nullptr;
    const auto* additional = schema.if_contains("additionalProperties");
    // patternProperties may allow further names, and we do not read patterns.
    const bool closed =
        additional && additional->is_bool() && !additional->get_bool() && !schema.contains("patternProperties");
    for (const auto& [name, value] : arguments) {
        const auto* property = described ? described->if_contains(name) : nullptr;
        if (!property) {
            if (closed) return "The parameter " + quoted(name) + " is not known.";
            continue;
        }
        const auto* rules = property->if_object();
        if (!rules) continue;
        std::string wrong;
        if (const auto* type = rules->if_contains("type")) wrong = check_type(value, *type);
        if (const auto* allowed = rules->if_contains("enum"); wrong.empty() && allowed && allowed->is_array()) {
            wrong = check_enum(value, allowed->get_array());
        }
        if (!wrong.empty()) return "The parameter " + quoted(name) + " " + wrong + ".";
    }
    return {};
}

}  // namespace mainstay
