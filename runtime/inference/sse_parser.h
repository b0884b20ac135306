#pragma once
// Server-Sent Events as a client reads them: the line grammar and the dispatch rules of the WHATWG HTML standard
// (9.2.5 and 9.2.6), fed in pieces of any size. Bytes are passed on as they came: whoever parses `data` checks its
// UTF-8. Not thread-safe; nothing is called back after a bound has been met.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/base/limits.h"
#include "runtime/base/result.h"

namespace mainstay {

struct SseEvent {
    std::string type;  // "message" where the stream named none
    std::string data;  // lines joined by LF
    std::string id;    // of the last event that gave one
};

class SseParser {
  public:
    /// `bytes_max` bounds one line, and the data of one event.
    explicit SseParser(size_t bytes_max = limits::upstream_line_bytes_max) : bytes_max_(bytes_max) {}

    /// Calls on_event(SseEvent&&) for each event that `bytes` completes. Errors: model_protocol_error, for good, where
    /// the bound is met. An event that no blank line ended is never told: the standard discards it.
    template <class OnEvent>
    Result<void> feed(std::string_view bytes, OnEvent&& on_event) {
        while (!failed_ && next_line(bytes))
            if (take_line()) on_event(std::exchange(event_, {}));
        if (failed_) return {ErrorCode::model_protocol_error, "an event is larger than upstream_line_bytes_max"};
        return {};
    }

    /// Milliseconds that the stream last asked a client to wait before it connects again; 0: nothing.
    uint64_t retry_ms() const { return retry_ms_; }

  private:
    /// Moves `bytes` past one line end and leaves the line in line_; false where there is none yet.
    bool next_line(std::string_view& bytes);
    /// Handles line_; true where event_ is complete.
    bool take_line();
    void take_field(std::string_view name, std::string_view value);

    const size_t bytes_max_;
    std::string partial_;    // of a line whose end has not come
    std::string_view line_;  // into partial_ or the bytes fed
    bool line_was_partial_ = false;
    bool first_line_ = true;
    bool after_cr_ = false;  // a LF that follows belongs to it
    bool failed_ = false;
    std::string type_, data_, last_id_;
    bool has_data_ = false;
    uint64_t retry_ms_ = 0;
    SseEvent event_;
};

}  // namespace mainstay
