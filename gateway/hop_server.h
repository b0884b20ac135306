#pragma once
// The other end of a hop: a request that another node's door authenticated runs through this door's routes, and its
// answer goes back in parts. What this node does not lead either is told as such and sent nowhere else. Calls come in
// on any thread; everything else happens on the door's.

#include <prometheus/counter.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>
#include <unordered_set>

#include "cluster/link.h"
#include "gateway/exchange.h"
#include "gateway/hop_message.h"
#include "gateway/routes.h"

namespace mainstay {

class HopServer : public std::enable_shared_from_this<HopServer> {
  public:
    /// `routes` outlives what the mailbox runs.
    HopServer(const Routes& routes, std::shared_ptr<Mailbox> mailbox, prometheus::Registry& registry);
    ~HopServer();

    /// Any thread, never blocks: LinkHandler::call() of CallKind::hop ends here. Errors of the call: peer_refused for
    /// what is no request, shard_unavailable where the door goes away.
    void call(const NodeUuid& from, std::string request, std::shared_ptr<CallReply> reply);

    // Door thread.
    /// Ends streams whose reader has gone.
    void tick();
    bool idle() const { return under_way_.empty(); }
    /// Ends all that is under way: their callers look elsewhere.
    void abort();

  private:
    class Served;
    void serve(const HopRequest& request, std::shared_ptr<CallReply> reply);

    const Routes& routes_;
    std::shared_ptr<Mailbox> mailbox_;
    prometheus::Counter& served_;
    std::unordered_set<std::shared_ptr<Served>> under_way_;
};

}  // namespace mainstay
