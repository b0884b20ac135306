#pragma once
// Pure: from the node's StreamEvents to the events of OpenAI's Responses stream. Keeps what a client was shown and
// holds to four promises: sequence numbers grow by one; an output index is never used twice; the joined deltas of an
// item equal its final text; the items of the closing object are those that were streamed. Deltas are provisional until
// their step is committed; an attempt that broke closes its item `incomplete` with exactly the text that was shown.
//
// Indexes in StreamEvents count within the turn, inputs first; output indexes count from the first output.

#include <cstdint>
#include <string>
#include <vector>

#include "gateway/bridge.h"
#include "gateway/response_object.h"

namespace mainstay {

class ResponseStream {
  public:
    /// `objects` outlives the stream and belongs to the same thread.
    explicit ResponseStream(ResponseObject& objects) : objects_(objects) {}

    /// Appends what the event means, as server-sent events, to out(). StreamFailed before StreamAccepted is the
    /// caller's: it is an HTTP error, not an event.
    void on(const StreamEvent& event);

    std::string& out() { return out_; }
    uint64_t events() const { return sequence_; }  // emitted so far
    bool accepted() const { return accepted_; }
    bool finished() const { return finished_; }

  private:
    enum class Shown : uint8_t { nothing, open, done };
    struct OutputItem {
        Shown shown = Shown::nothing;
        std::string text;  // deltas that were sent, joined
    };

    void handle(const StreamAccepted& event);
    void handle(const StreamDelta& event);
    void handle(const StreamItems& event);
    void handle(const StreamItemDone& event);
    void handle(const StreamBroken& event);
    void handle(const StreamEnded& event);
    void handle(const StreamFailed& event);

    OutputItem& item_at(uint32_t output_index);
    uint32_t next_index() const { return static_cast<uint32_t>(items_.size()); }
    ItemId id_of(uint32_t output_index) const;
    void settle(uint32_t output_index, const Item& item);
    void settle_message(uint32_t output_index, const Item& item);
    void settle_function_call(uint32_t output_index, const Item& item);
    void show_tool_call(uint32_t output_index, const Item& item);
    void open_text(uint32_t output_index);
    void send_text(std::string_view text);
    void close_open_text();
    void diverged();

    // Building one event: begin() writes up to the sequence number, end() frames it.
    std::string& begin(std::string_view type);
    void end();
    std::string& begin_item(std::string_view type, uint32_t output_index, const Item& item);
    void item_event(std::string_view type, uint32_t output_index, const Item& item, std::string_view status,
                    std::string_view text);
    void object_event(std::string_view type, const TurnAnswer& answer, std::string_view started_status);

    ResponseObject& objects_;
    std::string out_, event_;
    std::string_view event_type_;
    uint64_t sequence_ = 0;
    bool accepted_ = false, finished_ = false;
    SessionId session_;
    TurnNo turn_;
    uint32_t input_count_ = 0;
    std::vector<OutputItem> items_;
    // The message that deltas are going to.
    bool text_open_ = false;
    uint32_t text_index_ = 0;
    uint32_t step_ = 0, attempt_ = 0;  // of the last delta that was taken
    bool attempt_closed_ = false;      // (step_, attempt_) is settled or broken: its late deltas are dropped
    // A later attempt of the same step writes the item again: what it repeats is not sent twice.
    bool replaying_ = false;
    std::string replay_;
};

}  // namespace mainstay
