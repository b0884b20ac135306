#include "runtime/inference/tool_grammar.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cstring>

#include "runtime/base/limits.h"
#include "runtime/inference/chat_request.h"

namespace mainstay {

namespace {

namespace json = boost::json;

constexpr size_t masks_kept = 64;

// What a value may be, as bits.
constexpr uint8_t is_object = 1, is_array = 2, is_string = 4, is_number = 8, is_integer = 16, is_boolean = 32,
                  is_null = 64;
constexpr uint8_t is_anything = is_object | is_array | is_string | is_number | is_boolean | is_null;

// Phases of a frame.
enum Phase : uint8_t {
    value_begins,
    in_choice,
    in_literal,  // a: which, at: bytes
    in_string,
    in_escape,
    in_hex,        // a: digits seen, b: the first was d or D
    in_character,  // UTF-8: a: bytes to come, b, c: bounds of the next
    in_number,     // a: place, at: bytes
    object_begins,
    in_key,
    in_free_key,      // the frame above is the key's text
    key_ended,        // low: node of its value
    value_may_begin,  // a space may come
    value_ended,
    next_key,
    array_begins,
    element_ended,
    next_element,
};

// Places in a number.
enum Place : uint8_t { minus, zero, digits, point, fraction, exponent, exponent_sign, exponent_digits };
bool number_may_end(uint8_t place) {
    return place == zero || place == digits || place == fraction || place == exponent_digits;
}

// Stages of a state.
enum Stage : uint8_t { wants_mark, opens, in_value, closes, call_ended };

constexpr std::string_view literals[] = {"true", "false", "null"};

bool is_digit(unsigned char c) { return c >= '0' && c <= '9'; }

uint8_t type_bit(std::string_view name) {
    if (name == "object") return is_object;
    if (name == "array") return is_array;
    if (name == "string") return is_string;
    if (name == "number") return is_number;
    if (name == "integer") return is_integer;
    if (name == "boolean") return is_boolean;
    if (name == "null") return is_null;
    return 0;
}

/// Narrows [low, high) of sorted texts to those whose byte `at` is `byte`.
template <class Text>
bool narrow(size_t at, unsigned char byte, uint32_t& low, uint32_t& high, Text&& text) {
    const auto key = [&](uint32_t i) {
        const std::string& entry = text(i);
        return at < entry.size() ? static_cast<int>(static_cast<unsigned char>(entry[at])) : -1;
    };
    while (low < high && key(low) < byte) ++low;
    while (low < high && key(high - 1) > byte) --high;
    return low < high;
}

Error invalid(std::string message) { return {ErrorCode::invalid_request, std::move(message), "tools"}; }

std::string inside_quotes(std::string_view text) {
    std::string quoted;
    append_json_string(quoted, text);
    return quoted.substr(1, quoted.size() - 2);
}

}  // namespace

GrammarVocabulary::GrammarVocabulary(std::shared_ptr<const Tokenizer> tokenizer, size_t vocabulary)
    : tokenizer_(std::move(tokenizer)), vocabulary_(std::max(vocabulary, tokenizer_->size())) {
    for (TokenId token = 0; token < tokenizer_->size(); ++token)
        if (!tokenizer_->bytes(token).empty()) order_.push_back(token);
    std::sort(order_.begin(), order_.end(), [&](TokenId a, TokenId b) {
        const int order = tokenizer_->bytes(a).compare(tokenizer_->bytes(b));
        return order != 0 ? order < 0 : a < b;
    });
    shared_before_.assign(order_.size(), 0);
    for (size_t i = 1; i < order_.size(); ++i) {
        const std::string &a = tokenizer_->bytes(order_[i - 1]), &b = tokenizer_->bytes(order_[i]);
        size_t same = 0;
        while (same < std::min(a.size(), b.size()) && a[same] == b[same]) ++same;
        shared_before_[i] = static_cast<uint16_t>(same);
    }
}

/// Schemas to nodes.
class GrammarCompiler {
  public:
    explicit GrammarCompiler(ToolGrammar& grammar) : grammar_(grammar) {
        ToolGrammar::Node anything;
        anything.types = is_anything;
        grammar_.nodes_.push_back(std::move(anything));
    }

