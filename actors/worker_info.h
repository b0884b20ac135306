#pragma once
// What people are told of the models that run on devices of our own: `mainstay worker list|show`, metrics. Plain
// values, without CAF or HTTP.

#include <array>
#include <string>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/inference/scheduler.h"

namespace mainstay {

enum class WorkerState : uint8_t { starting, up, draining, drained, down };
const char* to_string(WorkerState state);

/// One accelerator worker: one device.
struct WorkerInfo {
    std::string name;  // "<model>/<index>"
    uint32_t index = 0;
    WorkerState state = WorkerState::starting;
    std::string problem;  // why it is down, or what its last loss was
    uint32_t losses = 0;  // since the daemon's start
    std::string kind, hardware, kernel_id;
    bool simulated = true;  // device seconds and joules
    DeviceView device;      // zeros while it is not up
};

/// What became of a KV block that was to go ahead of its session to another node. In messages (docs/formats).
enum class KvOutcome : uint8_t {
    taken,          // as an answer to a question: it is wanted
    known,          // it is there already
    no_model,       // the other node has no such model, or not yet
    other_kernel,   // ... but of other weights, arithmetic or shape: its bits would be others
    no_room,        // its tiers are off or full
    damaged,        // a checksum did not hold there
    gone,           // this node had no bytes of it any more
    unreachable,    // the other node did not answer
    beyond_bounds,  // the time or the bytes of one move were over
};
constexpr size_t kv_outcomes = size_t(KvOutcome::beyond_bounds) + 1;
const char* to_string(KvOutcome outcome);

/// Totals of one model.
struct KvTransferFigures {
    std::array<uint64_t, kv_outcomes> blocks{};        // that this node wanted to send, by outcome
    uint64_t sent_bytes = 0;                           // of those that were taken
    uint64_t received_blocks = 0, received_bytes = 0;  // that this node took
};

enum class ModelState : uint8_t { loading, ready, failed };
const char* to_string(ModelState state);

struct ModelInfo {
    std::string model;
    ModelState state = ModelState::loading;
    std::string problem;  // failed: why
    uint32_t context_max = 0, block_tokens = 0;
    uint64_t block_bytes = 0;
    uint64_t host_blocks_max = 0, disk_blocks_max = 0;  // for which these tiers have room; 0: no such tier
    size_t stores_pending = 0;                          // writes of blocks to disk that are under way
    SchedulerView scheduler;                            // its devices are in `workers`
    KvTransferFigures transfer;
    std::vector<WorkerInfo> workers;
    struct DecisionEntry {
        TimeMs at = 0;
        std::string kind, session, worker, reason;  // session and worker may be empty
    };
    std::vector<DecisionEntry> decisions;  // newest last
};

}  // namespace mainstay
