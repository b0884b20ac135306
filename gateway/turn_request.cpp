#include "gateway/turn_request.h"

#include <algorithm>
#include <array>
#include <unordered_set>

#include "gateway/input_items.h"
#include "gateway/json_writer.h"
#include "gateway/request_json.h"
#include "runtime/base/digest.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

namespace json = boost::json;

constexpr std::array known_fields = std::to_array<std::string_view>({
    "background",
    "conversation",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "model",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
});
static_assert(std::ranges::is_sorted(known_fields));

constexpr size_t tools_max = 128;
constexpr size_t function_name_bytes_max = 64;
constexpr size_t short_text_bytes_max = 512;

/// The JSON object of what a turn keeps of its request, fields in a fixed order.
class OptionsWriter {
  public:
    explicit OptionsWriter(std::string& out) : writer_(out) {}
    JsonWriter& field(std::string_view name) {
        return writer_.raw(std::exchange(first_, false) ? "{" : ",").string(name).raw(":");
    }
    void close() { writer_.raw(first_ ? "{}" : "}"); }
    void value(std::string_view name, const json::value& value) { append_json(field(name).out(), value); }

  private:
    JsonWriter writer_;
    bool first_ = true;
};

bool is_function_name(std::string_view name) {
    return !name.empty() && name.size() <= function_name_bytes_max && std::ranges::all_of(name, [](unsigned char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
    });
}

/// Function tools as they are echoed: description, parameters and strict are always there.
void read_tools(FieldReader& fields, OptionsWriter& options) {
    const auto* tools = fields.array("tools");
    if (tools == nullptr || tools->empty()) return;
    if (tools->size() > tools_max) {
        fields.fail(ErrorCode::invalid_request, "has more than " + std::to_string(tools_max) + " tools", "tools");
        return;
    }
    auto& out = options.field("tools");
    std::unordered_set<std::string_view> names;
    for (size_t i = 0; i < tools->size(); ++i) {
        const auto path = "tools[" + std::to_string(i) + "]";
        const auto* object = (*tools)[i].if_object();
        if (object == nullptr) {
            fields.fail(Error{ErrorCode::invalid_request, "'" + path + "' must be an object.", path});
            return;
        }
        FieldReader tool(*object, path);
        const auto type = tool.required_text("type");
        if (!tool.failed() && type != "function")
            tool.fail(ErrorCode::unsupported_value,
                      "'" + quoted_back(type) + "' is not supported: a request brings functions, an agent brings tools",
                      "type");
        const auto name = tool.required_text("name");
        if (!tool.failed() && !is_function_name(name))
            tool.fail(ErrorCode::invalid_request, "must be 1 to 64 letters, digits, _ or -", "name");
        if (!tool.failed() && !names.insert(name).second)
            tool.fail(ErrorCode::invalid_request, "is used by two tools", "name");
        const auto description = tool.text("description");
        const auto* parameters = tool.object("parameters");
        const auto strict = tool.boolean("strict");
        if (tool.failed()) {
            fields.fail(tool.take_error());
            return;
        }
        out.raw(i == 0 ? "[" : ",").raw("{\"type\":\"function\",\"name\":").string(name).raw(",\"description\":");
        description ? out.string(*description) : out.raw("null");
        out.raw(",\"parameters\":");
        if (parameters != nullptr)
            append_json(out.out(), *tool.find("parameters"));
        else
            out.raw("null");
        out.raw(",\"strict\":").raw(strict ? (*strict ? "true" : "false") : "null").raw("}");
    }
    out.raw("]");
}

void read_tool_choice(FieldReader& fields, OptionsWriter& options) {
    const auto* choice = fields.find("tool_choice");
    if (choice == nullptr) return;
    if (const auto* text = choice->if_string()) {
        if (*text != "auto" && *text != "none" && *text != "required")
            fields.fail(ErrorCode::unsupported_value, "must be auto, none, required or a function", "tool_choice");
    } else if (const auto* object = choice->if_object()) {
        FieldReader named(*object, "tool_choice");
        if (named.required_text("type") != "function" && !named.failed())
            named.fail(ErrorCode::unsupported_value, "must be function", "type");
        (void)named.required_text("name");
        if (named.failed()) fields.fail(named.take_error());
    } else {
        fields.fail(ErrorCode::invalid_request, "must be a string or an object", "tool_choice");
    }
    if (!fields.failed()) options.value("tool_choice", *choice);
}

