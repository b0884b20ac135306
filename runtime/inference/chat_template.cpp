#include "runtime/inference/chat_template.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>

#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"
#include "runtime/inference/chat_request.h"

namespace mainstay {

namespace {

namespace json = boost::json;
using Speaker = ChatMessage::Speaker;
using Piece = ChatTemplate::Piece;

constexpr size_t close_tags_max = 64;  // closing tags that are looked at in one call

struct Named {
    std::string_view name;
    TemplateKind kind;
    uint32_t version;  // 100 * (kind, from 1) + revision; sampled tokens of another version are not shown
};
constexpr std::array<Named, 3> names{{{"mainstay-tiny", TemplateKind::mainstay_tiny, 101},
                                      {"chatml", TemplateKind::chatml, 201},
                                      {"llama-3", TemplateKind::llama3, 301}}};

Error not_loadable(std::string message, std::string key) {
    return {ErrorCode::model_not_loadable, std::move(message), std::move(key)};
}

std::string known_names() {
    std::string text;
    for (const auto& [name, kind, version] : names) text += (text.empty() ? "" : ", ") + std::string(name);
    return text;
}

std::string_view trimmed(std::string_view text) {
    constexpr std::string_view blank = " \t\r\n";
    const size_t first = text.find_first_not_of(blank);
    if (first == std::string_view::npos) return {};
    return text.substr(first, text.find_last_not_of(blank) - first + 1);
}

/// JSON as Python writes it, which is what models were shown: a space after ':' and ','; with `indent` over lines.
void write_json(std::string& out, const json::value& value, int indent, int depth) {
    const auto line = [&](int level) {
        if (indent == 0) return;
        out += '\n';
        out.append(static_cast<size_t>(indent * level), ' ');
    };
    const auto list = [&](const auto& entries, char open, char close, auto&& write) {
        out += open;
        bool first = true;
        for (const auto& entry : entries) {
            if (!first) out += indent == 0 ? ", " : ",";
            first = false;
            line(depth + 1);
            write(entry);
        }
        if (!first) line(depth);
        out += close;
    };
    if (const auto* object = value.if_object()) {
        list(*object, '{', '}', [&](const auto& entry) {
            append_json_string(out, entry.key());
            out += ": ";
            write_json(out, entry.value(), indent, depth + 1);
        });
    } else if (const auto* array = value.if_array()) {
        list(*array, '[', ']', [&](const json::value& entry) { write_json(out, entry, indent, depth + 1); });
    } else if (const auto* text = value.if_string()) {
        append_json_string(out, *text);
    } else if (const auto* real = value.if_double()) {
        // A schema's bounds are mostly whole numbers, which Python writes as 1.0 and not as 1E0.
        std::string number = json::serialize(json::value(*real));
        if (number.ends_with("E0"))
            number = number.substr(0, number.size() - 2) + (number.find('.') == number.npos ? ".0" : "");
        out += number;
    } else {
        out += json::serialize(value);
    }
}

Result<std::string> tool_json(const ToolDefinition& tool, int indent) {
    json::error_code failed;
    json::parse_options bounds;
    bounds.max_depth = limits::json_depth_max;
    const std::string_view written =
        tool.parameters.empty() ? R"({"type":"object","properties":{}})" : std::string_view(tool.parameters);
    const json::value parameters = json::parse(written, failed, {}, bounds);
    if (failed || !parameters.is_object())
        return Error{ErrorCode::invalid_request, "the parameters of tool \"" + tool.name + "\" are no JSON object",
                     "tools"};
    json::object function;
    function["name"] = tool.name;
    if (!tool.description.empty()) function["description"] = tool.description;
    function["parameters"] = parameters;
    std::string out;
    write_json(out, json::object{{"type", "function"}, {"function", std::move(function)}}, indent, 0);
    return out;
}

/// Reads `"key": value` pairs of the object that `text` begins with, keeping each value as it is written. Lenient: it
/// wants the shape only, since the arguments may be wrong JSON, which the session tells the model.
class Members {
  public:
    explicit Members(std::string_view text) : text_(text) {}

