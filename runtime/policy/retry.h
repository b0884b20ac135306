#pragma once
// Whether a failed step is tried again, and when. Retry has one owner, the tenant's supervisor: devices and tool hosts
// never retry, the session journals what failed and asks. Three bounds hold at once: attempts of the step, the turn's
// deadline, and a budget of the tenant that only successes refill, so that an outage does not multiply the load on
// whatever is down.
//
// Pure: time and randomness come in, a verdict with its reason goes out. One thread, the supervisor's.

#include <cstdint>
#include <string>

#include "runtime/base/agent_spec.h"
#include "runtime/base/clock.h"
#include "runtime/base/item.h"
#include "runtime/base/random.h"

namespace mainstay {

/// A token bucket. Each success earns a share of a retry, time earns a floor, so that a tenant with little traffic can
/// retry too. Starts full.
class RetryBudget {
  public:
    struct Rates {
        uint32_t percent_of_successes = 10;
        uint32_t floor_per_minute = 60;  // earned without any success
        uint32_t capacity = 100;         // retries that may be saved up
    };

    RetryBudget() : RetryBudget(Rates{}) {}
    explicit RetryBudget(Rates rates) : rates_(rates), milli_(uint64_t(rates.capacity) * 1000) {}

    void succeeded(uint64_t steps = 1);
    /// Takes one retry if there is one. `now` may jump: backwards earns nothing.
    bool take(TimeMs now);
    /// Whole retries left.
    uint64_t left() const { return milli_ / 1000; }

  private:
    void earn(uint64_t milli);

    Rates rates_;
    uint64_t milli_;  // thousandths of a retry
    TimeMs earned_at_ = 0;
};

struct FailedStep {
    ErrorClass error_class = ErrorClass::transient;
    uint32_t attempt = 0;         // the one that failed, from 0
    bool idempotent = true;       // a model step, or a tool of class read or idempotent
    uint32_t retry_after_ms = 0;  // what the upstream asked for; 0: nothing
    TimeMs deadline = 0;          // of the turn; 0: none
    std::string message;          // of the failure, for the reason
};

struct RetryDecision {
    bool retry = false;
    TimeMs at = 0;       // when retry
    std::string code;    // "retry", or why not: "not_retryable", "attempts_exhausted", "deadline", "budget_exhausted",
                         // "retry_after_too_long", "not_idempotent"
    std::string reason;  // for people and the decision record; names the bound
};

/// Whether the class is ever worth another attempt.
bool is_retryable(ErrorClass error_class, bool idempotent);

/// Back-off is exponential with full jitter: uniform in [min, min * 2^attempt], capped at max; a retry_after is a lower
/// bound on top. Takes from `budget` only when everything else says yes.
RetryDecision decide_retry(const FailedStep& failed, const RetrySpec& spec, TimeMs now, RetryBudget& budget,
                           Random& random);

}  // namespace mainstay