void read_text_format(FieldReader& fields, OptionsWriter& options) {
    const auto* text = fields.object("text");
    if (text == nullptr) return;
    FieldReader inner(*text, "text");
    if (const auto* format = inner.object("format")) {
        FieldReader of(*format, "text.format");
        const auto type = of.required_text("type");
        if (!of.failed() && type != "text" && type != "json_object" && type != "json_schema")
            of.fail(ErrorCode::unsupported_value, "must be text, json_object or json_schema", "type");
        if (of.failed()) inner.fail(of.take_error());
    }
    if (inner.failed()) fields.fail(inner.take_error());
    options.value("text", *fields.find("text"));
}

std::optional<std::string_view> short_text(FieldReader& fields, std::string_view key) {
    const auto text = fields.text(key);
    if (text && text->size() > short_text_bytes_max)
        fields.fail(ErrorCode::invalid_request, "exceeds " + std::to_string(short_text_bytes_max) + " bytes", key);
    return text;
}

/// Not OpenAI's in this API, but what vLLM and others know them as: they mean something to models on devices of our
/// own.
void read_extensions(FieldReader& fields, OptionsWriter& options) {
    if (const auto seed = fields.integer("seed", 0, INT64_MAX))
        options.field("seed").number(static_cast<uint64_t>(*seed));
    if (const auto k = fields.integer("top_k", 0, UINT32_MAX)) options.field("top_k").number(static_cast<uint64_t>(*k));
    const auto* stop = fields.find("stop");
    if (stop == nullptr || stop->is_null()) return;
    const auto* list = stop->if_array();
    const auto fits = [](const json::value& text) {
        return text.is_string() && !text.get_string().empty() &&
               text.get_string().size() <= limits::stop_sequence_bytes_max;
    };
    const bool good =
        list ? list->size() <= limits::stop_sequences_max && std::ranges::all_of(*list, fits) : fits(*stop);
    if (!good)
        fields.fail(ErrorCode::invalid_request,
                    "must be a text or a list of at most " + std::to_string(limits::stop_sequences_max) + ", of 1 to " +
                        std::to_string(limits::stop_sequence_bytes_max) + " bytes each",
                    "stop");
    else
        options.value("stop", *stop);
}

/// Everything that the answer echoes or the step uses, in the order of the answer's keys.
void read_options(FieldReader& fields, TurnRequest& turn) {
    OptionsWriter options(turn.options);
    if (const auto text = fields.text("instructions")) options.field("instructions").string(*text);
    read_tools(fields, options);
    read_tool_choice(fields, options);
    if (const auto mode = fields.text("truncation")) {
        if (*mode != "auto" && *mode != "disabled")
            fields.fail(ErrorCode::unsupported_value, "must be auto or disabled", "truncation");
        options.field("truncation").string(*mode);
    }
    if (const auto parallel = fields.boolean("parallel_tool_calls"))
        options.field("parallel_tool_calls").boolean(*parallel);
    read_text_format(fields, options);
    if (const auto p = fields.number("top_p", 0, 1)) options.field("top_p").number(*p);
    if (const auto n = fields.integer("top_logprobs", 0, 20))
        options.field("top_logprobs").number(static_cast<uint64_t>(*n));
    if (const auto t = fields.number("temperature", 0, 2)) options.field("temperature").number(*t);
    if (fields.object("reasoning") != nullptr) options.value("reasoning", *fields.find("reasoning"));
    if (const auto n = fields.integer("max_output_tokens", 1, UINT32_MAX)) {
        turn.max_output_tokens = static_cast<uint32_t>(*n);
        options.field("max_output_tokens").number(static_cast<uint64_t>(*n));
    }
    if (const auto n = fields.integer("max_tool_calls", 1, UINT32_MAX))
        options.field("max_tool_calls").number(static_cast<uint64_t>(*n));
    turn.store = fields.boolean("store").value_or(true);
    if (!turn.store) options.field("store").boolean(false);
    turn.background = fields.boolean("background").value_or(false);
    if (turn.background) options.field("background").boolean(true);
    if (const auto tier = short_text(fields, "service_tier")) options.field("service_tier").string(*tier);
    turn.metadata = read_metadata(fields);
    if (turn.metadata != "{}") options.field("metadata").raw(turn.metadata);
    read_extensions(fields, options);
    for (const std::string_view key : {"safety_identifier", "prompt_cache_key", "prompt_cache_retention", "user"})
        if (const auto text = short_text(fields, key)) options.field(key).string(*text);
    options.close();
    if (turn.options.size() > limits::options_bytes_max)
        fields.fail(Error{
            ErrorCode::body_too_large,
            "Instructions, tools and the other options exceed " + std::to_string(limits::options_bytes_max) + " bytes.",
            "tools"});
}