    Result<uint32_t> compile(std::string_view schema) {
        bytes_ += schema.size();
        if (bytes_ > limits::grammar_schema_bytes_max)
            return invalid("the schemas are larger than grammar_schema_bytes_max = " +
                           std::to_string(limits::grammar_schema_bytes_max));
        json::error_code failed;
        json::parse_options bounds;
        bounds.max_depth = limits::json_depth_max;
        const json::value root = json::parse(schema, failed, {}, bounds);
        if (failed || !root.is_object()) return invalid("a schema is no JSON object");
        const uint32_t node = compile(root, 0);
        if (grammar_.nodes_.size() > limits::grammar_nodes_max)
            return invalid("the schemas have more parts than grammar_nodes_max = " +
                           std::to_string(limits::grammar_nodes_max));
        return node;
    }

    uint32_t any_object() {
        ToolGrammar::Node node;
        node.types = is_object;
        return add(std::move(node));
    }

  private:
    uint32_t add(ToolGrammar::Node node) {
        grammar_.nodes_.push_back(std::move(node));
        return static_cast<uint32_t>(grammar_.nodes_.size() - 1);
    }

    uint32_t compile(const json::value& value, size_t depth) {
        const json::object* schema = value.if_object();
        if (!schema || depth > limits::grammar_depth_max || grammar_.nodes_.size() > limits::grammar_nodes_max)
            return 0;
        ToolGrammar::Node node;
        if (const json::value* fixed = schema->if_contains("const")) node.choices.push_back(choice_text(*fixed));
        if (const json::value* list = schema->if_contains("enum"); list && list->is_array() && node.choices.empty())
            for (const json::value& choice : list->get_array()) node.choices.push_back(choice_text(choice));
        std::sort(node.choices.begin(), node.choices.end());
        node.choices.erase(std::unique(node.choices.begin(), node.choices.end()), node.choices.end());
        if (!node.choices.empty()) return add(std::move(node));

        node.types = types_of(*schema);
        if (const json::value* items = schema->if_contains("items")) node.items = compile(*items, depth + 1);
        node.items_min = natural(*schema, "minItems", 0);
        node.items_max = std::max(natural(*schema, "maxItems", UINT32_MAX), node.items_min);
        if (const json::value* properties = schema->if_contains("properties"); properties && properties->is_object())
            add_properties(node, *schema, properties->get_object(), depth);
        return add(std::move(node));
    }

    static std::string choice_text(const json::value& choice) {
        if (const json::string* text = choice.if_string()) {
            std::string quoted;
            append_json_string(quoted, *text);
            return quoted;
        }
        return json::serialize(choice);
    }

    static uint8_t types_of(const json::object& schema) {
        uint8_t types = 0;
        if (const json::value* type = schema.if_contains("type")) {
            if (const json::string* name = type->if_string()) types = type_bit(*name);
            if (const json::array* several = type->if_array())
                for (const json::value& entry : *several)
                    if (const json::string* name = entry.if_string()) types |= type_bit(*name);
        } else if (schema.contains("properties")) {
            types = is_object;
        } else if (schema.contains("items")) {
            types = is_array;
        }
        return types ? types : is_anything;
    }

    static uint32_t natural(const json::object& schema, std::string_view key, uint32_t otherwise) {
        const json::value* value = schema.if_contains(key);
        json::error_code failed;
        const auto number = value && value->is_number() ? value->to_number<uint32_t>(failed) : otherwise;
        return failed ? otherwise : number;
    }

