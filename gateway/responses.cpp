#include "gateway/responses.h"

#include <atomic>
#include <charconv>

#include "gateway/error_table.h"
#include "gateway/item_list.h"
#include "gateway/request_json.h"
#include "gateway/response_stream.h"
#include "gateway/turn_request.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

constexpr size_t stream_bytes_max = 4 * 1024 * 1024;  // rendered and not yet taken by the connection
constexpr uint64_t timeout_ms_max = 24ull * 3600 * 1000;

Error response_not_found(std::string_view id) {
    return {ErrorCode::response_not_found, "Response '" + quoted_back(id) + "' was not found.", {}};
}

Result<uint64_t> read_timeout(std::string_view text) {
    uint64_t value = 0;
    if (text.empty()) return value;
    const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (ec != std::errc() || end != text.data() + text.size() || value == 0 || value > timeout_ms_max)
        return {
            ErrorCode::invalid_request,
            "X-Mainstay-Timeout-Ms must be a number of milliseconds from 1 to " + std::to_string(timeout_ms_max) + ".",
            "X-Mainstay-Timeout-Ms"};
    return value;
}

/// Lives in the callback that the bridge holds: if that goes away before the last event, the stream ends with an error.
template <class Streamed>
class LastWord {
  public:
    LastWord(std::shared_ptr<Streamed> streamed, std::shared_ptr<Mailbox> mailbox)
        : streamed_(std::move(streamed)), mailbox_(std::move(mailbox)) {}
    ~LastWord() {
        mailbox_->post([streamed = streamed_] {
            streamed->on_event(
                StreamFailed{{ErrorCode::internal, "The node lost this stream: read the response.", {}}});
        });
    }
    LastWord(const LastWord&) = delete;
    LastWord& operator=(const LastWord&) = delete;

    void on_event(StreamEvent event) {
        // The bound of what the door has not seen yet: beyond it the reader is cut off, the turn goes on.
        if (streamed_->refusing) return;
        if (++streamed_->queued > limits::sse_queue_events_max) {
            streamed_->refusing = true;
            mailbox_->post([streamed = streamed_] { streamed->cut_off(); });
            return;
        }
        mailbox_->post([streamed = streamed_, event = std::move(event)] {
            --streamed->queued;
            streamed->on_event(event);
        });
    }

  private:
    std::shared_ptr<Streamed> streamed_;
    std::shared_ptr<Mailbox> mailbox_;
};

/// One streamed answer: events come in on the door's thread, text goes out to the connection. Shared by the connection
/// and by the bridge's callback; whichever lets go first, the other finds it ended.
class StreamedResponse final : public StreamBody, public std::enable_shared_from_this<StreamedResponse> {
  public:
    StreamedResponse(Bridge& bridge, ResponseObject& objects, Reply reply)
        : bridge_(bridge), builder_(objects), reply_(std::move(reply)) {}

    std::string take() override { return std::exchange(builder_.out(), {}); }
    bool finished() const override { return builder_.finished(); }
    bool overflowed() const override { return overflowed_; }
    void closed() override {
        closed_ = true;
        if (subscribed_ && !ended_) bridge_.unsubscribe(subscription_);
        ended_ = true;
    }

    void subscribed(uint64_t subscription) {
        subscription_ = subscription;
        subscribed_ = true;
    }
    void on_event(const StreamEvent& event) {
        if (closed_ || ended_) return;
        const auto* failed = std::get_if<StreamFailed>(&event);
        if (failed != nullptr || std::holds_alternative<StreamEnded>(event)) ended_ = true;
        if (!begun_) {
            begun_ = true;
            if (failed != nullptr) {
                closed_ = true;
                reply_.send(error_answer(failed->error));
                return;
            }
            reply_.begin_stream(shared_from_this());
        }
        builder_.on(event);
        if (builder_.out().size() > stream_bytes_max) overflowed_ = true;
        reply_.stream_ready();
    }
    void cut_off() {
        overflowed_ = true;
        reply_.stream_ready();
    }
    /// Events between the bridge and the door's thread.
    std::atomic<size_t> queued{0};
    std::atomic<bool> refusing{false};

  private:
    Bridge& bridge_;
    ResponseStream builder_;
    Reply reply_;
    uint64_t subscription_ = 0;
    bool subscribed_ = false, begun_ = false, ended_ = false, closed_ = false, overflowed_ = false;
};

}  // namespace

Responses::Responses(Bridge& bridge, Routes& routes) : bridge_(bridge) {
    const auto bind = [this](auto method) {
        return [this, method](const HttpRequest& request, const PathParams& params, const Reply& reply) {
            (this->*method)(request, params, reply);
        };
    };
    routes.add(HttpMethod::post, "/v1/responses",
               [this](const HttpRequest& request, const PathParams&, const Reply& reply) { create(request, reply); });
    routes.add(HttpMethod::get, "/v1/responses/*", bind(&Responses::read));
    routes.add(HttpMethod::post, "/v1/responses/*/cancel", bind(&Responses::cancel));
    routes.add(HttpMethod::get, "/v1/responses/*/input_items", bind(&Responses::input_items));
}

