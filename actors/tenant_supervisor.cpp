#include "actors/tenant_supervisor.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>

#include "actors/left_work.h"
#include "actors/session_actor.h"

namespace mainstay {
namespace {

using Self = caf::stateful_actor<TenantState>*;

constexpr size_t evictions_per_wake = 2;  // more than one, so that room grows where some stay

/// From three quarters of sessions_active_max on, each session that wakes sends others to sleep: those that were used
/// least recently. One that has work says so and stays.
void make_room(Self self, NodeContext* node) {
    if (node->sessions_active.load() < node->options.sessions_active_max / 4 * 3) return;
    auto& state = self->state;
    for (size_t asked = 0; asked < evictions_per_wake && !state.by_use.empty(); ++asked) {
        auto& child = state.children.at(state.by_use.front());
        state.by_use.splice(state.by_use.end(), state.by_use, child.place);
        if (child.sleeping) continue;
        child.sleeping = child.evicted = true;
        ++state.evicting;
        self->send(child.actor, sleep_atom::value);
    }
}

TenantState::Child& child_of(Self self, NodeContext* node, const SessionKey& key, Epoch led_in) {
    auto& state = self->state;
    auto& child = state.children[key];
    if (!child.actor) {
        make_room(self, node);
        child.actor = self->spawn<caf::monitored>(session_actor, node, key, caf::actor_cast<caf::actor>(self), led_in);
        child.led_in = led_in;
        state.by_id.emplace(child.actor.id(), key);
        child.place = state.by_use.insert(state.by_use.end(), key);
    } else {
        state.by_use.splice(state.by_use.end(), state.by_use, child.place);
    }
    return child;
}

/// Reads, and what ends or closes something that was accepted before, are welcome always.
bool brings_something_new(const Ask& ask) {
    return std::holds_alternative<SubmitTurn>(ask) || std::holds_alternative<OpenSession>(ask) ||
           std::holds_alternative<AppendItems>(ask) || std::holds_alternative<ChangeMetadata>(ask);
}

void refuse_crowded(const EnvelopePtr& envelope) {
    refuse(envelope->ask, {ErrorCode::too_many_sessions, "sessions_active_max sessions are in memory and busy", {}});
}

void forward(Self self, NodeContext* node, const EnvelopePtr& envelope) {
    auto& state = self->state;
    const auto& key = envelope->key;
    // The router has looked as well, but the shard may have been lost on the way from there.
    const auto place = node->place_of(node->shard_of(key));
    if (place.where != ShardPlace::Where::here)
        return refuse(envelope->ask, NodeContext::elsewhere(place, node->shard_of(key)));
    if (place.refuses && brings_something_new(envelope->ask))
        return refuse(envelope->ask, {*place.refuses, "the session's shard takes nothing new at present", {}});
    if (state.quarantined.contains(key)) {
        refuse(envelope->ask,
               {ErrorCode::session_quarantined, "the session crashed again and again and is set aside", {}});
        return;
    }
    const bool cold = !state.children.contains(key);
    if (cold && state.children.size() >= node->options.sessions_active_max &&
        !std::holds_alternative<WakeUp>(envelope->ask)) {
        make_room(self, node);
        if (state.evicting > state.waiting.size())
            state.waiting.push_back(envelope);
        else
            refuse_crowded(envelope);
        return;
    }
    auto& child = child_of(self, node, key, place.epoch);
    if (child.sleeping)
        child.held.push_back(envelope);
    else
        self->send(child.actor, envelope);
}

/// Somebody who was asked to make room has gone, or has work and stays.
void eviction_ended(Self self, NodeContext* node, bool gone) {
    auto& state = self->state;
    --state.evicting;
    if (gone && !state.waiting.empty()) {
        const auto envelope = std::move(state.waiting.front());
        state.waiting.pop_front();
        forward(self, node, envelope);
    }
    while (state.waiting.size() > state.evicting) {
        refuse_crowded(state.waiting.back());
        state.waiting.pop_back();
    }
}

/// True if it had been asked to make room: eviction_ended() is due, after what it held has been forwarded.
bool forget(Self self, const SessionKey& key, std::vector<EnvelopePtr>& held) {
    auto& state = self->state;
    const auto found = state.children.find(key);
    if (found == state.children.end()) return false;
    const bool evicted = found->second.evicted;
    held = std::move(found->second.held);
    state.by_id.erase(found->second.actor.id());
    state.by_use.erase(found->second.place);
    state.children.erase(found);
    return evicted;
}

/// One that was told to go is gone.
void left(TenantState& state, caf::actor_id id) {
    const auto key = state.leaving_by_id.find(id);
    if (key == state.leaving_by_id.end()) return;
    const auto [first, last] = state.leaving.equal_range(key->second);
    state.leaving.erase(std::find_if(first, last, [&](const auto& one) { return one.second.id() == id; }));
    state.leaving_by_id.erase(key);
}

/// A session actor died without saying so: a bug that its input met. Restarting is safe (the journal has everything),
/// repeating it for ever is not.
void crashed(Self self, NodeContext* node, const caf::down_msg& down) {
    auto& state = self->state;
    const auto found = state.by_id.find(down.source.id());
    if (found == state.by_id.end()) {
        return left(state, down.source.id());
    }
    const SessionKey key = found->second;
    std::vector<EnvelopePtr> held;
    const bool evicted = forget(self, key, held);
    // It was told that another node leads it: no crash, and what waits is asked again.
    if (down.reason == caf::exit_reason::user_shutdown) {
        const ShardId shard = node->shard_of(key);
        for (const auto& envelope : held) refuse(envelope->ask, NodeContext::elsewhere(node->place_of(shard), shard));
        if (evicted) eviction_ended(self, node, true);
        return;
    }
    const TimeMs now = node->clock.now_ms();
    if (state.crashes[key].failed(now) == RestartVerdict::restart) {
        spdlog::error("session {} crashed and is started again", to_text(key.session));
        held.push_back(std::make_shared<Envelope>(Envelope{key, WakeUp{}}));
    } else {
        spdlog::error("session {} crashed too often and is quarantined", to_text(key.session));
        state.quarantined.emplace(key, now);
        if (state.quarantines.quarantined() == RestartVerdict::escalate) {
            spdlog::critical(
                "more than tenant_quarantines_max sessions are quarantined; the node stops and starts anew");
            std::abort();
        }
    }
    for (const auto& envelope : held) forward(self, node, envelope);
    if (evicted) eviction_ended(self, node, true);
}

void drop(Self self, NodeContext* node, const SessionKey& key, const Error& error) {
    auto& state = self->state;
    std::vector<EnvelopePtr> held;
    const auto actor = state.children.at(key).actor;
    const bool evicted = forget(self, key, held);
    self->send(actor, lost_atom::value);
    state.leaving.emplace(key, actor);
    state.leaving_by_id.emplace(actor.id(), key);
    for (const auto& envelope : held) refuse(envelope->ask, error);
    if (evicted) eviction_ended(self, node, true);
}

/// Sessions of a shard that is led elsewhere, or anew: they go at once, and what waited for them is asked again by who
/// asked.
void drop_shard(Self self, NodeContext* node, ShardId shard, std::optional<Epoch> but_of) {
    auto& state = self->state;
    std::vector<SessionKey> dropped;
    for (const auto& [key, child] : state.children)
        if (node->shard_of(key) == shard && child.led_in != but_of) dropped.push_back(key);
    const Error error = NodeContext::elsewhere(node->place_of(shard), shard);
    for (const auto& key : dropped) drop(self, node, key, error);
}

/// Of a session's work that its actors left behind. Who asks leads its shard in a later epoch, whether this node has
/// heard of that or not.
void ask_leaving(Self self, NodeContext* node, const LeftAskPtr& ask) {
    auto& state = self->state;
    const SessionKey& key = ask->claim.session;
    const auto awake = state.children.find(key);
    if (awake != state.children.end() && awake->second.led_in < ask->claim.epoch) {
        const ShardId shard = node->shard_of(key);
        drop(self, node, key, NodeContext::elsewhere(node->place_of(shard), shard));
    }
    const auto [first, last] = state.leaving.equal_range(key);
    for (auto at = first; at != last; ++at) self->send(at->second, ask);
}

RetryVerdict judge(TenantState& state, NodeContext& node, const RetryAsked& asked) {
    const auto& ask = asked.ask;
    FailedStep failed;
    failed.error_class = ask.error_class;
    failed.attempt = ask.attempt;
    // A tool of class once is asked about only when it surely did not run: a lost one is `unknown` by then.
    failed.idempotent = true;
    failed.retry_after_ms = asked.retry_after_ms;
    failed.deadline = asked.deadline;
    failed.message = ask.message;
    state.retry_budget.succeeded(asked.successes);
    const auto decision = decide_retry(failed, asked.policy, node.clock.now_ms(), state.retry_budget, node.random);
    return {ask.turn, ask.step, ask.is_tool, ask.attempt, decision.retry, decision.at, decision.reason};
}

}  // namespace

caf::behavior tenant_supervisor(Self self, NodeContext* node, TenantId) {
    self->set_down_handler([self, node](caf::down_msg& down) { crashed(self, node, down); });
    return {
        [self, node](const EnvelopePtr& envelope) { forward(self, node, envelope); },
        [self](sleep_atom, const SessionKey& key) {
            const auto found = self->state.children.find(key);
            // One that was asked to make room has its permission under way: a second would reach it after it had
            // stayed.
            if (found == self->state.children.end() || found->second.sleeping) return;
            found->second.sleeping = true;
            self->send(found->second.actor, sleep_atom::value);
        },
        [self, node](gone_atom, const SessionKey& key) {
            std::vector<EnvelopePtr> held;
            const bool evicted = forget(self, key, held);
            for (const auto& envelope : held) forward(self, node, envelope);
            if (evicted) eviction_ended(self, node, true);
        },
        [self, node](stay_atom, const SessionKey& key) {
            const auto found = self->state.children.find(key);
            if (found == self->state.children.end()) return;
            found->second.sleeping = false;
            for (const auto& envelope : std::exchange(found->second.held, {}))
                self->send(found->second.actor, envelope);
            if (std::exchange(found->second.evicted, false)) eviction_ended(self, node, false);
        },
        [self, node](const RetryAsked& asked) {
            const auto found = self->state.children.find(asked.key);
            if (found == self->state.children.end()) return;
            self->send(found->second.actor, RetryDecided{judge(self->state, *node, asked)});
        },
        [self, node](const ShardLed& led) { drop_shard(self, node, led.shard, led.epoch); },
        [self, node](const ShardLost& lost) { drop_shard(self, node, lost.shard, std::nullopt); },
        [self, node](const LeftAskPtr& ask) { ask_leaving(self, node, ask); },
        [self](const CancelLeftWork& cancel) {
            const auto [first, last] = self->state.leaving.equal_range(cancel.session);
            for (auto at = first; at != last; ++at) self->send(at->second, cancel);
        },
        [self](drain_atom) {
            for (auto& [key, child] : self->state.children) self->send(child.actor, drain_atom::value);
            for (auto& [key, actor] : self->state.leaving) self->send(actor, drain_atom::value);
            self->quit();
        },
    };
}

}  // namespace mainstay
