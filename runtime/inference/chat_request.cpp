#include "runtime/inference/chat_request.h"

#include <algorithm>
#include <boost/json.hpp>

#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"
#include "runtime/inference/prompt_walk.h"
#include "runtime/inference/request_options.h"

namespace mainstay {

namespace {

namespace json = boost::json;

bool is_plain(char c) { return static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\' && !(c & 0x80); }

void append_escaped(std::string& out, char c) {
    constexpr char digits[] = "0123456789abcdef";
    switch (c) {
        case '"': out += "\\\""; break;
        case '\\': out += "\\\\"; break;
        case '\n': out += "\\n"; break;
        case '\r': out += "\\r"; break;
        case '\t': out += "\\t"; break;
        default:
            out += "\\u00";
            out += digits[(c >> 4) & 15];
            out += digits[c & 15];
    }
}

size_t estimated_size(const ModelRequest& request) {
    size_t bytes = 1024 + request.instructions.size();
    const auto add = [&](const Item& item) { bytes += item.bytes() + item.bytes() / 8 + 128; };
    for (const auto& turn : request.prompt.settled)
        for (const auto& item : *turn) add(*item);
    for (const auto& item : request.prompt.open) add(*item);
    if (request.tools)
        for (const auto& tool : *request.tools) bytes += tool.description.size() + tool.parameters.size() + 192;
    return bytes;
}

class Renderer final : PromptVisitor {
  public:
    Renderer(const ModelRequest& request, std::string_view prompt_cache_key)
        : request_(request), prompt_cache_key_(prompt_cache_key) {
        out_.reserve(estimated_size(request));
    }

    Result<std::string> render() {
        auto options = request_options(request_);
        if (!options) return options.error();
        const json::object& fields = *options;

        out_ += "{\"model\":";
        const ModelSpec& model = *request_.model;
        append_json_string(out_, model.upstream_model.empty() ? model.name : model.upstream_model);
        out_ += ",\"messages\":[";
        write_messages();
        out_ += ']';
        write_tools();
        if (auto written = write_options(fields); !written) return written.error();
        if (!prompt_cache_key_.empty()) {
            out_ += ",\"prompt_cache_key\":";
            append_json_string(out_, prompt_cache_key_);
        }
        // Streamed even where nobody reads deltas: silence is then a stall, not a long answer.
        out_ += ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}";
        return std::move(out_);
    }

  private:
    static Error invalid(std::string message, std::string param) {
        return {ErrorCode::invalid_request, std::move(message), std::move(param)};
    }

    // --- messages -------------------------------------------------------------------------------------------------

    void write_messages() {
        if (!request_.instructions.empty()) {
            begin_message("system");
            out_ += ",\"content\":";
            append_json_string(out_, request_.instructions);
            out_ += '}';
        }
        walk_prompt(request_.prompt, *this);
    }

    void begin_message(std::string_view role) {
        if (!first_message_) out_ += ',';
        first_message_ = false;
        out_ += "{\"role\":\"";
        out_ += role;
        out_ += '"';
    }

    void write_content(const Item& item) {
        out_ += ",\"content\":";
        if (item.more_parts.empty()) {
            append_json_string(out_, item.text);
            return;
        }
        out_ += "[{\"type\":\"text\",\"text\":";
        append_json_string(out_, item.text);
        for (const auto& part : item.more_parts) {
            out_ += "},{\"type\":\"text\",\"text\":";
            append_json_string(out_, part);
        }
        out_ += "}]";
    }

    void message(const Item& item, const StepTokens*) override {
        // "developer" is OpenAI's own newer word for "system"; chat templates of open models do not know it.
        begin_message(item.role == Role::developer ? "system" : to_word(item.role));
        write_content(item);
        out_ += '}';
    }

    void summary(const Item& item) override {
        begin_message("system");
        out_ += ",\"content\":";
        append_json_string(out_, summary_text(item));
        out_ += '}';
    }

    void calls(const Item* text, const std::vector<AnsweredCall>& answered, const StepTokens*) override {
        begin_message("assistant");
        if (text) {
            write_content(*text);
        } else {
            out_ += ",\"content\":null";
        }
        out_ += ",\"tool_calls\":[";
        bool first = true;
        for (const auto& [call, output] : answered) {
            if (!first) out_ += ',';
            first = false;
            out_ += "{\"id\":";
            append_json_string(out_, call->call_id);
            out_ += ",\"type\":\"function\",\"function\":{\"name\":";
            append_json_string(out_, offered_name(request_.tools, call->server_label, call->name));
            out_ += ",\"arguments\":";
            append_json_string(out_, arguments_text(*call));
            out_ += "}}";
        }
        out_ += "]}";
        for (const auto& [call, output] : answered) {
            begin_message("tool");
            out_ += ",\"tool_call_id\":";
            append_json_string(out_, call->call_id);
            out_ += ",\"content\":";
            append_json_string(out_, output_text(*output));
            out_ += '}';
        }
    }

    // --- tools and options ----------------------------------------------------------------------------------------

    bool has_tools() const { return request_.tools && !request_.tools->empty(); }

    void write_tools() {
        if (!has_tools()) return;
        out_ += ",\"tools\":[";
        bool first = true;
        for (const auto& tool : *request_.tools) {
            if (!first) out_ += ',';
            first = false;
            out_ += "{\"type\":\"function\",\"function\":{\"name\":";
            append_json_string(out_, tool.name);
            if (!tool.description.empty()) {
                out_ += ",\"description\":";
                append_json_string(out_, tool.description);
            }
            out_ += ",\"parameters\":";
            out_ += tool.parameters.empty() ? "{\"type\":\"object\",\"properties\":{}}" : tool.parameters;
            if (tool.strict) out_ += ",\"strict\":true";
            out_ += "}}";
        }
        out_ += ']';
    }

    Result<void> write_options(const json::object& fields) {
        constexpr std::string_view numbers[] = {"temperature", "top_p", "presence_penalty", "frequency_penalty",
                                                "seed"};
        for (const std::string_view name : numbers) {
            const json::value* value = fields.if_contains(name);
            if (!value || value->is_null()) continue;
            if (!value->is_number()) return invalid(std::string(name) + " must be a number", std::string(name));
            write_field(name, *value);
        }
        if (const json::value* stop = fields.if_contains("stop"); stop && !stop->is_null()) write_field("stop", *stop);
        write_token_bound(fields);
        if (auto written = write_tool_choice(fields); !written) return written;
        if (const json::object* reasoning = object_in(fields, "reasoning"))
            if (const json::value* effort = reasoning->if_contains("effort"); effort && effort->is_string())
                write_field("reasoning_effort", *effort);
        return write_format(fields);
    }

    void write_field(std::string_view name, const json::value& value) {
        out_ += ",\"";
        out_ += name;
        out_ += "\":";
        out_ += json::serialize(value);
    }

    static const json::object* object_in(const json::object& fields, std::string_view name) {
        const json::value* value = fields.if_contains(name);
        return value ? value->if_object() : nullptr;
    }

    void write_token_bound(const json::object& fields) {
        uint64_t bound = request_.max_output_tokens;
        if (const json::value* asked = fields.if_contains("max_output_tokens")) {
            json::error_code failed;
            const auto tokens = asked->to_number<uint64_t>(failed);
            if (!failed && tokens > 0) bound = bound == 0 ? tokens : std::min(bound, tokens);
        }
        // The older of OpenAI's two names: every compatible server knows it.
        if (bound > 0) out_ += ",\"max_tokens\":" + std::to_string(bound);
    }

    Result<void> write_tool_choice(const json::object& fields) {
        if (!has_tools()) return {};
        if (const json::value* parallel = fields.if_contains("parallel_tool_calls"); parallel && parallel->is_bool())
            write_field("parallel_tool_calls", *parallel);
        const auto choice = tool_choice(request_, fields);
        if (!choice) return choice.error();
        if (choice->use == ToolUse::optional) return {};
        out_ += ",\"tool_choice\":";
        if (choice->use == ToolUse::none) {
            out_ += "\"none\"";
        } else if (choice->only.empty()) {
            out_ += "\"required\"";
        } else {
            out_ += "{\"type\":\"function\",\"function\":{\"name\":";
            append_json_string(out_, choice->only);
            out_ += "}}";
        }
        return {};
    }

    Result<void> write_format(const json::object& fields) {
        const json::object* text = object_in(fields, "text");
        const json::object* format = text ? object_in(*text, "format") : nullptr;
        if (!format) return {};
        const json::value* type = format->if_contains("type");
        if (!type || !type->is_string()) return invalid("text.format has no type", "text.format");
        if (type->get_string() == "text") return {};
        if (type->get_string() == "json_object") {
            out_ += ",\"response_format\":{\"type\":\"json_object\"}";
            return {};
        }
        if (type->get_string() != "json_schema") return invalid("text.format has an unknown type", "text.format");
        // The Responses API keeps the fields beside `type`, Chat Completions one level down.
        out_ += ",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{";
        bool first = true;
        for (const auto& [name, value] : *format) {
            if (name == "type") continue;
            if (!first) out_ += ',';
            first = false;
            append_json_string(out_, name);
            out_ += ':';
            out_ += json::serialize(value);
        }
        out_ += "}}";
        return {};
    }

    const ModelRequest& request_;
    const std::string_view prompt_cache_key_;
    std::string out_;
    bool first_message_ = true;
};

}  // namespace

void append_json_string(std::string& out, std::string_view text) {
    out += '"';
    while (!text.empty()) {
        size_t plain = 0;
        while (plain < text.size() && is_plain(text[plain])) ++plain;
        out.append(text, 0, plain);
        text.remove_prefix(plain);
        if (text.empty()) break;
        if ((text.front() & 0x80) == 0) {
            append_escaped(out, text.front());
            text.remove_prefix(1);
        } else {
            const Utf8Step step = utf8_next(text);
            out += step.valid ? text.substr(0, step.bytes) : utf8_replacement;
            text.remove_prefix(step.bytes);
        }
    }
    out += '"';
}

std::string offered_name(const ToolDefinitions& tools, std::string_view server, std::string_view tool) {
    if (tools && !server.empty()) {
        for (const auto& definition : *tools) {
            const std::string_view name = definition.name;
            if (name.size() == server.size() + 2 + tool.size() && name.starts_with(server) && name.ends_with(tool) &&
                name.substr(server.size(), 2) == "__")
                return definition.name;
        }
    }
    return std::string(tool);
}

bool takes_prompt_cache_key(std::string_view base_url) {
    constexpr std::string_view scheme = "https://", domain = "api.openai.com";
    if (!base_url.starts_with(scheme)) return false;
    std::string_view host = base_url.substr(scheme.size());
    host = host.substr(0, host.find_first_of(":/"));
    return host == domain || host.ends_with("." + std::string(domain));  // regions have a name in front
}

Result<std::string> render_chat_request(const ModelRequest& request, std::string_view prompt_cache_key) {
    return Renderer(request, prompt_cache_key).render();
}

}  // namespace mainstay
