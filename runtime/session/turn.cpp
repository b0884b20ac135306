#include "runtime/session/turn.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "runtime/base/limits.h"

namespace mainstay {
namespace {

// Positions are 16 bits wide in an item's id.
constexpr size_t items_max = std::numeric_limits<uint16_t>::max();
static_assert(size_t{limits::steps_per_turn_max} * (limits::tool_calls_per_step_max + 1) + limits::input_items_max +
                      limits::withheld_items_max <
                  items_max,
              "the items of the longest turn must have positions");

void earlier(TimeMs& first, TimeMs candidate) {
    if (candidate != 0 && (first == 0 || candidate < first)) first = candidate;
}

}  // namespace

std::optional<Noted> noted_of(std::string_view code) {
    if (code == error_name(ErrorCode::input_queue_full)) return Noted::queue_full;
    if (code == error_name(ErrorCode::session_busy)) return Noted::busy;
    if (code == error_name(ErrorCode::apply_backlog_full)) return Noted::keys_full;
    if (code == error_name(ErrorCode::conflict)) return Noted::conflict;
    if (code == error_name(ErrorCode::idempotency_key_reused)) return Noted::key_reused;
    if (code == error_name(ErrorCode::request_timeout)) return Noted::too_late;
    return std::nullopt;
}

TimeMs TurnProgress::wake_at(TimeMs now) const {
    TimeMs first = waits.earliest();
    if (!paused_at) earlier(first, deadline);
    auto retry = [&](const StepAttempt& step) {
        if (!step.failure && step.retry_at > now) earlier(first, step.retry_at);
    };
    if (model_step_due()) retry(model);
    for (const Call& call : calls.all())
        if (call.state == Call::State::intended) retry(call.step);
    return first;
}

bool TurnProgress::apply(const Event& event, Sequence sequence, TimeMs at) {
    if (settled()) return false;
    const bool fits = std::visit(
        [&](const auto& e) -> bool {
            using E = std::decay_t<decltype(e)>;
            if constexpr (std::is_same_v<E, InputAccepted>) return accept(e, sequence, at);
            if constexpr (std::is_same_v<E, ItemsAdded>) return add_items(e, at);
            if constexpr (std::is_same_v<E, ModelStepSettled>) return settle_model_step(e);
            if constexpr (std::is_same_v<E, ToolIntent>) return record_intent(e, sequence);
            if constexpr (std::is_same_v<E, ToolReceipt>) return record_receipt(e, sequence);
            if constexpr (std::is_same_v<E, StepFailed>) return record_failure(e, sequence);
            if constexpr (std::is_same_v<E, StepProgress>) return record_progress(e, sequence);
            if constexpr (std::is_same_v<E, RetryScheduled>) return schedule_retry(e, sequence);
            if constexpr (std::is_same_v<E, UnknownResolved>) return resolve_unknown(e, sequence);
            if constexpr (std::is_same_v<E, WaitOpened>) return open_wait(e, at);
            if constexpr (std::is_same_v<E, WaitResolved>) return waits.close(e.wait);
            if constexpr (std::is_same_v<E, TurnSettled>) return settle(e, at);
            if constexpr (std::is_same_v<E, Decision>) {
                if (auto refusal = noted_of(e.code)) noted |= static_cast<uint32_t>(*refusal);
            }
            return true;
        },
        event);
    if (fits) move_deadline(at);
    return fits;
}

// If that batch is lost, the retry was not due yet: so the attempt may not start before it is committed.
void TurnProgress::reach(TimeMs before, TimeMs now, Sequence sequence) {
    auto start = [&](StepAttempt& step) {
        if (!step.failure && step.retry_at > before && step.retry_at <= now) step.cause = sequence;
    };
    start(model);
    for (const Call& call : calls.all()) start(calls.find(call.index)->step);
}

bool TurnProgress::accept(const InputAccepted& event, Sequence sequence, TimeMs at) {
    if (accepted || event.items.size() > items_max) return false;
    accepted = true;
    turn.created_at = at;
    turn.agent = event.agent;
    turn.agent_version = event.agent_version;
    turn.principal = event.principal;
    turn.key = event.key;
    turn.request_digest = event.request_digest;
    turn.limits = event.limits;
    turn.options = event.options;
    turn.items = event.items;
    turn.input_count = static_cast<uint32_t>(event.items.size());
    if (event.limits.duration_ms != 0) deadline = at + std::min(event.limits.duration_ms, limits::wait_duration_ms_max);
    model.restart(sequence);
    return true;
}

bool TurnProgress::add_items(const ItemsAdded& event, TimeMs at) {
    if (accepted || event.items.size() > items_max) return false;
    accepted = true;
    turn.created_at = turn.settled_at = at;
    turn.principal = event.principal;
    turn.items = event.items;
    turn.input_count = static_cast<uint32_t>(event.items.size());
    turn.items_only = true;
    turn.status = TurnStatus::completed;
    return true;
}

bool TurnProgress::settle_model_step(const ModelStepSettled& event) {
    if (!accepted || calls.outstanding() != 0 || event.step != turn.model_steps) return false;
    if (turn.items.size() + event.items.size() > items_max) return false;
    calls.clear();
    client_calls = false;
    auto tokens = event.items.empty() ? nullptr : event.tokens();
    for (ItemPtr item : event.items) {
        const auto index = static_cast<uint32_t>(turn.items.size());
        if (tokens) {  // the step's first item has them
            auto with_tokens = std::make_shared<Item>(*item);
            with_tokens->tokens = std::move(tokens);
            item = std::move(with_tokens);
        }
        if (item->kind == ItemKind::tool_call) calls.plan(index);
        if (item->kind == ItemKind::function_call) client_calls = true;
        // An answer that its bound of tokens cut is part of the conversation; one that was cut for what it is, is not.
        if (item->kind == ItemKind::message && item->status == ItemStatus::incomplete &&
            event.finish_reason != "length")
            turn.withheld.push_back(index);
        bytes += item->bytes();
        turn.items.push_back(std::move(item));
    }
    turn.usage += event.usage;
    turn.model = event.model;
    turn.finish_reason = event.finish_reason;
    ++turn.model_steps;
    model.restart(Sequence{});
    return true;
}

bool TurnProgress::record_intent(const ToolIntent& event, Sequence sequence) {
    Call* call = calls.find(event.call);
    if (!call || call->state != Call::State::planned) return false;
    call->state = Call::State::intended;
    call->effect = event.effect;
    call->timeout_ms = event.timeout_ms;
    call->step.restart(sequence);
    return true;
}

bool TurnProgress::record_receipt(const ToolReceipt& event, Sequence sequence) {
    Call* call = calls.find(event.call);
    if (!call || call->state == Call::State::settled) return false;
    if (event.status == ItemStatus::in_progress || event.status == ItemStatus::incomplete) return false;
    if (event.status == ItemStatus::unknown) {
        call->state = Call::State::unknown;
        call->step.failure.reset();
    } else {
        calls.settle(*call);
        model.cause = sequence;
    }
    bytes += event.output.size() + event.error.size();
    set_call_item(event.call, event.status, event.output, event.error);
    return true;
}

bool TurnProgress::record_failure(const StepFailed& event, Sequence sequence) {
    if (!accepted) return false;
    bytes += event.message.size() + event.partial_text.size();
    if (event.is_tool) {
        Call* call = calls.find(event.step);
        if (!call || call->state != Call::State::intended) return false;
        call->step.fail(event, sequence);
        return true;
    }
    if (!model_step_due() || event.step != turn.model_steps) return false;
    model.fail(event, sequence);
    if (event.partial_text.empty()) return true;
    if (turn.items.size() >= items_max) return false;
    auto item = std::make_shared<Item>();
    item->role = Role::assistant;
    item->status = ItemStatus::incomplete;
    item->text = event.partial_text;
    item->step = static_cast<uint16_t>(event.step);
    turn.withheld.push_back(static_cast<uint32_t>(turn.items.size()));
    turn.items.push_back(std::move(item));
    return true;
}

bool TurnProgress::record_progress(const StepProgress& event, Sequence sequence) {
    if (!accepted || !model_step_due() || model.failure || event.step != turn.model_steps) return false;
    model.said = std::make_shared<const StepTokens>(event.tokens);
    model.cause = sequence;
    return true;
}

bool TurnProgress::schedule_retry(const RetryScheduled& event, Sequence sequence) {
    if (!accepted) return false;
    if (!event.is_tool) {
        if (!model_step_due() || event.step != turn.model_steps) return false;
        model.retry(event, sequence);
        return true;
    }
    Call* call = calls.find(event.step);
    if (!call || call->state != Call::State::intended) return false;
    call->step.retry(event, sequence);
    return true;
}

bool TurnProgress::resolve_unknown(const UnknownResolved& event, Sequence sequence) {
    Call* call = calls.find(event.call);
    if (!call || call->state != Call::State::unknown) return false;
    switch (event.how) {
        case Resolution::done:
            calls.settle(*call);
            model.cause = sequence;
            set_call_item(event.call, ItemStatus::completed, event.output, {});
            return true;
        case Resolution::failed:
            calls.settle(*call);
            model.cause = sequence;
            set_call_item(event.call, ItemStatus::failed, {}, event.output.empty() ? "failed" : event.output);
            return true;
        case Resolution::retry:
            call->state = Call::State::intended;
            call->step.retry_at = 0;
            ++call->step.attempt;
            call->step.cause = sequence;
            set_call_item(event.call, ItemStatus::in_progress, {}, {});
            return true;
    }
    return false;
}

bool TurnProgress::open_wait(const WaitOpened& event, TimeMs at) {
    if (!accepted || !waits.open(event, at)) return false;
    Call* call = calls.find(event.call);
    if (call && call->state == Call::State::planned) call->state = Call::State::waiting;
    return true;
}

bool TurnProgress::settle(const TurnSettled& event, TimeMs at) {
    if (!accepted || !is_settled(event.status)) return false;
    if (calls.outstanding() != 0 && !std::all_of(calls.all().begin(), calls.all().end(), [](const Call& call) {
            return call.state == Call::State::settled || call.state == Call::State::unknown;
        }))
        return false;  // nothing stays open behind a settled turn, but what nobody knows may stay unknown
    turn.status = event.status;
    turn.code = event.code;
    turn.message = event.message;
    turn.settled_at = at;
    return true;
}

// Time spent waiting for a person, a signal or a timer, or with an outcome that nobody knows, is not the turn's.
void TurnProgress::move_deadline(TimeMs at) {
    if (deadline == 0) return;
    const bool pause = !waits.empty() || calls.any_unknown();
    if (pause && !paused_at) {
        paused_at = at;
    } else if (!pause && paused_at) {
        if (at > *paused_at) deadline += at - *paused_at;
        paused_at.reset();
    }
}

// An item that was published is never changed: the new state of a call is a new item in the same place.
void TurnProgress::set_call_item(uint32_t index, ItemStatus status, const std::string& output,
                                 const std::string& error) {
    auto item = std::make_shared<Item>(*turn.items[index]);
    item->status = status;
    item->text = output;
    item->error = error;
    turn.items[index] = std::move(item);
}

}  // namespace mainstay
