#pragma once
// Who dials this node: TLS, then a hello that holds, then a connection that serves; one for each node, the newest. What
// has not said who it is within link_handshake_ms is cut off, and there are few of them from one address, so strangers
// cost a bounded amount. Of the link's thread.

#include <kj/async-io.h>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "cluster/link_assembly.h"
#include "cluster/link_connection.h"

namespace mainstay {

class Accepted;

class Listener final : private kj::TaskSet::ErrorHandler {
  public:
    /// `newer` hears of lives of nodes that have just said hello.
    Listener(LinkContext& context, kj::Own<kj::ConnectionReceiver> socket,
             std::function<void(const NodeUuid&, uint64_t)> newer);
    ~Listener() noexcept(false);
    KJ_DISALLOW_COPY(Listener);

    uint16_t port() { return uint16_t(socket_->getPort()); }
    void take_inboxes(const Channel& channel);
    void pump(const Channel& channel);
    void tick(kj::TimePoint now, bool excused);

  private:
    friend class Accepted;
    void taskFailed(kj::Exception&& exception) override;
    kj::Promise<void> accept();
    void accepted(kj::AuthenticatedStream stream);
    /// It is known now: others of its node end.
    void known(Accepted& connection);
    void over(uint64_t id);
    Accepted* find(const Channel& channel);

    LinkContext& context_;
    kj::Own<kj::ConnectionReceiver> socket_;
    const std::function<void(const NodeUuid&, uint64_t)> newer_;
    uint64_t ids_ = 0;
    std::map<uint64_t, kj::Own<Accepted>> connections_;
    std::map<const Channel*, Accepted*> by_channel_;
    std::map<std::string, size_t> handshakes_;  // by address
    kj::TaskSet tasks_;
};

}  // namespace mainstay
