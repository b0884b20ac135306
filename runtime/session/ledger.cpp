#include "runtime/session/ledger.h"

#include <algorithm>

namespace mainstay {

void StepAttempt::fail(const StepFailed& event, Sequence sequence) {
    failure = Failure{event.error_class, event.code, event.message, sequence};
    said.reset();  // a further attempt says something else, and the same one again has another prompt
}

void StepAttempt::retry(const RetryScheduled& event, Sequence sequence) {
    failure.reset();
    attempt = event.attempt;
    retry_at = event.at;
    cause = sequence;
}

void Ledger::clear() {
    calls_.clear();
    outstanding_ = 0;
}

void Ledger::plan(uint32_t index) {
    Call call;
    call.index = index;
    calls_.push_back(std::move(call));
    ++outstanding_;
}

void Ledger::settle(Call& call) {
    INVARIANT(call.state != Call::State::settled, "a call settles once");
    INVARIANT(outstanding_ > 0, "an open call is outstanding");
    call.state = Call::State::settled;
    call.step.failure.reset();
    --outstanding_;
}

Call* Ledger::find(uint32_t index) {
    auto at = std::find_if(calls_.begin(), calls_.end(), [index](const Call& call) { return call.index == index; });
    return at == calls_.end() ? nullptr : &*at;
}

const Call* Ledger::find(uint32_t index) const { return const_cast<Ledger*>(this)->find(index); }

bool Ledger::any_unknown() const {
    return std::any_of(calls_.begin(), calls_.end(),
                       [](const Call& call) { return call.state == Call::State::unknown; });
}

}  // namespace mainstay
