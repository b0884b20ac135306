#include "runtime/agent/tree.h"

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <optional>
#include <utility>

#include "runtime/base/limits.h"

// Header-only and without exceptions, so that a bad file is a value here and not a throw through foreign frames.
#define TOML_EXCEPTIONS 0
// Some of its assertions do not hold for bad input ("[!]"), and a file must never end the process: one that fails is
// thrown as far as parse_toml. Without NDEBUG, under which they would become assumptions of the optimiser.
struct TomlAssertionFailed {};
#undef NDEBUG
#define TOML_ASSERT(condition)                         \
    do {                                               \
        if (!(condition)) throw TomlAssertionFailed{}; \
    } while (false)
#undef TOML_SHARED_LIB  // Debian's package sets both
#undef TOML_HEADER_ONLY
#define TOML_HEADER_ONLY 1
#define TOML_MAX_NESTED_VALUES 32
#include <toml++/toml.h>

namespace mainstay {
namespace {

// Nothing that we read is deeper than six levels; toml++ bounds values in values but not the segments of one key.
constexpr size_t key_segments_max = 8;
constexpr size_t nodes_max = 100'000;

Error refuse(ErrorCode code, std::string_view source, uint32_t line, std::string what) {
    std::string message(source);
    if (line != 0) message += ":" + std::to_string(line);
    if (!message.empty()) message += ": ";
    return {code, message + what, {}};
}

void sort_keys(Node& node) {
    std::sort(node.table.begin(), node.table.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
}

// --- TOML -------------------------------------------------------------------------------------------------------

/// A key of thousands of segments ("a.a.a.a...") would become a tree that deep, and its destructor a stack overflow.
/// Counts dots between separators, outside of strings and comments. Returns the line, 0 if there is no such key.
class DottedKeyScan {
  public:
    explicit DottedKeyScan(std::string_view text) : text_(text) {}

    uint32_t line_of_deep_key() {
        while (at_ < text_.size()) {
            if (text_[at_] == '"' || text_[at_] == '\'') {
                skip_string();
                continue;
            }
            if (text_[at_] == '#') {
                at_ = std::min(text_.find('\n', at_), text_.size());
                continue;
            }
            if (!step()) return line_;
        }
        return 0;
    }

  private:
    bool step() {
        const char c = text_[at_++];
        if (c == '\n') ++line_;
        if (c == '.') return ++dots_ < key_segments_max;
        if (c == '\n' || c == '=' || c == ',' || c == '{' || c == '}') dots_ = 0;
        return true;
    }

    void skip_string() {
        const char quote = text_[at_];
        const std::string triple(3, quote);
        const bool multi = text_.substr(at_, 3) == triple;
        at_ += multi ? 3 : 1;
        while (at_ < text_.size()) {
            if (text_[at_] == '\n') {
                if (!multi) return;  // malformed: the parser says so
                ++line_;
            }
            if (quote == '"' && text_[at_] == '\\') {
                if (at_ + 1 < text_.size() && text_[at_ + 1] == '\n') ++line_;
                at_ += 2;
            } else if (multi && text_.substr(at_, 3) == triple) {
                at_ += 3;
                // Up to two more quotes may stand before the closing three.
                for (int extra = 0; extra < 2 && at_ < text_.size() && text_[at_] == quote; ++extra) ++at_;
                return;
            } else if (!multi && text_[at_] == quote) {
                ++at_;
                return;
            } else {
                ++at_;
            }
        }
    }

    std::string_view text_;
    size_t at_ = 0;
    uint32_t line_ = 1;
    size_t dots_ = 0;
};

Node from_toml(const toml::node& from);

Node from_toml_table(const toml::table& from) {
    Node node;
    node.kind = Node::Kind::table;
    for (const auto& [key, value] : from) {
        node.table.push_back({std::string(key.str()), from_toml(value)});
        // The key's line, not the value's: a text of many lines begins below its key's problem.
        if (key.source().begin.line != 0) node.table.back().value.line = key.source().begin.line;
    }
    sort_keys(node);
    return node;
}

Node from_toml(const toml::node& from) {
    Node node;
    if (const auto* table = from.as_table()) {
        node = from_toml_table(*table);
    } else if (const auto* list = from.as_array()) {
        node.kind = Node::Kind::list;
        for (const auto& value : *list) node.list.push_back(from_toml(value));
    } else if (const auto* text = from.as_string()) {
        node.kind = Node::Kind::text;
        node.text = text->get();
    } else if (const auto* integer = from.as_integer()) {
        node.kind = Node::Kind::integer;
        node.integer = integer->get();
    } else if (const auto* real = from.as_floating_point()) {
        node.kind = Node::Kind::real;
        node.real = real->get();
    } else if (const auto* boolean = from.as_boolean()) {
        node.kind = Node::Kind::boolean;
        node.boolean = boolean->get();
    }  // dates stay null: nothing of ours is one
    node.line = from.source().begin.line;
    return node;
}

Result<Node> parse_checked_toml(std::string_view text, std::string_view source) {
    if (const uint32_t line = DottedKeyScan(text).line_of_deep_key())
        return refuse(ErrorCode::json_too_deep, source, line,
                      "a key has more than " + std::to_string(key_segments_max) + " segments");
    const toml::parse_result parsed = toml::parse(text, source);
    if (!parsed) {
        const auto& problem = parsed.error();
        return refuse(ErrorCode::invalid_request, source, problem.source().begin.line,
                      "malformed TOML: " + std::string(problem.description()));
    }
    return from_toml_table(parsed.table());
}

Result<Node> parse_toml(std::string_view text, std::string_view source) {
    try {
        return parse_checked_toml(text, source);
    } catch (const TomlAssertionFailed&) {
        return refuse(ErrorCode::invalid_request, source, 0,
                      "malformed TOML: a character stands where none like it may, such as in [!]");
    }
}

// --- JSON -------------------------------------------------------------------------------------------------------

/// Builds the tree from Boost.JSON's events. (Its own value type keeps the last of two equal keys silently; TOML
/// refuses them, and so do we.)
struct JsonHandler {
    static constexpr size_t max_object_size = nodes_max;
    static constexpr size_t max_array_size = nodes_max;
    static constexpr size_t max_key_size = limits::agent_file_bytes_max;
    static constexpr size_t max_string_size = limits::agent_file_bytes_max;
    using Code = boost::json::error_code;

    std::vector<Node> stack;  // open tables and lists
    std::vector<std::string> keys;
    std::string piece;
    Node root;
    bool repeated_key = false;

    bool put(Node node) {
        if (stack.empty()) {
            root = std::move(node);
        } else if (stack.back().kind == Node::Kind::list) {
            stack.back().list.push_back(std::move(node));
        } else {
            stack.back().table.push_back({std::move(keys.back()), std::move(node)});
            keys.pop_back();
        }
        return true;
    }
    bool open(Node::Kind kind) {
        stack.emplace_back();
        stack.back().kind = kind;
        return true;
    }
    bool close() {
        Node node = std::move(stack.back());
        stack.pop_back();
        sort_keys(node);
        const auto same = [](const auto& a, const auto& b) { return a.key == b.key; };
        const auto twice = std::adjacent_find(node.table.begin(), node.table.end(), same);
        if (twice != node.table.end() && !repeated_key) {
            repeated_key = true;
            piece = twice->key;
        }
        put(std::move(node));
        return true;
    }
    std::string take() { return std::exchange(piece, {}); }

    bool on_document_begin(Code&) { return true; }
    bool on_document_end(Code&) { return true; }
    bool on_object_begin(Code&) { return open(Node::Kind::table); }
    bool on_object_end(size_t, Code& code) {
        close();
        if (repeated_key) code = boost::json::error::syntax;
        return !repeated_key;
    }
    bool on_array_begin(Code&) { return open(Node::Kind::list); }
    bool on_array_end(size_t, Code&) { return close(); }
    bool on_key_part(boost::json::string_view part, size_t, Code&) { return append(part); }
    bool on_key(boost::json::string_view part, size_t, Code&) {
        append(part);
        keys.push_back(take());
        return true;
    }
    bool on_string_part(boost::json::string_view part, size_t, Code&) { return append(part); }
    bool on_string(boost::json::string_view part, size_t, Code&) {
        append(part);
        Node node;
        node.kind = Node::Kind::text;
        node.text = take();
        return put(std::move(node));
    }
    bool append(boost::json::string_view part) {
        piece.append(part.data(), part.size());
        return true;
    }
    bool on_number_part(boost::json::string_view, Code&) { return true; }
    bool on_int64(int64_t value, boost::json::string_view, Code&) {
        Node node;
        node.kind = Node::Kind::integer;
        node.integer = value;
        return put(std::move(node));
    }
    bool on_uint64(uint64_t value, boost::json::string_view, Code&) { return on_real(static_cast<double>(value)); }
    bool on_double(double value, boost::json::string_view, Code&) { return on_real(value); }
    bool on_real(double value) {
        Node node;
        node.kind = Node::Kind::real;
        node.real = value;
        return put(std::move(node));
    }
    bool on_bool(bool value, Code&) {
        Node node;
        node.kind = Node::Kind::boolean;
        node.boolean = value;
        return put(std::move(node));
    }
    bool on_null(Code&) { return put(Node{}); }
    bool on_comment_part(boost::json::string_view, Code&) { return true; }
    bool on_comment(boost::json::string_view, Code&) { return true; }
};

Result<Node> parse_json(std::string_view text, std::string_view source) {
    boost::json::parse_options options;
    options.max_depth = limits::json_depth_max;
    boost::json::basic_parser<JsonHandler> parser(options);
    boost::json::error_code code;
    const size_t used = parser.write_some(false, text.data(), text.size(), code);
    auto& handler = parser.handler();
    if (handler.repeated_key)
        return refuse(ErrorCode::malformed_json, source, 0, "the key \"" + handler.piece + "\" stands twice");
    if (code == boost::json::error::too_deep)
        return refuse(ErrorCode::json_too_deep, source, 0,
                      "JSON nests deeper than " + std::to_string(limits::json_depth_max));
    if (code)
        return refuse(ErrorCode::malformed_json, source, 0,
                      "malformed JSON near byte " + std::to_string(used) + ": " + code.message());
    if (used < text.size())
        return refuse(ErrorCode::malformed_json, source, 0, "extra text after byte " + std::to_string(used));
    if (handler.root.kind != Node::Kind::table)
        return refuse(ErrorCode::invalid_request, source, 0, "a JSON object is expected");
    return std::move(handler.root);
}

/// RFC 3629, so that both syntaxes refuse the same bytes.
bool is_utf8(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
        const auto lead = static_cast<uint8_t>(text[i]);
        const size_t length = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
        if (length == 0 || i + length > text.size()) return false;
        uint32_t point = length == 1 ? lead : lead & (0x7f >> length);
        for (size_t k = 1; k < length; ++k) {
            const auto next = static_cast<uint8_t>(text[i + k]);
            if (next >> 6 != 2) return false;
            point = point << 6 | (next & 0x3f);
        }
        constexpr uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        if (point < least[length] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return false;
        i += length;
    }
    return true;
}

}  // namespace

Node::Node() = default;
Node::Node(const Node& other) = default;
Node::Node(Node&& other) noexcept = default;
Node& Node::operator=(const Node& other) = default;
Node& Node::operator=(Node&& other) noexcept = default;
Node::~Node() = default;

const Node* Node::find(std::string_view key) const {
    for (const auto& [name, value] : table)
        if (name == key) return &value;
    return nullptr;
}

std::string_view kind_word(Node::Kind kind) {
    switch (kind) {
        case Node::Kind::null: return "nothing that is known here";
        case Node::Kind::boolean: return "true or false";
        case Node::Kind::integer: return "a whole number";
        case Node::Kind::real: return "a number";
        case Node::Kind::text: return "text";
        case Node::Kind::list: return "a list";
        case Node::Kind::table: return "a table";
    }
    INVARIANT(false, "every kind has a word");
}

Result<Node> parse_tree(std::string_view text, Syntax syntax, std::string_view source) {
    if (text.size() > limits::agent_file_bytes_max)
        return refuse(ErrorCode::body_too_large, source, 0,
                      "larger than " + std::to_string(limits::agent_file_bytes_max) + " bytes (agent_file_bytes_max)");
    if (!is_utf8(text)) return refuse(ErrorCode::invalid_utf8, source, 0, "not UTF-8");
    return syntax == Syntax::toml ? parse_toml(text, source) : parse_json(text, source);
}

std::string describe_place(std::string_view source, const Node& node, std::string_view path) {
    std::string out(source);
    if (node.line != 0) out += (out.empty() ? "line " : ":") + std::to_string(node.line);
    if (!out.empty()) out += ": ";
    out += path;
    return out;
}

}  // namespace mainstay
