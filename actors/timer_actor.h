#pragma once
// One deadline queue for the node: every timer, retry, turn deadline and passivation check of every session. A session
// arms at most one entry (its earliest), so a message is needed only when something earlier appears. Sessions that
// sleep are found in the store's due-time index: the actor reads a near horizon of it again and again and wakes them by
// way of the router.

#include <caf/event_based_actor.hpp>
#include <caf/stateful_actor.hpp>
#include <map>
#include <unordered_map>

#include "actors/messages.h"
#include "actors/node_context.h"

namespace mainstay {

struct TimerState {
    std::multimap<TimeMs, SessionKey> due;
    std::unordered_map<SessionKey, std::multimap<TimeMs, SessionKey>::iterator> armed;
    TimeMs ticking_at = 0;  // when the one outstanding tick comes; 0: none
};

caf::behavior timer_actor(caf::stateful_actor<TimerState>* self, NodeContext* node);

}  // namespace mainstay
