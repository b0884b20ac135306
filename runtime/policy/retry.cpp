#include "runtime/policy/retry.h"

#include <algorithm>

#include "runtime/base/invariant.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

RetryDecision give_up(std::string code, std::string reason) { return {false, 0, std::move(code), std::move(reason)}; }

uint64_t back_off_ms(const RetrySpec& spec, uint32_t attempt, Random& random) {
    const uint64_t min = std::min(spec.backoff_min_ms, spec.backoff_max_ms);
    // The cap is reached long before a shift could overflow.
    uint64_t ceiling = min;
    for (uint32_t i = 0; i < attempt + 1 && ceiling < spec.backoff_max_ms; ++i) ceiling *= 2;
    ceiling = std::min(std::max(ceiling, min), spec.backoff_max_ms);
    return min + (ceiling > min ? random.below(ceiling - min + 1) : 0);
}

}  // namespace

void RetryBudget::earn(uint64_t milli) {
    const uint64_t full = uint64_t(rates_.capacity) * 1000;
    milli_ = milli >= full - milli_ ? full : milli_ + milli;
}

void RetryBudget::succeeded(uint64_t steps) {
    const uint64_t bounded = std::min<uint64_t>(steps, uint64_t(rates_.capacity) * 1000);
    earn(bounded * rates_.percent_of_successes * 10);
}

bool RetryBudget::take(TimeMs now) {
    if (earned_at_ != 0 && now > earned_at_) {
        const uint64_t passed = std::min<uint64_t>(now - earned_at_, 24ull * 3600 * 1000);
        const uint64_t earned = passed * rates_.floor_per_minute / 60;
        if (earned != 0) {
            earn(earned);
            earned_at_ = now;
        }
    } else {
        earned_at_ = now;
    }
    if (milli_ < 1000) return false;
    milli_ -= 1000;
    return true;
}

bool is_retryable(ErrorClass error_class, bool idempotent) {
    switch (error_class) {
        case ErrorClass::transient:
        case ErrorClass::rate_limited:
        case ErrorClass::overloaded:
        case ErrorClass::protocol: return true;
        // The step may have run: only what can be run twice is.
        case ErrorClass::timeout:
        case ErrorClass::lost: return idempotent;
        case ErrorClass::invalid:
        case ErrorClass::auth:
        case ErrorClass::context_overflow:
        case ErrorClass::content_filter: return false;
    }
    INVARIANT(false, "every error class is decided");
}

RetryDecision decide_retry(const FailedStep& failed, const RetrySpec& spec, TimeMs now, RetryBudget& budget,
                           Random& random) {
    const std::string word(to_word(failed.error_class));
    const std::string why = failed.message.empty() ? word : word + " (" + failed.message + ")";
    const uint32_t made = failed.attempt + 1;
    if (!is_retryable(failed.error_class, true)) return give_up("not_retryable", why + " is not retried");
    if (!is_retryable(failed.error_class, failed.idempotent))
        return give_up("not_idempotent", why + ": the step may have run and is not idempotent");
    const bool protocol = failed.error_class == ErrorClass::protocol;
    const uint32_t attempts_max =
        protocol ? std::min(spec.max_attempts, limits::protocol_retries_max + 1) : spec.max_attempts;
    if (made >= attempts_max)
        return give_up("attempts_exhausted", why + " on attempt " + std::to_string(made) + " of at most " +
                                                 std::to_string(attempts_max) +
                                                 (protocol ? " (protocol_retries_max)" : " (retry.max_attempts)"));
    if (failed.retry_after_ms > limits::retry_after_ms_max)
        return give_up("retry_after_too_long",
                       why + ": the upstream asks to wait " + std::to_string(failed.retry_after_ms) +
                           " ms, more than " + std::to_string(limits::retry_after_ms_max) + " (retry_after_ms_max)");
    const uint64_t wait = std::max<uint64_t>(back_off_ms(spec, failed.attempt, random), failed.retry_after_ms);
    const TimeMs at = now + wait;
    if (failed.deadline != 0 && at >= failed.deadline)
        return give_up("deadline", why + ": the next attempt would begin after the turn's deadline");
    if (!budget.take(now)) return give_up("budget_exhausted", why + ": the tenant's retry budget is used up");
    return {true, at, "retry",
            why + ": attempt " + std::to_string(made + 1) + " of at most " + std::to_string(attempts_max) + " in " +
                std::to_string(wait) + " ms" + (wait == failed.retry_after_ms ? " (asked for by the upstream)" : "")};
}

}  // namespace mainstay
