#pragma once
// One neutral tree for what people write. TOML and JSON both become it, so that everything after it (agents, models,
// settings) is read by one reader and means the same in either syntax. A node remembers its line where the syntax has
// lines; an error names file and line, or the path of the key.
//
// Plain values, no threads. Any bytes may come in: depth, size and UTF-8 are checked here, before anything recurses.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/result.h"

namespace mainstay {

enum class Syntax : uint8_t { toml, json };

struct Member;

struct Node {
    enum class Kind : uint8_t { null, boolean, integer, real, text, list, table };
    Kind kind = Kind::null;
    bool boolean = false;
    int64_t integer = 0;
    double real = 0;
    std::string text;
    std::vector<Node> list;
    std::vector<Member> table;  // keys are unique, in order of their text
    uint32_t line = 0;          // from 1; 0: the syntax has no lines

    // Out of line, where a Member is complete.
    Node();
    Node(const Node& other);
    Node(Node&& other) noexcept;
    Node& operator=(const Node& other);
    Node& operator=(Node&& other) noexcept;
    ~Node();

    /// Null if the table has no such key, or this is no table.
    const Node* find(std::string_view key) const;
};

/// One entry of a table.
struct Member {
    std::string key;
    Node value;
};

/// "true", "number", "text" ...: what a person would call it.
std::string_view kind_word(Node::Kind kind);

/// The whole document, always a table. `source` names the file in messages; empty for a request body. Errors:
/// body_too_large, invalid_utf8, json_too_deep, malformed_json (JSON), invalid_request (TOML).
Result<Node> parse_tree(std::string_view text, Syntax syntax, std::string_view source);

/// "file:12" where there are lines, else the file or nothing, and always the path: "agents/a.toml:12: tools[0].type".
std::string describe_place(std::string_view source, const Node& node, std::string_view path);

}  // namespace mainstay
