#include "actors/timer_actor.h"

#include <chrono>

#include "runtime/base/heap.h"

namespace mainstay {
namespace {

constexpr TimeMs horizon_ms = 60'000;
constexpr TimeMs reload_ms = 20'000;
constexpr size_t reload_rows_max = 100'000;

/// Keeps the earlier of two times for a session.
void arm(TimerState& state, const SessionKey& key, TimeMs at) {
    const auto found = state.armed.find(key);
    if (found != state.armed.end()) {
        if (found->second->first <= at) return;
        state.due.erase(found->second);
        found->second = state.due.emplace(at, key);
        return;
    }
    state.armed.emplace(key, state.due.emplace(at, key));
}

void disarm(TimerState& state, const SessionKey& key) {
    const auto found = state.armed.find(key);
    if (found == state.armed.end()) return;
    state.due.erase(found->second);
    state.armed.erase(found);
}

void schedule_tick(caf::stateful_actor<TimerState>* self, const NodeContext& node) {
    auto& state = self->state;
    if (state.due.empty()) return;
    const TimeMs first = state.due.begin()->first;
    if (state.ticking_at != 0 && state.ticking_at <= first) return;
    state.ticking_at = first;
    const TimeMs now = node.clock.now_ms();
    self->delayed_send(self, std::chrono::milliseconds(first > now ? first - now : 0), wake_atom::value);
}

void load_horizon(TimerState& state, NodeContext& node) {
    const TimeMs until = node.clock.now_ms() + horizon_ms;
    auto scanned = node.store.scan(Table::due, {}, {}, reload_rows_max, [&](std::string_view key, std::string_view) {
        TimeMs at = 0;
        for (unsigned char c : key.substr(0, 8)) at = (at << 8) | c;
        if (at > until) return false;
        if (const auto session = parse_session_row_key(key.substr(8))) arm(state, *session, at);
        return true;
    });
    (void)scanned;  // a damaged index row is reported by the store; the session's own wake-up still works when it is
                    // awake
}

}  // namespace

caf::behavior timer_actor(caf::stateful_actor<TimerState>* self, NodeContext* node) {
    self->delayed_send(self, std::chrono::milliseconds(0), listen_atom::value);
    return {
        [self, node](const ArmTimer& request) {
            if (request.only) disarm(self->state, request.key);
            // One that sleeps far beyond the horizon costs no memory: the due table has it when its time comes near.
            const bool far = request.only && request.at > node->clock.now_ms() + 60 * horizon_ms;
            if (request.at != 0 && !far) arm(self->state, request.key, request.at);
            schedule_tick(self, *node);
        },
        [self, node](wake_atom) {
            auto& state = self->state;
            state.ticking_at = 0;
            const TimeMs now = node->clock.now_ms();
            while (!state.due.empty() && state.due.begin()->first <= now) {
                const SessionKey key = state.due.begin()->second;
                state.due.erase(state.due.begin());
                state.armed.erase(key);
                self->send(node->router, std::make_shared<Envelope>(Envelope{key, WakeUp{}}));
            }
            schedule_tick(self, *node);
        },
        [self, node](listen_atom) {
            load_horizon(self->state, *node);
            if (node->sessions_busy.load() == 0) give_back_memory();  // of the thread that ran the sessions
            schedule_tick(self, *node);
            self->delayed_send(self, std::chrono::milliseconds(reload_ms), listen_atom::value);
        },
        [self](drain_atom) { self->quit(); },
    };
}

}  // namespace mainstay
