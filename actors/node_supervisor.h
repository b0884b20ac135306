#pragma once
// The root of the actor tree: spawns router, timer, tool worker, the owner of users' memories and the tenants'
// supervisors, takes up open turns after a start, and drains. A child other than a session that dies is a bug: the node
// aborts, the journal recovers it.

#include <caf/actor_system.hpp>
#include <caf/event_based_actor.hpp>
#include <caf/stateful_actor.hpp>
#include <deque>
#include <unordered_map>

#include "actors/messages.h"
#include "actors/node_context.h"

namespace mainstay {

struct NodeSupervisorState {
    std::unordered_map<TenantId, caf::actor> tenants;
    std::deque<SessionKey> to_resume;
    size_t resuming = 0;
};

/// Spawns the tree and fills the node's actors in. Blocks until they are there.
caf::actor start_node(caf::actor_system& system, NodeContext& node);
/// Stops every actor (after a drain) and waits for them; to be called before the system is destroyed.
void stop_node(caf::actor_system& system, NodeContext& node, const caf::actor& supervisor);

caf::behavior node_supervisor(caf::stateful_actor<NodeSupervisorState>* self, NodeContext* node);

}  // namespace mainstay
