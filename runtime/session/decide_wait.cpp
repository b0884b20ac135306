// Time that passes, and answers to waits.

#include <algorithm>

#include "runtime/base/limits.h"
#include "runtime/session/decider.h"

namespace mainstay {

void Decider::resolve_wait(const OpenWait& wait, WaitOutcome outcome, const std::string& payload) {
    emit(WaitResolved{wait.wait, outcome, payload, context_.principal});
    const Call* call = session_.open_.front().calls.find(wait.call);
    if (call && call->state == Call::State::waiting) settle_call(receipt_of(wait, outcome, payload, now_));
}

// Everything that is due goes into one batch, except that a deadline is looked at only when no wait was due: a wait
// that ends moves it.
void Decider::decide(const Tick&) {
    if (session_.open_.empty()) {
        if (session_.keep_until_ != 0 && session_.disposable(now_)) emit(SessionDeleted{context_.principal});
        return;
    }
    const TurnProgress& turn = session_.open_.front();
    std::vector<const OpenWait*> due;
    for (const OpenWait& wait : turn.waits.all())
        if (wait.due != 0 && wait.due <= now_) due.push_back(&wait);
    std::sort(due.begin(), due.end(), [](const OpenWait* a, const OpenWait* b) {
        return std::pair(a->due, a->wait) < std::pair(b->due, b->wait);
    });
    if (!due.empty()) begin(turn);
    for (const OpenWait* wait : due) resolve_wait(*wait, outcome_when_due(wait->kind), {});
    if (!due.empty()) return;

    if (past_deadline(turn)) {
        begin(turn);
        close_open_work(turn, ErrorCode::turn_deadline_exceeded);
        return fail_by_deadline(turn);
    }
    start_due_retries(turn);
}

// A retry is due once a recorded time has reached it, so the time is recorded: a replay then knows it as well.
void Decider::start_due_retries(const TurnProgress& turn) {
    auto start = [&](const StepAttempt& step, const std::string& subject) {
        if (step.failure || step.retry_at <= session_.now_ || step.retry_at > now_) return;
        if (events_.empty()) begin(turn);
        emit(Decision{"retry_started", subject, "attempt " + std::to_string(step.attempt + 1)});
    };
    if (turn.model_step_due()) start(turn.model, "step " + std::to_string(turn.turn.model_steps));
    for (const Call& call : turn.calls.all())
        if (call.state == Call::State::intended) start(call.step, "call " + std::to_string(call.index));
}

void Decider::decide(const ResolveWait& command) {
    const OpenWait* wait = session_.open_.empty() ? nullptr : session_.open_.front().waits.find(command.wait);
    if (!wait) return refuse(ErrorCode::wait_not_found, "no open wait has this number");
    if (!outcome_allowed(wait->kind, command.outcome))
        return refuse(ErrorCode::invalid_request, "this wait cannot have this outcome", "outcome");
    if (command.payload.size() > limits::tool_result_bytes_max)
        return refuse(ErrorCode::body_too_large,
                      "bytes of a result: at most " + std::to_string(limits::tool_result_bytes_max), "payload");
    begin(session_.open_.front());
    resolve_wait(*wait, command.outcome, command.payload);
}

}  // namespace mainstay