void read_continuation(FieldReader& fields, TurnRequest& turn) {
    if (const auto previous = fields.text("previous_response_id")) {
        turn.previous = parse_response_id(*previous);
        if (!turn.previous)
            fields.fail(Error{ErrorCode::previous_response_not_found,
                              "Previous response '" + quoted_back(*previous) + "' was not found.",
                              "previous_response_id"});
    }
    const auto* value = fields.find("conversation");
    if (value == nullptr) return;
    std::string_view id;
    if (const auto* text = value->if_string()) {
        id = {text->data(), text->size()};
    } else if (const auto* object = value->if_object()) {
        FieldReader inner(*object, "conversation");
        id = inner.required_text("id");
        if (inner.failed()) fields.fail(inner.take_error());
    } else {
        fields.fail(ErrorCode::invalid_request, "must be an id or an object with an id", "conversation");
    }
    if (fields.failed()) return;
    turn.conversation = parse_session_id(id);
    if (!turn.conversation)
        fields.fail(Error{ErrorCode::session_not_found, "Conversation '" + quoted_back(id) + "' was not found.",
                          "conversation"});
    if (turn.previous)
        fields.fail(ErrorCode::invalid_request, "cannot be used together with 'previous_response_id'", "conversation");
}

void check_known(FieldReader& fields, const json::object& object) {
    for (const auto& pair : object) {
        const std::string_view key(pair.key().data(), pair.key().size());
        if (std::ranges::binary_search(known_fields, key)) continue;
        const auto shown = quoted_back(key);
        fields.fail(Error{ErrorCode::unknown_field, "Unknown field '" + shown + "'.", shown});
        return;
    }
}

}  // namespace

Result<void> check_idempotency_key(std::string_view key) {
    if (key.size() > limits::idempotency_key_bytes_max)
        return {ErrorCode::invalid_request,
                "Idempotency-Key exceeds " + std::to_string(limits::idempotency_key_bytes_max) + " bytes.",
                "Idempotency-Key"};
    if (!std::ranges::all_of(key, [](char c) { return c >= 0x20 && c < 0x7f; }))
        return {ErrorCode::invalid_request, "Idempotency-Key must be printable ASCII.", "Idempotency-Key"};
    return {};
}

Result<ResponsesRequest> parse_responses_request(std::string_view body, std::string_view idempotency_key) {
    ResponsesRequest request;
    if (auto ok = check_idempotency_key(idempotency_key); !ok) return ok.error();
    JsonBody document;
    if (auto ok = document.parse(body); !ok) return ok.error();
    FieldReader fields(document.object(), "");
    check_known(fields, document.object());
    auto& turn = request.turn;
    turn.agent = fields.required_text("model");
    if (!fields.failed() && (turn.agent.empty() || turn.agent.size() > short_text_bytes_max))
        fields.fail(ErrorCode::invalid_request, "must name an agent or a model", "model");
    if (fields.object("prompt") != nullptr)
        fields.fail(ErrorCode::not_yet, "is not supported yet: make an agent of it", "prompt");
    (void)fields.array("include");
    (void)fields.object("stream_options");
    request.stream = fields.boolean("stream").value_or(false);
    turn.items = read_input_items(fields, "input");
    read_continuation(fields, turn);
    read_options(fields, turn);
    if (!fields.failed() && turn.items.empty() && !turn.conversation && !turn.previous)
        fields.fail(ErrorCode::invalid_request, "is required", "input");
    if (turn.background && !turn.store)
        fields.fail(ErrorCode::invalid_request, "needs 'store': the answer could not be read later", "background");
    if (fields.failed()) return fields.take_error();
    if (!idempotency_key.empty()) {
        turn.idempotency_key = idempotency_key;
        std::string canonical;
        canonical.reserve(body.size());
        append_json(canonical, document.object(), true);
        turn.request_digest = digest64(canonical);
    }
    return request;
}

}  // namespace mainstay
