#include "runtime/inference/chat_reply.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <charconv>
#include <cmath>
#include <limits>
#include <set>

#include "runtime/base/digest.h"
#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"

namespace mainstay {

namespace {

namespace json = boost::json;

std::optional<json::value> parse(std::string_view text) {
    json::error_code failed;
    json::parse_options bounds;
    bounds.max_depth = limits::json_depth_max;
    auto value = json::parse(text, failed, {}, bounds);
    if (failed) return std::nullopt;
    return value;
}

const json::value* find(const json::object& object, std::string_view name) { return object.if_contains(name); }

const json::object* find_object(const json::object& object, std::string_view name) {
    const json::value* value = find(object, name);
    return value ? value->if_object() : nullptr;
}

std::string_view find_text(const json::object& object, std::string_view name) {
    const json::value* value = find(object, name);
    const json::string* text = value ? value->if_string() : nullptr;
    return text ? std::string_view(*text) : std::string_view();
}

uint32_t find_count(const json::object& object, std::string_view name) {
    const json::value* value = find(object, name);
    if (!value) return 0;
    json::error_code failed;
    const auto count = value->to_number<uint64_t>(failed);
    if (failed) return 0;
    return static_cast<uint32_t>(std::min<uint64_t>(count, std::numeric_limits<uint32_t>::max()));
}

ModelError protocol_error(std::string what) { return make_model_error(ErrorClass::protocol, "upstream: " + what); }

/// OpenAI's words pass, those of other servers become the nearest.
std::string finish_word(std::string_view word) {
    if (word == "length" || word == "max_tokens") return "length";
    if (word == "tool_calls" || word == "function_call" || word == "tool_use") return "tool_calls";
    if (word == "content_filter" || word == "safety") return "content_filter";
    return "stop";
}

bool contains_any(std::string_view text, std::initializer_list<std::string_view> phrases) {
    return std::any_of(phrases.begin(), phrases.end(),
                       [text](std::string_view phrase) { return text.find(phrase) != std::string_view::npos; });
}

/// What an error answer says of itself, in whichever of the known shapes.
struct UpstreamWords {
    std::string message, type, code;
};

std::string word_of(const json::object& object, std::string_view name) {
    const json::value* value = find(object, name);
    if (!value || value->is_null()) return {};
    return value->is_string() ? std::string(value->get_string()) : json::serialize(*value);
}

UpstreamWords words_of(std::string_view body) {
    const auto parsed = parse(body);
    const json::object* object = parsed ? parsed->if_object() : nullptr;
    if (!object) return {std::string(body), {}, {}};
    if (const json::object* error = find_object(*object, "error")) object = error;  // OpenAI, vLLM, llama.cpp
    UpstreamWords words{word_of(*object, "message"), word_of(*object, "type"), word_of(*object, "code")};
    if (words.message.empty()) words.message = word_of(*object, "error");   // {"error": "text"}
    if (words.message.empty()) words.message = word_of(*object, "detail");  // FastAPI
    if (words.message.empty()) words.message = std::string(body);
    return words;
}

std::string lower(std::string text) {
    for (char& c : text)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return text;
}

/// The upstream's words as they may stand in a message of ours: one line, bounded, without the secret.
std::string presentable(std::string text, std::string_view secret) {
    cut_secret(text, secret);
    for (char& c : text)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
    if (text.size() > limits::upstream_error_text_max) {
        text.resize(utf8_floor(text, limits::upstream_error_text_max));
        text += "...";
    }
    return text;
}

ErrorClass class_of(int status, const UpstreamWords& words) {
    if (status == 401 || status == 403) return ErrorClass::auth;
    if (status == 429) return ErrorClass::rate_limited;
    if (status == 503 || status == 529) return ErrorClass::overloaded;
    const std::string text = lower(words.message), kind = lower(words.code + " " + words.type);
    const bool about_request = status == 400 || status == 413 || status == 422;
    if (about_request || status == 500) {  // older llama.cpp says 500 for a prompt that does not fit
        if (contains_any(kind, {"context_length_exceeded", "exceed_context_size", "context_window"}) ||
            contains_any(text,
                         {"context length", "context window", "maximum context", "context size", "max_model_len",
                          "maximum model length", "prompt is too long", "too many tokens", "maximum prompt length"}))
            return ErrorClass::context_overflow;
    }
    if (about_request && contains_any(kind, {"content_filter", "content_policy"})) return ErrorClass::content_filter;
    if (status == 408 || status == 409 || status == 425 || status >= 500) return ErrorClass::transient;
    if (status >= 300 && status < 500) return ErrorClass::invalid;
    return ErrorClass::protocol;  // 1xx and 2xx other than 200
}

std::string_view trimmed(std::string_view text) {
    while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
    return text;
}

/// "1.5", "1500ms", "20s", "6m0s": seconds where no unit is given. Nothing for anything else.
std::optional<double> duration_ms(std::string_view text, double unitless_ms) {
    double total = 0;
    if (text.empty()) return std::nullopt;
    while (!text.empty()) {
        double number = 0;
        const auto [at, error] =
            std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
        if (error != std::errc{} || !std::isfinite(number) || number < 0) return std::nullopt;
        text.remove_prefix(static_cast<size_t>(at - text.data()));
        constexpr std::array<std::pair<std::string_view, double>, 4> units = {
            {{"ms", 1.0}, {"s", 1000.0}, {"m", 60'000.0}, {"h", 3'600'000.0}}};
        const auto unit =
            std::find_if(units.begin(), units.end(), [&](const auto& u) { return text.starts_with(u.first); });
        if (unit != units.end()) {
            total += number * unit->second;
            text.remove_prefix(unit->first.size());
        } else if (text.empty() && total == 0) {
            return number * unitless_ms;
        } else {
            return std::nullopt;
        }
    }
    return total;
}

uint32_t bounded_ms(double milliseconds) {
    return static_cast<uint32_t>(std::min<double>(std::ceil(milliseconds), limits::upstream_retry_after_ms_max));
}

}  // namespace

/// Reads JSON of the upstream into a reply.
struct ChatReply::Reader {
    ChatReply& reply;
    std::string& text;

    std::optional<ModelError> read(std::string_view data, std::string_view body_name) {
        const auto parsed = parse(data);
        const json::object* chunk = parsed ? parsed->if_object() : nullptr;
        if (!chunk) return protocol_error("the answer is no JSON object");
        // An error in the middle of a stream comes as an event of its own.
        if (const json::value* error = find(*chunk, "error"); error && !error->is_null())
            return error_in_stream(*chunk, *error, data);
        if (reply.result_.model.empty()) reply.result_.model = find_text(*chunk, "model");
        if (const json::object* usage = find_object(*chunk, "usage")) read_usage(*usage);
        const json::value* choices = find(*chunk, "choices");
        if (!choices || choices->is_null()) return std::nullopt;
        if (!choices->is_array()) return protocol_error("choices is no array");
        for (const auto& entry : choices->get_array()) {
            const json::object* choice = entry.if_object();
            if (!choice) return protocol_error("a choice is no object");
            if (find_count(*choice, "index") != 0) continue;  // one was asked for
            if (const json::object* body = find_object(*choice, body_name))
                if (auto error = read_body(*body)) return error;
            if (const auto word = find_text(*choice, "finish_reason"); !word.empty())
                reply.result_.finish_reason = finish_word(word);
        }
        return std::nullopt;
    }

    static std::optional<ModelError> error_in_stream(const json::object& chunk, const json::value& error,
                                                     std::string_view data) {
        // Some put an HTTP status into `code`; without one it is the server's failure.
        const json::object* object = error.if_object();
        const uint32_t code = object ? find_count(*object, "code") : find_count(chunk, "code");
        return classify_upstream_error(code >= 400 && code < 600 ? static_cast<int>(code) : 500, {}, data, 0, {});
    }

    void read_usage(const json::object& usage) {
        Usage& out = reply.result_.usage;
        out.input_tokens = find_count(usage, "prompt_tokens");
        out.output_tokens = find_count(usage, "completion_tokens");
        if (const json::object* details = find_object(usage, "prompt_tokens_details"))
            out.cached_tokens = find_count(*details, "cached_tokens");
        if (const json::object* details = find_object(usage, "completion_tokens_details"))
            out.reasoning_tokens = find_count(*details, "reasoning_tokens");
    }

    std::optional<ModelError> read_body(const json::object& body) {
        for (const std::string_view name : {"content", "refusal"}) {
            const std::string_view piece = find_text(body, name);
            if (reply.result_.text.size() + piece.size() > limits::model_text_bytes_max)
                return protocol_error("the text is longer than model_text_bytes_max");
            reply.result_.text += piece;
            text += piece;
        }
        const json::value* calls = find(body, "tool_calls");
        if (!calls || calls->is_null()) return std::nullopt;
        if (!calls->is_array()) return protocol_error("tool_calls is no array");
        for (size_t i = 0; i < calls->get_array().size(); ++i) {
            const json::object* call = calls->get_array()[i].if_object();
            if (!call) return protocol_error("a tool call is no object");
            if (auto error = read_call(*call, i)) return error;
        }
        return std::nullopt;
    }

    std::optional<ModelError> read_call(const json::object& piece, size_t place) {
        ModelToolCall* call = call_of(piece, place);
        if (!call) return protocol_error("more calls in one step than tool_calls_per_step_max");
        if (call->call_id.empty()) call->call_id = find_text(piece, "id");
        const json::object* function = find_object(piece, "function");
        if (!function) return std::nullopt;
        if (call->name.empty()) call->name = find_text(*function, "name");
        if (const json::value* arguments = find(*function, "arguments")) {
            if (const json::string* part = arguments->if_string()) {
                call->arguments.append(part->data(), part->size());
            } else if (arguments->is_object()) {
                call->arguments += json::serialize(*arguments);  // some servers forget to make it a string
            }
        }
        if (call->arguments.size() > limits::tool_arguments_bytes_max)
            return protocol_error("the arguments of a call are longer than tool_arguments_bytes_max");
        return std::nullopt;
    }

    /// Pieces of a call are named by `index`; where it is missing, by id, then by their place.
    ModelToolCall* call_of(const json::object& piece, size_t place) {
        auto& calls = reply.result_.calls;
        auto& indexes = reply.call_indexes_;
        const json::value* number = find(piece, "index");
        const std::string_view id = find_text(piece, "id");
        int64_t index = static_cast<int64_t>(place);
        if (number && number->is_number()) {
            json::error_code failed;
            index = number->to_number<int64_t>(failed);
        } else if (!id.empty()) {
            for (auto& call : calls)
                if (call.call_id == id) return &call;
            index = static_cast<int64_t>(calls.size());
        }
        const auto found = std::find(indexes.begin(), indexes.end(), index);
        if (found != indexes.end()) return &calls[static_cast<size_t>(found - indexes.begin())];
        if (calls.size() >= limits::tool_calls_per_step_max) return nullptr;
        indexes.push_back(index);
        return &calls.emplace_back();
    }
};

std::optional<ModelError> ChatReply::take_event(std::string_view data, std::string& text) {
    if (finished_) return std::nullopt;
    if (trimmed(data) == "[DONE]") {
        finished_ = true;
        return std::nullopt;
    }
    return Reader{*this, text}.read(data, "delta");
}

std::optional<ModelError> ChatReply::take_whole(std::string_view body, std::string& text) {
    auto error = Reader{*this, text}.read(body, "message");
    finished_ = !error;
    return error;
}

std::variant<ModelResult, ModelError> ChatReply::finish() {
    if (!finished_ && result_.finish_reason.empty())
        return make_model_error(ErrorClass::lost, "upstream: the stream ended before the answer did");
    if (!finished_) return protocol_error("the stream ended without [DONE]");
    if (result_.finish_reason.empty()) return protocol_error("the answer has no finish_reason");
    if (result_.finish_reason == "content_filter" && result_.text.empty())
        return make_model_error(ErrorClass::content_filter, "upstream: its content filter withheld the answer");
    if (result_.finish_reason == "length") {
        // The call in which the answer was cut off cannot be meant.
        std::erase_if(result_.calls, [](const ModelToolCall& call) { return !parse(call.arguments); });
    } else if (!result_.calls.empty() && result_.finish_reason == "stop") {
        result_.finish_reason = "tool_calls";  // several servers say "stop" here
    }
    std::set<std::string> ids;
    for (size_t i = 0; i < result_.calls.size(); ++i) {
        ModelToolCall& call = result_.calls[i];
        if (call.name.empty()) return protocol_error("a tool call has no name");
        if (call.arguments.empty()) call.arguments = "{}";
        if (call.call_id.empty() || !ids.insert(call.call_id).second) {
            const uint64_t parts[] = {call_seed_, i};
            char hex[17];
            std::snprintf(hex, sizeof hex, "%016llx",
                          static_cast<unsigned long long>(xxh64({reinterpret_cast<const char*>(parts), sizeof parts})));
            call.call_id = std::string("call_") + hex;
            ids.insert(call.call_id);
        }
    }
    return std::move(result_);
}

void cut_secret(std::string& text, std::string_view secret) {
    if (secret.empty()) return;
    constexpr std::string_view mark = "***";
    for (size_t at = 0; (at = text.find(secret, at)) != std::string::npos; at += mark.size())
        text.replace(at, secret.size(), mark);
}

ModelError classify_upstream_error(int status, const std::vector<HttpHeader>& headers, std::string_view body,
                                   TimeMs now, std::string_view secret) {
    const UpstreamWords words = words_of(body);
    const ErrorClass error_class = class_of(status, words);
    std::string message = "upstream answered " + std::to_string(status);
    if (error_class == ErrorClass::auth) {
        message += ": it refused the key";  // its own words often repeat a part of the key
    } else if (const std::string said = presentable(words.message, secret); !said.empty()) {
        message += ": " + said;
    }
    return make_model_error(error_class, std::move(message), retry_after_ms(headers, now));
}

uint32_t retry_after_ms(const std::vector<HttpHeader>& headers, TimeMs now) {
    const auto value_of = [&](std::string_view name) -> std::string_view {
        for (const auto& header : headers)
            if (header.name == name) return trimmed(header.value);
        return {};
    };
    if (const auto wait = duration_ms(value_of("retry-after-ms"), 1.0)) return bounded_ms(*wait);
    const std::string_view value = value_of("retry-after");
    if (const auto wait = duration_ms(value, 1000.0)) return bounded_ms(*wait);
    if (!value.empty())
        if (const auto at = parse_http_date(std::string(value)))
            return *at > now ? bounded_ms(static_cast<double>(*at - now)) : 0;
    return 0;
}

ModelError classify_transport_error(const HttpError& error, bool answering) {
    switch (error.failure) {
        case HttpFailure::resolve:
        case HttpFailure::connect:
        case HttpFailure::connect_timeout:
        case HttpFailure::tls: return make_model_error(ErrorClass::transient, error.message);
        case HttpFailure::lost:
            return make_model_error(answering ? ErrorClass::lost : ErrorClass::transient, error.message);
        case HttpFailure::stall:
        case HttpFailure::total_timeout: return make_model_error(ErrorClass::timeout, error.message);
        case HttpFailure::too_large:
        case HttpFailure::protocol: return make_model_error(ErrorClass::protocol, error.message);
    }
    INVARIANT(false, "every failure has a class");
}

}  // namespace mainstay
