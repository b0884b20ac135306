#pragma once
// Just enough HTTP/1.1 for the two bench programs to talk to each other and to the door: one message at the front of a
// buffer, delimited by Content-Length. Not a parser to meet strangers with: it trusts its peer, and it must cost next
// to nothing, because its time would be counted as somebody else's. Pure functions, any thread.

#include <strings.h>

#include <charconv>
#include <cstddef>
#include <optional>
#include <string_view>

namespace mainstay::bench {

struct HttpMessage {
    std::string_view head;  // first line and fields, without the empty line
    std::string_view body;
    size_t bytes = 0;  // of the whole message
};

/// The value of a header field (name in lower case), empty where it is absent.
inline std::string_view header_field(std::string_view head, std::string_view name) {
    for (size_t line = head.find("\r\n"); line != std::string_view::npos; line = head.find("\r\n", line)) {
        line += 2;
        if (head.size() - line <= name.size() || head[line + name.size()] != ':') continue;
        if (strncasecmp(head.data() + line, name.data(), name.size()) != 0) continue;
        size_t begin = line + name.size() + 1;
        while (begin < head.size() && head[begin] == ' ') ++begin;
        return head.substr(begin, head.find("\r\n", begin) - begin);
    }
    return {};
}

/// The message at the front of the buffer, or nothing while it is incomplete. A message without Content-Length has no
/// body; chunked bodies are not understood (neither program sends them).
inline std::optional<HttpMessage> first_message(std::string_view buffer) {
    size_t end = buffer.find("\r\n\r\n");
    if (end == std::string_view::npos) return std::nullopt;
    HttpMessage message;
    message.head = buffer.substr(0, end);
    size_t length = 0;
    std::string_view text = header_field(message.head, "content-length");
    std::from_chars(text.data(), text.data() + text.size(), length);
    message.bytes = end + 4 + length;
    if (buffer.size() < message.bytes) return std::nullopt;
    message.body = buffer.substr(end + 4, length);
    return message;
}

/// The value of the first `"name":"value"` in a JSON text, by search and without unescaping; empty where absent.
inline std::string_view string_field(std::string_view json, std::string_view quoted_name_and_colon) {
    size_t at = json.find(quoted_name_and_colon);
    if (at == std::string_view::npos) return {};
    at += quoted_name_and_colon.size();
    while (at < json.size() && json[at] == ' ') ++at;
    if (at >= json.size() || json[at] != '"') return {};
    size_t end = ++at;
    while (end < json.size() && json[end] != '"') end += json[end] == '\\' ? 2 : 1;
    return end < json.size() ? json.substr(at, end - at) : std::string_view{};
}

}  // namespace mainstay::bench