    /// False where there is no object, or it does not end.
    bool read() {
        blank();
        if (!take('{')) return false;
        blank();
        if (take('}')) return true;
        while (true) {
            blank();
            const auto key = quoted();
            if (!key) return false;
            blank();
            if (!take(':')) return false;
            blank();
            const size_t begin = at_;
            if (!skip_value()) return false;
            found_.emplace_back(*key, text_.substr(begin, at_ - begin));
            blank();
            if (take(',')) continue;
            return take('}');
        }
    }
    size_t end() const { return at_; }

    std::optional<std::string_view> find(std::string_view key) const {
        for (const auto& [name, value] : found_)
            if (name == key) return value;
        return std::nullopt;
    }

  private:
    void blank() {
        while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
    }
    bool take(char c) {
        if (at_ >= text_.size() || text_[at_] != c) return false;
        ++at_;
        return true;
    }
    /// The inside of a string, escapes as they are.
    std::optional<std::string_view> quoted() {
        if (!take('"')) return std::nullopt;
        const size_t begin = at_;
        for (; at_ < text_.size(); ++at_) {
            if (text_[at_] == '\\') {
                ++at_;
            } else if (text_[at_] == '"') {
                return text_.substr(begin, at_++ - begin);
            }
        }
        return std::nullopt;
    }
    bool skip_value() {
        size_t depth = 0;
        const size_t begin = at_;
        while (at_ < text_.size()) {
            const char c = text_[at_];
            if (c == '"') {
                if (!quoted()) return false;
                continue;
            }
            if (depth == 0 && (c == ',' || c == '}')) break;
            if (c == '{' || c == '[') ++depth;
            if (c == '}' || c == ']') --depth;
            ++at_;
            if (depth == 0 && (c == '}' || c == ']')) break;
        }
        return depth == 0 && at_ > begin;
    }

    std::string_view text_;
    size_t at_ = 0;
    std::vector<std::pair<std::string_view, std::string_view>> found_;
};

std::optional<std::string> json_text(std::string_view quoted) {
    json::error_code failed;
    const json::value value = json::parse(quoted, failed);
    if (failed || !value.is_string()) return std::nullopt;
    return std::string(value.get_string());
}

}  // namespace

ChatTemplate::ChatTemplate(TemplateKind kind, std::shared_ptr<const Tokenizer> tokenizer)
    : kind_(kind), tokenizer_(std::move(tokenizer)) {}

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::make(std::string_view name,
                                                               std::shared_ptr<const Tokenizer> tokenizer) {
    for (const auto& [known, kind, version] : names) {
        if (known != name) continue;
        std::unique_ptr<ChatTemplate> made(new ChatTemplate(kind, std::move(tokenizer)));
        if (auto found = made->find_marks(); !found) return found.error();
        return std::shared_ptr<const ChatTemplate>(std::move(made));
    }
    return not_loadable("chat_template \"" + std::string(name) + "\" is none of " + known_names(), "chat_template");
}

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::recognise(std::string_view tokenizer_config_json,
                                                                    std::shared_ptr<const Tokenizer> tokenizer) {
    json::error_code failed;
    json::parse_options bounds;
    bounds.max_depth = limits::json_depth_max;
    const json::value root = tokenizer_config_json.size() <= limits::model_config_bytes_max
                                 ? json::parse(tokenizer_config_json, failed, {}, bounds)
                                 : json::value();
    if (failed || !root.is_object())
        return not_loadable("tokenizer_config.json is no JSON object", "tokenizer_config.json");
    const json::value* value = root.get_object().if_contains("chat_template");
    // Several, by name: the one for tools, else the first.
    if (const json::array* several = value ? value->if_array() : nullptr) {
        value = nullptr;
        for (const json::value& entry : *several) {
            const json::object* object = entry.if_object();
            const json::value* program = object ? object->if_contains("template") : nullptr;
            const json::value* name = object ? object->if_contains("name") : nullptr;
            if (program && (!value || (name && *name == "tool_use"))) value = program;
        }
    }
    if (!value || !value->is_string())
        return not_loadable("tokenizer_config.json has no chat_template; name one of " + known_names(),
                            "chat_template");
    const std::string_view program = value->get_string();
    for (const auto& [name, kind, version] : names)
        if (program == name) return make(name, std::move(tokenizer));
    if (program.find("<|im_start|>") != std::string_view::npos) return make("chatml", std::move(tokenizer));
    if (program.find("<|start_header_id|>") != std::string_view::npos) return make("llama-3", std::move(tokenizer));
    return not_loadable("chat_template of tokenizer_config.json is none that is known; name one of " + known_names(),
                        "chat_template");
}

std::string_view ChatTemplate::name() const {
    for (const auto& [name, kind, version] : names)
        if (kind == kind_) return name;
    return {};
}

uint32_t ChatTemplate::template_version() const {
    for (const auto& [name, kind, version] : names)
        if (kind == kind_) return version;
    return 0;
}

Result<void> ChatTemplate::find_marks() {
    std::string missing;
    const auto need = [&](std::string_view content) {
        const auto found = tokenizer_->find_added(content);
        if (!found && missing.empty()) missing = content;
        return found.value_or(0);
    };
    switch (kind_) {
        case TemplateKind::mainstay_tiny:
            begin_ = need("<|bos|>");
            user_ = need("<|user|>");
            assistant_ = need("<|assistant|>");
            tool_ = need("<|tool|>");
            call_ = need("<|call|>");
            end_ = need("<|end|>");
            break;
        case TemplateKind::chatml:
            start_ = need("<|im_start|>");
            end_ = need("<|im_end|>");
            break;
        case TemplateKind::llama3:
            begin_ = need("<|begin_of_text|>");
            start_ = need("<|start_header_id|>");
            header_end_ = need("<|end_header_id|>");
            end_ = need("<|eot_id|>");
            python_tag_ = tokenizer_->find_added("<|python_tag|>");
            break;
    }
    if (!missing.empty())
        return not_loadable("tokenizer.json has no added token \"" + missing + "\", which the template " +
                                std::string(name()) + " needs",
                            "added_tokens");
    stops_ = {end_};
    for (const std::string_view more : {"<|endoftext|>", "<|eom_id|>", "<|end_of_text|>"})
        if (const auto found = tokenizer_->find_added(more); found && tokenizer_->special(*found))
            stops_.push_back(*found);
    return {};
}

bool ChatTemplate::is_stop(TokenId token) const {
    return std::find(stops_.begin(), stops_.end(), token) != stops_.end();
}

/// Pieces of one rendering, front to back.
class ChatTemplate::Renderer {
  public:
    explicit Renderer(const ChatTemplate& how) : how_(how) {}

