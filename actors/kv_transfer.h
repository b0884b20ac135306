#pragma once
// KV blocks go ahead of a shard that is handed over, so that its next owner need not compute what this node has
// computed (docs/decisions/0021). While the wish stands and the shard is served here as before, its sessions' blocks
// are named to the target, which says which it wants, and then sent, one bounded message after the other; the
// hand-over waits until that is done, or kv_move_ms_max is over. What did not arrive is computed there.
//
// A cache on its way, and treated as one: whatever is refused, lost or late costs nothing but its computing, and is
// counted by its reason. Blocks are held by the session that they came with: where it is deleted, they go; all other
// nodes are told, because a move may have left copies there.
//
// One actor does the work of a node, so nothing here is locked but what busy() asks for. Whoever wires it gives it what
// reaches other nodes.

#include <caf/actor.hpp>
#include <caf/actor_system.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actors/model_scheduler.h"
#include "cluster/link.h"
#include "runtime/base/clock.h"

namespace mainstay {

struct KvTransferConfig {
    ModelScheduler* models = nullptr;
    const Clock* clock = nullptr;
    uint16_t shards = 1;
    AskNode ask;  // with calls of kind `kv`
    /// Whether any model of this cluster runs on devices of our own: else no node has anything of any session.
    std::function<bool()> any_model;
    std::function<std::vector<NodeUuid>()> others;  // nodes that live, but this one
    std::function<void()> moved;                    // a hand-over that waited need not any more; may be empty
};

class KvTransfer {
  public:
    /// What `config` points to outlives it.
    KvTransfer(caf::actor_system& system, KvTransferConfig config);
    ~KvTransfer();
    KvTransfer(const KvTransfer&) = delete;
    KvTransfer& operator=(const KvTransfer&) = delete;

    /// Whether blocks of this shard are on their way to the node that it is to be handed over to. The first question
    /// sends them off; who asks on for the same hand-over asks at least each second. Any thread, never blocks.
    bool busy(ShardId shard, const NodeUuid& to);
    /// A call of kind `kv` of another node. Any thread, never blocks.
    void serve(std::string request, std::shared_ptr<CallReply> reply);
    /// Other nodes drop what they have of it. Any thread, never blocks.
    void session_deleted(const SessionKey& session);
    /// Before what its configuration points to ends: none of it is called after this. Idempotent.
    void stop();

  private:
    class Moves;
    class Worker;
    const std::shared_ptr<Moves> moves_;
    const std::shared_ptr<Worker> worker_;  // touched in its actor only
    caf::actor actor_;
};

}  // namespace mainstay
