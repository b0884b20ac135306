#include "actors/token_metrics.h"

#include <doctest/doctest.h>

#include <map>
#include <sstream>

#include "runtime/base/metrics.h"

using namespace mainstay;

namespace {

/// Every series of an exposition, by its name with labels.
std::map<std::string, double> series_of(const std::string& text) {
    std::map<std::string, double> out;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        if (line.empty() || line[0] == '#') continue;
        const size_t space = line.rfind(' ');
        out[line.substr(0, space)] = std::stod(line.substr(space + 1));
    }
    return out;
}

SequenceEnded sequence(SequenceEnd end, uint32_t generated) {
    SequenceEnded ended;
    ended.end = end;
    ended.usage.prompt_tokens = 100;
    ended.usage.cached_device = 48;
    ended.usage.cached_host = 16;
    ended.usage.cached_disk = 32;
    ended.usage.generated_tokens = generated;
    ended.usage.queue_us = 2'000;
    ended.usage.first_token_us = 20'000;
    ended.usage.total_us = 50'000;
    return ended;
}

ModelInfo one_worker(uint64_t steps) {
    ModelInfo info;
    WorkerInfo worker;
    worker.state = WorkerState::up;
    worker.device.steps = steps;
    worker.device.tokens = 10 * steps;
    worker.device.padded_tokens = 2 * steps;
    worker.device.device_s = 0.5 * double(steps);
    worker.device.joules = 3 * double(steps);
    worker.device.running = 3;
    worker.device.rows_max = 16;
    worker.device.blocks_total = 64;
    worker.device.blocks_free = 20;
    worker.device.blocks_cached = 30;
    info.workers.push_back(worker);
    info.scheduler.waiting = 7;
    info.scheduler.generated_tokens = 5 * steps;
    info.scheduler.pool.host_hit_blocks = steps;
    info.scheduler.pool.host_blocks = 11;
    info.host_blocks_max = 256;
    return info;
}

}  // namespace

TEST_CASE("token metrics: a sequence is counted once, with its waits and where its prompt was cached") {
    Metrics metrics;
    TokenMetrics model(metrics.registry(), "m", 1);
    model.ended(sequence(SequenceEnd::length, 4));
    model.ended(sequence(SequenceEnd::stopped, 1));
    model.ended(sequence(SequenceEnd::deadline, 0));
    auto seen = series_of(metrics.expose());
    CHECK(seen.at("mainstay_model_sequences_total{end=\"length\",model=\"m\"}") == 1);
    CHECK(seen.at("mainstay_model_sequences_total{end=\"deadline\",model=\"m\"}") == 1);
    CHECK(seen.at("mainstay_model_sequences_total{end=\"cancelled\",model=\"m\"}") == 0);
    // Who got no token waited all the same; who got one has no time between two.
    CHECK(seen.at("mainstay_model_queue_wait_seconds_count{model=\"m\"}") == 3);
    CHECK(seen.at("mainstay_model_queue_wait_seconds_sum{model=\"m\"}") == doctest::Approx(0.006));
    CHECK(seen.at("mainstay_model_time_to_first_token_seconds_count{model=\"m\"}") == 2);
    CHECK(seen.at("mainstay_model_time_to_first_token_seconds_sum{model=\"m\"}") == doctest::Approx(0.040));
    CHECK(seen.at("mainstay_model_time_per_output_token_seconds_count{model=\"m\"}") == 1);
    CHECK(seen.at("mainstay_model_time_per_output_token_seconds_sum{model=\"m\"}") == doctest::Approx(0.010));
    CHECK(seen.at("mainstay_model_prompt_tokens_total{model=\"m\"}") == 300);
    CHECK(seen.at("mainstay_model_cached_tokens_total{model=\"m\",tier=\"device\"}") == 144);
    CHECK(seen.at("mainstay_model_cached_tokens_total{model=\"m\",tier=\"host\"}") == 48);
    CHECK(seen.at("mainstay_model_cached_tokens_total{model=\"m\",tier=\"disk\"}") == 96);
}

TEST_CASE("token metrics: totals go on across a lost device, and seconds of a simulated one say so") {
    Metrics metrics;
    TokenMetrics model(metrics.registry(), "m", 1);
    const std::string of = "{model=\"m\",worker=\"0\"}";
    CHECK(metrics.expose().find("mainstay_worker_device_seconds_total{") == std::string::npos);
    model.opened(0, true);
    model.follow(one_worker(10));
    model.follow(one_worker(12));
    model.lost(0);
    model.opened(0, true);
    model.follow(one_worker(15));  // more than before the loss, and all of it new
    auto seen = series_of(metrics.expose());
    CHECK(seen.at("mainstay_worker_losses_total" + of) == 1);
    CHECK(seen.at("mainstay_worker_steps_total" + of) == 27);
    CHECK(seen.at("mainstay_worker_padded_tokens_total" + of) == 54);
    CHECK(seen.at("mainstay_worker_device_seconds_total{model=\"m\",simulated=\"true\",worker=\"0\"}") == 13.5);
    CHECK(seen.at("mainstay_worker_device_joules_total{model=\"m\",simulated=\"true\",worker=\"0\"}") == 81);
    // The model's own totals know nothing of devices that come and go.
    CHECK(seen.at("mainstay_model_generated_tokens_total{model=\"m\"}") == 75);
    CHECK(seen.at("mainstay_model_kv_hit_blocks_total{model=\"m\",tier=\"host\"}") == 15);
}

TEST_CASE("token metrics: states are those of all versions of a model, and go with them") {
    Metrics metrics;
    TokenMetrics now(metrics.registry(), "m", 1);
    now.follow(one_worker(1));
    {
        TokenMetrics before(metrics.registry(), "m", 2);
        before.follow(one_worker(2));
        before.follow(one_worker(3));
        CHECK(series_of(metrics.expose()).at("mainstay_model_waiting_sequences{model=\"m\"}") == 14);
    }
    auto seen = series_of(metrics.expose());
    CHECK(seen.at("mainstay_model_waiting_sequences{model=\"m\"}") == 7);
    CHECK(seen.at("mainstay_model_workers{model=\"m\",state=\"up\"}") == 1);
    CHECK(seen.at("mainstay_model_workers{model=\"m\",state=\"down\"}") == 0);
    CHECK(seen.at("mainstay_worker_rows_running{model=\"m\",worker=\"0\"}") == 3);
    CHECK(seen.at("mainstay_worker_rows_max{model=\"m\",worker=\"0\"}") == 16);
    CHECK(seen.at("mainstay_worker_kv_blocks{model=\"m\",state=\"active\",worker=\"0\"}") == 14);
    CHECK(seen.at("mainstay_worker_kv_blocks{model=\"m\",state=\"cached\",worker=\"0\"}") == 30);
    CHECK(seen.at("mainstay_worker_kv_blocks{model=\"m\",state=\"free\",worker=\"0\"}") == 20);
    CHECK(seen.at("mainstay_model_kv_blocks{model=\"m\",tier=\"device\"}") == 44);
    CHECK(seen.at("mainstay_model_kv_blocks_max{model=\"m\",tier=\"device\"}") == 64);
    CHECK(seen.at("mainstay_model_kv_blocks{model=\"m\",tier=\"host\"}") == 11);
    CHECK(seen.at("mainstay_model_kv_blocks_max{model=\"m\",tier=\"host\"}") == 256);
    CHECK(seen.at("mainstay_worker_steps_total{model=\"m\",worker=\"0\"}") == 4);
}
