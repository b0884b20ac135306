#include "actors/token_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <algorithm>
#include <array>
#include <vector>

namespace mainstay {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;

constexpr double seconds_of_us = 1e-6;
constexpr size_t tiers = 3, ends = 6, states = 5;
static_assert(size_t(KvTier::disk) + 1 == tiers && size_t(SequenceEnd::failed) + 1 == ends &&
              size_t(WorkerState::down) + 1 == states);

// A queue is empty for most and minutes long at worst; a token comes within microseconds to a second.
const Histogram::BucketBoundaries wait_seconds = {0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                  0.25,   0.5,    1,     2.5,   5,    10,    30,   120};
const Histogram::BucketBoundaries token_seconds = {0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005,
                                                   0.01,    0.02,   0.05,   0.1,    0.2,   0.5,   1};

/// Follows a total that somebody else keeps and that may begin anew.
class Total {
  public:
    Total() = default;
    explicit Total(Counter& series) : series_(&series) {}
    void follow(double total) {
        if (total > seen_) series_->Increment(total - seen_);
        seen_ = total;
    }
    void begin_anew() { seen_ = 0; }

  private:
    Counter* series_ = nullptr;
    double seen_ = 0;
};

/// Our part of a gauge that others may move too.
class Share {
  public:
    Share() = default;
    explicit Share(Gauge& series) : series_(&series) {}
    void set(double value) {
        if (value == seen_) return;
        series_->Increment(value - seen_);
        seen_ = value;
    }

  private:
    Gauge* series_ = nullptr;
    double seen_ = 0;
};

/// The families of one kind of label, found or made: another model may have been here before.
class Families {
  public:
    Families(prometheus::Registry& registry, Labels labels) : registry_(registry), labels_(std::move(labels)) {}

    Counter& counter(const char* name, const char* help, const Labels& more = {}) {
        return prometheus::BuildCounter().Name(name).Help(help).Register(registry_).Add(with(more));
    }
    Gauge& gauge(const char* name, const char* help, const Labels& more = {}) {
        return prometheus::BuildGauge().Name(name).Help(help).Register(registry_).Add(with(more));
    }
    Histogram& histogram(const char* name, const char* help, const Histogram::BucketBoundaries& buckets) {
        return prometheus::BuildHistogram().Name(name).Help(help).Register(registry_).Add(labels_, buckets);
    }

  private:
    Labels with(const Labels& more) const {
        Labels all = labels_;
        all.insert(more.begin(), more.end());
        return all;
    }
    prometheus::Registry& registry_;
    const Labels labels_;
};

}  // namespace

struct TokenMetrics::WorkerSeries {
    WorkerSeries(prometheus::Registry& registry, const std::string& model, uint32_t index)
        : families(registry, {{"model", model}, {"worker", std::to_string(index)}}) {}

    void follow(const DeviceView& device) {
        steps.follow(double(device.steps));
        rows.follow(double(device.rows));
        tokens.follow(double(device.tokens));
        padded.follow(double(device.padded_tokens));
        busy_seconds.follow(device.wall_s);
        if (modelled) {
            device_seconds.follow(device.device_s);
            joules.follow(device.joules);
        }
        running.set(device.running);
        rows_max.set(device.rows_max);
        const uint32_t unused = device.blocks_free + device.blocks_cached;
        active.set(double(device.blocks_total - std::min(unused, device.blocks_total)));
        cached.set(device.blocks_cached);
        free.set(device.blocks_free);
    }
    void begin_anew() {
        for (Total* total : {&steps, &rows, &tokens, &padded, &busy_seconds, &device_seconds, &joules})
            total->begin_anew();
    }

    Families families;
    Total steps{families.counter("mainstay_worker_steps_total", "Steps that the worker's device ran.")};
    Total rows{families.counter("mainstay_worker_rows_total",
                                "Rows of those steps: by steps and rows_max, how full batches are.")};
    Total tokens{families.counter("mainstay_worker_tokens_total", "Tokens that those steps were asked for.")};
    Total padded{families.counter("mainstay_worker_padded_tokens_total",
                                  "Tokens computed for nothing, because steps are padded to buckets.")};
    Total busy_seconds{families.counter("mainstay_worker_busy_seconds_total", "Measured time within steps.")};
    bool modelled = false;  // the next two exist
    Total device_seconds, joules;
    Share running{families.gauge("mainstay_worker_rows_running", "Sequences that the worker advances now.")};
    Share rows_max{families.gauge("mainstay_worker_rows_max", "Rows that one of its steps may have; 0: it is not up.")};
    Share active{families.gauge(kv_name, kv_help, {{"state", "active"}})};
    Share cached{families.gauge(kv_name, kv_help, {{"state", "cached"}})};
    Share free{families.gauge(kv_name, kv_help, {{"state", "free"}})};
    Counter& losses =
        families.counter("mainstay_worker_losses_total", "Times that the worker was lost with all its blocks.");

