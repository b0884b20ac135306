#pragma once
// Which sequences the devices of one model advance, step by step. Many sessions share a device by iteration-level
// batching: every step is composed anew, decodes first, and what is left of the budget goes to chunks of prompts that
// wait to be computed. Admission is by KV blocks and by the predicted time to the first token, and refuses early with a
// reason; order is fair (fair_queue.h); placement weighs what is cached where (block_pool.h).
//
// Tokens are the truth: a sequence is its tokens so far, its seed and the position. A device may vanish at any time and
// its sequences go on elsewhere with the same tokens. Results carry an epoch and those of an old one are dropped.
//
// How it is driven: call any of the inputs, then step(), hand each DeviceWork to its device's worker, and perform
// outputs(). A worker performs saves, copies, loads and then the step, in this order, and answers each: saved(),
// loaded(), then completed() or failed() where the work has a step, else idle(). The bytes of loads are looked up when
// the work is handed over, before tier effects of the same call are performed.
//
// No step looks at all that wait. Pure; one owner, the model scheduler's thread.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/base/error_code.h"
#include "runtime/inference/block_pool.h"
#include "runtime/inference/device.h"
#include "runtime/inference/fair_queue.h"
#include "runtime/inference/tool_pause.h"

namespace mainstay {

struct SchedulerConfig {
    FairQueueConfig fair;
    uint64_t host_blocks_max = 0;
    bool disk = false;
    size_t waiting_max = limits::scheduler_waiting_max;
    size_t waiting_tenant_max = limits::scheduler_waiting_tenant_max;
    uint32_t running_max = 0;            // sequences of one device; 0: its rows. 1: one by one
    uint32_t tokens_per_step = 0;        // 0: what the device takes
    uint32_t reserve_tokens = 64;        // of what a sequence may generate, for which blocks must be there at admission
    uint32_t preempt_after_tokens = 64;  // at least this long a sequence runs before it gives place to the less served
    uint64_t preempt_lead_milli = 4096'000;        // by so much service its tenant must be ahead
    uint32_t sticky_tokens = 32;                   // what staying on its device is worth to a session
    double host_load_us = 20, disk_load_us = 100;  // of one block; compared with computing it
    double host_credit = 0.75, disk_credit = 0.5;  // of a token that is loaded, against one that is on the device
    uint32_t decode_cost_tokens = 8;               // of one that runs, in tokens of prefill, for placement
    uint64_t between_tokens_us = 100'000;  // devices that do not mix steps: a prefill must not delay a decode further
    uint32_t decodes_per_prefill_max = 8;  // ... but after so many decodes a prefill has its turn
    uint64_t retry_device_us = 10'000;     // after back-pressure
    uint64_t pause_keep_max_us = 60'000'000;
    size_t rests_max = 8192;  // sessions whose last device and blocks are remembered
};

struct TokenRequest {
    SequenceHandle sequence = 0;     // unique in the process
    SessionKey session;              // whose the blocks are
    SessionKey root;                 // whose the service is; of the same tenant
    std::vector<TokenId> tokens;     // prompt; when a step is resumed, with what was generated
    uint32_t definition_tokens = 0;  // leading tokens that belong to the agent's definition
    uint32_t max_new_tokens = 0;
    std::vector<TokenId> stop_tokens;
    SamplingParams sampling;
    uint64_t seed = 0;
    bool masked = false;  // whoever runs the step fills in StepRow::allowed
    PriorityClass priority = PriorityClass::normal;
    TimeUs deadline = 0;                 // 0: none
    uint64_t first_token_within_us = 0;  // refuse rather than be later; 0: any
};

struct Refusal {
    ErrorCode code = ErrorCode::model_unavailable;
    std::string reason;
    uint64_t retry_after_us = 0;  // 0: asking again does not help
};

enum class SequenceEnd : uint8_t { stop_token, stopped, length, cancelled, deadline, failed };
const char* to_string(SequenceEnd end);

struct SequenceUsage {
    uint32_t prompt_tokens = 0;
    uint32_t cached_device = 0, cached_host = 0, cached_disk = 0;  // of the prompt, when it was first placed
    uint32_t prefilled_tokens = 0;  // computed without being sampled in this request; more than new ones after a loss
    uint32_t generated_tokens = 0;
    uint32_t preemptions = 0, redispatches = 0;
    uint64_t queue_us = 0, first_token_us = 0, total_us = 0;  // since submit
    double wall_s = 0, device_s = 0,
           joules = 0;  // its share of steps, by tokens; the last two simulated where caps say
};

struct SampledToken {
    SequenceHandle sequence = 0;
    TokenId token = 0;
    uint32_t position = 0;
};

struct SequenceEnded {
    SequenceHandle sequence = 0;
    SequenceEnd end = SequenceEnd::stop_token;
    ErrorCode code = ErrorCode::internal;  // of failed and deadline
    std::string message;
    std::vector<TokenId> generated;  // a stop token included
    SequenceUsage usage;
};

/// Why something was placed, refused, moved or paused: the text of a decision record.
struct SchedulerDecision {
    enum class Kind : uint8_t { placed, refused, preempted, requeued, kept, released, failed };
    Kind kind = Kind::placed;
    SequenceHandle sequence = 0;  // 0: none
    SessionKey session;
    std::optional<DeviceId> device;
    std::string reason;
};
const char* to_string(SchedulerDecision::Kind kind);

struct DeviceWork {
    DeviceId device;
    DeviceEffects effects;
    std::optional<Step> step;
    std::vector<uint32_t> masked_rows;  // rows of the step whose `allowed` is to be filled in
};

struct SchedulerOutputs {
    std::vector<SampledToken> tokens;
    std::vector<SequenceEnded> ended;
    std::vector<SchedulerDecision> decisions;
    std::vector<TierEffect> tiers;
};

struct DeviceView {
    DeviceId device;
    std::string kind, hardware;
    bool simulated = true, draining = false, busy = false;
    uint32_t running = 0, rows_max = 0;
    uint32_t blocks_total = 0, blocks_free = 0, blocks_cached = 0;
    uint64_t steps = 0, tokens = 0, padded_tokens = 0, rows = 0;
    double wall_s = 0, device_s = 0, joules = 0;
};

struct SchedulerView {
    size_t waiting = 0, running = 0;
    uint64_t submitted = 0, refused = 0, placed = 0, ended = 0, preempted = 0, requeued = 0, stale_results = 0;
    uint64_t prefilled_tokens = 0, generated_tokens = 0, cached_tokens = 0;
    BlockPoolStats pool;
    std::vector<DeviceView> devices;
};

class Scheduler {
  public:
    explicit Scheduler(SchedulerConfig config);
    ~Scheduler();

