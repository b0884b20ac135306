#include "runtime/policy/restart.h"

#include <doctest/doctest.h>

using namespace mainstay;

TEST_CASE("restart: the failure after the last allowed one within the window escalates") {
    RestartIntensity intensity({.restarts_max = 3, .window_ms = 1000});
    CHECK(intensity.failed(0) == RestartVerdict::restart);
    CHECK(intensity.failed(10) == RestartVerdict::restart);
    CHECK(intensity.failed(20) == RestartVerdict::restart);
    CHECK(intensity.failed(999) == RestartVerdict::escalate);
    CHECK(intensity.failed(1000) == RestartVerdict::escalate);
}

TEST_CASE("restart: what fails slowly is restarted for ever") {
    RestartIntensity intensity({.restarts_max = 3, .window_ms = 1000});
    for (TimeMs at = 0; at < 1'000'000; at += 334) {
        REQUIRE(intensity.failed(at) == RestartVerdict::restart);
        REQUIRE(intensity.recent(at) <= 3);
    }
}

TEST_CASE("restart: after a quiet window the count begins again") {
    RestartIntensity intensity({.restarts_max = 1, .window_ms = 1000});
    CHECK(intensity.failed(0) == RestartVerdict::restart);
    CHECK(intensity.failed(1) == RestartVerdict::escalate);
    CHECK(intensity.recent(1000) == 1);
    CHECK(intensity.recent(1001) == 0);
    CHECK(intensity.failed(1001) == RestartVerdict::restart);
}

TEST_CASE("restart: time that goes back is taken as standing still") {
    RestartIntensity intensity({.restarts_max = 2, .window_ms = 1000});
    CHECK(intensity.failed(5000) == RestartVerdict::restart);
    CHECK(intensity.failed(10) == RestartVerdict::restart);
    CHECK(intensity.failed(20) == RestartVerdict::escalate);
}

TEST_CASE("restart: a storm keeps no more than it needs to decide") {
    RestartIntensity intensity({.restarts_max = 3, .window_ms = 1000});
    for (int i = 0; i < 100'000; ++i) (void)intensity.failed(500);
    CHECK(intensity.recent(500) == 4);
}

TEST_CASE("restart: quarantines beyond the tenant's bound escalate, released ones do not count") {
    QuarantineCount count(2);
    CHECK(count.quarantined() == RestartVerdict::restart);
    CHECK(count.quarantined() == RestartVerdict::restart);
    CHECK(count.quarantined() == RestartVerdict::escalate);
    count.released();
    count.released();
    CHECK(count.quarantined() == RestartVerdict::restart);
}
