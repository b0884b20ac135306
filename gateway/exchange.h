#pragma once
// One request and its answer, as the handlers see them: no sockets, no Asio. A handler runs on the door's thread, reads
// the request at once (its views die when it returns) and answers once, now or later, through its Reply. A reply that
// is dropped unanswered (an actor died, a message was lost) answers `internal`, so no client waits for ever.

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "gateway/bridge.h"
#include "gateway/mailbox.h"

namespace mainstay {

enum class HttpMethod : uint8_t { get, post, del, other };  // HEAD is get, answered without its body

struct HttpRequest {
    HttpMethod method = HttpMethod::other;
    bool head = false;
    std::string_view path, query;
    std::string_view authorization, content_type, idempotency_key, timeout_ms;
    std::string_view body;
    bool loopback = false;  // the listener's address, not the client's
    Principal principal;    // set once authenticated
};

struct Answer {
    uint16_t status = 200;
    std::string_view content_type = "application/json";  // static text
    std::string headers;                                 // further lines, each with its \r\n
    std::string body;
    std::optional<ErrorCode> error;  // that it tells, if it is one
    std::optional<ShardId> shard;    // with misdirected and shard_unavailable: which one
};

/// The body of a text/event-stream. Called on the door's thread only.
class StreamBody {
  public:
    virtual ~StreamBody() = default;
    /// What has come since the last call; leaves nothing.
    virtual std::string take() = 0;
    /// Nothing more will come.
    virtual bool finished() const = 0;
    /// Too much is waiting for this reader: the connection is cut off.
    virtual bool overflowed() const = 0;
    /// The connection needs no more: everything was written, or the client is gone.
    virtual void closed() = 0;
};

/// What a connection offers to the answers of its requests; `serial` tells a late answer from the present request.
class AnswerPort {
  public:
    virtual ~AnswerPort() = default;
    virtual void answer(uint64_t serial, Answer answer) = 0;
    virtual void begin_stream(uint64_t serial, std::shared_ptr<StreamBody> body) = 0;
    /// The stream has something to take.
    virtual void stream_ready(uint64_t serial) = 0;
};

Answer dropped_answer();

class Reply {
  public:
    Reply(std::shared_ptr<AnswerPort> port, uint64_t serial, std::shared_ptr<Mailbox> mailbox)
        : port_(std::move(port)), mailbox_(std::move(mailbox)), serial_(serial) {}

    // Door thread.
    void send(Answer answer) const { port_->answer(serial_, std::move(answer)); }
    void begin_stream(std::shared_ptr<StreamBody> body) const { port_->begin_stream(serial_, std::move(body)); }
    void stream_ready() const { port_->stream_ready(serial_); }

    /// A callback for the bridge, callable from any thread: `render(Result<T>) -> Answer` runs on the door's thread.
    template <class T, class Render>
    Callback<T> then(Render render) const;
    const std::shared_ptr<Mailbox>& mailbox() const { return mailbox_; }

  private:
    std::shared_ptr<AnswerPort> port_;
    std::shared_ptr<Mailbox> mailbox_;
    uint64_t serial_;
};

/// What a bridge's callback holds: answers once, on the door's thread; if it goes away unused, with an error.
template <class T, class Render>
class PendingAnswer {
  public:
    PendingAnswer(Reply reply, Render render) : reply_(std::move(reply)), render_(std::move(render)) {}
    ~PendingAnswer() {
        if (done_) return;
        reply_.mailbox()->post([reply = reply_] { reply.send(dropped_answer()); });
    }
    PendingAnswer(const PendingAnswer&) = delete;
    PendingAnswer& operator=(const PendingAnswer&) = delete;
    void finish(Result<T> result) {
        if (std::exchange(done_, true)) return;
        const auto mailbox = reply_.mailbox();
        mailbox->post([reply = std::move(reply_), render = std::move(render_), result = std::move(result)]() mutable {
            try {
                reply.send(render(std::move(result)));
            } catch (const std::exception&) {  // no memory: this answer is lost, the door is not
                reply.send(dropped_answer());
            }
        });
    }

  private:
    Reply reply_;
    Render render_;
    bool done_ = false;
};

template <class T, class Render>
Callback<T> Reply::then(Render render) const {
    auto pending = std::make_shared<PendingAnswer<T, Render>>(*this, std::move(render));
    return [pending](Result<T> result) { pending->finish(std::move(result)); };
}

}  // namespace mainstay
