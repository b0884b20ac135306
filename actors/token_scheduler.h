#pragma once
// The actor in front of one model's accelerator workers. The pure Scheduler decides (runtime/inference/scheduler.h);
// this loads the model, opens a device in each worker, hands work out and results in, keeps the bytes of the host tier,
// turns tokens into text for whoever waits, and replaces workers that are lost. It has a thread of its own, because a
// step of a device must not wait behind sessions.
//
// Order within one round, which the scheduler's contract asks for: tokens that were sampled move grammars and readers,
// then the next steps are composed and handed out (bytes of loads looked up), then tiers change, then people hear.

#include <caf/event_based_actor.hpp>
#include <caf/stateful_actor.hpp>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "actors/token_messages.h"
#include "actors/token_metrics.h"
#include "runtime/base/clock.h"
#include "runtime/base/metrics.h"
#include "runtime/policy/restart.h"

namespace mainstay {

/// Where whoever submits finds the model once it is loaded, to render prompts on his own thread. Any thread.
class PublishedModel {
  public:
    std::shared_ptr<const GenerationModel> get() const {
        std::lock_guard lock(mutex_);
        return model_;
    }
    void set(std::shared_ptr<const GenerationModel> model) {
        std::lock_guard lock(mutex_);
        model_ = std::move(model);
    }

  private:
    mutable std::mutex mutex_;
    std::shared_ptr<const GenerationModel> model_;
};

struct TokenSchedulerConfig {
    ModelPtr model;
    std::function<Result<LoadedModel>()> load;                                                // blocks
    std::function<Result<std::unique_ptr<Device>>(const LoadedModel&, uint32_t index)> open;  // blocks
    std::string kv_directory;  // of the tier on disk; empty: none
    uint32_t step_timeout_ms = limits::device_step_timeout_ms;
    uint32_t load_timeout_ms = limits::device_load_timeout_ms;
    bool detached = true;  // false: everything on the scheduler of the actor system (tests)
    const Clock* clock = nullptr;
    Metrics* metrics = nullptr;
    std::shared_ptr<PublishedModel> published;
};

class TokenScheduler {
  public:
    TokenScheduler(caf::event_based_actor* self, TokenSchedulerConfig config);
    ~TokenScheduler();

    void load();
    void loaded(ModelLoaded& loaded);
    void opened(DeviceOpened& opened);
    void found(KvFound& found);
    void generate(GenerateStepPtr step);
    void cancel(uint64_t request_id);
    void pause(uint64_t request_id);
    void work_done(DeviceWorkDone& done);
    void stored(const KvStored& stored);
    void lost(const KvLost& lost);
    void session_rests(const SessionKey& key);
    void session_gone(const SessionKey& key);
    void worker_down(const caf::actor_addr& worker, const std::string& why);
    void drain(DrainWorker& drain);
    // token_scheduler_kv.cpp: blocks to and from other nodes
    void list_kv(ListKv& list);
    void export_kv(ExportKv& wanted);
    void read_from_disk(const KvRead& read);
    void take_kv(TakeKv& take);
    void count_kv(const CountKv& count);
    ModelInfo info() const;
    void count();
    void watch();
    void advance();
    void stop();
    void end();

  private:
    struct Slot {
        caf::actor actor;
        uint32_t incarnation = 0;
        enum class State : uint8_t { starting, up, down } state = State::starting;
        bool draining = false;
        TimeUs busy_since = 0;  // 0: nothing is awaited of it
        uint32_t losses = 0;
        std::string problem;
        DeviceCaps caps;
        RestartIntensity restarts{RestartLimit{limits::device_restarts_max, limits::device_restart_window_ms}};
    };
    struct Active {
        Generation generation;
        ModelCallPtr call;
        SessionKey session;
        std::string held_text;  // deltas of this round
    };

    TimeUs now() const { return config_.clock->monotonic_ns() / 1000; }
    void start_worker(Slot& slot);
    bool speaks(const WorkerTag& worker, Slot::State state) const;
    void lose(Slot& slot, const std::string& why);
    void add_device(Slot& slot);
    void become_ready(bool disk);
    void prefetch();
    bool any_starting() const;
    void release_held();
    void begin(GenerateStep& step);
    void take_tokens(const SchedulerOutputs& out);
    void hand_over(DeviceWork& work);
    void perform(const std::vector<TierEffect>& tiers);
    void tell(SchedulerOutputs& out);
    void finish(SequenceEnded& ended);
    ModelInfo figures() const;
    WorkerInfo worker_info(uint32_t index, const Slot& slot) const;
    void arm_count();
    void settle_export(const KvHash& hash, const BytesPtr& bytes);
    void give_up_exports();
    KvOutcome take_block(const TakeKv& take, size_t at, bool& to_disk);
    void fail(const ModelCall& call, ModelError error);
    void note(std::vector<SchedulerDecision> decisions);
    void arm();
    void arm_watch();
    void end_if_still();
    template <class... Args>
    caf::actor spawn(Args&&... args);

    caf::event_based_actor* const self_;
    const TokenSchedulerConfig config_;
    ModelState state_ = ModelState::loading;
    std::string problem_;
    TimeUs failed_at_ = 0;
    LoadedModel model_;
    std::shared_ptr<const GenerationModel> generation_model_;
    std::vector<Slot> slots_;
    uint32_t incarnations_ = 0;
    caf::actor kv_tier_;
    std::unique_ptr<KvFound> found_;
    std::unique_ptr<Scheduler> scheduler_;  // once a device is up and the disk was looked at
    std::unordered_map<SequenceHandle, Active> active_;
    std::deque<GenerateStepPtr> held_;  // until there is a device
    std::unordered_map<KvHash, BytesPtr, KvHashHasher> host_;
    /// Somebody's question for bytes, until all have come.
    struct Export {
        ReplyTo<std::vector<BlockExported>> done;
        std::vector<BlockExported> blocks;
        size_t missing = 0;
    };
    std::map<uint64_t, Export> exports_;
    uint64_t export_no_ = 0;
    std::unordered_map<KvHash, std::vector<std::pair<uint64_t, size_t>>, KvHashHasher> awaited_;  // places in exports_
    std::vector<std::function<void()>> taken_;  // answers about blocks that the KV tier has yet to store
    DeviceCaps kv_caps_;                        // whose bits the blocks are
    KvTransferFigures transfer_;
    std::deque<ModelInfo::DecisionEntry> decisions_;
    std::vector<SequenceHandle> spoke_;  // with text in this round
    TimeUs armed_at_ = 0;
    size_t stores_ = 0;                      // that the KV tier has not answered
    std::unique_ptr<TokenMetrics> metrics_;  // none where the configuration has no registry
    bool watching_ = false, counting_ = false, stopping_ = false;
};

struct TokenSchedulerState {
    std::unique_ptr<TokenScheduler> scheduler;
};

caf::behavior token_scheduler(caf::stateful_actor<TokenSchedulerState>* self, TokenSchedulerConfig config);

}  // namespace mainstay
