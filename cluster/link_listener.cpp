#include "cluster/link_listener.h"

#include <spdlog/spdlog.h>

#include "cluster/link_accepted.h"
#include "runtime/base/limits.h"

namespace mainstay {

namespace {

/// Not yet known, of one address: nodes of one machine come at once, a stranger fills no more than this.
constexpr size_t handshakes_per_address_max = limits::link_connections_max / 8;
constexpr auto accept_retry = 100 * kj::MILLISECONDS;

/// Without the port; the whole text where there is none.
std::string address_of(kj::PeerIdentity& identity) {
    const kj::String text = identity.toString();
    const std::string whole(text.begin(), text.size());
    const size_t port = whole.rfind(':');
    return whole.substr(0, port);
}

}  // namespace

Listener::Listener(LinkContext& context, kj::Own<kj::ConnectionReceiver> socket,
                   std::function<void(const NodeUuid&, uint64_t)> newer)
    : context_(context), socket_(kj::mv(socket)), newer_(std::move(newer)), tasks_(*this) {
    tasks_.add(accept());
}

Listener::~Listener() noexcept(false) { connections_.clear(); }

void Listener::taskFailed(kj::Exception&& exception) { spdlog::error("link: {}", exception.getDescription().cStr()); }

kj::Promise<void> Listener::accept() {
    return socket_->acceptAuthenticated()
        .then([this](kj::AuthenticatedStream stream) -> kj::Promise<void> {
            accepted(kj::mv(stream));
            return kj::READY_NOW;
        })
        .catch_([this](kj::Exception&& why) {
            // Out of descriptors, or gone before it was accepted: the next one may be well.
            spdlog::warn("link: cannot accept: {}", why.getDescription().cStr());
            return context_.timer.afterDelay(accept_retry);
        })
        .then([this] { return accept(); });
}

void Listener::accepted(kj::AuthenticatedStream stream) {
    const std::string address = address_of(*stream.peerIdentity);
    const auto found = handshakes_.find(address);
    const size_t open = found == handshakes_.end() ? 0 : found->second;
    if (connections_.size() >= limits::link_connections_max || open >= handshakes_per_address_max) {
        ++context_.counters.refused_connections;
        return;
    }
    ++handshakes_[address];
    const uint64_t id = ++ids_;
    connections_[id] = kj::heap<Accepted>(context_, *this, id, address, kj::mv(stream));
}

void Listener::known(Accepted& connection) {
    const auto handshakes = handshakes_.find(connection.address());
    if (--handshakes->second == 0) handshakes_.erase(handshakes);
    for (auto& [id, other] : connections_)
        if (other.get() != &connection && other->is_known() && other->node() == connection.node()) other->give_up();
    by_channel_[connection.channel().get()] = &connection;
}

void Listener::over(uint64_t id) {
    const auto found = connections_.find(id);
    if (found == connections_.end()) return;
    Accepted& connection = *found->second;
    if (connection.is_known()) {
        by_channel_.erase(connection.channel().get());
    } else {
        const auto handshakes = handshakes_.find(connection.address());
        if (--handshakes->second == 0) handshakes_.erase(handshakes);
    }
    context_.bury(kj::mv(found->second));
    connections_.erase(found);
}

Accepted* Listener::find(const Channel& channel) {
    const auto found = by_channel_.find(&channel);
    return found == by_channel_.end() ? nullptr : found->second;
}

void Listener::take_inboxes(const Channel& channel) {
    if (Accepted* connection = find(channel)) connection->take_inbox();
}

void Listener::pump(const Channel& channel) {
    if (Accepted* connection = find(channel)) connection->pump();
}

void Listener::tick(kj::TimePoint now, bool excused) {
    for (auto& [id, connection] : connections_) connection->tick(now, excused);
}

}  // namespace mainstay
