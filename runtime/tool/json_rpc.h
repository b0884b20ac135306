#pragma once
// JSON-RPC 2.0 as MCP's stdio transport speaks it: one UTF-8 JSON text a line. The peer is a program that we did not
// write, so a line is bounded, a message is taken only in the exact shape of the specification, and what is not a
// message is reported, never guessed at. Pure; each object belongs to one thread.

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace mainstay {

/// Cuts a byte stream into lines. Holds at most one unfinished line of at most `line_bytes_max` bytes.
class LineReader {
  public:
    explicit LineReader(size_t line_bytes_max) : line_bytes_max_(line_bytes_max) {}

    /// Calls `line(std::string_view)` for each line that `bytes` completes, without its end ("\n" or "\r\n"), until it
    /// returns false. False where it did, or where a line passes the bound: nothing more may be fed then.
    template <class F>
    bool feed(std::string_view bytes, F&& line);
    size_t held() const { return held_.size(); }

  private:
    static std::string_view without_return(std::string_view line) {
        if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
        return line;
    }

    size_t line_bytes_max_;
    std::string held_;
};

using RpcId = std::variant<int64_t, std::string>;

struct RpcMessage {
    enum class Kind : uint8_t {
        request,
        notification,
        result,
        error,
        bad_request,  // has a usable id and asks for something, but not as JSON-RPC says: answer -32600
    };
    Kind kind = Kind::notification;
    std::optional<RpcId> id;  // absent in a notification, and in an error whose id is null
    std::string method;       // request, notification
    boost::json::value body;  // params (object, array or null), or the result
    int64_t error_code = 0;   // error
    std::string error_message;
};

struct RpcLine {
    std::vector<RpcMessage> messages;
    size_t bad = 0;  // what is no message: the whole line, or elements of a batch
};

/// One line. A batch (JSON array) is read only where `batch_allowed` (protocol 2025-03-26), else it is one bad element.
/// Ids are strings of at most 256 bytes or integers of 64 bits; "jsonrpc" must be "2.0"; a result and an error exclude
/// each other; nesting is bounded by limits::json_depth_max.
RpcLine parse_rpc_line(std::string_view line, bool batch_allowed);

// Each returns one line with its "\n".
std::string rpc_request(int64_t id, std::string_view method, boost::json::object params);
std::string rpc_notification(std::string_view method, boost::json::object params);
std::string rpc_result(const RpcId& id, boost::json::object result);
std::string rpc_error(const RpcId& id, int64_t code, std::string_view message);

constexpr int64_t rpc_invalid_request = -32600;
constexpr int64_t rpc_method_not_found = -32601;
constexpr int64_t rpc_invalid_params = -32602;

template <class F>
bool LineReader::feed(std::string_view bytes, F&& line) {
    while (!bytes.empty()) {
        const size_t end = bytes.find('\n');
        const size_t length = end == std::string_view::npos ? bytes.size() : end;
        if (held_.size() + length > line_bytes_max_) return false;
        if (end == std::string_view::npos) {
            held_.append(bytes);
            return true;
        }
        if (held_.empty()) {
            if (!line(without_return(bytes.substr(0, end)))) return false;
        } else {
            held_.append(bytes.substr(0, end));
            std::string whole;
            whole.swap(held_);  // gives the memory of a long line back
            if (!line(without_return(whole))) return false;
        }
        bytes.remove_prefix(end + 1);
    }
    return true;
}

}  // namespace mainstay
