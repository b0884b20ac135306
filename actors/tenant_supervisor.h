#pragma once
// Above the sessions of one tenant: wakes them, holds messages while one goes to sleep, restarts one that crashed
// within a restart intensity and quarantines it beyond, and owns retry (DECISIONS 11): sessions report failed steps,
// the verdict comes from runtime/policy. Every request of a tenant passes here, so later policy and budgets have one
// place.

#include <caf/event_based_actor.hpp>
#include <caf/stateful_actor.hpp>
#include <deque>
#include <list>
#include <unordered_map>
#include <vector>

#include "actors/messages.h"
#include "actors/node_context.h"
#include "runtime/policy/restart.h"
#include "runtime/policy/retry.h"

namespace mainstay {

struct TenantState {
    struct Child {
        caf::actor actor;
        Epoch led_in;           // in which its shard was led when it was spawned
        bool sleeping = false;  // between permission and gone or stay: messages wait here
        bool evicted = false;   // ... and the permission was not asked for
        std::vector<EnvelopePtr> held;
        std::list<SessionKey>::iterator place;  // in by_use
    };
    std::list<SessionKey> by_use;  // the longest unused first
    size_t evicting = 0;
    std::deque<EnvelopePtr> waiting;  // for room, while somebody is asked to make it
    std::unordered_map<SessionKey, Child> children;
    std::unordered_map<caf::actor_id, SessionKey> by_id;
    /// Actors that were told to go, until they are gone: work may stay behind with them (actors/left_behind.h).
    std::unordered_multimap<SessionKey, caf::actor> leaving;
    std::unordered_map<caf::actor_id, SessionKey> leaving_by_id;
    std::unordered_map<SessionKey, RestartIntensity> crashes;
    std::unordered_map<SessionKey, TimeMs> quarantined;  // since
    QuarantineCount quarantines;
    RetryBudget retry_budget;
    const char* name = "tenant_supervisor";
};

caf::behavior tenant_supervisor(caf::stateful_actor<TenantState>* self, NodeContext* node, TenantId tenant);

}  // namespace mainstay