    Result<Rendering> render(const std::vector<ChatMessage>& messages, const ToolDefinitions& tools) {
        static const std::vector<ToolDefinition> none;
        const auto& offered = tools ? *tools : none;
        switch (how_.kind_) {
            case TemplateKind::mainstay_tiny: tiny(messages); break;
            case TemplateKind::chatml:
                if (auto done = chatml(messages, offered); !done) return done.error();
                break;
            case TemplateKind::llama3:
                if (auto done = llama3(messages, offered); !done) return done.error();
                break;
        }
        return Rendering{std::move(pieces_), definition_};
    }

    /// What stands between the assistant's opening and its end mark.
    std::vector<Piece> reply(const ChatMessage& message) {
        body(message);
        return std::move(pieces_);
    }

  private:
    void mark(TokenId token, std::string_view written) { pieces_.push_back({true, token, std::string(written)}); }
    void text(std::string text) {
        if (!text.empty()) pieces_.push_back({false, 0, std::move(text)});
    }

    /// What the assistant said, as the template writes it.
    void body(const ChatMessage& message) {
        if (how_.kind_ == TemplateKind::mainstay_tiny) {
            text(message.text);
            for (const auto& call : message.calls) {
                mark(how_.call_, "<|call|>");
                text(R"({"name":")" + call.name + R"(","arguments":)" + call.arguments + "}");
            }
            return;
        }
        const bool tagged = how_.kind_ == TemplateKind::chatml;
        std::string said = message.text;
        for (const auto& call : message.calls) {
            if (!said.empty()) said += '\n';
            said += tagged ? "<tool_call>\n{\"name\": " : "{\"name\": ";
            append_json_string(said, call.name);
            said += (tagged ? ", \"arguments\": " : ", \"parameters\": ") + call.arguments +
                    (tagged ? "}\n</tool_call>" : "}");
        }
        text(std::move(said));
    }

