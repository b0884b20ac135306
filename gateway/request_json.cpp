#include "gateway/request_json.h"

#include <cmath>
#include <vector>

#include "gateway/json_writer.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace json = boost::json;

std::string quoted_back(std::string_view text) { return std::string(text.substr(0, utf8_floor(text, 80))); }

Result<void> JsonBody::parse(std::string_view body) {
    json::parse_options options;
    options.max_depth = limits::json_depth_max;
    json::error_code ec;
    value_.emplace(json::parse(body, ec, &memory_, options));
    if (ec == json::error::too_deep)
        return {ErrorCode::json_too_deep,
                "The JSON body is nested deeper than " + std::to_string(limits::json_depth_max) + " levels."};
    if (ec) {
        if (!is_valid_utf8(body)) return {ErrorCode::invalid_utf8, "The body is not valid UTF-8."};
        return {ErrorCode::malformed_json, "The body is not valid JSON: " + ec.message() + "."};
    }
    object_ = value_->if_object();
    if (object_ == nullptr) return {ErrorCode::invalid_request, "The body must be a JSON object."};
    return {};
}

const json::value* FieldReader::find(std::string_view key) const {
    const auto* value = object_.if_contains(json::string_view(key.data(), key.size()));
    return value == nullptr || value->is_null() ? nullptr : value;
}

std::optional<std::string_view> FieldReader::text(std::string_view key) {
    const auto* value = find(key);
    if (value == nullptr) return std::nullopt;
    const auto* text = value->if_string();
    if (text == nullptr) {
        fail(ErrorCode::invalid_request, "must be a string", key);
        return std::nullopt;
    }
    return std::string_view(text->data(), text->size());
}

std::optional<bool> FieldReader::boolean(std::string_view key) {
    const auto* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_bool()) {
        fail(ErrorCode::invalid_request, "must be true or false", key);
        return std::nullopt;
    }
    return value->get_bool();
}

std::optional<int64_t> FieldReader::integer(std::string_view key, int64_t min, int64_t max) {
    const auto* value = find(key);
    if (value == nullptr) return std::nullopt;
    std::optional<int64_t> number;
    if (value->is_int64()) number = value->get_int64();
    if (!number || *number < min || *number > max) {
        fail(ErrorCode::invalid_request,
             "must be an integer from " + std::to_string(min) + " to " + std::to_string(max), key);
        return std::nullopt;
    }
    return number;
}

std::optional<double> FieldReader::number(std::string_view key, double min, double max) {
    const auto* value = find(key);
    if (value == nullptr) return std::nullopt;
    const double number = value->is_number() ? value->to_number<double>() : NAN;
    if (!(number >= min && number <= max)) {
        std::string range = "must be a number from ";
        JsonWriter(range).number(min).raw(" to ").number(max);
        fail(ErrorCode::invalid_request, range, key);
        return std::nullopt;
    }
    return number;
}

const json::object* FieldReader::object(std::string_view key) {
    const auto* value = find(key);
    if (value != nullptr && !value->is_object()) fail(ErrorCode::invalid_request, "must be an object", key);
    return value != nullptr ? value->if_object() : nullptr;
}

const json::array* FieldReader::array(std::string_view key) {
    const auto* value = find(key);
    if (value != nullptr && !value->is_array()) fail(ErrorCode::invalid_request, "must be an array", key);
    return value != nullptr ? value->if_array() : nullptr;
}

std::string_view FieldReader::required_text(std::string_view key) {
    const auto value = text(key);
    if (!value) fail(ErrorCode::invalid_request, "is required", key);
    return value.value_or(std::string_view());
}

std::string FieldReader::param(std::string_view key) const {
    if (path_.empty()) return std::string(key);
    if (key.empty()) return path_;
    return path_ + "." + std::string(key);
}

void FieldReader::fail(ErrorCode code, std::string message, std::string_view key) {
    if (error_) return;
    auto name = param(key);
    error_ = Error{code, "'" + name + "' " + std::move(message) + ".", std::move(name)};
}

void FieldReader::fail(Error error) {
    if (!error_) error_ = std::move(error);
}

void append_json(std::string& out, const json::value& value, bool sorted) {
    switch (value.kind()) {
        case json::kind::null: out += "null"; return;
        case json::kind::bool_: out += value.get_bool() ? "true" : "false"; return;
        case json::kind::int64: {
            char digits[24];
            out.append(digits, std::to_chars(digits, digits + sizeof digits, value.get_int64()).ptr);
            return;
        }
        case json::kind::uint64: JsonWriter(out).number(value.get_uint64()); return;
        case json::kind::double_:
            // "1e999" parses as infinity, and only such a number writes it again.
            if (std::isfinite(value.get_double()))
                JsonWriter(out).number(value.get_double());
            else
                out += value.get_double() < 0 ? "-1e999" : "1e999";
            return;
        case json::kind::string: JsonWriter(out).string({value.get_string().data(), value.get_string().size()}); return;
        case json::kind::array: {
            char comma = '[';
            for (const auto& element : value.get_array()) {
                out.push_back(comma);
                append_json(out, element, sorted);
                comma = ',';
            }
            if (comma == '[') out.push_back('[');
            out.push_back(']');
            return;
        }
        case json::kind::object: append_json(out, value.get_object(), sorted); return;
    }
}

void append_json(std::string& out, const json::object& object, bool sorted) {
    std::vector<const json::key_value_pair*> pairs;
    pairs.reserve(object.size());
    for (const auto& pair : object) pairs.push_back(&pair);
    if (sorted) std::ranges::sort(pairs, {}, [](const auto* pair) { return pair->key(); });
    out.push_back('{');
    for (size_t i = 0; i < pairs.size(); ++i) {
        if (i > 0) out.push_back(',');
        JsonWriter(out).string({pairs[i]->key().data(), pairs[i]->key().size()}).raw(":");
        append_json(out, pairs[i]->value(), sorted);
    }
    out.push_back('}');
}

std::string read_metadata(FieldReader& fields) {
    const auto* object = fields.object("metadata");
    std::string out = "{";
    if (object != nullptr) {
        if (object->size() > limits::metadata_pairs_max)
            fields.fail(ErrorCode::invalid_request,
                        "has more than " + std::to_string(limits::metadata_pairs_max) + " pairs", "metadata");
        JsonWriter writer(out);
        for (const auto& pair : *object) {
            const std::string_view key(pair.key().data(), pair.key().size());
            const auto* text = pair.value().if_string();
            if (text == nullptr) {
                fields.fail(ErrorCode::invalid_request, "must have text values only", "metadata");
                break;
            }
            if (key.size() > limits::metadata_key_bytes_max || text->size() > limits::metadata_value_bytes_max) {
                fields.fail(ErrorCode::invalid_request,
                            "allows keys of " + std::to_string(limits::metadata_key_bytes_max) +
                                " bytes and values of " + std::to_string(limits::metadata_value_bytes_max),
                            "metadata");
                break;
            }
            if (out.size() > 1) writer.raw(",");
            writer.string(key).raw(":").string({text->data(), text->size()});
        }
    }
    out.push_back('}');
    return out;
}

}  // namespace mainstay
