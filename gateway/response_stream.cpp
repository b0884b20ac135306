#include "gateway/response_stream.h"

#include <tuple>
#include <utility>

#include "gateway/item_object.h"
#include "gateway/json_writer.h"
#include "gateway/sse.h"

namespace mainstay {
namespace {

Item assistant_message() {
    Item item;
    item.role = Role::assistant;
    return item;
}

}  // namespace

void ResponseStream::on(const StreamEvent& event) {
    if (finished_) return;
    std::visit([this](const auto& body) { handle(body); }, event);
}

void ResponseStream::handle(const StreamAccepted& event) {
    if (accepted_) return;
    accepted_ = true;
    session_ = event.answer.session;
    turn_ = event.answer.turn->no;
    input_count_ = event.answer.turn->input_count;
    const bool queued = event.answer.turn->status == TurnStatus::queued;
    object_event("response.created", event.answer, queued ? "queued" : "in_progress");
    if (queued) object_event("response.queued", event.answer, "queued");
    object_event("response.in_progress", event.answer, "in_progress");
}

void ResponseStream::handle(const StreamDelta& event) {
    if (!accepted_ || event.text.empty()) return;
    const auto given = std::pair(event.step, event.attempt), known = std::pair(step_, attempt_);
    if (given < known || (given == known && attempt_closed_)) return;
    if (!text_open_) {
        std::tie(step_, attempt_) = given;
        attempt_closed_ = false;
        replaying_ = false;
        open_text(next_index());
        send_text(event.text);
        return;
    }
    if (event.step != step_) return;  // the open item's step is not committed yet: its items come whole
    if (event.attempt != attempt_) {
        attempt_ = event.attempt;
        replaying_ = true;
        replay_.clear();
    }
    if (!replaying_) {
        send_text(event.text);
        return;
    }
    replay_ += event.text;
    const auto& shown = items_[text_index_].text;
    if (replay_.size() <= shown.size() || !replay_.starts_with(shown)) return;  // what differs is judged at the commit
    const auto rest = replay_.substr(shown.size());
    replaying_ = false;
    send_text(rest);
}

void ResponseStream::handle(const StreamItems& event) {
    if (!accepted_ || event.first_index < input_count_) return;
    uint32_t index = event.first_index - input_count_;
    for (const auto& item : event.items) {
        settle(index++, *item);
        if (finished_) return;
    }
    if (text_open_ && event.step == step_) diverged();  // its message was shown and is not among what was committed
    if (std::pair(event.step, event.attempt) >= std::pair(step_, attempt_)) {
        step_ = event.step;
        attempt_ = event.attempt;
        attempt_closed_ = true;
    }
}

void ResponseStream::handle(const StreamItemDone& event) {
    if (accepted_ && event.index >= input_count_) settle(event.index - input_count_, *event.item);
}

void ResponseStream::handle(const StreamBroken& event) {
    if (!accepted_) return;
    if (event.item && event.index >= input_count_)
        settle(event.index - input_count_, *event.item);
    else
        close_open_text();
    attempt_closed_ = true;
}

void ResponseStream::handle(const StreamEnded& event) {
    if (!accepted_) handle(StreamAccepted{event.answer});
    const Turn& turn = *event.answer.turn;
    if (!is_settled(turn.status)) {
        finished_ = true;
        return;
    }
    // Whatever was not announced before (a repeated request is answered from its record) comes now.
    for (size_t i = turn.input_count; i < turn.items.size() && !finished_; ++i) {
        const auto index = static_cast<uint32_t>(i - turn.input_count);
        settle(index, *turn.items[i]);
        if (!finished_ && items_[index].shown == Shown::open && !(text_open_ && text_index_ == index)) {
            items_[index].shown = Shown::done;
            item_event("response.output_item.done", index, *turn.items[i], item_status(*turn.items[i]),
                       turn.items[i]->text);
        }
    }
    if (finished_) return;
    close_open_text();
    const auto type = turn.status == TurnStatus::completed ? "response.completed"
                      : turn.status == TurnStatus::failed  ? "response.failed"
                                                           : "response.incomplete";
    object_event(type, event.answer, {});
    finished_ = true;
}

void ResponseStream::handle(const StreamFailed& event) {
    JsonWriter writer(begin("error"));
    writer.raw(",\"code\":").string(error_name(event.error.code)).raw(",\"message\":").string(event.error.message);
    writer.raw(",\"param\":").string_or_null(event.error.param).raw("}");
    end();
    finished_ = true;
}

// --- items ----------------------------------------------------------------------------------------------------------

ResponseStream::OutputItem& ResponseStream::item_at(uint32_t output_index) {
    if (output_index >= items_.size()) items_.resize(output_index + 1);
    return items_[output_index];
}

ItemId ResponseStream::id_of(uint32_t output_index) const {
    return {session_, turn_, static_cast<uint16_t>(input_count_ + output_index)};
}

void ResponseStream::settle(uint32_t output_index, const Item& item) {
    if (item_at(output_index).shown == Shown::done) return;
    const bool is_open_text = text_open_ && text_index_ == output_index;
    if (is_open_text && item.kind != ItemKind::message) {
        diverged();
        return;
    }
    switch (item.kind) {
        case ItemKind::message: settle_message(output_index, item); return;
        case ItemKind::function_call: settle_function_call(output_index, item); return;
        case ItemKind::tool_call: show_tool_call(output_index, item); return;
        default:
            item_event("response.output_item.added", output_index, item, item_status(item), item.text);
            item_event("response.output_item.done", output_index, item, item_status(item), item.text);
            items_[output_index].shown = Shown::done;
    }
}

void ResponseStream::settle_message(uint32_t output_index, const Item& item) {
    if (!(text_open_ && text_index_ == output_index)) {
        if (text_open_) {
            diverged();  // a message elsewhere while one is open: the node committed another item than it streamed
            return;
        }
        // Not streamed in pieces: the same events, the text as one delta.
        open_text(output_index);
    }
    const auto& shown = items_[output_index].text;
    if (!std::string_view(item.text).starts_with(shown)) {
        diverged();
        return;
    }
    if (item.text.size() > shown.size()) send_text(std::string_view(item.text).substr(shown.size()));

    JsonWriter done(begin_item("response.output_text.done", output_index, item));
    done.raw(",\"content_index\":0,\"text\":").string(item.text).raw(",\"logprobs\":[]}");
    end();
    begin_item("response.content_part.done", output_index, item) += ",\"content_index\":0,\"part\":";
    append_output_text(event_, item.text);
    event_ += "}";
    end();
    item_event("response.output_item.done", output_index, item, item_status(item), item.text);
    items_[output_index].shown = Shown::done;
    items_[output_index].text = {};
    text_open_ = false;
    replaying_ = false;
}

void ResponseStream::settle_function_call(uint32_t output_index, const Item& item) {
    Item added = item;
    added.arguments.clear();
    item_event("response.output_item.added", output_index, added, "in_progress", {});
    JsonWriter delta(begin_item("response.function_call_arguments.delta", output_index, item));
    delta.raw(",\"delta\":").string(item.arguments).raw("}");
    end();
    JsonWriter done(begin_item("response.function_call_arguments.done", output_index, item));
    done.raw(",\"name\":").string(item.name).raw(",\"arguments\":").string(item.arguments).raw("}");
    end();
    item_event("response.output_item.done", output_index, item, item_status(item), item.text);
    items_[output_index].shown = Shown::done;
}

/// Twice: when the call is committed, and when its outcome is.
void ResponseStream::show_tool_call(uint32_t output_index, const Item& item) {
    if (items_[output_index].shown == Shown::nothing) {
        Item added = item;
        added.arguments.clear();
        added.error.clear();
        item_event("response.output_item.added", output_index, added, "in_progress", {});
        begin_item("response.mcp_call.in_progress", output_index, item) += "}";
        end();
        JsonWriter delta(begin_item("response.mcp_call_arguments.delta", output_index, item));
        delta.raw(",\"delta\":").string(item.arguments).raw("}");
        end();
        JsonWriter done(begin_item("response.mcp_call_arguments.done", output_index, item));
        done.raw(",\"arguments\":").string(item.arguments).raw("}");
        end();
        items_[output_index].shown = Shown::open;
    }
    if (item.status == ItemStatus::in_progress) return;
    const bool completed = item.status == ItemStatus::completed;
    begin_item(completed ? "response.mcp_call.completed" : "response.mcp_call.failed", output_index, item) += "}";
    end();
    item_event("response.output_item.done", output_index, item, item_status(item), item.text);
    items_[output_index].shown = Shown::done;
}

void ResponseStream::open_text(uint32_t index) {
    const Item empty = assistant_message();
    item_at(index).shown = Shown::open;
    text_index_ = index;
    text_open_ = true;
    begin_item("response.output_item.added", index, empty) += ",\"item\":{\"type\":\"message\",\"id\":";
    JsonWriter(event_)
        .id(id_of(index), std::string_view("msg"))
        .raw(",\"status\":\"in_progress\",\"role\":\"assistant\",\"content\":[]}}");
    end();
    begin_item("response.content_part.added", index, empty) += ",\"content_index\":0,\"part\":";
    append_output_text(event_, {});
    event_ += "}";
    end();
}

void ResponseStream::send_text(std::string_view text) {
    auto& item = items_[text_index_];
    item.text += text;
    const Item message = assistant_message();
    JsonWriter writer(begin_item("response.output_text.delta", text_index_, message));
    writer.raw(",\"content_index\":0,\"delta\":").string(text).raw(",\"logprobs\":[]}");
    end();
}

void ResponseStream::close_open_text() {
    if (!text_open_) return;
    Item item = assistant_message();
    item.status = ItemStatus::incomplete;
    item.text = items_[text_index_].text;
    settle_message(text_index_, item);
}

/// The node committed something else than it streamed. What was shown cannot be taken back: the client is told to read.
void ResponseStream::diverged() {
    handle(StreamFailed{{ErrorCode::internal, "What was streamed is not what was committed: read the response.", {}}});
}

// --- events ---------------------------------------------------------------------------------------------------------

std::string& ResponseStream::begin(std::string_view type) {
    event_type_ = type;
    event_.clear();
    JsonWriter(event_).raw("{\"type\":\"").raw(type).raw("\",\"sequence_number\":").number(sequence_++);
    return event_;
}

std::string& ResponseStream::begin_item(std::string_view type, uint32_t output_index, const Item& item) {
    JsonWriter writer(begin(type));
    writer.raw(",\"output_index\":").number(uint64_t{output_index});
    // output_item events carry the whole item instead of its id.
    if (!type.starts_with("response.output_item"))
        writer.raw(",\"item_id\":").id(id_of(output_index), item_id_prefix(item.kind));
    return event_;
}

void ResponseStream::end() { append_sse_event(out_, event_type_, event_); }

void ResponseStream::item_event(std::string_view type, uint32_t output_index, const Item& item, std::string_view status,
                                std::string_view text) {
    begin_item(type, output_index, item) += ",\"item\":";
    append_item(event_, item, id_of(output_index), status, text);
    event_ += "}";
    end();
}

void ResponseStream::object_event(std::string_view type, const TurnAnswer& answer, std::string_view started_status) {
    begin(type) += ",\"response\":";
    if (started_status.empty())
        objects_.append(event_, answer);
    else
        objects_.append_started(event_, answer, started_status);
    event_ += "}";
    end();
}

}  // namespace mainstay
