#include "runtime/policy/retry.h"

#include <doctest/doctest.h>

#include "runtime/base/limits.h"

using namespace mainstay;

namespace {

constexpr TimeMs now = 1'000'000;

RetryDecision decide(FailedStep failed, RetrySpec spec = {}, uint64_t seed = 1) {
    RetryBudget budget;
    SeededRandom random(seed);
    return decide_retry(failed, spec, now, budget, random);
}

}  // namespace

TEST_CASE("retry: each class of error is tried again or not") {
    struct Row {
        ErrorClass error_class;
        bool idempotent, retried;
    };
    const Row rows[] = {
        {ErrorClass::transient, false, true},
        {ErrorClass::rate_limited, false, true},
        {ErrorClass::overloaded, false, true},
        {ErrorClass::timeout, true, true},
        {ErrorClass::timeout, false, false},
        {ErrorClass::lost, true, true},
        {ErrorClass::lost, false, false},
        {ErrorClass::protocol, false, true},
        {ErrorClass::invalid, true, false},
        {ErrorClass::auth, true, false},
        {ErrorClass::context_overflow, true, false},
        {ErrorClass::content_filter, true, false},
    };
    for (const auto& row : rows) {
        CAPTURE(to_word(row.error_class));
        CAPTURE(row.idempotent);
        FailedStep failed;
        failed.error_class = row.error_class;
        failed.idempotent = row.idempotent;
        failed.message = "why it failed";
        const auto decision = decide(failed);
        CHECK(decision.retry == row.retried);
        CHECK(decision.reason.find(to_word(row.error_class)) != std::string::npos);
        CHECK(decision.reason.find("why it failed") != std::string::npos);
    }
}

TEST_CASE("retry: attempts are counted with the first") {
    RetrySpec spec;
    spec.max_attempts = 3;
    FailedStep failed;
    failed.attempt = 0;
    CHECK(decide(failed, spec).retry);
    failed.attempt = 1;
    CHECK(decide(failed, spec).retry);
    failed.attempt = 2;
    const auto last = decide(failed, spec);
    CHECK_FALSE(last.retry);
    CHECK(last.code == "attempts_exhausted");
    spec.max_attempts = 1;
    failed.attempt = 0;
    CHECK_FALSE(decide(failed, spec).retry);
}

TEST_CASE("retry: a broken protocol is tried twice more at most") {
    RetrySpec spec;
    spec.max_attempts = 50;
    FailedStep failed;
    failed.error_class = ErrorClass::protocol;
    failed.attempt = 1;
    CHECK(decide(failed, spec).retry);
    failed.attempt = 2;
    CHECK_FALSE(decide(failed, spec).retry);
}

TEST_CASE("retry: back-off grows, is jittered and stays within its range") {
    RetrySpec spec;
    spec.max_attempts = 100;
    spec.backoff_min_ms = 100;
    spec.backoff_max_ms = 5000;
    for (uint32_t attempt = 0; attempt < 98; ++attempt) {
        uint64_t least = UINT64_MAX, most = 0;
        for (uint64_t seed = 1; seed <= 200; ++seed) {
            FailedStep failed;
            failed.attempt = attempt;
            const auto decision = decide(failed, spec, seed * 7919);
            REQUIRE(decision.retry);
            least = std::min(least, decision.at - now);
            most = std::max(most, decision.at - now);
        }
        CHECK(least >= 100);
        CHECK(most <= std::min<uint64_t>(5000, 100ull << std::min(attempt + 1, 20u)));
        CHECK(most > least);  // jitter
        if (attempt >= 6) CHECK(most > 4000);
    }
}

TEST_CASE("retry: what the upstream asks for is waited, within reason") {
    FailedStep failed;
    failed.error_class = ErrorClass::rate_limited;
    failed.retry_after_ms = 90'000;
    CHECK(decide(failed).at == now + 90'000);
    failed.retry_after_ms = limits::retry_after_ms_max + 1;
    CHECK(decide(failed).code == "retry_after_too_long");
}

TEST_CASE("retry: nothing begins after the turn's deadline") {
    FailedStep failed;
    failed.retry_after_ms = 70'000;
    failed.deadline = now + 70'000;
    CHECK(decide(failed).code == "deadline");
    failed.deadline = now + 70'001;
    CHECK(decide(failed).retry);
}

TEST_CASE("retry: an outage is not multiplied: without successes only the floor is left") {
    RetryBudget budget({.percent_of_successes = 10, .floor_per_minute = 60, .capacity = 20});
    SeededRandom random(3);
    uint32_t granted = 0;
    for (int second = 0; second < 60; ++second)
        for (int failure = 0; failure < 100; ++failure)
            granted += decide_retry({}, {}, now + TimeMs(second) * 1000, budget, random).retry;
    CHECK(granted >= 20 + 58);
    CHECK(granted <= 20 + 60);
    CHECK(decide_retry({}, {}, now + 59'000, budget, random).code == "budget_exhausted");
}

TEST_CASE("retry: successes earn a tenth of a retry each, up to the capacity") {
    RetryBudget budget({.percent_of_successes = 10, .floor_per_minute = 0, .capacity = 5});
    for (int i = 0; i < 5; ++i) CHECK(budget.take(now));
    CHECK_FALSE(budget.take(now));
    budget.succeeded(9);
    CHECK_FALSE(budget.take(now));
    budget.succeeded(1);
    CHECK(budget.take(now));
    CHECK_FALSE(budget.take(now));
    budget.succeeded(UINT64_MAX);
    CHECK(budget.left() == 5);
}

TEST_CASE("retry: a clock that goes back earns nothing and takes nothing away") {
    RetryBudget budget({.percent_of_successes = 10, .floor_per_minute = 60, .capacity = 2});
    CHECK(budget.take(now));
    CHECK(budget.take(now));
    CHECK_FALSE(budget.take(now - 500'000));
    CHECK(budget.take(now - 499'000));
    CHECK_FALSE(budget.take(now - 499'000));
}

TEST_CASE("retry: a refusal for another reason does not use the budget") {
    RetryBudget budget({.percent_of_successes = 0, .floor_per_minute = 0, .capacity = 1});
    SeededRandom random(3);
    FailedStep failed;
    failed.deadline = now + 1;
    CHECK_FALSE(decide_retry(failed, {}, now, budget, random).retry);
    CHECK(budget.left() == 1);
}
