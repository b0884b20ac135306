#pragma once
// Pure: one client's stream out of several of the same turn. The first comes from where the request ran; if that node
// is lost, the turn is asked for again under its key and streams from its beginning, on another node perhaps. What the
// client has already is left out, the rest goes on under the sequence numbers that the client expects.
//
// The promises of ResponseStream hold over the whole: numbers grow by one; an output index is never used twice; the
// joined deltas of an item equal its final text; the items of the closing object are those that were streamed. Only
// the text of an uncommitted message can differ between two streams (everything else is committed before it is
// streamed). Then that message ends `incomplete` with exactly the text that was shown, and what the turn says now
// begins as a new item behind it. Both have the item's one id, because the first was never committed: the closing
// object shows both, and a later read only the second.
//
// It reads the frames that ResponseStream writes and nothing more general: texts are compared in their escaped form,
// which is one and the same for a text, so no event is parsed as JSON on its way.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/base/result.h"

namespace mainstay {

class StreamSplice {
  public:
    /// The next bytes of the present source, cut anywhere.
    void feed(std::string_view bytes);
    /// The present source is over: after a closing event, or where a stream has none (its turn goes on in the
    /// background), that is the end of the client's stream, too.
    void source_ended();
    /// Another source of the same turn begins, from the turn's beginning.
    void next_source();
    /// Nobody goes on with it: the client is told, and the stream ends.
    void fail(const Error& error);

    /// Set while the present source has said that it cannot go on (misdirected, shard_unavailable, internal). The
    /// client was not told.
    const std::optional<Error>& lost() const { return lost_; }
    /// What the client is to be sent next; taken by the caller.
    std::string& out() { return out_; }
    bool finished() const { return finished_; }
    /// Events given out so far.
    uint64_t events() const { return sequence_; }

  private:
    struct Event {
        std::string_view name;
        std::optional<uint32_t> index;  // output_index, where it has one
        std::string_view rest;          // of the JSON, from behind the numbers on
    };
    /// What the client has of an item.
    struct Shown {
        std::string type, id;
        std::string text;               // joined deltas of a message, escaped
        std::vector<std::string> sent;  // names of its events
        bool done = false;
        bool has(std::string_view name) const;
    };
    /// What the present source, if it is not the first, has said of an item that the client may have more of.
    struct Repeated {
        std::string text;         // joined deltas, escaped
        std::string added, part;  // of events that were left out, in case they are needed all the same
        bool caught_up = false;   // from here on everything is new
    };

    static std::optional<Event> parse(std::string_view frame);
    void take(const Event& event);
    void take_opening(const Event& event);
    void take_item(const Event& event, uint32_t source_index);
    void take_delta(const Event& event, uint32_t source_index);
    void take_closing(const Event& event);
    void take_error(const Event& event);

    void send(std::string_view name, std::optional<uint32_t> index, std::string_view rest);
    void send_delta(uint32_t index, std::string_view escaped);
    void close_incomplete(uint32_t index);
    void begin_anew(uint32_t source_index);
    /// Where the client has the source's item.
    uint32_t place_of(uint32_t source_index);
    void damaged(const char* why);

    std::string out_, pending_;
    uint64_t sequence_ = 0;
    std::vector<std::string> opening_;  // names of events before any item
    std::string response_id_;
    std::vector<Shown> items_;                               // by the client's index
    std::vector<uint32_t> places_;                           // by the source's index
    uint32_t inserted_ = 0;                                  // items that the client has and the turn has not
    std::vector<std::pair<uint32_t, std::string>> orphans_;  // those, by the client's index
    std::vector<Repeated> repeated_;                         // by the source's index
    std::optional<Error> lost_;
    bool first_ = true, finished_ = false;
};

}  // namespace mainstay
