// How a session actor goes on with what was under way when the last one ended, here or on another node.

#include <algorithm>
#include <chrono>

#include "actors/session_actor.h"
#include "cluster/membership.h"

namespace mainstay {

/// In a cluster other nodes are asked first: what was begun there may go on there. Nothing begins until they have
/// answered.
void SessionActor::begin_recovery() {
    const Turn* turn = session_->open_turn();
    if (turn) taken_up_ = turn->no;
    const Pending& pending = pending_now();
    if (!turn || !node_.left_work || (!pending.model && pending.tools.empty())) return recover();
    const uint64_t claim = node_.next_request.fetch_add(1, std::memory_order_relaxed);
    claims_.emplace(claim, node_.left_work->claim(key_, led_in_, claim, caf::actor_cast<caf::actor>(self_)));
    self_->delayed_send(self_, std::chrono::milliseconds(limits::left_claim_ms), claim_atom::value, claim);
}

void SessionActor::claim_over(uint64_t claim) {
    if (recovered_ || !claims_ || claims_->number() != claim) return;
    recover();
    drive();
}

/// Whatever was in flight when the last incarnation ended has no answer to come, but for what goes on elsewhere.
void SessionActor::recover() {
    recovered_ = true;
    if (broken_) return;
    Recover command;
    if (claims_) {
        claims_->close();
        const Pending& pending = pending_now();
        std::erase_if(claims_->works(), [&](const LeftClaims::Work& work) {
            const LeftName& name = work.name;
            const auto is = [&](TurnNo turn, uint32_t number, uint32_t attempt) {
                return name.turn == turn && name.number == number && name.attempt == attempt;
            };
            const bool wanted =
                name.is_tool ? std::any_of(pending.tools.begin(), pending.tools.end(),
                                           [&](const RunTool& tool) { return is(tool.turn, tool.call, tool.attempt); })
                             : pending.model && is(pending.model->turn, pending.model->step, pending.model->attempt);
            if (wanted)
                command.elsewhere.push_back(
                    {name.is_tool, name.number, name.attempt, "node " + short_text(claims_->node(work.source))});
            else if (!work.outcome)
                cancel_left(work.source, name);
            return !wanted;
        });
        node_.left_work->count(LeftCount::taken, command.elsewhere.size());
    }
    if (session_->open_turn() != nullptr) follow_up(decide(context("system"), std::move(command)));
    if (claims_)
        for (LeftClaims::Work& work : claims_->works()) {
            if (!work.name.is_tool) continue;  // start_model() takes it, when it has the agent's tools
            work.id = node_.next_request.fetch_add(1, std::memory_order_relaxed);
            tools_.push_back({work.id, work.name.turn, work.name.number, work.name.attempt, nullptr, work.source});
            if (work.outcome) deliver(work.id, std::move(*work.outcome));
        }
}

/// A step that runs elsewhere, as if it had been started here.
void SessionActor::take_step(const RunModelStep& step, LeftClaims::Work& work, AgentToolsPtr tools) {
    work.id = node_.next_request.fetch_add(1, std::memory_order_relaxed);
    model_ = ModelInFlight{step, work.id, std::move(tools), std::exchange(work.said, {}),
                           static_cast<uint32_t>(session_->open_turn()->items.size())};
    model_->left = work.source;
    publish_deltas();
    if (work.outcome) deliver(work.id, std::move(*work.outcome));
}

void SessionActor::news_came(LeftNews& news) {
    if (!claims_ || claims_->number() != news.claim) return;
    const uint32_t source = news.source;
    heed(source, claims_->came(std::move(news)));
    if (recovered_ || !claims_->listed()) return;
    recover();
    drive();
}

void SessionActor::claim_again(uint64_t claim, uint32_t source) {
    if (!claims_ || claims_->number() != claim) return;
    heed(source,
         claims_->asked_again(source, node_.left_work->claim_again(claims_->node(source), key_, led_in_, claim, source,
                                                                   caf::actor_cast<caf::actor>(self_))));
}

void SessionActor::heed(uint32_t source, LeftClaims::Next next) {
    if (auto* said = std::get_if<LeftClaims::Said>(&next)) {
        model_delta({said->id, std::move(said->text)});
    } else if (auto* ended = std::get_if<LeftClaims::Ended>(&next)) {
        deliver(ended->id, std::move(ended->outcome));
    } else if (std::holds_alternative<LeftClaims::Again>(next)) {
        self_->delayed_send(self_, std::chrono::milliseconds(limits::left_reclaim_ms), claim_atom::value,
                            claims_->number(), source);
    } else if (const auto* late = std::get_if<LeftClaims::Late>(&next)) {
        cancel_left(source, late->name);
    } else if (const auto* missed = std::get_if<LeftClaims::Missed>(&next)) {
        const std::string why =
            "node " + short_text(claims_->node(source)) + ", where it ran, cannot be asked any more";
        node_.left_work->count(LeftCount::missed, missed->works.size());
        for (const auto& [id, name] : missed->works) deliver(id, lost_left_work(name, why));
    }
}

/// As a message to itself, so that a step or call ends in one place however it came.
void SessionActor::deliver(uint64_t id, LeftPart outcome) {
    if (auto* tool = std::get_if<LeftToolEnded>(&outcome)) {
        self_->send(self_, std::make_shared<ToolSettled>(ToolSettled{id, std::move(tool->outcome)}));
    } else if (auto* model = std::get_if<LeftModelEnded>(&outcome)) {
        auto settled = std::make_shared<ModelSettled>();
        settled->request_id = id;
        std::visit([&](auto& ended) { settled->outcome = std::move(ended); }, model->outcome);
        self_->send(self_, std::move(settled));
    }
}

void SessionActor::cancel_left(uint32_t source, const LeftName& work) {
    node_.left_work->cancel(claims_->node(source), {key_, led_in_, work});
}

/// Of what was begun for something that is committed: the next leader's journal has that, and means the same by its
/// name. Steps on devices of our own are paused instead, or run again.
std::vector<LeftBehindWork> SessionActor::leave_behind() {
    std::vector<LeftBehindWork> out;
    if (!node_.left_work || broken_) return out;
    if (model_ && !model_->left && !model_->pausable && model_->tools && gate_.is_committed(model_->step.cause)) {
        const RunModelStep& step = model_->step;
        out.push_back({{false, step.turn, step.step, step.attempt}, model_->request_id, std::move(model_->streamed)});
        model_.reset();
    }
    for (const ToolInFlight& tool : tools_)
        if (!tool.left) out.push_back({{true, tool.turn, tool.call, tool.attempt}, tool.call_id, {}});
    tools_.clear();
    return out;
}

}  // namespace mainstay