void Responses::create(const HttpRequest& request, const Reply& reply) {
    auto parsed = parse_responses_request(request.body, request.idempotency_key);
    if (!parsed) {
        reply.send(error_answer(parsed.error()));
        return;
    }
    auto timeout = read_timeout(request.timeout_ms);
    if (!timeout) {
        reply.send(error_answer(timeout.error()));
        return;
    }
    parsed->turn.principal = request.principal;
    parsed->turn.timeout_ms = *timeout;
    if (parsed->stream)
        stream(std::move(parsed->turn), reply);
    else
        bridge_.create_turn(std::move(parsed->turn),
                            reply.then<TurnAnswer>([this](Result<TurnAnswer> result) { return answer_of(result); }));
}

void Responses::stream(TurnRequest turn, const Reply& reply) {
    auto streamed = std::make_shared<StreamedResponse>(bridge_, objects_, reply);
    auto last_word = std::make_shared<LastWord<StreamedResponse>>(streamed, reply.mailbox());
    const auto subscription = bridge_.stream_turn(
        std::move(turn),
        [last_word = std::move(last_word)](StreamEvent event) { last_word->on_event(std::move(event)); });
    streamed->subscribed(subscription);
}

Answer Responses::answer_of(const Result<TurnAnswer>& result) {
    if (!result) return error_answer(result.error());
    Answer answer;
    size_t bytes = 1536;
    for (const auto& item : result->turn->items) bytes += item->bytes() + 192;
    answer.body.reserve(bytes);
    objects_.append(answer.body, *result);
    if (result->repeated) answer.headers = "Idempotency-Replayed: true\r\n";
    return answer;
}

/// A settled response once more as a stream: the events that a reader without deltas would have been sent. Their
/// numbers are not those of the first stream, whose deltas came as the model wrote: there is no place in it to go on
/// from.
void Responses::replay(const HttpRequest& request, const ResponseId& id, const Reply& reply) {
    if (!query_parameter(request.query, "starting_after").empty()) {
        reply.send(error_answer(ErrorCode::not_yet, "A stream cannot be taken up in its middle yet: leave this out.",
                                "starting_after"));
        return;
    }
    auto streamed = std::make_shared<StreamedResponse>(bridge_, objects_, reply);
    auto last_word = std::make_shared<LastWord<StreamedResponse>>(std::move(streamed), reply.mailbox());
    bridge_.read_turn(request.principal, id, [last_word = std::move(last_word)](Result<TurnAnswer> result) {
        if (!result) return last_word->on_event(StreamFailed{result.error()});
        if (!is_settled(result->turn->status))
            return last_word->on_event(
                StreamFailed{{ErrorCode::not_yet,
                              "Following a running response is not supported yet: read it without stream.", "stream"}});
        last_word->on_event(StreamAccepted{*result});
        last_word->on_event(StreamEnded{std::move(*result)});
    });
}

void Responses::read(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto id = parse_response_id(params[0]);
    if (!id) {
        reply.send(error_answer(response_not_found(params[0])));
        return;
    }
    if (!request.head && query_parameter(request.query, "stream") == "true") {
        replay(request, *id, reply);
        return;
    }
    bridge_.read_turn(request.principal, *id,
                      reply.then<TurnAnswer>([this](Result<TurnAnswer> result) { return answer_of(result); }));
}

void Responses::cancel(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto id = parse_response_id(params[0]);
    if (!id) {
        reply.send(error_answer(response_not_found(params[0])));
        return;
    }
    bridge_.cancel_turn(request.principal, *id,
                        reply.then<TurnAnswer>([this](Result<TurnAnswer> result) { return answer_of(result); }));
}

void Responses::input_items(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto id = parse_response_id(params[0]);
    if (!id) {
        reply.send(error_answer(response_not_found(params[0])));
        return;
    }
    const auto page = read_page(request.query, false);
    if (!page) {
        reply.send(error_answer(page.error()));
        return;
    }
    bridge_.read_turn(request.principal, *id, reply.then<TurnAnswer>([page = *page](Result<TurnAnswer> result) {
        if (!result) return error_answer(result.error());
        const Turn& turn = *result->turn;
        std::vector<ItemEntry> entries;
        for (uint32_t i = 0; i < turn.input_count && i < turn.items.size(); ++i)
            entries.push_back({{result->session, turn.no, static_cast<uint16_t>(i)}, turn.items[i]});
        return item_list_answer(take_page(std::move(entries), page));
    }));
}

}  // namespace mainstay