    static constexpr const char* kv_name = "mainstay_worker_kv_blocks";
    static constexpr const char* kv_help = "KV blocks of the worker's device: held by sequences, kept as cache, free.";
};

struct TokenMetrics::Series {
    Series(prometheus::Registry& registry, const std::string& model, uint32_t worker_count)
        : families(registry, {{"model", model}}) {
        for (size_t i = 0; i < tiers; ++i) {
            const Labels tier = {{"tier", to_string(KvTier(i))}};
            cached[i] =
                &families.counter("mainstay_model_cached_tokens_total",
                                  "Prompt tokens of ended sequences that were not computed, by where they lay.", tier);
            hits[i] =
                Total(families.counter("mainstay_model_kv_hit_blocks_total",
                                       "KV blocks found for sequences that were placed, by where they lay.", tier));
            blocks[i] = Share(families.gauge("mainstay_model_kv_blocks", "KV blocks with content, by tier.", tier));
            blocks_max[i] =
                Share(families.gauge("mainstay_model_kv_blocks_max", "KV blocks for which a tier has room.", tier));
            evicted[i] = &families.counter("mainstay_model_kv_evicted_blocks_total",
                                           "KV blocks that gave place to others, by tier.", tier);
        }
        for (size_t i = 0; i < kv_outcomes; ++i)
            transfer[i] = Total(families.counter(
                "mainstay_model_kv_transfer_blocks_total",
                "KV blocks that were to go ahead of their session to another node, by what became of them.",
                {{"outcome", to_string(KvOutcome(i))}}));
        for (size_t i = 0; i < ends; ++i)
            by_end[i] = &families.counter("mainstay_model_sequences_total", "Sequences that ended, by how.",
                                          {{"end", to_string(SequenceEnd(i))}});
        for (size_t i = 0; i < states; ++i)
            by_state[i] = Share(families.gauge("mainstay_model_workers", "Workers of the model, by state.",
                                               {{"state", to_string(WorkerState(i))}}));
        for (uint32_t i = 0; i < worker_count; ++i)
            workers.push_back(std::make_unique<WorkerSeries>(registry, model, i));
        evicted_device = Total(*evicted[size_t(KvTier::device)]);
        evicted_host = Total(*evicted[size_t(KvTier::host)]);
    }

    Families families;
    Histogram& queue_wait = families.histogram(
        "mainstay_model_queue_wait_seconds",
        "Time that a sequence waited for a device, preemptions and lost devices included.", wait_seconds);
    Histogram& first_token = families.histogram("mainstay_model_time_to_first_token_seconds",
                                                "Time from a sequence's submission to its first token.", wait_seconds);
    Histogram& per_token = families.histogram(
        "mainstay_model_time_per_output_token_seconds",
        "Mean time between the tokens of one sequence, after its first; of sequences with two or more.", token_seconds);
    std::array<Counter*, ends> by_end{};
    Total refused{families.counter("mainstay_model_refused_sequences_total",
                                   "Sequences refused at submission: too many wait, or too late.")};
    Total preempted{families.counter("mainstay_model_preempted_sequences_total",
                                     "Times that a running sequence gave its place to another.")};
    Total requeued{families.counter("mainstay_model_requeued_sequences_total",
                                    "Times that a sequence lost its device and waited again.")};
    Counter& prompt = families.counter("mainstay_model_prompt_tokens_total", "Prompt tokens of ended sequences.");
    std::array<Counter*, tiers> cached{};
    Total prefilled{
        families.counter("mainstay_model_prefilled_tokens_total", "Tokens computed without being sampled.")};
    Total generated{families.counter("mainstay_model_generated_tokens_total", "Tokens sampled.")};
    Share waiting{families.gauge("mainstay_model_waiting_sequences", "Sequences that wait for a device.")};
    std::array<Total, tiers> hits;
    std::array<Share, tiers> blocks, blocks_max;
    std::array<Counter*, tiers> evicted{};
    Total evicted_device, evicted_host;
    Total load_failed{families.counter("mainstay_model_kv_load_failures_total",
                                       "KV blocks of the host or the disk that could not be used and were computed.")};
    std::array<Total, kv_outcomes> transfer;
    Total received{families.counter("mainstay_model_kv_received_blocks_total",
                                    "KV blocks of other nodes that were taken ahead of their sessions.")};
    Total sent_bytes{families.counter(bytes_name, bytes_help, {{"direction", "sent"}})};
    Total received_bytes{families.counter(bytes_name, bytes_help, {{"direction", "received"}})};
    std::array<Share, states> by_state;
    std::vector<std::unique_ptr<WorkerSeries>> workers;

