#include "runtime/base/metrics.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/error_code.h"

using namespace mainstay;

namespace {

/// Value of the series that stands in the exposition exactly as `series`; -1 if it is absent.
double value_of(const std::string& text, const std::string& series) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
        if (line.starts_with(series + " ")) return std::stod(line.substr(series.size() + 1));
    return -1;
}

/// The store's figures as its own struct has them: more fields, another order.
struct Stats {
    uint64_t journal_syncs = 0, journal_bytes = 0, journal_records = 0, journal_groups = 0;
    uint64_t state_syncs = 0, state_commits = 0, append_queue_bytes = 0, apply_backlog_bytes = 0;
    uint64_t recovered_records = 0, damaged_sessions = 0;
    bool read_only = false;
};

}  // namespace

TEST_CASE("metrics: what happens is what the scrape says") {
    Metrics metrics;
    metrics.turn_settled("completed", 0.02);
    metrics.turn_settled("completed", 0.2);
    metrics.turn_settled("failed", 20);
    metrics.step_settled("model");
    metrics.step_settled("tool");
    metrics.model_tokens(500, 480, 20);
    metrics.model_tokens(7, 0, 1);
    metrics.step_failed("overloaded");
    metrics.retried();
    metrics.session_activated();
    metrics.session_passivated();
    metrics.set_sessions_active(7);
    metrics.model_requests_in_flight(3);
    metrics.tool_call("lost");
    metrics.refused("input_queue_full");
    metrics.refused("a word that is in no list");
    const std::string text = metrics.expose();
    CHECK(value_of(text, "mainstay_turns_total{status=\"completed\"}") == 2);
    CHECK(value_of(text, "mainstay_turns_total{status=\"failed\"}") == 1);
    CHECK(value_of(text, "mainstay_turns_total{status=\"cancelled\"}") == 0);
    CHECK(value_of(text, "mainstay_turn_duration_seconds_count") == 3);
    CHECK(value_of(text, "mainstay_turn_duration_seconds_sum") == doctest::Approx(20.22));
    CHECK(value_of(text, "mainstay_steps_total{kind=\"model\"}") == 1);
    CHECK(value_of(text, "mainstay_model_tokens_total{kind=\"input\"}") == 507);
    CHECK(value_of(text, "mainstay_model_tokens_total{kind=\"cached\"}") == 480);
    CHECK(value_of(text, "mainstay_model_tokens_total{kind=\"output\"}") == 21);
    CHECK(value_of(text, "mainstay_step_failures_total{class=\"overloaded\"}") == 1);
    CHECK(value_of(text, "mainstay_retries_total") == 1);
    CHECK(value_of(text, "mainstay_sessions_activated_total") == 1);
    CHECK(value_of(text, "mainstay_sessions_passivated_total") == 1);
    CHECK(value_of(text, "mainstay_sessions_active") == 7);
    CHECK(value_of(text, "mainstay_model_requests_in_flight") == 3);
    CHECK(value_of(text, "mainstay_tool_calls_total{outcome=\"lost\"}") == 1);
    CHECK(value_of(text, "mainstay_refusals_total{code=\"input_queue_full\"}") == 1);
    CHECK(value_of(text, "mainstay_refusals_total{code=\"other\"}") == 1);
    CHECK(value_of(text, "mainstay_process_resident_memory_bytes") > 1e5);
    CHECK(value_of(text, "mainstay_process_open_fds") >= 3);
    CHECK(value_of(text, "mainstay_process_cpu_seconds_total") >= 0);
    CHECK(text.find("mainstay_build_info{version=\"0.") != std::string::npos);
}

TEST_CASE("metrics: totals of the store move by what was added, also after they began again") {
    Metrics metrics;
    Stats stats;
    stats.journal_syncs = 10;
    stats.apply_backlog_bytes = 500;
    stats.read_only = true;
    stats.damaged_sessions = 3;
    metrics.set_store(stats);
    metrics.set_store(stats);
    CHECK(value_of(metrics.expose(), "mainstay_journal_syncs_total") == 10);
    stats.journal_syncs = 15;
    stats.apply_backlog_bytes = 0;
    metrics.set_store(stats);
    CHECK(value_of(metrics.expose(), "mainstay_journal_syncs_total") == 15);
    CHECK(value_of(metrics.expose(), "mainstay_state_apply_backlog_bytes") == 0);
    CHECK(value_of(metrics.expose(), "mainstay_store_read_only") == 1);
    CHECK(value_of(metrics.expose(), "mainstay_store_damaged_sessions") == 3);
    stats.journal_syncs = 2;
    metrics.set_store(stats);
    CHECK(value_of(metrics.expose(), "mainstay_journal_syncs_total") == 17);
}

TEST_CASE("metrics: the number of series is fixed, whatever words come") {
    Metrics metrics;
    const auto lines = [&] {
        const std::string text = metrics.expose();
        return std::count(text.begin(), text.end(), '\n');
    };
    const auto before = lines();
    for (int i = 0; i < 1000; ++i) {
        metrics.refused("tenant-" + std::to_string(i));
        metrics.tool_call(std::to_string(i));
    }
    CHECK(lines() == before);
    size_t count = 0;
    const ErrorInfo* table = error_table(count);
    const std::string text = metrics.expose();
    for (size_t i = 0; i < count; ++i)
        CHECK(value_of(text, "mainstay_refusals_total{code=\"" + std::string(table[i].name) + "\"}") == 0);
}

TEST_CASE("metrics: counting from many threads loses nothing") {
    Metrics metrics;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([&] {
            for (int i = 0; i < 5000; ++i) metrics.turn_settled("completed", 0.001);
        });
    for (int i = 0; i < 20; ++i) (void)metrics.expose();
    for (auto& thread : threads) thread.join();
    CHECK(value_of(metrics.expose(), "mainstay_turns_total{status=\"completed\"}") == 20'000);
}

TEST_CASE("metrics: promtool finds nothing to say") {
    Metrics metrics;
    metrics.turn_settled("completed", 1);
    // promtool comes with the package prometheus (tools/deps); without it this fails, it does not skip.
    FILE* promtool = popen("promtool check metrics", "w");
    REQUIRE(promtool != nullptr);
    const std::string text = metrics.expose();
    REQUIRE(fwrite(text.data(), 1, text.size(), promtool) == text.size());
    CHECK(pclose(promtool) == 0);
}
