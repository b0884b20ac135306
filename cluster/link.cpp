#include "cluster/link.h"

#include <thread>

#include "cluster/certificates.h"
#include "cluster/link_loop.h"
#include "runtime/base/limits.h"

namespace mainstay {

namespace {

class CallHandle final : public LinkCall {
  public:
    CallHandle(std::weak_ptr<LinkShared> shared, uint64_t id) : shared_(std::move(shared)), id_(id) {}
    void cancel() override {
        if (const auto shared = shared_.lock())
            shared->command(AbandonCall{id_, {ErrorCode::turn_cancelled, "cancelled", {}}});
    }

  private:
    const std::weak_ptr<LinkShared> shared_;
    const uint64_t id_;
};

}  // namespace

void LinkShared::command(LinkCommand one) {
    {
        const std::lock_guard lock(mutex_);
        commands_.push_back(std::move(one));
    }
    bell->ring();
}

std::vector<LinkCommand> LinkShared::take_commands() {
    const std::lock_guard lock(mutex_);
    return std::exchange(commands_, {});
}

std::shared_ptr<Channel> LinkShared::channel(const NodeUuid& to) const {
    const std::lock_guard lock(mutex_);
    const auto found = channels_.find(to);
    return found == channels_.end() ? nullptr : found->second;
}

void LinkShared::set_channel(const NodeUuid& to, std::shared_ptr<Channel> channel) {
    const std::lock_guard lock(mutex_);
    if (channel)
        channels_[to] = std::move(channel);
    else
        channels_.erase(to);
}

class Link::Core {
  public:
    Core(LinkConfig config, LinkHandler& handler) : shared(std::make_shared<LinkShared>(std::move(config), handler)) {}
    ~Core() {
        shared->command(StopLink{});
        if (thread.joinable()) thread.join();
    }
    Core(const Core&) = delete;
    Core& operator=(const Core&) = delete;

    const std::shared_ptr<LinkShared> shared;
    std::thread thread;
    uint16_t port = 0;
};

Result<std::unique_ptr<Link>> Link::open(LinkConfig config, LinkHandler& handler) {
    auto checked = check_certificate(config.ca_file, config.certificate_file, config.key_file, config.self);
    if (!checked) return checked.error();
    auto core = std::make_unique<Core>(std::move(config), handler);
    std::promise<Result<uint16_t>> promise;
    auto listening = promise.get_future();
    core->thread = std::thread(run_link, core->shared, std::move(promise));
    auto port = listening.get();
    if (!port) return port.error();
    core->port = *port;
    return std::unique_ptr<Link>(new Link(std::move(core)));
}

Link::Link(std::unique_ptr<Core> core) : core_(std::move(core)) {}
Link::~Link() = default;

uint16_t Link::port() const { return core_->port; }

void Link::set_peers(std::vector<LinkPeer> peers) { core_->shared->command(SetPeers{std::move(peers)}); }

void Link::send(const NodeUuid& to, std::vector<ReplicationMessage> messages) {
    LinkCounters& counters = *core_->shared->counters;
    const auto channel = core_->shared->channel(to);
    for (const ReplicationMessage& message : messages) {
        if (!channel) {
            ++counters.messages_dropped_no_link;
            continue;
        }
        EncodedMessage encoded = encode_replication(message);
        if (encoded.bytes > limits::link_message_bytes_max) {
            ++counters.messages_dropped_too_large;
            continue;
        }
        const Channel::Put put = channel->put(std::move(encoded));
        if (put == Channel::Put::closed) ++counters.messages_dropped_no_link;
        if (put == Channel::Put::full) ++counters.messages_dropped_queue_full;
    }
}

std::shared_ptr<LinkCall> Link::call(const NodeUuid& to, CallKind kind, std::string request,
                                     std::function<void(std::string part)> on_part,
                                     std::function<void(std::optional<Error>)> on_end, uint32_t timeout_ms) {
    LinkShared& shared = *core_->shared;
    const uint64_t id = ++shared.calls;
    const auto channel = shared.channel(to);
    const bool too_large = request.size() > limits::link_message_bytes_max;
    // Known to the loop before its request can be on the way (Loop::rung).
    shared.command(BeginCall{{id, to, channel, std::move(on_part), std::move(on_end), timeout_ms}});
    if (too_large) {
        shared.command(AbandonCall{id, {ErrorCode::body_too_large, "a request beyond link_message_bytes_max", {}}});
    } else if (channel) {
        const Channel::Put put =
            channel->put(CallItem{id, FrameType::request, uint8_t(kind), std::move(request), false, {}, false});
        if (put == Channel::Put::closed)
            shared.command(AbandonCall{id, {ErrorCode::misdirected, "no link to node " + to_text(to), {}}});
        if (put == Channel::Put::full)
            shared.command(AbandonCall{
                id, {ErrorCode::shard_unavailable, "link_queue_bytes_max wait for node " + to_text(to), {}}});
    }
    return std::make_shared<CallHandle>(core_->shared, id);
}

bool Link::connected(const NodeUuid& node) const { return core_->shared->channel(node) != nullptr; }

LinkStats Link::stats() const { return core_->shared->counters->read(); }

}  // namespace mainstay