    // --- devices. All have one model hash, KV format and block size; false: this one has another.
    bool add_device(DeviceId device, const DeviceCaps& caps, TimeUs now);
    void device_lost(DeviceId device, const std::string& why, TimeUs now);
    /// Takes nothing new; what runs there moves elsewhere where there is another device, else ends there.
    void drain(DeviceId device, bool on, TimeUs now);
    /// Nothing runs there any more.
    bool drained(DeviceId device) const;

    // --- sequences
    std::optional<Refusal> submit(TokenRequest request, TimeUs now);
    /// Ends at once; a step that is under way has no more effect on it. Unknown sequences are ignored.
    void cancel(SequenceHandle sequence, TimeUs now);
    /// The same, as a success: whoever reads the tokens met a stop text.
    void stop(SequenceHandle sequence, TimeUs now);
    void set_weight(TenantId tenant, double weight) { queue_.set_weight(tenant, weight); }

    // --- sessions
    /// The last sequence of the session ended in a call of `tool`: keeps its blocks for as long as that pays. The next
    /// submit() of the session tells how long the call took.
    void tool_paused(const SessionKey& session, std::string_view tool, TimeUs now);
    /// Cancels what it runs and drops what only it holds.
    void session_deleted(const SessionKey& session, TimeUs now);
    /// It was passivated, or the node ends: what the host's memory holds of it is written to disk.
    void session_idle(const SessionKey& session);

    // --- answers of workers and tiers
    void completed(DeviceId device, const StepResult& result, TimeUs now);
    void failed(DeviceId device, const DeviceError& error, TimeUs now);
    void idle(DeviceId device);
    void saved(DeviceId device, const KvHash& hash, bool ok) { pool_->saved(device, hash, ok); }
    void loaded(DeviceId device, BlockId block, const KvHash& hash, KvTier from, bool ok) {
        pool_->loaded(device, block, hash, from, ok);
    }
    void stored_on_disk(const KvHash& hash, bool ok) { pool_->stored_on_disk(hash, ok); }
    void lost_on_disk(const KvHash& hash) { pool_->lost_on_disk(hash); }
    /// A block that is on disk at start. Before the first device was added: false.
    bool offer(KvTier tier, const KvHash& hash, uint32_t tokens, const SessionKey& owner);
    /// Brings a block onto the device before anybody asks, if one is free there (BlockPool::prefetch).
    bool prefetch(DeviceId device, const KvHash& hash) { return pool_ && pool_->prefetch(device, hash); }

