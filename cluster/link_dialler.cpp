#include "cluster/link_dialler.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "runtime/base/limits.h"

namespace mainstay {

Dialler::Dialler(LinkContext& context, LinkCalls& calls, LinkPeer target)
    : context_(context), calls_(calls), target_(std::move(target)), back_off_ms_(limits::link_reconnect_min_ms) {
    // A peer that was seen in a life of its own is asked for no older one.
    context_.admit(target_.node, target_.incarnation);
    dialling_ = dial().eagerlyEvaluate(nullptr);
}

Dialler::~Dialler() {
    *alive_ = nullptr;
    dialling_ = nullptr;
    close();
}

kj::Promise<void> Dialler::dial() {
    ++context_.counters.dials;
    auto attempt = context_.io.provider->getNetwork()
                       .parseAddress(kj::StringPtr(target_.address.c_str(), target_.address.size()))
                       .then([](kj::Own<kj::NetworkAddress> address) {
                           auto connecting = address->connect();
                           return connecting.attach(kj::mv(address));
                       })
                       .then([this](kj::Own<kj::AsyncIoStream> stream) {
                           const std::string name = to_text(target_.node);
                           return context_.tls().wrapClient(kj::mv(stream), kj::StringPtr(name.c_str(), name.size()));
                       })
                       .then([this](kj::Own<kj::AsyncIoStream> stream) { return greet(kj::mv(stream)); });
    return context_.timer.timeoutAfter(limits::link_handshake_ms * kj::MILLISECONDS, kj::mv(attempt))
        .catch_([this](kj::Exception&& why) {
            ++context_.counters.dials_failed;
            spdlog::debug("link: node {} at {}: {}", to_text(target_.node), target_.address,
                          why.getDescription().cStr());
            again();
        });
}

kj::Promise<void> Dialler::greet(kj::Own<kj::AsyncIoStream> stream) {
    connection_ =
        kj::heap<LinkConnection>(context_, LinkEnd::dialled, kj::mv(stream), nullptr, static_cast<User&>(*this));
    auto request = connection_->gate().helloRequest();
    encode_hello(request.initHello(), context_.hello());
    request.setAnswers(connection_->inward());
    return request.send().then([this](capnp::Response<wire::Gate::HelloResults>&& response) {
        const LinkHello hello = decode_hello(response.getHello());
        established(hello, response.getLane());
    });
}

void Dialler::established(const LinkHello& hello, wire::Lane::Client outward) {
    const auto refuse = [](LinkCounters::Count& counted, const char* why) {
        ++counted;
        KJ_FAIL_REQUIRE("peer_refused", why);
    };
    // TLS has checked the name of who was dialled; a hello in another's would be a bug of the peer.
    if (hello.node != target_.node) refuse(context_.counters.refused_identity, "another node");
    if (hello.cluster != context_.shared.config.cluster) refuse(context_.counters.refused_cluster, "another cluster");
    if (hello.format != link_format) refuse(context_.counters.refused_format, "another format");
    if (!context_.admit(hello.node, hello.incarnation))
        refuse(context_.counters.refused_incarnation, "an incarnation that is over");
    channel_ = std::make_shared<Channel>(context_.shared.bell, context_.shared.counters);
    connection_->start(hello.node, hello.incarnation, kj::mv(outward), channel_);
    back_off_ms_ = limits::link_reconnect_min_ms;
    ++context_.counters.peers_connected;
    context_.shared.set_channel(target_.node, channel_);
    spdlog::info("link: to node {} at {}, release {}", to_text(target_.node), target_.address, hello.version);
    context_.shared.handler.peer_up(target_.node, hello.incarnation);
}

/// Half of the time is random, so that nodes do not come back in step.
void Dialler::again() {
    close();
    const uint64_t noise =
        uint64_t((context_.timer.now() - kj::origin<kj::TimePoint>()) / kj::NANOSECONDS) * 0x9e3779b97f4a7c15;
    const uint32_t wait_ms = back_off_ms_ / 2 + uint32_t((noise >> 32) % (back_off_ms_ / 2 + 1));
    back_off_ms_ = std::min(back_off_ms_ * 2, limits::link_reconnect_max_ms);
    // A later turn of the loop, because the promise that is replaced may be the one that runs.
    context_.later(context_.timer.afterDelay(wait_ms * kj::MILLISECONDS).then([alive = alive_] {
        if (*alive) (*alive)->dialling_ = (*alive)->dial().eagerlyEvaluate(nullptr);
    }));
}

void Dialler::close() {
    if (channel_) {
        context_.shared.set_channel(target_.node, nullptr);
        --context_.counters.peers_connected;
        ++context_.counters.links_lost;
        const Channel::Inbox left = channel_->close();
        context_.counters.messages_dropped_link_lost += left.messages.size() + connection_->queue().messages();
        calls_.lost(*channel_);
        channel_ = nullptr;
        answers_ = {};
        context_.shared.handler.peer_down(target_.node);
    }
    if (connection_.get() != nullptr) context_.bury(kj::mv(connection_));
}

void Dialler::outdated(uint64_t incarnation) {
    if (!channel_ || connection_->incarnation() >= incarnation) return;
    connection_->fail();
}

void Dialler::take_inbox() {
    if (!channel_) return;
    Channel::Inbox inbox = channel_->take();
    LinkQueue& queue = connection_->queue();
    for (EncodedMessage& message : inbox.messages) queue.push(std::move(message));
    for (CallItem& item : inbox.items) channel_->release(queue.push(std::move(item)));
}

void Dialler::pump() {
    if (channel_) connection_->pump();
}

void Dialler::tick(kj::TimePoint now, bool excused) {
    if (!channel_) return;
    if (excused) connection_->excuse(now);
    connection_->tick(now);
}

Result<void> Dialler::frame(const LinkFrame& frame) {
    const auto drop = [&] {
        answers_.drop(frame.call);
        connection_->holds(answers_.bytes());
    };
    if (frame.type == FrameType::end) {
        if (answers_.has(frame.call) && !frame.failed)
            return Error{ErrorCode::peer_refused, "an answer ends before its last part is whole", {}};
        drop();
        calls_.end(frame.call, frame.failed ? std::optional(frame.failure) : std::nullopt);
        return {};
    }
    // What was cancelled here is still on its way for a while.
    if (!calls_.known(frame.call)) {
        drop();
        return {};
    }
    auto whole = answers_.feed(frame);
    if (!whole) return whole.error();
    connection_->holds(answers_.bytes());
    if (*whole) calls_.part((*whole)->call, std::move((*whole)->bytes));
    return {};
}

void Dialler::sent(FrameType, uint64_t call) { calls_.sent(call); }

void Dialler::over() {
    if (channel_) again();
}

}  // namespace mainstay
