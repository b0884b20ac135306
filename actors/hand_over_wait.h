#pragma once
// What a planned hand-over of a shard waits for before steps on devices of our own are paused, which people see, and so
// comes last (actors/step_pauses.h). Pure.

#include <algorithm>

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"

namespace mainstay {

struct HandOverAsk {
    bool calls = false,
         blocks = false;       // under way: tool calls; KV blocks that go ahead, which have a bound of their own
    bool leaving = false;      // this node stops
    bool followed = true;      // every node takes up calls that stay behind (actors/left_work.h)
    TimeMs held_ms = 0;        // for how long it has waited
    TimeMs calls_wait_ms = 0;  // cluster.hand_over_wait
};

/// For how long it waits for calls. Where they would be lost, because this process ends or nobody would ask for them,
/// longer than where their outcomes follow the session.
inline TimeMs wait_for_calls_ms(const HandOverAsk& ask) {
    if (ask.leaving) return limits::hand_over_leaving_ms;
    return ask.followed ? ask.calls_wait_ms : std::max<TimeMs>(ask.calls_wait_ms, limits::hand_over_unfollowed_ms);
}

inline bool hand_over_waits(const HandOverAsk& ask) {
    return ask.blocks || (ask.calls && ask.held_ms < wait_for_calls_ms(ask));
}

/// It waits no longer than this in all.
inline TimeMs hand_over_hold_ms(TimeMs calls_wait_ms) {
    return std::max<TimeMs>(calls_wait_ms, limits::hand_over_unfollowed_ms) + limits::pause_reserve_ms;
}

}  // namespace mainstay
