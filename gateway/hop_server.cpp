#include "gateway/hop_server.h"

#include <vector>

#include "gateway/error_table.h"

namespace mainstay {
namespace {

constexpr size_t part_bytes_max = 1024 * 1024;

const Error door_gone{ErrorCode::shard_unavailable, "the node's door was closed before it had answered", {}};

}  // namespace

/// One request of another door: what its handler answers becomes parts of the call's answer.
class HopServer::Served final : public AnswerPort, public std::enable_shared_from_this<Served> {
  public:
    Served(HopServer& server, std::shared_ptr<CallReply> reply) : server_(server), reply_(std::move(reply)) {}

    void answer(uint64_t, Answer answer) override {
        if (!reply_ || body_) return;
        reply_->part(encode_hop_head({answer.status, std::string(answer.content_type), std::move(answer.headers), false,
                                      answer.error, answer.shard}));
        send(answer.body);
        end(std::nullopt);
    }
    void begin_stream(uint64_t, std::shared_ptr<StreamBody> body) override {
        if (!reply_ || body_) {
            body->closed();
            return;
        }
        body_ = std::move(body);
        reply_->part(encode_hop_head({200, "text/event-stream", {}, true, {}, {}}));
        pump();
    }
    void stream_ready(uint64_t) override { pump(); }

    void pump() {
        if (!reply_ || !body_) return;
        if (reply_->cancelled()) return end(std::nullopt);
        send(body_->take());
        if (body_->overflowed()) return end(Error{ErrorCode::shard_unavailable, "the stream is too slow", {}});
        if (body_->finished()) end(std::nullopt);
    }
    void end(std::optional<Error> failure) {
        const auto self = shared_from_this();
        if (const auto body = std::exchange(body_, nullptr)) body->closed();
        if (const auto reply = std::exchange(reply_, nullptr)) reply->end(std::move(failure));
        server_.under_way_.erase(self);
    }

  private:
    void send(std::string_view bytes) {
        for (; !bytes.empty(); bytes.remove_prefix(std::min(bytes.size(), part_bytes_max)))
            reply_->part(encode_hop_body(bytes.substr(0, part_bytes_max)));
    }

    HopServer& server_;
    std::shared_ptr<CallReply> reply_;  // null: ended
    std::shared_ptr<StreamBody> body_;
};

HopServer::HopServer(const Routes& routes, std::shared_ptr<Mailbox> mailbox, prometheus::Registry& registry)
    : routes_(routes),
      mailbox_(std::move(mailbox)),
      served_(prometheus::BuildCounter()
                  .Name("mainstay_http_hops_served_total")
                  .Help("Requests of other nodes' clients that ran here.")
                  .Register(registry)
                  .Add({})) {}
HopServer::~HopServer() = default;

void HopServer::call(const NodeUuid&, std::string request, std::shared_ptr<CallReply> reply) {
    auto decoded = decode_hop_request(request);
    if (!decoded) {
        reply->end(decoded.error());
        return;
    }
    /// Destroyed unrun by a mailbox that is closed.
    struct Ended {
        std::shared_ptr<CallReply> reply;
        Ended(std::shared_ptr<CallReply> of) : reply(std::move(of)) {}
        Ended(Ended&&) = default;
        ~Ended() {
            if (reply) reply->end(door_gone);
        }
    };
    mailbox_->post(
        [weak = weak_from_this(), request = std::move(*decoded), pending = Ended(std::move(reply))]() mutable {
            if (const auto self = weak.lock()) self->serve(request, std::exchange(pending.reply, nullptr));
        });
}

void HopServer::serve(const HopRequest& request, std::shared_ptr<CallReply> reply) {
    if (reply->cancelled()) return reply->end(std::nullopt);
    served_.Increment();
    auto served = std::make_shared<Served>(*this, std::move(reply));
    under_way_.insert(served);
    routes_.answer(request.view(), Reply(served, 0, mailbox_));
}

void HopServer::tick() {
    const std::vector<std::shared_ptr<Served>> all(under_way_.begin(), under_way_.end());
    for (const auto& served : all) served->pump();
}

void HopServer::abort() {
    const std::vector<std::shared_ptr<Served>> all(under_way_.begin(), under_way_.end());
    for (const auto& served : all) served->end(door_gone);
}

}  // namespace mainstay