    /// The same with its end mark; as it was sampled, where that is known in tokens that this template understands.
    void assistant(const ChatMessage& message) {
        if (const StepTokens* tokens = message.tokens; tokens && fits(*tokens)) {
            pieces_.push_back({false, 0, how_.tokenizer_->decode(tokens->ids), tokens->ids});
            if (how_.is_stop(tokens->ids.back())) return;
        } else {
            body(message);
        }
        mark(how_.end_, how_.kind_ == TemplateKind::mainstay_tiny ? "<|end|>"
                        : how_.kind_ == TemplateKind::chatml      ? "<|im_end|>"
                                                                  : "<|eot_id|>");
    }

    bool fits(const StepTokens& tokens) const {
        const size_t known = how_.tokenizer_->size();
        return !tokens.ids.empty() && tokens.tokenizer == how_.tokenizer_digest() &&
               tokens.template_version == how_.template_version() &&
               std::all_of(tokens.ids.begin(), tokens.ids.end(), [known](TokenId id) { return id < known; });
    }

    /// What came so far is the agent's definition.
    void end_definition() { definition_ = pieces_.size(); }

    void tiny(const std::vector<ChatMessage>& messages) {
        mark(how_.begin_, "<|bos|>");
        end_definition();
        for (const auto& message : messages) {
            switch (message.speaker) {
                case Speaker::system: continue;  // the model was trained on none
                case Speaker::user:
                    mark(how_.user_, "<|user|>");
                    text(std::string(trimmed(message.text)));
                    break;
                case Speaker::tool:
                    mark(how_.tool_, "<|tool|>");
                    text(message.text);
                    break;
                case Speaker::assistant:
                    mark(how_.assistant_, "<|assistant|>");
                    assistant(message);
                    continue;
            }
            mark(how_.end_, "<|end|>");
        }
        mark(how_.assistant_, "<|assistant|>");
    }

    void chatml_open(std::string_view speaker) {
        mark(how_.start_, "<|im_start|>");
        text(std::string(speaker) + "\n");
    }
    void chatml_close() {
        mark(how_.end_, "<|im_end|>");
        text("\n");
    }

    Result<void> chatml(const std::vector<ChatMessage>& messages, const std::vector<ToolDefinition>& tools) {
        size_t i = 0;
        std::string system;
        bool merged = false;  // with a message of the conversation
        if (!messages.empty() && messages[0].speaker == Speaker::system) {
            merged = !messages[0].definition;
            system = messages[i++].text;
        }
        if (!tools.empty()) {
            if (!system.empty()) system += "\n\n";
            system +=
                "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
                "function signatures within <tools></tools> XML tags:\n<tools>";
            for (const auto& tool : tools) {
                const auto written = tool_json(tool, 0);
                if (!written) return written.error();
                system += "\n" + *written;
            }
            system +=
                "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
                "<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": "
                "<args-json-object>}\n</tool_call>";
        }
        if (!system.empty()) {
            chatml_open("system");
            text(std::move(system));
            chatml_close();
        }
        if (!merged) end_definition();
        while (i < messages.size()) {
            const auto& message = messages[i++];
            if (message.speaker == Speaker::tool) {
                // Results of one step are one message.
                std::string results = "<tool_response>\n" + message.text + "\n</tool_response>";
                for (; i < messages.size() && messages[i].speaker == Speaker::tool; ++i)
                    results += "\n<tool_response>\n" + messages[i].text + "\n</tool_response>";
                chatml_open("user");
                text(std::move(results));
            } else if (message.speaker == Speaker::assistant) {
                chatml_open("assistant");
                assistant(message);
                text("\n");
                continue;
            } else {
                chatml_open(message.speaker == Speaker::user ? "user" : "system");
                text(message.text);
            }
            chatml_close();
        }
        chatml_open("assistant");
        return {};
    }

    void llama3_open(std::string_view speaker) {
        mark(how_.start_, "<|start_header_id|>");
        text(std::string(speaker));
        mark(how_.header_end_, "<|end_header_id|>");
        text("\n\n");
    }
    void llama3_close() { mark(how_.end_, "<|eot_id|>"); }

