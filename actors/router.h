#pragma once
// Finds the supervisor of a session's tenant. What belongs to a shard that another node leads, or nobody, is refused
// here, with the shard's number as the error's param; where it goes then is the door's business (gateway/hop.h).

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
