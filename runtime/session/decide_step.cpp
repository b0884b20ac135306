// Commands about model steps, their retries and the end of a turn.

#include <algorithm>

#include "runtime/base/limits.h"
#include "runtime/session/decider.h"

namespace mainstay {
namespace {

// Why an answer of a model cannot become a step; empty: it can.
std::string protocol_problem(const ModelStepDone& done) {
    if (done.text.size() > limits::model_text_bytes_max) return "the text of the step exceeds its bound";
    if (done.calls.size() > limits::tool_calls_per_step_max) return "the step asks for too many calls at once";
    size_t bytes = done.text.size();
    for (const PlannedCall& call : done.calls) {
        if (call.arguments.size() > limits::tool_arguments_bytes_max) return "arguments of a call exceed their bound";
        for (const std::string* name : {&call.call_id, &call.name, &call.tool, &call.server_label})
            if (name->size() > limits::name_bytes_max) return "a name in a call exceeds its bound";
        bytes += call.arguments.size() + call.call_id.size() + call.name.size() + call.refusal_message.size();
    }
    return bytes > limits::model_step_bytes_max ? "the step as a whole exceeds its bound" : "";
}

}  // namespace

ItemPtr Decider::message_item(const ModelStepDone& done, ItemStatus status) const {
    auto item = std::make_shared<Item>();
    item->role = Role::assistant;
    item->status = status;
    item->text =
        done.text.size() > limits::model_text_bytes_max ? clip(done.text, limits::model_text_bytes_max) : done.text;
    item->step = static_cast<uint16_t>(done.step);
    return item;
}

void Decider::settle_step(const ModelStepDone& done, const TurnProgress& turn, std::vector<ItemPtr> items) {
    ModelStepSettled settled;
    settled.step = turn.turn.model_steps;
    settled.items = std::move(items);
    settled.usage = done.usage;
    settled.model = clip(done.model, limits::name_bytes_max);
    settled.finish_reason = clip(done.finish_reason, limits::name_bytes_max);
    // Of a step whose calls are left out the tokens would say more than its items.
    const bool whole = settled.items.size() == done.calls.size() + (done.text.empty() ? 0 : 1);
    if (done.tokens && whole && !settled.items.empty() && done.tokens->ids.size() <= limits::step_tokens_max)
        settled.set_tokens(*done.tokens);
    model_steps_ = turn.turn.model_steps + 1;
    output_tokens_ += done.usage.output_tokens;
    emit(std::move(settled));
}

const TurnProgress* Decider::awaited_step(TurnNo turn_no, uint32_t step, uint32_t attempt) const {
    const TurnProgress* turn = running(turn_no);
    if (!turn || !turn->model_step_due() || turn->model.failure || step != turn->turn.model_steps ||
        attempt != turn->model.attempt)
        return nullptr;
    return turn;
}

void Decider::decide(const ModelStepDone& done) {
    const TurnProgress* turn = awaited_step(done.turn, done.step, done.attempt);
    if (!turn) return;
    begin(*turn);
    if (done.placed) emit(*done.placed);
    const std::string problem = protocol_problem(done);
    const bool cut = done.finish_reason == "length", filtered = done.finish_reason == "content_filter";
    std::vector<ItemPtr> items;
    items.reserve(done.calls.size() + 1);
    if (!problem.empty() || cut || filtered) {
        // Calls of an answer that was cut may be cut themselves: none of them runs.
        if (!done.text.empty()) items.push_back(message_item(done, ItemStatus::incomplete));
        settle_step(done, *turn, std::move(items));
        if (!problem.empty()) {
            emit(Decision{std::string(error_name(ErrorCode::model_protocol_error)), "step " + std::to_string(done.step),
                          problem});
            return settle_turn(TurnStatus::failed, std::string(error_name(ErrorCode::model_protocol_error)), problem);
        }
        return cut ? settle_turn(TurnStatus::incomplete, "max_output_tokens",
                                 "the model reached its bound of output tokens")
                   : settle_turn(TurnStatus::incomplete, std::string(error_name(ErrorCode::content_filtered)),
                                 "the model's filter cut the answer");
    }

    if (!done.text.empty()) items.push_back(message_item(done, ItemStatus::completed));
    const auto first_call = static_cast<uint32_t>(turn->turn.items.size() + items.size());
    for (const PlannedCall& call : done.calls) {
        auto item = std::make_shared<Item>();
        const bool client = call.disposition == PlannedCall::Disposition::client;
        const uint32_t index = static_cast<uint32_t>(turn->turn.items.size() + items.size());
        item->kind = client ? ItemKind::function_call : ItemKind::tool_call;
        item->role = Role::assistant;
        item->status = client ? ItemStatus::completed : ItemStatus::in_progress;
        item->call_id = call.call_id.empty() ? "call_" + std::to_string(index) : call.call_id;
        item->name = client || call.tool.empty() ? call.name : call.tool;
        if (!client) item->server_label = call.server_label;
        if (call.disposition == PlannedCall::Disposition::builtin && item->server_label.empty())
            item->server_label = "builtin";
        item->arguments = call.arguments;
        item->step = static_cast<uint16_t>(done.step);
        client_calls_ |= client;
        if (!client) ++outstanding_;
        items.push_back(std::move(item));
    }
    settle_step(done, *turn, std::move(items));
    if (done.calls.empty()) return settle_turn(TurnStatus::completed, {}, {});
    room_ = limits::model_step_bytes_max;
    for (const PlannedCall& call : done.calls) room_ -= std::min(room_, call.arguments.size());
    room_ -= std::min(room_, done.text.size());
    if (outstanding_ == 0) return after_calls();  // calls of the client only
    for (uint32_t i = 0; i < done.calls.size(); ++i) plan_call(done.calls[i], first_call + i);
}

void Decider::after_calls() {
    INVARIANT(outstanding_ == 0, "the step's calls are settled");
    if (client_calls_) return settle_turn(TurnStatus::completed, {}, {});
    const uint32_t steps_max =
        limits_.steps == 0 ? limits::steps_per_turn_max : std::min(limits_.steps, limits::steps_per_turn_max);
    if (model_steps_ >= steps_max)
        return settle_turn(TurnStatus::failed, std::string(error_name(ErrorCode::step_limit_reached)),
                           "the turn needs more than " + std::to_string(steps_max) + " model steps");
    if (turn_bytes_ >= limits::turn_bytes_max)
        return settle_turn(TurnStatus::failed, std::string(error_name(ErrorCode::context_overflow)),
                           "the texts of one turn have at most " + std::to_string(limits::turn_bytes_max) + " bytes");
    if (limits_.tokens != 0 && output_tokens_ >= limits_.tokens)
        settle_turn(TurnStatus::failed, std::string(error_name(ErrorCode::token_limit_reached)),
                    "the turn needs more than " + std::to_string(limits_.tokens) + " output tokens");
}

void Decider::decide(const ModelStepFailed& failed) {
    const TurnProgress* turn = awaited_step(failed.turn, failed.step, failed.attempt);
    if (!turn) return;
    begin(*turn);
    const bool keeps = turn->turn.withheld.size() < limits::withheld_items_max;
    emit(StepFailed{failed.step, false, failed.error_class, std::string(error_name(failed.code)),
                    clip(failed.message, limits::reason_bytes_max),
                    keeps ? clip(failed.partial_text, limits::model_text_bytes_max) : std::string()});
    if (failed.error_class == ErrorClass::context_overflow) overflow(failed, *turn);
}

void Decider::decide(const ModelStepPaused& paused) {
    const TurnProgress* turn = awaited_step(paused.turn, paused.step, paused.attempt);
    const size_t said = paused.tokens.ids.size();
    // Without tokens, or with no more than are on record, it begins again where it began.
    if (!turn || said == 0 || said > limits::step_tokens_max) return;
    if (turn->model.said && said <= turn->model.said->ids.size()) return;
    begin(*turn);
    emit(StepProgress{paused.step, paused.tokens});
}

// Nobody need be asked for a verdict: the same prompt would fail again, and a shorter one is no further attempt.
void Decider::overflow(const ModelStepFailed& failed, const TurnProgress& turn) {
    if (const auto up_to = failed.truncate ? shorten(failed, turn) : std::nullopt) {
        emit(Compacted{*up_to, session_.summary_});
        emit(RetryScheduled{failed.step, false, now_, failed.attempt,
                            "turns up to " + std::to_string(up_to->value) + " are left out of prompts"});
        return;
    }
    std::string why = failed.context_tokens == 0 || failed.context_limit == 0
                          ? failed.message
                          : "the prompt has " + std::to_string(failed.context_tokens) + " tokens, it may have " +
                                std::to_string(failed.context_limit);
    if (!why.empty()) why += "; ";
    why += failed.truncate ? "no earlier turn is left that could be left out" : "truncation is disabled";
    settle_turn(TurnStatus::failed, std::string(error_name(ErrorCode::context_overflow)),
                clip(why, limits::reason_bytes_max));
}

// What stays is about half of what may be sent, in bytes, as nothing here counts tokens: so the next overflow is as far
// away as possible, and until then prompts only append.
std::optional<TurnNo> Decider::shorten(const ModelStepFailed& failed, const TurnProgress& turn) const {
    const uint64_t settled = session_.window_.bytes(), open = window_bytes_of(turn.turn);
    uint64_t keep = settled / 2;
    if (failed.context_tokens != 0 && failed.context_limit != 0) {
        const uint64_t both = (settled + open) * failed.context_limit / (uint64_t{2} * failed.context_tokens);
        keep = both > open ? both - open : 0;
    }
    // However wrong the figures are: each time a quarter goes, so that it ends soon.
    keep = std::min(keep, settled - settled / 4);
    return session_.window_.cut(keep, turn.turn);
}

void Decider::decide(const RetryVerdict& verdict) {
    const TurnProgress* turn = running(verdict.turn);
    if (!turn) return;
    const StepAttempt* step = nullptr;
    if (verdict.is_tool) {
        const Call* call = turn->calls.find(verdict.step);
        if (call && call->state == Call::State::intended) step = &call->step;
    } else if (turn->model_step_due() && verdict.step == turn->turn.model_steps) {
        step = &turn->model;
    }
    if (!step || !step->failure || step->attempt != verdict.attempt) return;
    begin(*turn);
    std::string reason = clip(verdict.reason, limits::reason_bytes_max);
    if (verdict.retry) {
        const TimeMs latest = now_ + limits::wait_duration_ms_max;
        emit(RetryScheduled{verdict.step, verdict.is_tool, std::min(verdict.at, latest), verdict.attempt + 1,
                            std::move(reason)});
        return;
    }
    const Failure& failure = *step->failure;
    emit(Decision{
        failure.code, (verdict.is_tool ? "call " : "step ") + std::to_string(verdict.step),
        "given up after attempt " + std::to_string(verdict.attempt + 1) + (reason.empty() ? "" : ": " + reason)});
    // A device gives up at the turn's deadline, too, and may be heard before the Tick: the reason is the same.
    if (!verdict.is_tool && past_deadline(*turn)) return fail_by_deadline(*turn);
    if (!verdict.is_tool) return settle_turn(TurnStatus::failed, failure.code, failure.message);
    ToolReceipt given_up;
    given_up.call = verdict.step;
    given_up.status = ItemStatus::failed;
    given_up.error = failure.code + ": " + failure.message;
    settle_call(std::move(given_up));
}

void Decider::decide(const CancelTurn& command) {
    TurnNo no = command.turn;
    if (no.value == 0) {
        if (session_.open_.empty()) return;
        no = session_.open_.front().turn.no;
    }
    decided_.turn = no;
    if (no > session_.last_turn_ || no <= session_.turn_base_)
        return refuse(ErrorCode::response_not_found, "the session has no such turn");
    const TurnProgress* turn = session_.find_open(no);
    if (!turn) return;  // settled: there is nothing left to cancel
    begin(*turn);
    std::string reason = clip(command.reason, limits::reason_bytes_max);
    emit(CancelRequested{context_.principal, reason});
    close_open_work(*turn, ErrorCode::turn_cancelled);
    settle_turn(TurnStatus::cancelled, std::string(error_name(ErrorCode::turn_cancelled)), std::move(reason));
}

bool Decider::past_deadline(const TurnProgress& turn) const {
    return turn.deadline != 0 && !turn.paused_at && turn.deadline <= now_;
}

void Decider::fail_by_deadline(const TurnProgress& turn) {
    settle_turn(TurnStatus::failed, std::string(error_name(ErrorCode::turn_deadline_exceeded)),
                "the turn took longer than " + std::to_string(turn.turn.limits.duration_ms) + " ms");
}

void Decider::settle_turn(TurnStatus status, std::string code, std::string message) {
    emit(TurnSettled{status, std::move(code), std::move(message)});
    decided_.settled.push_back(turn_);
}

}  // namespace mainstay