    static constexpr const char* bytes_name = "mainstay_model_kv_transfer_bytes_total";
    static constexpr const char* bytes_help = "Bytes of KV blocks between nodes that were taken.";
};

TokenMetrics::TokenMetrics(prometheus::Registry& registry, const std::string& model, uint32_t workers)
    : series_(std::make_unique<Series>(registry, model, workers)) {}

TokenMetrics::~TokenMetrics() {
    follow({});  // no workers: every gauge goes back; totals only ever grow
}

void TokenMetrics::ended(const SequenceEnded& sequence) {
    const SequenceUsage& used = sequence.usage;
    series_->by_end[size_t(sequence.end)]->Increment();
    series_->queue_wait.Observe(double(used.queue_us) * seconds_of_us);
    series_->prompt.Increment(used.prompt_tokens);
    series_->cached[size_t(KvTier::device)]->Increment(used.cached_device);
    series_->cached[size_t(KvTier::host)]->Increment(used.cached_host);
    series_->cached[size_t(KvTier::disk)]->Increment(used.cached_disk);
    if (used.generated_tokens == 0) return;
    series_->first_token.Observe(double(used.first_token_us) * seconds_of_us);
    if (used.generated_tokens == 1) return;
    const uint64_t after = used.total_us - std::min(used.first_token_us, used.total_us);
    series_->per_token.Observe(double(after) * seconds_of_us / double(used.generated_tokens - 1));
}

void TokenMetrics::opened(uint32_t worker, bool simulated) {
    WorkerSeries& one = *series_->workers[worker];
    const Labels label = {{"simulated", simulated ? "true" : "false"}};
    one.device_seconds = Total(one.families.counter(
        "mainstay_worker_device_seconds_total",
        "Time of steps on the accelerator; simulated: on the one that the device stands for.", label));
    one.joules = Total(one.families.counter("mainstay_worker_device_joules_total",
                                            "Energy of steps on the accelerator, from an assumed power.", label));
    one.modelled = true;
}

void TokenMetrics::lost(uint32_t worker) {
    series_->workers[worker]->losses.Increment();
    series_->workers[worker]->begin_anew();
}

void TokenMetrics::evicted_from_disk(size_t blocks) {
    series_->evicted[size_t(KvTier::disk)]->Increment(double(blocks));
}

void TokenMetrics::follow(const ModelInfo& info) {
    const SchedulerView& view = info.scheduler;
    series_->refused.follow(double(view.refused));
    series_->preempted.follow(double(view.preempted));
    series_->requeued.follow(double(view.requeued));
    series_->prefilled.follow(double(view.prefilled_tokens));
    series_->generated.follow(double(view.generated_tokens));
    series_->waiting.set(double(view.waiting));
    series_->hits[size_t(KvTier::device)].follow(double(view.pool.device_hit_blocks));
    series_->hits[size_t(KvTier::host)].follow(double(view.pool.host_hit_blocks));
    series_->hits[size_t(KvTier::disk)].follow(double(view.pool.disk_hit_blocks));
    series_->evicted_device.follow(double(view.pool.evicted_device));
    series_->evicted_host.follow(double(view.pool.evicted_host));
    series_->load_failed.follow(double(view.pool.load_failed));
    for (size_t i = 0; i < kv_outcomes; ++i) series_->transfer[i].follow(double(info.transfer.blocks[i]));
    series_->sent_bytes.follow(double(info.transfer.sent_bytes));
    series_->received.follow(double(info.transfer.received_blocks));
    series_->received_bytes.follow(double(info.transfer.received_bytes));

    double used = 0, total = 0;
    std::array<double, states> by_state{};
    std::vector<const DeviceView*> devices(series_->workers.size());
    for (const WorkerInfo& worker : info.workers) {
        ++by_state[size_t(worker.state)];
        used += worker.device.blocks_total - worker.device.blocks_free;
        total += worker.device.blocks_total;
        if (worker.index < devices.size()) devices[worker.index] = &worker.device;
    }
    for (size_t i = 0; i < devices.size(); ++i) series_->workers[i]->follow(devices[i] ? *devices[i] : DeviceView{});
    for (size_t i = 0; i < states; ++i) series_->by_state[i].set(by_state[i]);
    const auto tier = [&](KvTier which, double blocks, double blocks_max) {
        series_->blocks[size_t(which)].set(blocks);
        series_->blocks_max[size_t(which)].set(blocks_max);
    };
    tier(KvTier::device, used, total);
    tier(KvTier::host, double(view.pool.host_blocks), double(info.host_blocks_max));
    tier(KvTier::disk, double(view.pool.disk_blocks), double(info.disk_blocks_max));
}

}  // namespace mainstay
