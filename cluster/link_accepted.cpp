#include "cluster/link_accepted.h"

#include <spdlog/spdlog.h>

#include "cluster/link_listener.h"
#include "runtime/base/limits.h"

namespace mainstay {

namespace {

/// Of any thread. It outlives its connection, and then says nothing.
class Reply final : public CallReply {
  public:
    Reply(uint64_t call, std::shared_ptr<Channel> channel, std::shared_ptr<ServedCall> served)
        : call_(call), channel_(std::move(channel)), served_(std::move(served)) {}
    ~Reply() override { end(Error{ErrorCode::internal, "the node has dropped the call", {}}); }

    void part(std::string bytes) override {
        if (ended_ || cancelled()) return;
        if (bytes.size() > limits::link_message_bytes_max) return give_up("a part beyond link_message_bytes_max");
        const auto put = channel_->put(CallItem{call_, FrameType::part, 0, std::move(bytes), false, {}, false});
        if (put == Channel::Put::full) give_up("link_queue_bytes_max wait for the caller");
    }

    void end(std::optional<Error> failure) override { end(std::move(failure), false); }

    bool cancelled() const override { return served_->cancelled.load(std::memory_order_acquire); }

  private:
    void end(std::optional<Error> failure, bool drops) {
        if (std::exchange(ended_, true) || cancelled()) return;
        const bool failed = failure.has_value();
        channel_->put(CallItem{call_, FrameType::end, 0, {}, failed, failed ? std::move(*failure) : Error{}, drops});
    }
    void give_up(const char* why) {
        end(Error{ErrorCode::shard_unavailable, std::string("an answer was given up: ") + why, {}}, true);
        served_->cancelled.store(true, std::memory_order_release);
    }

    const uint64_t call_;
    const std::shared_ptr<Channel> channel_;
    const std::shared_ptr<ServedCall> served_;
    bool ended_ = false;
};

}  // namespace

/// What a stranger with a certificate of the cluster's CA finds.
class Accepted::Gate final : public wire::Gate::Server {
  public:
    explicit Gate(std::shared_ptr<Accepted*> accepted) : accepted_(std::move(accepted)) {}
    kj::Promise<void> hello(HelloContext context) override {
        KJ_REQUIRE(*accepted_ != nullptr, "the connection is over");
        Accepted& accepted = **accepted_;
        accepted.greeted(decode_hello(context.getParams().getHello()), context.getParams().getAnswers());
        auto results = context.getResults();
        encode_hello(results.initHello(), accepted.context_.hello());
        results.setLane(accepted.connection_->inward());
        return kj::READY_NOW;
    }

