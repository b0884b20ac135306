#include "cluster/link_loop.h"

#include <kj/async-unix.h>
#include <pthread.h>
#include <spdlog/spdlog.h>

#include "cluster/link_accepted.h"
#include "cluster/link_calls.h"
#include "cluster/link_connection.h"
#include "cluster/link_dialler.h"
#include "cluster/link_listener.h"
#include "runtime/base/limits.h"

namespace mainstay {

namespace {

constexpr uint32_t tick_ms = limits::link_silence_ms / 6;
/// A tick so late says that this process did not run, not that its peers were silent.
constexpr uint32_t late_ms = limits::link_silence_ms / 2;

class Loop final : private kj::TaskSet::ErrorHandler {
  public:
    Loop(LinkShared& shared, kj::AsyncIoContext& io, kj::Own<kj::ConnectionReceiver> socket)
        : shared_(shared),
          context_(shared, io),
          calls_(context_),
          listener_(context_, kj::mv(socket),
                    [this](const NodeUuid& node, uint64_t incarnation) { outdated(node, incarnation); }),
          bell_(io.unixEventPort, shared.bell->descriptor(), kj::UnixEventPort::FdObserver::OBSERVE_READ),
          ticked_(context_.timer.now()),
          tasks_(*this) {
        tasks_.add(listen_to_bell());
        tasks_.add(tick());
    }
    ~Loop() noexcept(false) {
        shared_.bell->take();
        for (LinkCommand& command : shared_.take_commands()) obey(command);
        diallers_.clear();
        calls_.stop();
    }
    KJ_DISALLOW_COPY(Loop);

    uint16_t port() { return listener_.port(); }
    void run(kj::WaitScope& scope) { stop_.promise.wait(scope); }

  private:
    void taskFailed(kj::Exception&& exception) override {
        spdlog::error("link: {}", exception.getDescription().cStr());
        INVARIANT(false, "the link's loop has ended");
    }

    kj::Promise<void> listen_to_bell() {
        return bell_.whenBecomesReadable().then([this] {
            // Edges are told once: the next is waited for before what there is now is taken.
            auto next = listen_to_bell();
            rung();
            return next;
        });
    }

    /// A call is made known before its request is put into a channel: so channels are emptied first, then commands are
    /// obeyed, and only then anything is sent.
    void rung() {
        const auto channels = shared_.bell->take();
        for (const auto& channel : channels) {
            listener_.take_inboxes(*channel);
            if (Dialler* dialler = find(*channel)) dialler->take_inbox();
        }
        for (LinkCommand& command : shared_.take_commands()) obey(command);
        for (const auto& channel : channels) {
            listener_.pump(*channel);
            if (Dialler* dialler = find(*channel)) dialler->pump();
        }
    }

    Dialler* find(const Channel& channel) {
        for (const auto& [node, dialler] : diallers_)
            if (dialler->has(channel)) return dialler.get();
        return nullptr;
    }

    void obey(LinkCommand& command) {
        if (auto* peers = std::get_if<SetPeers>(&command)) set_peers(peers->peers);
        if (auto* begin = std::get_if<BeginCall>(&command)) calls_.begin(std::move(begin->call));
        if (auto* abandon = std::get_if<AbandonCall>(&command)) calls_.abandon(abandon->id, std::move(abandon->why));
        if (std::holds_alternative<StopLink>(command)) stop_.fulfiller->fulfill();
    }

    void set_peers(std::vector<LinkPeer>& peers) {
        if (peers.size() > limits::cluster_nodes_max) peers.resize(limits::cluster_nodes_max);
        std::map<NodeUuid, const LinkPeer*> wanted;
        for (const LinkPeer& peer : peers)
            if (peer.node != shared_.config.self) wanted[peer.node] = &peer;
        std::erase_if(diallers_, [&](const auto& entry) {
            const auto found = wanted.find(entry.first);
            return found == wanted.end() || found->second->address != entry.second->target().address;
        });
        for (const auto& [node, peer] : wanted) {
            auto& dialler = diallers_[node];
            if (!dialler) dialler = std::make_unique<Dialler>(context_, calls_, *peer);
            if (context_.admit(node, peer->incarnation)) dialler->outdated(peer->incarnation);
        }
    }

    void outdated(const NodeUuid& node, uint64_t incarnation) {
        const auto found = diallers_.find(node);
        if (found != diallers_.end()) found->second->outdated(incarnation);
    }

    kj::Promise<void> tick() {
        return context_.timer.afterDelay(tick_ms * kj::MILLISECONDS).then([this] {
            const kj::TimePoint now = context_.timer.now();
            const bool excused = now - ticked_ > late_ms * kj::MILLISECONDS;
            ticked_ = now;
            listener_.tick(now, excused);
            for (const auto& [node, dialler] : diallers_) dialler->tick(now, excused);
            return tick();
        });
    }

    LinkShared& shared_;
    LinkContext context_;
    LinkCalls calls_;
    std::map<NodeUuid, std::unique_ptr<Dialler>> diallers_;
    Listener listener_;
    kj::UnixEventPort::FdObserver bell_;
    kj::PromiseFulfillerPair<void> stop_ = kj::newPromiseAndFulfiller<void>();
    kj::TimePoint ticked_;
    kj::TaskSet tasks_;
};

/// Bound as given; the port is appended here, so an IPv6 address gets its brackets.
std::string bind_address(const LinkConfig& config) {
    const bool bare_ipv6 = config.host.find(':') != std::string::npos && config.host.front() != '[';
    return (bare_ipv6 ? "[" + config.host + "]" : config.host) + ":" + std::to_string(config.port);
}

}  // namespace

void run_link(const std::shared_ptr<LinkShared>& shared, std::promise<Result<uint16_t>> listening) {
    ::pthread_setname_np(::pthread_self(), "link");
    bool told = false;
    try {
        auto io = kj::setupAsyncIo();
        const std::string address = bind_address(shared->config);
        auto parsed =
            io.provider->getNetwork().parseAddress(kj::StringPtr(address.c_str(), address.size())).wait(io.waitScope);
        Loop loop(*shared, io, parsed->listen());
        listening.set_value(loop.port());
        told = true;
        try {
            loop.run(io.waitScope);
        } catch (const kj::Exception& why) {  // said before the loop is taken apart, which may not go well either
            INVARIANT(false, (std::string("the link's loop has ended: ") + kj::str(why).cStr()).c_str());
        }
    } catch (const kj::Exception& why) {
        // Once it runs, nothing is to be thrown here: the node must not go on without its link.
        INVARIANT(!told, why.getDescription().cStr());
        listening.set_value(
            Error{ErrorCode::internal,
                  "the link cannot listen on " + bind_address(shared->config) + ": " + why.getDescription().cStr(),
                  {}});
    }
}

}  // namespace mainstay