    void add_properties(ToolGrammar::Node& node, const json::object& schema, const json::object& properties,
                        size_t depth) {
        std::vector<std::string> required;
        if (const json::value* list = schema.if_contains("required"); list && list->is_array())
            for (const json::value& entry : list->get_array())
                if (const json::string* name = entry.if_string()) required.push_back(inside_quotes(*name));
        if (properties.size() + required.size() > limits::grammar_properties_max) return;
        if (properties.empty() && required.empty()) {
            const json::value* more = schema.if_contains("additionalProperties");
            node.free = !(more && more->is_bool() && !more->get_bool());
            return;
        }
        node.free = false;
        for (const auto& [key, value] : properties)
            node.properties.push_back({inside_quotes(key), compile(value, depth + 1)});
        for (const auto& key : required) {
            const bool known = std::any_of(node.properties.begin(), node.properties.end(),
                                           [&](const auto& property) { return property.key == key; });
            if (!known) node.properties.push_back({key, 0});
        }
        std::sort(node.properties.begin(), node.properties.end(),
                  [](const auto& a, const auto& b) { return a.key < b.key; });
        for (size_t i = 0; i < node.properties.size(); ++i)
            if (std::find(required.begin(), required.end(), node.properties[i].key) != required.end())
                node.required |= uint64_t{1} << i;
    }

