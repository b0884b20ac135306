#pragma once
// The effect ledger of one model step: each call that Mainstay runs goes planned -> intended -> settled, and never
// backwards, except that an outcome nobody knows stands as `unknown` until a person closes it or has it run again.
// Invariant: an intent is recorded before a call may be dispatched, and exactly one receipt settles it.
//
// Owned by a TurnProgress.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/session/event.h"

namespace mainstay {

/// A step that failed and waits for the supervisor's verdict.
struct Failure {
    ErrorClass error_class = ErrorClass::transient;
    std::string code, message;
    Sequence sequence;
};

/// Which attempt of a retriable step is the current one. Results of any other are stale.
struct StepAttempt {
    uint32_t attempt = 0;
    TimeMs retry_at = 0;  // not before this recorded time; 0: at once
    std::optional<Failure> failure;
    Sequence cause;                          // of the event that made the attempt necessary
    std::shared_ptr<const StepTokens> said;  // a model step that was paused: what the attempt goes on from; or null

    /// The attempt may run (and may have been started) once a recorded time has reached it.
    bool runnable(TimeMs now) const { return !failure && retry_at <= now; }
    void fail(const StepFailed& event, Sequence sequence);
    void retry(const RetryScheduled& event, Sequence sequence);
    void restart(Sequence sequence) { *this = StepAttempt{0, 0, std::nullopt, sequence, nullptr}; }
};

struct Call {
    enum class State : uint8_t { planned, intended, waiting, unknown, settled };
    uint32_t index = 0;  // of its item within the turn
    State state = State::planned;
    EffectClass effect = EffectClass::once;
    uint64_t timeout_ms = 0;
    StepAttempt step;

    /// Dispatched, or may have been, and no receipt yet.
    bool in_flight(TimeMs now) const { return state == State::intended && step.runnable(now); }
};

class Ledger {
  public:
    void clear();
    void plan(uint32_t index);
    void settle(Call& call);
    Call* find(uint32_t index);
    const Call* find(uint32_t index) const;
    const std::vector<Call>& all() const { return calls_; }
    /// Calls without a final receipt: planned, intended, waiting or unknown.
    size_t outstanding() const { return outstanding_; }
    bool any_unknown() const;

  private:
    std::vector<Call> calls_;
    size_t outstanding_ = 0;
};

}  // namespace mainstay