    // --- blocks that go to another node or come from there
    /// Names of all that the sessions for which `wanted` says so hold anywhere, up to `blocks_max` (and those of one
    /// session more): who was last served first, of each the beginning of its context first. A name is there for each
    /// session that has it.
    std::vector<BlockName> holdings(const std::function<bool(const SessionKey&)>& wanted, size_t blocks_max) const;
    /// The block's bytes come among the exports of a device's work. False: no device has it.
    bool export_block(const KvHash& hash) { return pool_ && pool_->export_block(hash); }
    /// Whether the block is known here; its owner then holds it as well.
    bool claim(const BlockName& block) { return pool_ && pool_->claim(block); }
    /// As BlockPool::accept; before outputs() are performed its bytes are in the host's memory.
    BlockTaken accept(const BlockName& block) { return pool_ ? pool_->accept(block) : BlockTaken::no_room; }
    bool has_tier_room() const { return pool_ && pool_->has_tier_room(); }

    /// Work for every device that has none and for which there is some.
    std::vector<DeviceWork> step(TimeUs now);
    SchedulerOutputs outputs();
    /// When step() is to be called again though nothing happens: a deadline, the end of a pause, a retry; 1, at once:
    /// there was more to admit than one step may. 0: never.
    TimeUs wake_at() const;

    SchedulerView view() const;
    std::string check() const { return pool_ ? pool_->check() : std::string(); }

  private:
    struct Sequence;
    struct DeviceRun;
    struct Rest;
    struct TenantLoad {
        size_t waiting = 0;
        uint64_t tokens = 0;
    };

    Sequence* find(SequenceHandle handle);
    DeviceRun* device_at(DeviceId device);
    void decide(SchedulerDecision::Kind kind, const Sequence& sequence, std::optional<DeviceId> device,
                std::string reason);
    std::optional<Refusal> refuse_early(const TokenRequest& request) const;
    double predicted_first_token_us(const TokenRequest& request) const;
    void enqueue(Sequence& sequence, TimeUs now);
    void dequeue(Sequence& sequence);
    void end(Sequence& sequence, SequenceEnd how, ErrorCode code, std::string message, TimeUs now);
    void leave_device(Sequence& sequence, bool keep_blocks);
    void requeue(Sequence& sequence, SchedulerDecision::Kind kind, std::string reason, TimeUs now);

    void step_devices(std::vector<DeviceWork>& out, TimeUs now);
    void expire(TimeUs now);
    void admit(TimeUs now);
    bool place(Sequence& sequence, TimeUs now);
    bool has_room(const DeviceRun& device) const;
    void make_way(DeviceRun& device, TimeUs now);
    Sequence* victim_on(DeviceRun& device, const Sequence* keep);
    bool make_room(DeviceRun& device, Sequence& sequence, uint32_t tokens, TimeUs now);

    std::optional<Step> compose(DeviceRun& device, std::vector<uint32_t>& masked, TimeUs now);
    bool add_row(DeviceRun& device, Step& step, Sequence& sequence, uint32_t tokens, TimeUs now);
    void fit_buckets(const DeviceRun& device, Step& step) const;
    bool wants_prefill(const DeviceRun& device, const std::vector<Sequence*>& decodes, uint32_t tokens,
                       TimeUs now) const;
    void take_token(Sequence& sequence, TokenId token, TimeUs now);

    Rest& rest_of(const SessionKey& session);
    void let_go(Rest& rest);
    bool release_one_rest(DeviceId device);

    SchedulerConfig config_;
    std::unique_ptr<BlockPool> pool_;
    std::string model_hash_, kv_format_;
    uint32_t block_tokens_ = 0, context_max_ = 0;
    FairQueue queue_;
    ToolDurations tools_;
    std::unordered_map<SequenceHandle, std::unique_ptr<Sequence>> sequences_;
    std::vector<std::unique_ptr<DeviceRun>> devices_;
    std::unordered_map<TenantId, TenantLoad> tenants_;
    uint64_t waiting_tokens_ = 0;
    std::unordered_map<SessionKey, std::unique_ptr<Rest>> rests_;
    std::deque<std::pair<SessionKey, uint64_t>> rest_order_;
    std::set<std::pair<TimeUs, SessionKey>> rest_until_;
    std::set<std::pair<TimeUs, SequenceHandle>> deadlines_;
    std::unordered_map<SessionKey, std::set<SequenceHandle>> by_session_;
    uint64_t arrivals_ = 0, epochs_ = 0, steps_ = 0, rest_clock_ = 0;
    double ends_ = 0, ends_per_us_ = 0;  // of all devices, smoothed
    TimeUs first_end_ = 0, last_end_ = 0;
    bool admission_cut_ = false;  // the last step() admitted as many as one may
    SchedulerOutputs out_;
    SchedulerView counts_;
};

}  // namespace mainstay