    Result<void> llama3(const std::vector<ChatMessage>& messages, const std::vector<ToolDefinition>& tools) {
        mark(how_.begin_, "<|begin_of_text|>");
        end_definition();
        size_t i = 0;
        std::string system;
        if (!tools.empty()) {
            system =
                "You have access to the following functions. To call a function, please respond with JSON for a "
                "function call. Respond in the format {\"name\": function name, \"parameters\": dictionary of argument "
                "name and its value}. Do not use variables.\n\n";
            for (const auto& tool : tools) {
                const auto written = tool_json(tool, 4);
                if (!written) return written.error();
                system += *written + "\n\n";
            }
        }
        bool merged = false;
        if (!messages.empty() && messages[0].speaker == Speaker::system) {
            merged = !messages[0].definition;
            system += trimmed(messages[i++].text);
        }
        if (!system.empty()) {
            llama3_open("system");
            text(std::move(system));
            llama3_close();
        }
        if (!merged) end_definition();
        for (; i < messages.size(); ++i) {
            const auto& message = messages[i];
            switch (message.speaker) {
                case Speaker::system: llama3_open("system"); break;
                case Speaker::user: llama3_open("user"); break;
                case Speaker::tool: llama3_open("ipython"); break;
                case Speaker::assistant: llama3_open("assistant"); break;
            }
            if (message.speaker == Speaker::assistant) {
                assistant(message);
                continue;
            }
            if (message.speaker == Speaker::tool) {
                std::string quoted;
                append_json_string(quoted, message.text);
                text(std::move(quoted));
            } else {
                text(message.text);
            }
            llama3_close();
        }
        llama3_open("assistant");
        return {};
    }

