#pragma once
// What waits to be sent over one connection, and the order in which it goes: replication first, then calls, one chunk
// of each in turn, so that neither a large request nor a large answer is in the way of anything else. What belongs to
// one call stays in order, as do replication messages. Gives frames, each with at most link_chunk_bytes_max bytes.
//
// Plain, no lock: of the link's thread. A message's bytes count until its last byte is in a frame, so what a receiver
// has to put together is never more than the sender's queue.

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cluster/link_frame.h"
#include "cluster/replication_codec.h"

namespace mainstay {

/// One thing to be said of a call: its request, a part or the end of its answer, or that it is cancelled.
struct CallItem {
    uint64_t call = 0;
    FrameType type = FrameType::end;
    uint8_t kind = 0;
    std::string bytes;
    bool failed = false;
    Error failure;
    bool drops = false;  // takes away what waits of its call

    /// A small item is not free.
    size_t cost() const { return bytes.size() + 64; }
};

class LinkQueue {
  public:
    void push(EncodedMessage message);
    /// Returns the cost of what an item that `drops` has taken away.
    size_t push(CallItem item);
    /// Forgets what waits of a call. Returns its cost.
    size_t drop(uint64_t call);

    bool has_replication() const { return !messages_.empty(); }
    bool has_calls() const { return !turns_.empty(); }

    /// The next frame; nothing where nothing waits. `calls`: whether one of a call may be it. Its cluster and
    /// incarnation are the caller's to set.
    struct Next {
        LinkFrame frame;        // without its bytes
        size_t bytes = 0;       // that it has room for
        size_t released = 0;    // cost of what is wholly in frames with this one
        uint32_t messages = 0;  // replication messages that end in it
    };
    std::optional<Next> next(bool calls);
    /// Once after each next(): writes its bytes to `out`.
    void fill(char* out);

    /// What a message costs until it is sent: its bytes and its length on the wire.
    static size_t cost(const EncodedMessage& message) { return message.bytes + 4; }
    size_t messages() const { return messages_.size(); }

  private:
    struct Piece {
        const char* data;
        size_t size;
    };
    struct Stream {
        std::deque<CallItem> items;
        size_t offset = 0;  // sent of the first one
    };
    Next next_replication();
    Next next_call();
    void add_pieces(const EncodedMessage& message, size_t from, size_t size);

    std::deque<EncodedMessage> messages_;
    size_t offset_ = 0;  // sent of the first message, its length on the wire included
    std::map<uint64_t, Stream> calls_;
    std::deque<uint64_t> turns_;  // each call that has items, once
    // What fill() writes: pieces of what is still held, or in spent_.
    std::vector<Piece> pieces_;
    std::deque<std::string> lengths_;
    std::vector<EncodedMessage> spent_;
    std::vector<CallItem> spent_items_;
};

}  // namespace mainstay
