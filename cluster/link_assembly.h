#pragma once
// What arrives in frames put together again: replication messages from their stream, requests and parts of answers from
// their pieces. Memory is bounded by what was announced and by link_queue_bytes_max over all that is not whole, which
// an honest sender never exceeds. Plain, no lock: of the link's thread. Any error ends the connection.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cluster/link_frame.h"
#include "cluster/replication_message.h"
#include "runtime/base/result.h"

namespace mainstay {

/// The stream of replication messages of one connection.
class MessageAssembly {
  public:
    /// Adds the messages that are whole with these bytes to `out`.
    Result<void> feed(std::string_view bytes, std::vector<ReplicationMessage>& out);
    size_t bytes() const { return partial_.size(); }

  private:
    /// Takes what is missing to `size` from the front of `bytes`; whether it is all there.
    bool complete(std::string_view& bytes, size_t size);
    std::string partial_;  // of one message, its length included
};

/// Requests, or answers, of one connection that are not whole.
class CallAssembly {
  public:
    struct Whole {
        uint64_t call = 0;
        uint8_t kind = 0;
        std::string bytes;
    };
    /// From a request, part or more; what is whole with it. The piece of a call that is not known here is ignored where
    /// it is a `more`: its first piece was cancelled.
    Result<std::optional<Whole>> feed(const LinkFrame& frame);
    bool has(uint64_t call) const { return open_.count(call) != 0; }
    void drop(uint64_t call);
    size_t size() const { return open_.size(); }
    /// Announced, not yet whole.
    size_t bytes() const { return announced_; }

  private:
    struct Open {
        uint8_t kind = 0;
        size_t total = 0;
        std::string bytes;
    };
    std::map<uint64_t, Open> open_;
    size_t announced_ = 0;
};

}  // namespace mainstay
