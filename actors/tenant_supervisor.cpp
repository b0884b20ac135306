#include "actors/tenant_supervisor.h"

#include <spdlog/spdlog.h>

#include <cstdlib>

#include "actors/session_actor.h"

namespace mainstay {
namespace {

using Self = caf::stateful_actor<TenantState>*;

TenantState::Child& child_of(Self self, NodeContext* node, const SessionKey& key) {
    auto& child = self->state.children[key];
    if (!child.actor) {
        child.actor = self->spawn<caf::monitored>(session_actor, node, key, caf::actor_cast<caf::actor>(self));
        self->state.by_id.emplace(child.actor.id(), key);
    }
    return child;
}

void forward(Self self, NodeContext* node, const EnvelopePtr& envelope) {
    auto& state = self->state;
    const auto& key = envelope->key;
    if (state.quarantined.contains(key)) {
        refuse(envelope->ask,
               {ErrorCode::session_quarantined, "the session crashed again and again and is set aside", {}});
        return;
    }
    const bool cold = !state.children.contains(key);
    if (cold && state.children.size() >= node->options.sessions_active_max &&
        !std::holds_alternative<WakeUp>(envelope->ask)) {
        refuse(envelope->ask,
               {ErrorCode::too_many_sessions, "sessions_active_max sessions are in memory and busy", {}});
        return;
    }
    auto& child = child_of(self, node, key);
    if (child.sleeping)
        child.held.push_back(envelope);
    else
        self->send(child.actor, envelope);
}

void forget(Self self, const SessionKey& key, std::vector<EnvelopePtr>& held) {
    auto& state = self->state;
    const auto found = state.children.find(key);
    if (found == state.children.end()) return;
    held = std::move(found->second.held);
    state.by_id.erase(found->second.actor.id());
    state.children.erase(found);
}

/// A session actor died without saying so: a bug that its input met. Restarting is safe (the journal has everything),
/// repeating it for ever is not.
void crashed(Self self, NodeContext* node, const caf::down_msg& down) {
    auto& state = self->state;
    const auto found = state.by_id.find(down.source.id());
    if (found == state.by_id.end()) return;
    const SessionKey key = found->second;
    std::vector<EnvelopePtr> held;
    forget(self, key, held);
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
            if (found == self->state.children.end()) return;
            found->second.sleeping = true;
            self->send(found->second.actor, sleep_atom::value);
        },
        [self, node](gone_atom, const SessionKey& key) {
            std::vector<EnvelopePtr> held;
            forget(self, key, held);
            for (const auto& envelope : held) forward(self, node, envelope);
        },
        [self](stay_atom, const SessionKey& key) {
            const auto found = self->state.children.find(key);
            if (found == self->state.children.end()) return;
            found->second.sleeping = false;
            for (const auto& envelope : std::exchange(found->second.held, {}))
                self->send(found->second.actor, envelope);
        },
        [self, node](const RetryAsked& asked) {
            const auto found = self->state.children.find(asked.key);
            if (found == self->state.children.end()) return;
            self->send(found->second.actor, RetryDecided{judge(self->state, *node, asked)});
        },
        [self](drain_atom) {
            for (auto& [key, child] : self->state.children) self->send(child.actor, drain_atom::value);
            self->quit();
        },
    };
}

}  // namespace mainstay
