#pragma once
// Finds the supervisor of a session's tenant on the owner of its shard. On one node the owner is always this node; the
// hop to a peer will be decided here and nowhere else.

#include <caf/event_based_actor.hpp>
#include <caf/stateful_actor.hpp>
#include <unordered_map>

#include "actors/messages.h"
#include "actors/node_context.h"

namespace mainstay {

struct RouterState {
    std::unordered_map<TenantId, caf::actor> tenants;
};

caf::behavior router(caf::stateful_actor<RouterState>* self, NodeContext* node, caf::actor node_supervisor);

}  // namespace mainstay