    const ChatTemplate& how_;
    std::vector<Piece> pieces_;
    size_t definition_ = 0;  // leading pieces
};

Result<ChatTemplate::Rendering> ChatTemplate::render_all(const std::vector<ChatMessage>& messages,
                                                         const ToolDefinitions& tools) const {
    return Renderer(*this).render(messages, tools);
}

Result<std::vector<Piece>> ChatTemplate::render(const std::vector<ChatMessage>& messages,
                                                const ToolDefinitions& tools) const {
    auto rendering = render_all(messages, tools);
    if (!rendering) return rendering.error();
    return std::move(rendering->pieces);
}

std::vector<TokenId> ChatTemplate::encode(const std::vector<Piece>& pieces) const {
    std::vector<TokenId> tokens;
    for (const auto& piece : pieces) {
        if (piece.is_mark) {
            tokens.push_back(piece.mark);
        } else if (!piece.sampled.empty()) {
            tokens.insert(tokens.end(), piece.sampled.begin(), piece.sampled.end());
        } else {
            tokenizer_->encode(piece.text, tokens);
        }
    }
    return tokens;
}

Result<std::vector<TokenId>> ChatTemplate::prompt(const ModelRequest& request) const {
    auto prompt = prompt_tokens(request);
    if (!prompt) return prompt.error();
    return std::move(prompt->tokens);
}

Result<PromptTokens> ChatTemplate::prompt_tokens(const ModelRequest& request) const {
    auto rendering = render_all(chat_messages(request), request.tools);
    if (!rendering) return rendering.error();
    const auto conversation = rendering->pieces.begin() + static_cast<ptrdiff_t>(rendering->definition);
    PromptTokens prompt;
    prompt.tokens = encode({rendering->pieces.begin(), conversation});
    prompt.definition = static_cast<uint32_t>(prompt.tokens.size());
    const auto rest = encode({conversation, rendering->pieces.end()});
    prompt.tokens.insert(prompt.tokens.end(), rest.begin(), rest.end());
    return prompt;
}

bool ChatTemplate::says(const ModelResult& reply, std::span<const TokenId> sampled) const {
    ChatMessage message{Speaker::assistant, reply.text, {}};
    for (const auto& call : reply.calls)
        message.calls.push_back({call.name, call.arguments.empty() ? "{}" : call.arguments});
    const auto shown = encode(Renderer(*this).reply(message));
    if (!sampled.empty() && sampled.back() == end_) sampled = sampled.first(sampled.size() - 1);
    return std::equal(shown.begin(), shown.end(), sampled.begin(), sampled.end());
}

std::shared_ptr<const StepTokens> ChatTemplate::step_tokens(std::vector<TokenId> sampled) const {
    return std::make_shared<const StepTokens>(StepTokens{tokenizer_digest(), template_version(), std::move(sampled)});
}

ChatTemplate::CallSyntax ChatTemplate::call_syntax() const {
    switch (kind_) {
        case TemplateKind::mainstay_tiny: return {call_, R"({"name":")", R"(","arguments":)", "}", false, ""};
        case TemplateKind::chatml:
            return {std::nullopt, "<tool_call>\n{\"name\": \"", "\", \"arguments\": ", "}\n</tool_call>", true, "\n"};
        case TemplateKind::llama3: break;
    }
    return {std::nullopt, "{\"name\": \"", "\", \"parameters\": ", "}", true, ""};
}

ReplyReader::ReplyReader(std::shared_ptr<const ChatTemplate> chat_template, bool tools_offered, std::string call_prefix,
                         StopSequences stops)
    : template_(std::move(chat_template)),
      tools_(tools_offered),
      prefix_(std::move(call_prefix)),
      stops_(std::move(stops)),
      stream_(template_->tokenizer()) {}

std::string ReplyReader::push(TokenId token) {
    if (ended_) return {};
    if (template_->is_stop(token)) {
        ended_ = true;
        return take_text(stream_.finish());
    }
    const bool call_mark =
        template_->kind_ == TemplateKind::mainstay_tiny ? token == template_->call_ : template_->python_tag_ == token;
    if (call_mark) {
        const std::string shown = take_text(stream_.finish());
        if (in_call_) close_call();
        in_call_ = true;
        return shown;
    }
    return take_text(stream_.push(token));
}

std::string ReplyReader::take_text(std::string_view text) {
    if (text.empty()) return {};
    if (in_call_ && template_->kind_ != TemplateKind::chatml) {
        if (call_text_.size() + text.size() > limits::tool_arguments_bytes_max) {
            problem_ =
                "a call is longer than tool_arguments_bytes_max = " + std::to_string(limits::tool_arguments_bytes_max);
            ended_ = true;
            return {};
        }
        call_text_ += text;
        return {};
    }
    if (!tools_ || template_->kind_ == TemplateKind::mainstay_tiny) return show(text);
    if (template_->kind_ == TemplateKind::chatml) return take_chatml(text);
    // llama-3: a reply that begins with a brace is a call, or turns out to be none at its end.
    if (undecided_) {
        held_ += text;
        const std::string_view begun = trimmed(held_);
        if (begun.empty()) return {};
        undecided_ = false;
        if (begun.front() == '{') {
            in_call_ = true;
            call_text_ = std::move(held_);
            held_.clear();
            return {};
        }
        const std::string all = std::move(held_);
        held_.clear();
        return show(all);
    }
    return show(text);
}

std::string ReplyReader::take_chatml(std::string_view text) {
    constexpr std::string_view open = "<tool_call>", close = "</tool_call>";
    held_ += text;
    std::string shown;
    while (!held_.empty()) {
        if (in_call_) {
            // The tag may also stand within a text of the arguments: the call ends where its object has ended.
            size_t end = held_.find(close, searched_);
            for (; end != std::string::npos; end = held_.find(close, searched_)) {
                if (++tags_seen_ > close_tags_max || Members(std::string_view(held_).substr(0, end)).read()) break;
                searched_ = end + close.size();
            }
            if (end == std::string::npos) {
                searched_ = std::max(searched_, held_.size() - std::min(held_.size(), close.size()));
                if (held_.size() <= limits::tool_arguments_bytes_max) break;
                problem_ = "a call is longer than tool_arguments_bytes_max = " +
                           std::to_string(limits::tool_arguments_bytes_max);
                ended_ = true;
                held_.clear();
                break;
            }
            searched_ = tags_seen_ = 0;
            call_text_ = held_.substr(0, end);
            held_.erase(0, end + close.size());
            close_call();
            in_call_ = false;
            continue;
        }
        const size_t begin = held_.find(open);
        if (begin != std::string::npos) {
            shown += show(
                std::string_view(held_).substr(0, std::min(begin, held_.find_last_not_of(" \t\r\n", begin - 1) + 1)));
            held_.erase(0, begin + open.size());
            in_call_ = true;
            continue;
        }
        // White space that may stand before a call, and what may begin one, waits.
        size_t keep = 0;
        for (size_t n = std::min(open.size() - 1, held_.size()); n > keep; --n)
            if (std::string_view(held_).ends_with(open.substr(0, n))) keep = n;
        size_t end = held_.size() - keep;
        while (end > 0 && std::string_view(" \t\r\n").find(held_[end - 1]) != std::string_view::npos) --end;
        shown += show(std::string_view(held_).substr(0, end));
        held_.erase(0, end);
        break;
    }
    return shown;
}

std::string ReplyReader::show(std::string_view text) {
    if (text.empty() || stops_.found()) return {};
    std::string shown = stops_.push(text);
    if (stops_.found()) ended_ = true;
    result_.text += shown;
    return shown;
}

void ReplyReader::close_call() {
    if (!add_call(call_text_) && problem_.empty()) problem_ = "what should be a call has no \"name\": " + call_text_;
    call_text_.clear();
}

/// One call at the front of `text`. False where it names no tool.
bool ReplyReader::add_call(std::string_view text) {
    Members members(text);
    const bool whole = members.read();
    const auto quoted_name = members.find("name");
    const auto name = quoted_name ? json_text(*quoted_name) : std::nullopt;
    if (!name || name->empty() || name->size() > limits::name_bytes_max) return false;
    auto arguments = members.find("arguments");
    if (!arguments) arguments = members.find("parameters");
    ModelToolCall call;
    call.name = *name;
    if (arguments) {
        // Some models write the arguments as a text that holds JSON.
        const auto inside = arguments->starts_with('"') ? json_text(*arguments) : std::nullopt;
        call.arguments = inside ? *inside : std::string(*arguments);
    } else if (!whole) {
        return false;
    } else {
        call.arguments = "{}";
    }
    if (result_.calls.size() == limits::tool_calls_per_step_max) {
        problem_ =
            "more calls in one step than tool_calls_per_step_max = " + std::to_string(limits::tool_calls_per_step_max);
        return true;
    }
    call.call_id = "call_" + prefix_ + "_" + std::to_string(result_.calls.size());
    result_.calls.push_back(std::move(call));
    return true;
}

/// Calls of llama-3, one after the other. False, and none added, where the text is no call.
bool ReplyReader::add_calls(std::string_view text) {
    const size_t before = result_.calls.size();
    while (true) {
        const size_t first = text.find_first_not_of(" \t\r\n;,");
        if (first == std::string_view::npos) return result_.calls.size() > before;
        text.remove_prefix(first);
        Members members(text);
        if (!members.read() || !(members.find("parameters") || members.find("arguments")) || !add_call(text)) {
            result_.calls.resize(before);
            return false;
        }
        text.remove_prefix(members.end());
    }
}

std::variant<ModelResult, ModelError> ReplyReader::finish(std::string& tail) {
    const bool cut = !ended_;
    tail = take_text(stream_.finish());
    const auto protocol = [&](std::string what) {
        what.resize(utf8_floor(what, limits::upstream_error_text_max));
        ModelError error;
        error.error_class = ErrorClass::protocol;
        error.code = ErrorCode::model_protocol_error;
        error.message = "The model wrote a call that cannot be read: " + what;
        return error;
    };
    bool dropped = false;
    if (in_call_) {
        if (template_->kind_ == TemplateKind::chatml) {
            call_text_ = std::move(held_);
            held_.clear();
        }
        Members members(call_text_);
        if (cut && !members.read()) {
            dropped = true;
        } else if (template_->kind_ != TemplateKind::llama3) {
            close_call();
        } else if (!add_calls(call_text_)) {
            tail += show(call_text_);  // JSON that was meant for the reader
        }
    } else if (result_.calls.empty()) {
        tail += show(held_);
    }
    held_.clear();
    const std::string rest = stops_.finish();
    result_.text += rest;
    tail += rest;
    if (!problem_.empty()) return protocol(problem_);
    result_.finish_reason = cut || dropped ? "length" : result_.calls.empty() ? "stop" : "tool_calls";
    return std::move(result_);
}

}  // namespace mainstay