    ToolGrammar& grammar_;
    size_t bytes_ = 0;
};

Result<std::shared_ptr<const ToolGrammar>> ToolGrammar::for_calls(std::shared_ptr<const ChatTemplate> chat_template,
                                                                  std::shared_ptr<const GrammarVocabulary> vocabulary,
                                                                  const ToolDefinitions& tools, std::string_view only,
                                                                  bool parallel) {
    auto made = std::make_shared<ToolGrammar>();
    const auto syntax = chat_template->call_syntax();
    GrammarCompiler compiler(*made);
    for (const auto& tool : tools ? *tools : std::vector<ToolDefinition>{}) {
        if (!only.empty() && tool.name != only) continue;
        const auto arguments =
            tool.parameters.empty() ? Result<uint32_t>(compiler.any_object()) : compiler.compile(tool.parameters);
        if (!arguments) return invalid("tool \"" + tool.name + "\": " + arguments.error().message);
        made->calls_.push_back({syntax.open + inside_quotes(tool.name) + syntax.middle, *arguments});
    }
    if (made->calls_.empty())
        return invalid(only.empty() ? "a call is required, but no tool is offered"
                                    : "a call of \"" + std::string(only) + "\" is required, which is not offered");
    std::sort(made->calls_.begin(), made->calls_.end(), [](const Call& a, const Call& b) { return a.open < b.open; });
    made->close_ = syntax.close;
    made->mark_ = syntax.mark;
    made->between_ = syntax.between;
    made->spaces_ = syntax.spaces;
    made->parallel_ = parallel && (syntax.mark || !syntax.between.empty());
    made->template_ = std::move(chat_template);
    made->vocabulary_ = std::move(vocabulary);
    return std::shared_ptr<const ToolGrammar>(std::move(made));
}

Result<std::shared_ptr<const ToolGrammar>> ToolGrammar::for_json(std::shared_ptr<const ChatTemplate> chat_template,
                                                                 std::shared_ptr<const GrammarVocabulary> vocabulary,
                                                                 std::string_view schema) {
    auto made = std::make_shared<ToolGrammar>();
    GrammarCompiler compiler(*made);
    const auto root = schema.empty() ? Result<uint32_t>(compiler.any_object()) : compiler.compile(schema);
    if (!root) return Error{root.error().code, root.error().message, "text.format"};
    made->root_ = *root;
    made->spaces_ = chat_template->call_syntax().spaces;
    made->template_ = std::move(chat_template);
    made->vocabulary_ = std::move(vocabulary);
    return std::shared_ptr<const ToolGrammar>(std::move(made));
}

// --- the automaton
// ----------------------------------------------------------------------------------------------------

bool ToolGrammar::step(State& state, unsigned char byte) const {
    if (!calls_.empty()) return step_calls(state, byte);
    const Taken taken = state.frames.empty() ? Taken::no : step_value(state, byte);
    return taken == Taken::yes;
}

bool ToolGrammar::step_calls(State& state, unsigned char byte) const {
    switch (state.stage) {
        case wants_mark: return false;
        case opens: {
            if (!narrow(state.at, byte, state.low, state.high,
                        [&](uint32_t i) -> const std::string& { return calls_[i].open; }))
                return false;
            ++state.at;
            // What opens a call ends with a quote and a colon, so none is the beginning of another.
            if (state.at < calls_[state.low].open.size()) return true;
            state.stage = in_value;
            state.frames.push_back({});
            state.frames.back().node = calls_[state.low].arguments;
            return true;
        }
        case in_value: {
            const Taken taken = step_value(state, byte);
            if (taken == Taken::no) return false;
            if (!state.frames.empty()) return true;
            state.stage = closes;
            state.at = 0;
            if (taken == Taken::yes) return true;
            return step_calls(state, byte);
        }
        case closes:
            if (static_cast<unsigned char>(close_[state.at]) != byte) return false;
            if (++state.at == close_.size()) {
                state.stage = call_ended;
                state.at = 0;
            }
            return true;
        case call_ended: break;
    }
    if (!parallel_ || mark_ || static_cast<unsigned char>(between_[state.at]) != byte) return false;
    if (++state.at == between_.size()) {
        state.stage = opens;
        state.low = state.at = 0;
        state.high = static_cast<uint32_t>(calls_.size());
    }
    return true;
}

/// Gives `byte` to the innermost value. A value that has no end of its own (a number) ends at a byte that it cannot
/// take, which then belongs to what is around it.
ToolGrammar::Taken ToolGrammar::step_value(State& state, unsigned char byte) const {
    while (true) {
        Frame& frame = state.frames.back();
        Taken taken = Taken::no;
        switch (frame.phase) {
            case value_begins: taken = begin_value(state, frame, byte); break;
            case in_choice: taken = step_choice(frame, byte); break;
            case in_literal:
                if (static_cast<unsigned char>(literals[frame.a][frame.at]) != byte) return Taken::no;
                taken = ++frame.at == literals[frame.a].size() ? Taken::closed : Taken::yes;
                break;
            case in_string:
                taken = Taken::yes;
                if (byte == '"') {
                    taken = Taken::closed;
                } else if (byte == '\\') {
                    frame.phase = in_escape;
                } else if (byte < 0x20) {
                    return Taken::no;
                } else if (byte >= 0x80) {
                    if (byte < 0xc2 || byte > 0xf4) return Taken::no;
                    frame.phase = in_character;
                    frame.a = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
                    frame.b = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
                    frame.c = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
                }
                break;
            case in_escape:
                if (byte == 'u') {
                    frame.phase = in_hex;
                    frame.a = frame.b = 0;
                } else {
                    if (std::string_view("\"\\/bfnrt").find(static_cast<char>(byte)) == std::string_view::npos)
                        return Taken::no;
                    frame.phase = in_string;
                }
                taken = Taken::yes;
                break;
            case in_hex: {
                const unsigned char lower = byte | 0x20;
                if (!is_digit(byte) && !(lower >= 'a' && lower <= 'f')) return Taken::no;
                // Halves of surrogate pairs are no characters.
                if (frame.a == 1 && frame.b && !(byte >= '0' && byte <= '7')) return Taken::no;
                if (frame.a == 0) frame.b = lower == 'd';
                if (++frame.a == 4) {
                    frame.phase = in_string;
                    frame.a = frame.b = 0;
                }
                taken = Taken::yes;
                break;
            }
            case in_character:
                if (byte < frame.b || byte > frame.c) return Taken::no;
                frame.b = 0x80;
                frame.c = 0xbf;
                if (--frame.a == 0) {
                    frame.phase = in_string;
                    frame.b = frame.c = 0;
                }
                taken = Taken::yes;
                break;
            case in_number: {
                const bool integer = !(nodes_[frame.node].types & is_number);
                uint8_t next = UINT8_MAX;
                switch (frame.a) {
                    case minus:
                        if (is_digit(byte)) next = byte == '0' ? zero : digits;
                        break;
                    case zero:
                    case digits:
                        if (frame.a == digits && is_digit(byte)) next = digits;
                        if (!integer && byte == '.') next = point;
                        if (!integer && (byte == 'e' || byte == 'E')) next = exponent;
                        break;
                    case point:
                    case fraction:
                        if (is_digit(byte)) next = fraction;
                        if (frame.a == fraction && (byte == 'e' || byte == 'E')) next = exponent;
                        break;
                    case exponent:
                        if (byte == '+' || byte == '-') next = exponent_sign;
                        if (is_digit(byte)) next = exponent_digits;
                        break;
                    case exponent_sign:
                        if (is_digit(byte)) next = exponent_digits;
                        break;
                    default:  // two digits, so that the number is one that a reader can hold
                        if (is_digit(byte) && frame.b == 1) next = exponent_digits;
                }
                // Near the bound only what can end at once is begun.
                const bool room =
                    frame.at < limits::grammar_number_bytes_max ||
                    (frame.at < limits::grammar_number_bytes_max + 3 && next != UINT8_MAX && !number_may_end(frame.a));
                if (next != UINT8_MAX && room) {
                    frame.a = next;
                    if (next == exponent_digits) ++frame.b;
                    ++frame.at;
                    taken = Taken::yes;
                } else if (number_may_end(frame.a)) {
                    taken = Taken::ended;
                }
                break;
            }
            case array_begins:
            case element_ended:
            case next_element: taken = step_array(state, byte); break;
            default: taken = step_object(state, byte); break;
        }
        if (taken == Taken::no || taken == Taken::yes) return taken;
        state.frames.pop_back();
        const bool mine = taken == Taken::closed;
        if (state.frames.empty()) return mine ? Taken::yes : Taken::ended;
        Frame& around = state.frames.back();
        if (around.phase == in_free_key) {
            around.phase = key_ended;
            around.low = 0;
        } else if (around.phase == value_may_begin) {
            around.phase = value_ended;
        } else {
            around.phase = element_ended;
            ++around.at;
        }
        if (mine) return Taken::yes;
    }
}

ToolGrammar::Taken ToolGrammar::begin_value(State& state, Frame& frame, unsigned char byte) const {
    const Node& node = nodes_[frame.node];
    if (!node.choices.empty()) {
        frame.phase = in_choice;
        frame.low = frame.at = 0;
        frame.high = static_cast<uint32_t>(node.choices.size());
        return step_choice(frame, byte);
    }
    const uint8_t types = node.types;
    frame.at = 0;
    if (byte == '"' && types & is_string) {
        frame.phase = in_string;
        return Taken::yes;
    }
    if ((byte == '-' || is_digit(byte)) && types & (is_number | is_integer)) {
        frame.phase = in_number;
        frame.a = byte == '-' ? minus : byte == '0' ? zero : digits;
        frame.at = 1;
        return Taken::yes;
    }
    const bool word = ((byte == 't' || byte == 'f') && types & is_boolean) || (byte == 'n' && types & is_null);
    if (word) {
        frame.phase = in_literal;
        frame.a = byte == 't' ? 0 : byte == 'f' ? 1 : 2;
        frame.at = 1;
        return Taken::yes;
    }
    if (state.frames.size() > limits::grammar_depth_max) return Taken::no;
    if (byte == '{' && types & is_object) {
        frame.phase = object_begins;
        return Taken::yes;
    }
    if (byte == '[' && types & is_array) {
        frame.phase = array_begins;
        return Taken::yes;
    }
    return Taken::no;
}

ToolGrammar::Taken ToolGrammar::step_choice(Frame& frame, unsigned char byte) const {
    const auto& choices = nodes_[frame.node].choices;
    const auto text = [&](uint32_t i) -> const std::string& { return choices[i]; };
    uint32_t low = frame.low, high = frame.high;
    if (!narrow(frame.at, byte, low, high, text)) {
        // The shortest of those that begin alike stands first.
        return frame.at > 0 && choices[frame.low].size() == frame.at ? Taken::ended : Taken::no;
    }
    frame.low = low;
    frame.high = high;
    ++frame.at;
    return Taken::yes;
}

bool ToolGrammar::push_value(State& state, uint32_t node, unsigned char byte) const {
    state.frames.push_back({});
    state.frames.back().node = node;
    return begin_value(state, state.frames.back(), byte) == Taken::yes;
}

ToolGrammar::Taken ToolGrammar::step_object(State& state, unsigned char byte) const {
    Frame& frame = state.frames.back();
    const Node& node = nodes_[frame.node];
    const auto yes = [](bool taken) { return taken ? Taken::yes : Taken::no; };
    const auto close = [&] {
        if ((frame.used & node.required) != node.required) return Taken::no;
        return Taken::closed;
    };
    const auto all_used = [&] {
        const size_t count = node.properties.size();
        return count == 64 ? frame.used == UINT64_MAX : frame.used == (uint64_t{1} << count) - 1;
    };
    const auto begin_key = [&] {
        if (node.free) {
            frame.phase = in_free_key;
            state.frames.push_back({});
            state.frames.back().phase = in_string;
            return Taken::yes;
        }
        if (all_used()) return Taken::no;
        frame.phase = in_key;
        frame.low = frame.at = 0;
        frame.high = static_cast<uint32_t>(node.properties.size());
        return Taken::yes;
    };
    switch (frame.phase) {
        case object_begins:
            if (byte == '}') return close();
            return byte == '"' ? begin_key() : Taken::no;
        case in_key: {
            const auto text = [&](uint32_t i) -> const std::string& { return node.properties[i].key; };
            if (byte == '"' && text(frame.low).size() == frame.at) {
                if (frame.used >> frame.low & 1) return Taken::no;
                frame.used |= uint64_t{1} << frame.low;
                frame.phase = key_ended;
                frame.low = node.properties[frame.low].node;
                return Taken::yes;
            }
            if (!narrow(frame.at, byte, frame.low, frame.high, text)) return Taken::no;
            ++frame.at;
            for (uint32_t i = frame.low; i < frame.high; ++i)
                if (!(frame.used >> i & 1)) return Taken::yes;
            return Taken::no;
        }
        case key_ended:
            frame.phase = value_may_begin;
            frame.a = 0;
            return yes(byte == ':');
        case value_may_begin: {
            if (byte == ' ' && spaces_ && frame.a == 0) {
                frame.a = 1;
                return Taken::yes;
            }
            const uint32_t value = frame.low;
            frame.a = 0;
            frame.low = frame.high = frame.at = 0;
            return yes(push_value(state, value, byte));
        }
        case value_ended:
            if (byte == '}') return close();
            if (byte != ',' || (!node.free && all_used())) return Taken::no;
            frame.phase = next_key;
            frame.a = 0;
            return Taken::yes;
        default:  // next_key
            if (byte == ' ' && spaces_ && frame.a == 0) {
                frame.a = 1;
                return Taken::yes;
            }
            frame.a = 0;
            return byte == '"' ? begin_key() : Taken::no;
    }
}

ToolGrammar::Taken ToolGrammar::step_array(State& state, unsigned char byte) const {
    Frame& frame = state.frames.back();
    const Node& node = nodes_[frame.node];
    if (byte == ']' && frame.phase != next_element) {
        return frame.at < node.items_min ? Taken::no : Taken::closed;
    }
    if (frame.phase == element_ended) {
        if (byte != ',' || frame.at >= node.items_max) return Taken::no;
        frame.phase = next_element;
        frame.a = 0;
        return Taken::yes;
    }
    if (frame.phase == next_element && byte == ' ' && spaces_ && frame.a == 0) {
        frame.a = 1;
        return Taken::yes;
    }
    if (frame.phase == array_begins && node.items_max == 0) return Taken::no;
    frame.a = 0;
    frame.phase = next_element;
    return push_value(state, node.items, byte) ? Taken::yes : Taken::no;
}

bool ToolGrammar::value_complete(const State& state) const {
    if (state.frames.empty()) return true;
    if (state.frames.size() > 1) return false;
    const Frame& frame = state.frames.back();
    if (frame.phase == in_number) return number_may_end(frame.a);
    return frame.phase == in_choice && frame.at > 0 && nodes_[frame.node].choices[frame.low].size() == frame.at;
}

std::string ToolGrammar::key_of(const State& state) {
    std::string key;
    const auto put = [&](const auto& value) { key.append(reinterpret_cast<const char*>(&value), sizeof value); };
    put(state.stage);
    put(state.low);
    put(state.high);
    put(state.at);
    for (const Frame& frame : state.frames) {
        put(frame.node);
        put(frame.phase);
        put(frame.a);
        put(frame.b);
        put(frame.c);
        put(frame.low);
        put(frame.high);
        put(frame.at);
        put(frame.used);
    }
    return key;
}

// --- tokens
// -------------------------------------------------------------------------------------------------------------

GrammarCursor::GrammarCursor(std::shared_ptr<const ToolGrammar> grammar) : grammar_(std::move(grammar)) {
    if (grammar_->calls_.empty()) {
        state_.stage = in_value;
        state_.frames.push_back({});
        state_.frames.back().node = grammar_->root_;
        return;
    }
    state_.stage = grammar_->mark_ ? wants_mark : opens;
    state_.high = static_cast<uint32_t>(grammar_->calls_.size());
}

bool GrammarCursor::complete() const {
    if (grammar_->calls_.empty()) return grammar_->value_complete(state_);
    return state_.stage == call_ended && state_.at == 0;
}

bool GrammarCursor::advance(TokenId token) {
    if (finished_) return false;
    if (grammar_->template_->is_stop(token)) return finished_ = complete();
    if (grammar_->mark_ == token) {
        if (state_.stage != wants_mark && !(grammar_->parallel_ && complete())) return false;
        state_.stage = opens;
        state_.low = state_.at = 0;
        state_.high = static_cast<uint32_t>(grammar_->calls_.size());
        return true;
    }
    const std::string& bytes = grammar_->vocabulary_->tokenizer().bytes(token);
    if (bytes.empty()) return false;
    auto next = state_;
    for (const char byte : bytes)
        if (!grammar_->step(next, static_cast<unsigned char>(byte))) return false;
    state_ = std::move(next);
    return true;
}

const std::vector<uint64_t>& GrammarCursor::allowed() {
    std::string key = ToolGrammar::key_of(state_);
    const auto found = masks_.find(key);
    if (found != masks_.end()) return found->second;
    if (masks_.size() >= masks_kept) masks_.clear();
    return masks_[std::move(key)] = compute();
}

std::vector<uint64_t> GrammarCursor::compute() const {
    const auto& vocabulary = *grammar_->vocabulary_;
    std::vector<uint64_t> mask(vocabulary.words(), 0);
    const auto allow = [&](TokenId token) { mask[token / 64] |= uint64_t{1} << token % 64; };
    if (complete())
        for (const TokenId token : grammar_->template_->stops()) allow(token);
    if (grammar_->mark_ && (state_.stage == wants_mark || (grammar_->parallel_ && complete()))) allow(*grammar_->mark_);
    if (state_.stage == wants_mark) return mask;
    // Tokens in the order of their bytes: the states after their common bytes are computed once, and all that begin
    // with bytes that cannot come are passed over.
    std::vector<ToolGrammar::State> after{state_};
    size_t alive = 0, length_before = 0;  // bytes of the token before that could come, and all of them
    for (size_t i = 0; i < vocabulary.order_.size(); ++i) {
        const size_t shared = vocabulary.shared_before_[i];
        if (i > 0 && alive < length_before && shared > alive) continue;
        const std::string& bytes = vocabulary.tokenizer().bytes(vocabulary.order_[i]);
        alive = std::min(alive, shared);
        length_before = bytes.size();
        while (alive < bytes.size()) {
            if (after.size() < alive + 2) after.resize(alive + 2);
            after[alive + 1] = after[alive];
            if (!grammar_->step(after[alive + 1], static_cast<unsigned char>(bytes[alive]))) break;
            ++alive;
        }
        if (alive == bytes.size()) allow(vocabulary.order_[i]);
    }
    return mask;
}

}  // namespace mainstay