  private:
    const std::shared_ptr<Accepted*> accepted_;
};

Accepted::Accepted(LinkContext& context, Listener& listener, uint64_t id, std::string address,
                   kj::AuthenticatedStream stream)
    : context_(context), listener_(listener), id_(id), address_(std::move(address)) {
    ++context_.counters.handshakes;
    handshake_ = context_.tls()
                     .wrapServer(kj::mv(stream))
                     .then([this](kj::AuthenticatedStream secure) { return secured(kj::mv(secure)); })
                     .catch_([this](kj::Exception&& why) {
                         ++context_.counters.refused_tls;
                         refused_ = true;
                         spdlog::debug("link: {}: {}", address_, why.getDescription().cStr());
                         over();
                     })
                     .eagerlyEvaluate(nullptr);
    deadline_ = context_.timer.afterDelay(limits::link_handshake_ms * kj::MILLISECONDS)
                    .then([this] {
                        if (is_known()) return;
                        if (!refused_) ++context_.counters.refused_handshake;
                        refused_ = true;
                        over();
                    })
                    .eagerlyEvaluate(nullptr);
}

Accepted::~Accepted() noexcept(false) {
    *alive_ = nullptr;
    handshake_ = nullptr;
    deadline_ = nullptr;
    connection_ = nullptr;
    for (const auto& [call, served] : served_) served->cancelled.store(true, std::memory_order_release);
    context_.counters.calls_served -= served_.size();
    if (!channel_) {
        --context_.counters.handshakes;
        return;
    }
    channel_->close();
    --context_.counters.connections_accepted;
}

kj::Promise<void> Accepted::secured(kj::AuthenticatedStream stream) {
    // Clients are verified, so there is a certificate; a name is read here because only here a failure is one of TLS.
    const kj::String name = kj::downcast<kj::TlsPeerIdentity>(*stream.peerIdentity).getCommonName();
    certificate_name_.assign(name.begin(), name.size());
    connection_ = kj::heap<LinkConnection>(context_, LinkEnd::accepted, kj::mv(stream.stream),
                                           wire::Gate::Client(kj::heap<Gate>(alive_)), static_cast<User&>(*this));
    return kj::READY_NOW;
}

void Accepted::refuse(LinkCounters::Count& counted, const std::string& why) {
    if (!std::exchange(refused_, true)) ++counted;
    spdlog::warn("link: {} with the certificate of {}: {}", address_, certificate_name_, why);
    kj::throwFatalException(kj::Exception(kj::Exception::Type::FAILED, __FILE__, __LINE__,
                                          kj::heapString(("peer_refused: " + why).c_str())));
}

void Accepted::greeted(const LinkHello& hello, wire::Lane::Client answers) {
    LinkCounters& counters = context_.counters;
    KJ_REQUIRE(!refused_, "peer_refused: said something before that did not hold");
    if (is_known()) refuse(counters.refused_frame, "a second hello");
    const std::string name = to_text(hello.node);
    // kj-tls 0.9.2 shows an accepting end the CN only; node certificates have the same name there as in their SAN,
    // which is what a dialling end checks (cluster/certificates.h).
    if (name != certificate_name_ || hello.node == context_.shared.config.self)
        refuse(counters.refused_identity, "says that it is node " + name);
    if (hello.cluster != context_.shared.config.cluster) refuse(counters.refused_cluster, "says another cluster");
    if (hello.format != link_format) refuse(counters.refused_format, "says format " + std::to_string(hello.format));
    const bool newer = hello.incarnation > context_.seen(hello.node);
    if (!context_.admit(hello.node, hello.incarnation))
        refuse(counters.refused_incarnation, "says an incarnation that is over");
    channel_ = std::make_shared<Channel>(context_.shared.bell, context_.shared.counters);
    connection_->start(hello.node, hello.incarnation, kj::mv(answers), channel_);
    --counters.handshakes;
    ++counters.connections_accepted;
    listener_.known(*this);
    if (newer) listener_.newer_(hello.node, hello.incarnation);
}

void Accepted::over() { listener_.over(id_); }

void Accepted::tick(kj::TimePoint now, bool excused) {
    if (!is_known()) return;
    if (excused) connection_->excuse(now);
    connection_->tick(now);
}

void Accepted::take_inbox() {
    if (!is_known()) return;
    Channel::Inbox inbox = channel_->take();
    for (CallItem& item : inbox.items) {
        const auto served = served_.find(item.call);
        if (served == served_.end()) {
            channel_->release(item.cost());  // it was cancelled meanwhile
            continue;
        }
        if (item.type == FrameType::end) {
            served_.erase(served);
            --context_.counters.calls_served;
        }
        channel_->release(connection_->queue().push(std::move(item)));
    }
}

Result<void> Accepted::frame(const LinkFrame& frame) {
    switch (frame.type) {
        case FrameType::ping: return {};
        case FrameType::replication: return replication(frame.bytes);
        case FrameType::request:
        case FrameType::more: return request(frame);
        case FrameType::cancel: cancel(frame.call); return {};
        case FrameType::part:
        case FrameType::end: break;
    }
    return Error{ErrorCode::peer_refused, "a frame of the other direction", {}};
}

Result<void> Accepted::replication(std::string_view bytes) {
    std::vector<ReplicationMessage> messages;
    auto fed = messages_.feed(bytes, messages);
    holds();
    if (!fed) return fed;
    const LinkConfig& config = context_.shared.config;
    const size_t all = messages.size();
    std::erase_if(messages, [&](const ReplicationMessage& message) {
        return message.cluster != config.cluster || message.from.node != connection_->peer() ||
               message.from_incarnation != connection_->incarnation() || message.to.node != config.self;
    });
    context_.counters.refused_message += all - messages.size();
    context_.counters.messages_received += messages.size();
    if (!messages.empty()) context_.shared.handler.replication(connection_->peer(), std::move(messages));
    return {};
}

Result<void> Accepted::request(const LinkFrame& frame) {
    if (frame.type == FrameType::request) {
        if (served_.count(frame.call) != 0)
            return Error{ErrorCode::peer_refused, "an id of a call that is under way", {}};
        if (!known(CallKind(frame.kind))) {
            reject(frame.call, {ErrorCode::peer_refused, "a call of unknown kind " + std::to_string(frame.kind), {}});
            return {};
        }
        if (served_.size() + requests_.size() >= limits::link_calls_max) {
            reject(frame.call, {ErrorCode::shard_unavailable, "link_calls_max are being served", {}});
            return {};
        }
    }
    auto whole = requests_.feed(frame);
    holds();
    if (!whole) return whole.error();
    if (*whole) serve(std::move(**whole));
    return {};
}

void Accepted::reject(uint64_t call, Error why) {
    ++context_.counters.refused_call;
    // Served by saying so: an answer of a call that is not known is not sent.
    served_.emplace(call, std::make_shared<ServedCall>());
    ++context_.counters.calls_served;
    channel_->put(CallItem{call, FrameType::end, 0, {}, true, std::move(why), false});
}

void Accepted::serve(CallAssembly::Whole whole) {
    const auto served = std::make_shared<ServedCall>();
    served_.emplace(whole.call, served);
    ++context_.counters.calls_served;
    auto reply = std::make_shared<Reply>(whole.call, channel_, served);
    context_.shared.handler.call(connection_->peer(), CallKind(whole.kind), std::move(whole.bytes), std::move(reply));
}

void Accepted::cancel(uint64_t call) {
    requests_.drop(call);
    holds();
    channel_->release(connection_->queue().drop(call));
    const auto found = served_.find(call);
    if (found == served_.end()) return;
    found->second->cancelled.store(true, std::memory_order_release);
    served_.erase(found);
    --context_.counters.calls_served;
}

}  // namespace mainstay
