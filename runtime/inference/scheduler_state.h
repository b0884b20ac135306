#pragma once
// What the scheduler keeps of a sequence, a device and a session between steps. Private to scheduler*.cpp.

#include "runtime/inference/scheduler.h"

namespace mainstay {

struct Scheduler::Sequence {
    TokenRequest request;
    std::vector<TokenId> tokens;  // prompt and what was generated
    uint32_t prompt_size = 0;
    KvChain chain;  // of the full blocks of `tokens`
    uint64_t arrival = 0;
    TimeUs submitted = 0, waiting_since = 0, last_token_at = 0;
    bool waiting = false;
    uint32_t counted_tokens = 0;  // in the load of its tenant, while it waits
    uint32_t bypassed = 0;

    bool placed = false;
    PriorityClass priority = PriorityClass::normal;  // that it had risen to when it was placed
    DeviceId device;
    TableId table;
    uint64_t epoch = 0;  // of its placement; 0: none
    uint32_t in_flight = 0;
    double load = 0;            // what it adds to the load of its device, in tokens of prefill
    uint32_t sampled_here = 0;  // tokens since it was placed
    bool alone = false;         // a step of several failed and this one may be to blame: it runs by itself
    bool placed_before = false;
    bool counts_cached = false;  // what usage says was cached is still to be held against what loads brought
    SequenceUsage usage;

    uint32_t new_tokens_left() const { return request.max_new_tokens - (uint32_t(tokens.size()) - prompt_size); }
};

struct Scheduler::DeviceRun {
    DeviceId id;
    DeviceCaps caps;
    bool draining = false;
    bool busy = false;  // has work that was not answered
    TimeUs retry_at = 0;
    double load = 0;                                        // of all that run here, in tokens of prefill
    std::vector<Sequence*> running;                         // in the order of their admission
    uint64_t step_id = 0;                                   // of the step under way; 0: none
    std::vector<std::pair<SequenceHandle, uint64_t>> rows;  // of it, with epochs
    std::vector<uint32_t> row_tokens;
    uint32_t decodes_since_prefill = 0;
    double us_per_token = 0;  // of steps with prefills, smoothed; 0: not measured
    DeviceView totals;

    uint32_t running_max(const SchedulerConfig& config) const {
        uint32_t most = caps.rows_max;
        if (caps.strict && !caps.decode_buckets.empty()) most = std::min(most, caps.decode_buckets.back());
        return config.running_max ? std::min(most, config.running_max) : most;
    }
    uint32_t tokens_max(const SchedulerConfig& config) const {
        return config.tokens_per_step ? std::min(caps.tokens_max, config.tokens_per_step) : caps.tokens_max;
    }
};

/// A session between two of its sequences.
struct Scheduler::Rest {
    uint64_t stamp = 0;
    DeviceId device;
    KvChain chain;  // of what was computed
    std::string tool;
    TimeUs paused_at = 0;
    std::optional<TableId> pin;
    TimeUs pin_until = 0;
};

}  // namespace mainstay
