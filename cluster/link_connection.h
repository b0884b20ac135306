#pragma once
// One connection of a link, at either end, once TLS is up: RPC over it, frames out within the window, frames in after
// they were checked, and silence. What frames mean is its user's. KJ objects: of the link's thread only; destroyed by
// LinkContext::bury, never from a callback of its own.

#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>
#include <kj/compat/tls.h>

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "cluster/link.capnp.h"
#include "cluster/link_frame.h"
#include "cluster/link_loop.h"
#include "cluster/link_queue.h"

namespace mainstay {

/// What everything on the link's thread uses.
class LinkContext final : private kj::TaskSet::ErrorHandler {
  public:
    /// Throws kj::Exception for files that TLS does not take.
    LinkContext(LinkShared& all, kj::AsyncIoContext& io);

    LinkShared& shared;
    LinkCounters& counters;
    kj::AsyncIoContext& io;
    kj::Timer& timer;

    kj::TlsContext& tls() { return *tls_; }
    LinkHello hello() const;

    /// Whether this life of a node may speak: none after it was seen. Remembers it.
    bool admit(const NodeUuid& node, uint64_t incarnation);
    uint64_t seen(const NodeUuid& node) const;

    /// Destroys it when no callback can be on the stack any more.
    template <class T>
    void bury(kj::Own<T> gone) {
        tasks_.add(kj::evalLater([gone = kj::mv(gone)]() mutable { gone = nullptr; }));
    }
    /// Runs later, on the same thread.
    void later(kj::Promise<void> promise) { tasks_.add(kj::mv(promise)); }

  private:
    void taskFailed(kj::Exception&& exception) override;

    kj::Own<kj::TlsContext> tls_;
    std::map<NodeUuid, uint64_t> seen_;
    kj::TaskSet tasks_;
};

/// Its name is its own in the whole program: another class of this name would share its vtable.
class LinkConnection final : private kj::TaskSet::ErrorHandler {
  public:
    class User {
      public:
        virtual ~User() noexcept(false) = default;
        /// A frame that is within all bounds and from whom it should be. An error ends the connection.
        virtual Result<void> frame(const LinkFrame& frame) = 0;
        /// A request, or the end of an answer, is on its way.
        virtual void sent(FrameType type, uint64_t call) = 0;
        /// It cannot be used any more. Called once; the connection is still there.
        virtual void over() = 0;
    };
    /// `gate`: what the other end finds (accepted); null where this end dialled.
    LinkConnection(LinkContext& context, LinkEnd end, kj::Own<kj::AsyncIoStream> stream,
                   kj::Maybe<wire::Gate::Client> gate, User& user);
    ~LinkConnection() noexcept(false);
    KJ_DISALLOW_COPY(LinkConnection);

    /// Where this end dialled.
    wire::Gate::Client gate();
    /// What the other end sends its frames to.
    wire::Lane::Client inward();
    /// Both have said who they are: frames may go.
    void start(const NodeUuid& peer, uint64_t incarnation, wire::Lane::Client outward,
               std::shared_ptr<Channel> channel);

    const NodeUuid& peer() const { return peer_; }
    uint64_t incarnation() const { return incarnation_; }
    const std::shared_ptr<Channel>& channel() const { return channel_; }
    LinkQueue& queue() { return queue_; }

    /// Sends what it may.
    void pump();
    /// From time to time: pings, and gives up on a peer that is silent.
    void tick(kj::TimePoint now);
    /// This end was not running: no silence of the other.
    void excuse(kj::TimePoint now) { heard_ = now; }
    /// What the user holds of messages that are not whole.
    void holds(size_t bytes);
    /// Ends it, later.
    void fail();

  private:
    class Inward;
    void taskFailed(kj::Exception&& exception) override;
    /// Done when the sender may be told that it was taken.
    kj::Promise<void> take(wire::Frame::Reader frame);
    kj::Promise<void> receipt(size_t bytes);
    void give_receipts();
    void send(LinkFrame frame, size_t bytes, bool counted);
    size_t& window_of(FrameType type) { return type == FrameType::replication ? replication_window_ : call_window_; }
    size_t window() const { return replication_window_ + call_window_; }

    LinkContext& context_;
    const LinkEnd end_;
    User& user_;
    std::shared_ptr<LinkConnection*> self_;  // what may outlive it finds null here
    kj::Own<kj::AsyncIoStream> stream_;
    capnp::TwoPartyVatNetwork network_;
    capnp::RpcSystem<capnp::rpc::twoparty::VatId> rpc_;
    kj::Maybe<wire::Lane::Client> outward_;
    NodeUuid peer_{};
    uint64_t incarnation_ = 0;
    std::shared_ptr<Channel> channel_;
    LinkQueue queue_;
    size_t replication_window_ = 0, call_window_ = 0;  // bytes sent and not taken
    size_t held_ = 0;
    std::vector<kj::Own<kj::PromiseFulfiller<void>>> owed_;  // to the sender of frames that were taken
    size_t owed_bytes_ = 0;
    bool receipts_due_ = false;
    bool over_ = false, pinging_ = false;
    kj::TimePoint heard_, spoke_;
    kj::TaskSet tasks_;  // last: what it runs uses all of the above
};

}  // namespace mainstay
