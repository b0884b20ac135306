#pragma once
// One peer that this node dials: connects, says who it is, checks who answers, and starts again with back-off when that
// fails or ends. What comes back over its connection are answers to calls. Of the link's thread.

#include <kj/async-io.h>

#include <memory>
#include <optional>

#include "cluster/link_assembly.h"
#include "cluster/link_calls.h"
#include "cluster/link_connection.h"

namespace mainstay {

class Dialler final : private LinkConnection::User {
  public:
    Dialler(LinkContext& context, LinkCalls& calls, LinkPeer target);
    /// What waited for the peer is dropped, its calls end.
    ~Dialler();
    Dialler(const Dialler&) = delete;
    Dialler& operator=(const Dialler&) = delete;

    const LinkPeer& target() const { return target_; }
    /// A newer life of the peer is known: a connection to an older one is given up.
    void outdated(uint64_t incarnation);
    /// Takes what was put into its channel.
    void take_inbox();
    /// ... and sends it.
    void pump();
    void tick(kj::TimePoint now, bool excused);
    bool has(const Channel& channel) const { return channel_.get() == &channel; }

  private:
    Result<void> frame(const LinkFrame& frame) override;
    void sent(FrameType type, uint64_t call) override;
    void over() override;

    kj::Promise<void> dial();
    kj::Promise<void> greet(kj::Own<kj::AsyncIoStream> stream);
    void established(const LinkHello& hello, wire::Lane::Client outward);
    void close();
    void again();

    LinkContext& context_;
    LinkCalls& calls_;
    const LinkPeer target_;
    uint32_t back_off_ms_;
    kj::Own<LinkConnection> connection_;
    std::shared_ptr<Channel> channel_;  // null: not usable
    CallAssembly answers_;
    const std::shared_ptr<Dialler*> alive_ = std::make_shared<Dialler*>(this);  // for what may run after it is gone
    kj::Promise<void> dialling_ = nullptr;  // last: what it runs uses all of the above
};

}  // namespace mainstay
