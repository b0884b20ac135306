#pragma once
// The client side of the Model Context Protocol, revision 2025-11-25 (a server may answer with 2025-06-18, 2025-03-26
// or 2024-11-05), as a plain state machine without transport, thread or clock: bytes in, bytes out, settled calls.
//
// Invariants: every call is settled exactly once, by its answer, its deadline, a cancellation or close(); every request
// of the server is answered; a call whose bytes were never handed out is settled `failed` (it surely did not run), and
// one that was handed out and got no answer, or one that does not say whether it ran, is settled `lost`; an answer to a
// call that was given up, or to nothing at all, is counted and dropped. A peer that breaks a bound or the protocol sets
// failure(): the owner closes the connection and this object with it. Times are microseconds of one monotonic clock.
// Belongs to one thread.

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "runtime/tool/json_rpc.h"
#include "runtime/tool/tool.h"

namespace mainstay {

/// A tool as its server lists it; `hint` is what its annotations say (readOnlyHint, idempotentHint, else once).
struct McpTool {
    std::string name, description;
    std::string input_schema;  // JSON text
    EffectClass hint = EffectClass::once;
};
using McpTools = std::shared_ptr<const std::vector<McpTool>>;

struct McpCall {
    uint64_t call_id = 0;
    std::string name;
    std::string arguments;  // JSON object text; blank: {}
    std::string idempotency_key;
    uint64_t deadline_us = 0;
};

/// What one step of the client brought.
struct McpOutputs {
    struct Settled {
        uint64_t call_id = 0;
        ToolOutcome outcome;
    };
    std::vector<Settled> settled;
    bool listed = false;  // list() ended: `tools`, or `list_failure`
    McpTools tools;
    std::string list_failure;
    bool tools_changed = false;  // the server announced it
};

/// What the peer did that a healthy one does not do; for logs and tests.
struct McpCounters {
    uint64_t bad_lines = 0;         // no JSON-RPC message
    uint64_t unknown_answers = 0;   // to an id that we never gave, or answered twice
    uint64_t late_answers = 0;      // to a call that was given up
    uint64_t refused_requests = 0;  // answered with an error
    uint64_t notifications = 0;
};

/// A tools/list under way. (Outside its client, because clang 14 cannot hold a nested one in an optional member.)
struct McpPages {
    int64_t request = 0;  // 0: waits for the start
    uint64_t deadline_us = 0;
    size_t pages = 0, bytes = 0;
    std::shared_ptr<std::vector<McpTool>> tools;
};

class McpClient {
  public:
    /// Queues `initialize`; it must be answered by `start_deadline_us`.
    explicit McpClient(uint64_t start_deadline_us);

    /// Asks for the tools (all pages); ends with `listed` in some step's outputs by `deadline_us`. One at a time: while
    /// one is under way another list() joins it.
    void list(uint64_t deadline_us, McpOutputs& out);
    /// Precondition: call_id is not in flight.
    void call(McpCall call, uint64_t now_us, McpOutputs& out);
    /// Settles the call now: failed if it was not handed out, else lost, and the server is told. Unknown ids: nothing.
    void cancel(uint64_t call_id, uint64_t now_us, McpOutputs& out);
    void receive(std::string_view bytes, uint64_t now_us, McpOutputs& out);
    /// Settles what is past its deadline.
    void expire(uint64_t now_us, McpOutputs& out);
    /// When expire() is next due; UINT64_MAX: never.
    uint64_t next_deadline_us() const;

    /// The bytes to write next; empty: nothing. Valid until the next non-const call.
    std::string_view output() const;
    /// `count` bytes of output() were taken by the transport.
    void wrote(size_t count);

    /// The connection is gone and nothing more comes. `unread`: how many of the bytes taken last no reader can ever
    /// get; calls within them did not run. Settles everything.
    void close(std::string_view reason, ErrorClass error_class, ErrorCode code, size_t unread, uint64_t now_us,
               McpOutputs& out);

    bool ready() const { return state_ == State::ready; }
    /// No call and no list is under way.
    bool listing() const { return list_.has_value(); }
    bool idle() const { return pending_.empty() && !list_; }
    /// Set once the peer broke the protocol or a bound, or did not start in time; names it.
    const std::optional<std::string>& failure() const { return failure_; }
    ErrorClass failure_class() const { return failure_class_; }
    ErrorCode failure_code() const { return failure_code_; }
    size_t calls_in_flight() const { return pending_.size(); }
    /// Answers to calls and lists so far: a server that answered is worth an immediate restart.
    uint64_t answers() const { return answers_; }
    const McpCounters& counters() const { return counters_; }
    const std::string& protocol_version() const { return protocol_version_; }

  private:
    enum class State : uint8_t { starting, ready, closed };
    struct Pending {
        McpCall call;
        uint64_t since_us = 0;
        bool framed = false;        // its request is in frames_ or was written
        uint64_t end = UINT64_MAX;  // stream position after its closing brace, once its first byte was written
    };
    struct Frame {
        std::string bytes;
        int64_t request = 0;  // of a call; 0: other
    };
    using PendingMap = std::map<int64_t, Pending>;

    void fail(std::string reason, ErrorClass error_class, ErrorCode code);
    void push(std::string bytes, int64_t request = 0);
    void frame(int64_t request, Pending& pending);
    bool maybe_delivered(const Pending& pending, uint64_t delivered) const;
    void give_up(PendingMap::iterator at, const char* why, bool timed_out, uint64_t now_us, McpOutputs& out);
    void settle(PendingMap::iterator at, ToolOutcome outcome, uint64_t now_us, McpOutputs& out);

    bool on_line(std::string_view line, uint64_t now_us, McpOutputs& out);
    void on_message(RpcMessage& message, uint64_t now_us, McpOutputs& out);
    void on_request(const RpcMessage& message);
    void on_notification(const RpcMessage& message, uint64_t now_us, McpOutputs& out);
    void on_answer(RpcMessage& message, uint64_t now_us, McpOutputs& out);
    void on_initialized(RpcMessage& message, McpOutputs& out);
    void on_page(RpcMessage& message, McpOutputs& out);
    void ask_page(std::string_view cursor);
    void end_list(McpTools tools, std::string failure, McpOutputs& out);

    State state_ = State::starting;
    uint64_t start_deadline_us_;
    std::string protocol_version_;
    bool has_tools_ = true;
    std::optional<std::string> failure_;
    ErrorClass failure_class_ = ErrorClass::protocol;
    ErrorCode failure_code_ = ErrorCode::tool_protocol_error;

    LineReader lines_;
    int64_t next_request_ = 1;
    int64_t initialize_request_ = 0;
    PendingMap pending_;
    std::unordered_map<uint64_t, int64_t> request_of_;  // by call_id
    std::optional<McpPages> list_;
    std::deque<int64_t> given_up_;  // recent requests whose late answers are expected
    std::unordered_set<int64_t> given_up_set_;

    std::deque<Frame> frames_;
    size_t front_written_ = 0;
    uint64_t written_ = 0;     // stream position
    size_t queued_bytes_ = 0;  // of frames_, and of the arguments of calls that wait for the start
    uint64_t answers_ = 0;
    uint64_t window_us_ = 0;  // of counting notifications
    uint64_t window_count_ = 0;
    McpCounters counters_;
};

}  // namespace mainstay
