#pragma once
// One accepted connection: a stranger until its hello holds, then a node that is served. Requests are put together and
// handed to the handler; their answers go back through replies that any thread may hold. Of the link's thread.

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cluster/link_assembly.h"
#include "cluster/link_connection.h"

namespace mainstay {

class Listener;

/// What a reply and its connection share.
struct ServedCall {
    std::atomic<bool> cancelled{false};
};

class Accepted final : private LinkConnection::User {
  public:
    Accepted(LinkContext& context, Listener& listener, uint64_t id, std::string address,
             kj::AuthenticatedStream stream);
    ~Accepted() noexcept(false);
    KJ_DISALLOW_COPY(Accepted);

    uint64_t id() const { return id_; }
    const std::string& address() const { return address_; }
    bool is_known() const { return channel_ != nullptr; }
    const NodeUuid& node() const { return connection_->peer(); }
    const std::shared_ptr<Channel>& channel() const { return channel_; }
    void take_inbox();
    void pump() { connection_->pump(); }
    void tick(kj::TimePoint now, bool excused);
    void give_up() { connection_->fail(); }

  private:
    class Gate;
    Result<void> frame(const LinkFrame& frame) override;
    void sent(FrameType, uint64_t) override {}
    void over() override;

    kj::Promise<void> secured(kj::AuthenticatedStream stream);
    /// Throws where the hello does not hold.
    void greeted(const LinkHello& hello, wire::Lane::Client answers);
    [[noreturn]] void refuse(LinkCounters::Count& counted, const std::string& why);
    Result<void> replication(std::string_view bytes);
    Result<void> request(const LinkFrame& frame);
    void serve(CallAssembly::Whole whole);
    void reject(uint64_t call, Error why);
    void cancel(uint64_t call);
    void holds() { connection_->holds(messages_.bytes() + requests_.bytes()); }

    LinkContext& context_;
    Listener& listener_;
    const uint64_t id_;
    const std::string address_;
    std::string certificate_name_;
    bool refused_ = false;
    kj::Own<LinkConnection> connection_;  // null: TLS is not up
    std::shared_ptr<Channel> channel_;    // null: not known
    MessageAssembly messages_;
    CallAssembly requests_;
    std::map<uint64_t, std::shared_ptr<ServedCall>> served_;
    const std::shared_ptr<Accepted*> alive_ = std::make_shared<Accepted*>(this);
    kj::Promise<void> handshake_ = nullptr, deadline_ = nullptr;
};

}  // namespace mainstay
