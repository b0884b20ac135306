#include "actors/token_scheduler.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <caf/send.hpp>
#include <chrono>

#include "actors/accelerator_worker.h"
#include "actors/kv_tier.h"
#include "runtime/inference/model_error.h"

namespace mainstay {
namespace {

constexpr uint32_t stop_patience_ms = 2000;    // for blocks that are on their way to the disk
constexpr TimeUs reload_after_us = 5'000'000;  // a model that could not be loaded is tried again at a step after this
constexpr uint32_t count_interval_ms = 1000;   // at most so old is what metrics tell of totals and states

std::string name_of(const std::string& model, uint32_t index) { return model + "/" + std::to_string(index); }

uint32_t worker_count(const ModelSpec& model) {
    return std::clamp(model.own.devices, 1u, limits::devices_per_model_max);
}

}  // namespace

const char* to_string(WorkerState state) {
    switch (state) {
        case WorkerState::starting: return "starting";
        case WorkerState::up: return "up";
        case WorkerState::draining: return "draining";
        case WorkerState::drained: return "drained";
        case WorkerState::down: return "down";
    }
    return "?";
}

const char* to_string(ModelState state) {
    switch (state) {
        case ModelState::loading: return "loading";
        case ModelState::ready: return "ready";
        case ModelState::failed: return "failed";
    }
    return "?";
}

TokenScheduler::TokenScheduler(caf::event_based_actor* self, TokenSchedulerConfig config)
    : self_(self), config_(std::move(config)) {
    if (config_.metrics)
        metrics_ = std::make_unique<TokenMetrics>(config_.metrics->registry(), config_.model->name,
                                                  worker_count(*config_.model));
}
TokenScheduler::~TokenScheduler() = default;

template <class... Args>
caf::actor TokenScheduler::spawn(Args&&... args) {
    if (config_.detached) return self_->spawn<caf::detached + caf::monitored>(std::forward<Args>(args)...);
    return self_->spawn<caf::monitored>(std::forward<Args>(args)...);
}

// --- life of the model and its devices -------------------------------------------------------------------------------

void TokenScheduler::load() {
    state_ = ModelState::loading;
    arm_count();
    auto read = [load = config_.load, me = caf::actor_cast<caf::actor>(self_)](caf::event_based_actor* loader) {
        loader->send(me, std::make_shared<ModelLoaded>(ModelLoaded{load()}));
    };
    if (config_.detached)
        self_->spawn<caf::detached>(std::move(read));
    else
        self_->spawn(std::move(read));
}

void TokenScheduler::loaded(ModelLoaded& loaded) {
    if (!loaded.model.ok()) {
        state_ = ModelState::failed;
        problem_ = loaded.model.error().message;
        failed_at_ = now();
        spdlog::error("model {}: {}", config_.model->name, problem_);
        arm_count();
        return release_held();
    }
    model_ = std::move(*loaded.model);
    slots_ = std::vector<Slot>(worker_count(*config_.model));
    for (Slot& slot : slots_) start_worker(slot);
}

void TokenScheduler::start_worker(Slot& slot) {
    const auto index = uint32_t(&slot - slots_.data());
    slot.incarnation = ++incarnations_;
    slot.state = Slot::State::starting;
    slot.busy_since = now();
    OpenDevice open = [open = config_.open, model = model_, index] { return open(model, index); };
    slot.actor = spawn(accelerator_worker, WorkerTag{index, slot.incarnation}, caf::actor_cast<caf::actor>(self_),
                       std::move(open));
    arm_watch();
}

/// Not a worker that was given up meanwhile, nor one of before the model was loaded again.
bool TokenScheduler::speaks(const WorkerTag& worker, Slot::State state) const {
    return worker.index < slots_.size() && slots_[worker.index].incarnation == worker.incarnation &&
           slots_[worker.index].state == state;
}

void TokenScheduler::opened(DeviceOpened& opened) {
    if (!speaks(opened.worker, Slot::State::starting)) return;
    Slot& slot = slots_[opened.worker.index];
    slot.busy_since = 0;
    if (const auto* error = std::get_if<Error>(&opened.outcome)) return lose(slot, error->message);
    slot.caps = std::get<DeviceCaps>(std::move(opened.outcome));
    slot.state = Slot::State::up;
    if (metrics_) metrics_->opened(opened.worker.index, slot.caps.simulated);
    arm_count();
    if (scheduler_) {
        add_device(slot);
        return release_held();
    }
    if (!config_.published->get()) {
        auto shared = std::make_shared<GenerationModel>();
        shared->chat_template = model_.chat_template;
        shared->vocabulary = std::make_shared<const GrammarVocabulary>(model_.tokenizer, slot.caps.vocabulary);
        shared->stops = model_.stops;
        shared->context_max = std::min(slot.caps.context_max, model_.context_window);
        generation_model_ = shared;
        config_.published->set(shared);
    }
    if (config_.kv_directory.empty() || config_.model->own.kv_disk_bytes == 0) return become_ready(false);
    if (kv_tier_) return;
    LmdbKvConfig kv;
    kv.directory = config_.kv_directory;
    kv.bytes_max = config_.model->own.kv_disk_bytes;
    kv.boot_id = current_boot_id();
    kv.identity = slot.caps.model_hash + "/" + slot.caps.kv_format;
    kv_tier_ = spawn(kv_tier, std::move(kv), caf::actor_cast<caf::actor>(self_));
}

void TokenScheduler::found(KvFound& found) {
    found_ = std::make_unique<KvFound>(std::move(found));
    become_ready(found_->open);
}

void TokenScheduler::become_ready(bool disk) {
    const DeviceSpec& own = config_.model->own;
    SchedulerConfig config;
    config.running_max = own.running_max;
    for (const Slot& slot : slots_)
        if (slot.state == Slot::State::up) {
            config.host_blocks_max = own.kv_host_bytes / slot.caps.block_bytes;
            kv_caps_ = slot.caps;
            break;
        }
    config.disk = disk && config.host_blocks_max > 0;
    scheduler_ = std::make_unique<Scheduler>(config);
    for (Slot& slot : slots_)
        if (slot.state == Slot::State::up) add_device(slot);
    if (config.disk) {
        auto unknown = std::make_shared<EraseBlocks>();
        for (const KvBlock& block : found_->blocks)
            if (!scheduler_->offer(KvTier::disk, block.hash, block.tokens, block.owner))
                unknown->hashes.push_back(block.hash);
        if (!unknown->hashes.empty()) self_->send(kv_tier_, std::move(unknown));
        prefetch();
    }
    found_.reset();
    state_ = ModelState::ready;
    spdlog::info("model {}: ready on {} device(s), {}", config_.model->name, slots_.size(),
                 slots_.front().caps.kernel_id);
    release_held();
}

/// What slept on disk is brought back before anybody asks, newest first, into half of what is free on each device: the
/// first turn after a restart then finds what it would have found before. A session's blocks stay together.
void TokenScheduler::prefetch() {
    std::vector<uint32_t> room;
    const auto view = scheduler_->view();
    for (const DeviceView& device : view.devices) room.push_back(device.blocks_free / 2);
    if (room.empty()) return;
    for (auto block = found_->blocks.rbegin(); block != found_->blocks.rend(); ++block) {
        const size_t at = std::hash<SessionKey>{}(block->owner) % room.size();
        if (room[at] > 0 && scheduler_->prefetch(view.devices[at].device, block->hash)) --room[at];
    }
    advance();
}

void TokenScheduler::add_device(Slot& slot) {
    const auto id = DeviceId{uint32_t(&slot - slots_.data())};
    if (!scheduler_->add_device(id, slot.caps, now())) {
        slot.state = Slot::State::down;
        slot.problem = "its model, format or block size differs from that of the other workers";
        spdlog::error("worker {}: {}", name_of(config_.model->name, id.value), slot.problem);
        return;
    }
    if (slot.draining) scheduler_->drain(id, true, now());
    advance();
}

/// Its blocks are gone; what ran there goes on elsewhere, or here after a restart.
void TokenScheduler::lose(Slot& slot, const std::string& why) {
    const auto index = uint32_t(&slot - slots_.data());
    spdlog::error("worker {} was lost: {}", name_of(config_.model->name, index), why);
    ++slot.losses;
    slot.problem = why;
    slot.busy_since = 0;
    if (metrics_) {
        metrics_->follow(figures());  // the totals of its device end here
        metrics_->lost(index);
    }
    arm_count();
    if (scheduler_) scheduler_->device_lost(DeviceId{index}, why, now());
    give_up_exports();
    const caf::actor gone = std::exchange(slot.actor, nullptr);
    if (gone) {
        self_->demonitor(gone);
        self_->send(gone, drain_atom::value);  // a thread that hangs is left alone: it cannot be stopped from here
    }
    if (stopping_) {
        slot.state = Slot::State::down;
    } else if (slot.restarts.failed(config_.clock->now_ms()) == RestartVerdict::restart) {
        start_worker(slot);
    } else {
        slot.state = Slot::State::down;
        spdlog::error("worker {}: lost more than {} times within {} s, and stays down",
                      name_of(config_.model->name, index), limits::device_restarts_max,
                      limits::device_restart_window_ms / 1000);
        if (!scheduler_ && !any_starting()) {
            state_ = ModelState::failed;
            problem_ = why;
            failed_at_ = now();
        }
        release_held();
    }
    advance();
}

void TokenScheduler::worker_down(const caf::actor_addr& worker, const std::string& why) {
    if (kv_tier_ && kv_tier_.address() == worker) {
        // A cache: without it everything on disk counts as missing.
        spdlog::error("model {}: the KV tier on disk died: {}", config_.model->name, why);
        kv_tier_ = nullptr;
        stores_ = 0;
        give_up_exports();
        if (!scheduler_) become_ready(false);
        return;
    }
    for (Slot& slot : slots_)
        if (slot.actor && slot.actor.address() == worker) return lose(slot, "its actor died: " + why);
}

bool TokenScheduler::any_starting() const {
    return std::any_of(slots_.begin(), slots_.end(), [](const Slot& s) { return s.state == Slot::State::starting; });
}

void TokenScheduler::watch() {
    watching_ = false;
    bool any = false;
    for (Slot& slot : slots_) {
        if (slot.busy_since == 0) continue;
        const bool starting = slot.state == Slot::State::starting;
        const uint64_t bound = 1000ull * (starting ? config_.load_timeout_ms : config_.step_timeout_ms);
        if (now() - slot.busy_since > bound)
            lose(slot, std::string(starting ? "its device was not open" : "a step had no end") + " after " +
                           std::to_string(bound / 1000) + " ms");
        else
            any = true;
    }
    if (any) arm_watch();
}

void TokenScheduler::arm_watch() {
    if (std::exchange(watching_, true)) return;
    const uint32_t ms = std::clamp(config_.step_timeout_ms / 4, 1u, 1000u);
    self_->delayed_send(self_, std::chrono::milliseconds(ms), watch_atom::value);
}

// --- steps -----------------------------------------------------------------------------------------------------------

void TokenScheduler::fail(const ModelCall& call, ModelError error) {
    if (!call.cancelled) call.sink->failed(call.request_id, std::move(error));
}

void TokenScheduler::generate(GenerateStepPtr step) {
    if (stopping_) return fail(*step->call, make_model_error(ErrorClass::lost, "the node stops"));
    if (state_ == ModelState::failed && now() - failed_at_ > reload_after_us) {
        slots_.clear();
        load();
    }
    const bool waits = state_ == ModelState::loading ||
                       (any_starting() && std::none_of(slots_.begin(), slots_.end(),
                                                       [](const Slot& s) { return s.state == Slot::State::up; }));
    if (waits) {
        held_.push_back(std::move(step));
        return;
    }
    begin(*step);
    advance();
}

void TokenScheduler::release_held() {
    auto held = std::exchange(held_, {});
    for (const GenerateStepPtr& step : held) generate(step);
}

void TokenScheduler::begin(GenerateStep& step) {
    const ModelCallPtr& call = step.call;
    if (call->cancelled) return;
    if (state_ == ModelState::failed) {
        ModelError error = make_model_error(ErrorClass::invalid, problem_);
        error.code = ErrorCode::model_not_loadable;
        return fail(*call, std::move(error));
    }
    if (!step.generation) {
        auto begun = Generation::begin(step.request, *generation_model_, config_.clock->now_ms(), now());
        if (auto* error = std::get_if<ModelError>(&begun)) return fail(*call, std::move(*error));
        step.generation.emplace(std::get<Generation>(std::move(begun)));
    }
    Active active{std::move(*step.generation), call, {}, {}};
    TokenRequest request = active.generation.take_request();
    std::string shown = active.generation.take_resumed_text();
    active.session = request.session;
    const SequenceHandle handle = request.sequence;
    if (auto refusal = scheduler_->submit(std::move(request), now())) return fail(*call, to_model_error(*refusal));
    if (call->stream && !shown.empty()) call->sink->delta(call->request_id, std::move(shown));
    active_.emplace(handle, std::move(active));
}

void TokenScheduler::cancel(uint64_t request_id) {
    std::erase_if(held_, [&](const GenerateStepPtr& step) { return step->call->request_id == request_id; });
    if (active_.erase(request_id) == 0) return;
    scheduler_->cancel(request_id, now());
    advance();
}

/// Its blocks stay, as those of a step that was done: they may be on their way to who goes on with it.
void TokenScheduler::pause(uint64_t request_id) {
    const auto held = std::find_if(held_.begin(), held_.end(),
                                   [&](const auto& step) { return step->call->request_id == request_id; });
    if (held != held_.end()) {
        const GenerateStepPtr step = std::move(*held);
        held_.erase(held);
        StepTokens said;
        if (step->generation)
            said = step->generation->so_far();
        else if (step->request.resume)
            said = *step->request.resume;
        if (!step->call->cancelled) step->call->sink->paused(request_id, std::move(said));
        return;
    }
    const auto found = active_.find(request_id);
    if (found == active_.end()) return;
    const Active active = std::move(found->second);
    active_.erase(found);
    scheduler_->stop(request_id, now());
    if (!active.call->cancelled) active.call->sink->paused(request_id, active.generation.so_far());
    advance();
}

void TokenScheduler::work_done(DeviceWorkDone& done) {
    if (!speaks(done.worker, Slot::State::up)) return;
    Slot& slot = slots_[done.worker.index];
    const DeviceId id{done.worker.index};
    for (BlockExported& block : done.exported) {
        const bool ok = block.bytes != nullptr;
        if (ok) host_[block.hash] = std::move(block.bytes);
        scheduler_->saved(id, block.hash, ok);
    }
    for (const BlockExported& block : done.sent) settle_export(block.hash, block.bytes);
    for (const BlockImported& block : done.imported)
        scheduler_->loaded(id, block.load.block, block.load.hash, block.load.from, block.ok);
    slot.busy_since = 0;
    if (const auto* result = std::get_if<StepResult>(&done.step)) {
        scheduler_->completed(id, *result, now());
    } else if (const auto* error = std::get_if<DeviceError>(&done.step)) {
        if (error->action == DeviceAction::restart_worker)
            return lose(slot, std::string(to_string(error->fault)) + ": " + error->message);
        scheduler_->failed(id, *error, now());
    } else {
        scheduler_->idle(id);
    }
    advance();
}

void TokenScheduler::advance() {
    if (!scheduler_) return;
    arm_count();
    SchedulerOutputs before = scheduler_->outputs();
    take_tokens(before);
    auto works = scheduler_->step(now());
    for (DeviceWork& work : works) hand_over(work);
    SchedulerOutputs after = scheduler_->outputs();
    perform(before.tiers);
    perform(after.tiers);
    tell(before);
    tell(after);
    if (stopping_) return end_if_still();
    arm();
}

void TokenScheduler::take_tokens(const SchedulerOutputs& out) {
    for (const SampledToken& sampled : out.tokens) {
        const auto found = active_.find(sampled.sequence);
        if (found == active_.end()) continue;
        Active& active = found->second;
        const std::string text = active.generation.take(sampled.token);
        if (active.call->stream && !text.empty()) {
            if (active.held_text.empty()) spoke_.push_back(sampled.sequence);
            active.held_text += text;
        }
        if (active.generation.stopped()) scheduler_->stop(sampled.sequence, now());
    }
}

void TokenScheduler::hand_over(DeviceWork& work) {
    Slot& slot = slots_[work.device.value];
    auto run = std::make_shared<RunDeviceWork>();
    run->saves = std::move(work.effects.saves);
    run->copies = std::move(work.effects.copies);
    for (const BlockSave& one : work.effects.exports) {
        if (one.block == block_none)
            settle_export(one.hash, nullptr);
        else
            run->exports.push_back(one);
    }
    bool fetch = false;
    for (const BlockLoad& load : work.effects.loads) {
        fetch |= load.from == KvTier::disk;
        const auto held = load.from == KvTier::host ? host_.find(load.hash) : host_.end();
        run->imports.push_back({load, held == host_.end() ? nullptr : held->second});
    }
    for (const uint32_t row : work.masked_rows) {
        StepRow& masked = work.step->rows[row];
        masked.allowed = active_.at(masked.sequence).generation.allowed();
    }
    run->step = std::move(work.step);
    slot.busy_since = now();
    if (fetch && kv_tier_)
        self_->send(kv_tier_, std::make_shared<FetchForWork>(FetchForWork{slot.actor, std::move(run)}));
    else
        self_->send(slot.actor, std::move(run));
    arm_watch();
}

void TokenScheduler::perform(const std::vector<TierEffect>& tiers) {
    if (tiers.empty()) return;
    auto store = std::make_shared<StoreBlocks>();
    auto erase = std::make_shared<EraseBlocks>();
    std::vector<KvHash> missing;
    for (const TierEffect& effect : tiers) {
        switch (effect.kind) {
            case TierEffect::Kind::store_disk: {
                const auto held = host_.find(effect.hash);
                if (held == host_.end() || !kv_tier_)
                    missing.push_back(effect.hash);
                else
                    store->blocks.push_back({effect.hash, effect.owner, effect.tokens, *held->second});
                break;
            }
            case TierEffect::Kind::drop_host: host_.erase(effect.hash); break;
            case TierEffect::Kind::drop_disk: erase->hashes.push_back(effect.hash); break;
        }
    }
    if (kv_tier_ && !store->blocks.empty()) {
        ++stores_;
        self_->send(kv_tier_, std::move(store));
    }
    if (kv_tier_ && !erase->hashes.empty()) self_->send(kv_tier_, std::move(erase));
    for (const KvHash& hash : missing) scheduler_->stored_on_disk(hash, false);
}

void TokenScheduler::tell(SchedulerOutputs& out) {
    for (const SequenceHandle handle : std::exchange(spoke_, {})) {
        const auto found = active_.find(handle);
        if (found == active_.end()) continue;
        Active& active = found->second;
        std::string text = std::exchange(active.held_text, {});
        if (!active.call->cancelled) active.call->sink->delta(handle, std::move(text));
    }
    for (SequenceEnded& ended : out.ended) finish(ended);
    note(std::move(out.decisions));
}

void TokenScheduler::finish(SequenceEnded& ended) {
    if (metrics_) metrics_->ended(ended);
    const auto found = active_.find(ended.sequence);
    if (found == active_.end()) return;
    Active active = std::move(found->second);
    active_.erase(found);
    const ModelCall& call = *active.call;
    if (call.cancelled || ended.end == SequenceEnd::cancelled) {
        // Nobody asked for a cancellation but a deleted session's end, and who waits for that is told so.
        if (!call.cancelled) fail(call, make_model_error(ErrorClass::invalid, "the session was deleted"));
        return;
    }
    std::string tail;
    const bool simulated = slots_.front().caps.simulated;
    auto outcome = active.generation.finish(ended, simulated, tail);
    if (auto* error = std::get_if<ModelError>(&outcome)) return fail(call, std::move(*error));
    ModelResult& result = std::get<ModelResult>(outcome);
    if (!result.calls.empty()) scheduler_->tool_paused(active.session, result.calls.front().name, now());
    if (call.stream && !tail.empty()) call.sink->delta(call.request_id, std::move(tail));
    call.sink->done(call.request_id, std::move(result));
}

void TokenScheduler::note(std::vector<SchedulerDecision> decisions) {
    for (SchedulerDecision& decision : decisions) {
        ModelInfo::DecisionEntry entry;
        entry.at = config_.clock->now_ms();
        entry.kind = to_string(decision.kind);
        if (decision.session.session.valid()) entry.session = to_text(decision.session.session);
        if (decision.device) entry.worker = name_of(config_.model->name, decision.device->value);
        entry.reason = std::move(decision.reason);
        if (decision.kind != SchedulerDecision::Kind::placed && decision.kind != SchedulerDecision::Kind::kept)
            spdlog::debug("model {}: {} {}: {}", config_.model->name, entry.kind, entry.worker, entry.reason);
        decisions_.push_back(std::move(entry));
        if (decisions_.size() > limits::scheduler_decisions_kept) decisions_.pop_front();
    }
}

void TokenScheduler::arm() {
    const TimeUs at = scheduler_->wake_at();
    if (at == 0) return;
    const TimeUs moment = now();
    if (at <= moment) {
        self_->send(self_, advance_atom::value);
        return;
    }
    if (armed_at_ > moment && armed_at_ <= at) return;
    armed_at_ = at;
    self_->delayed_send(self_, std::chrono::microseconds(at - moment), advance_atom::value);
}

// --- tiers and sessions ----------------------------------------------------------------------------------------------

void TokenScheduler::stored(const KvStored& stored) {
    stores_ -= stores_ > 0;
    if (stores_ == 0)
        for (const auto& told : std::exchange(taken_, {})) told();
    if (metrics_) metrics_->evicted_from_disk(stored.evicted.size());
    if (!scheduler_) return;
    for (const KvHash& hash : stored.hashes) scheduler_->stored_on_disk(hash, stored.ok);
    for (const KvHash& hash : stored.evicted) scheduler_->lost_on_disk(hash);
    advance();
}

void TokenScheduler::lost(const KvLost& lost) {
    if (!scheduler_) return;
    for (const KvHash& hash : lost.hashes) scheduler_->lost_on_disk(hash);
    advance();
}

void TokenScheduler::session_rests(const SessionKey& key) {
    if (!scheduler_) return;
    scheduler_->session_idle(key);
    advance();
}

void TokenScheduler::session_gone(const SessionKey& key) {
    if (scheduler_) {
        scheduler_->session_deleted(key, now());
        advance();
    }
    if (kv_tier_) self_->send(kv_tier_, SessionGone{key});
}

// --- for people ------------------------------------------------------------------------------------------------------

WorkerInfo TokenScheduler::worker_info(uint32_t index, const Slot& slot) const {
    WorkerInfo worker;
    worker.index = index;
    worker.name = name_of(config_.model->name, index);
    worker.problem = slot.problem;
    worker.losses = slot.losses;
    worker.kind = slot.caps.kind.empty() ? config_.model->device : slot.caps.kind;
    worker.hardware = slot.caps.hardware;
    worker.kernel_id = slot.caps.kernel_id;
    worker.simulated = slot.caps.simulated;
    switch (slot.state) {
        case Slot::State::starting: worker.state = WorkerState::starting; break;
        case Slot::State::down: worker.state = WorkerState::down; break;
        case Slot::State::up:
            worker.state = !slot.draining                                       ? WorkerState::up
                           : scheduler_ && scheduler_->drained(DeviceId{index}) ? WorkerState::drained
                                                                                : WorkerState::draining;
    }
    return worker;
}

ModelInfo TokenScheduler::figures() const {
    ModelInfo info;
    info.model = config_.model->name;
    info.state = state_;
    info.stores_pending = stores_;
    if (state_ == ModelState::failed) info.problem = problem_;
    if (generation_model_) info.context_max = generation_model_->context_max;
    if (scheduler_) info.scheduler = scheduler_->view();
    info.transfer = transfer_;
    for (uint32_t i = 0; i < slots_.size(); ++i) {
        const DeviceCaps& caps = slots_[i].caps;
        if (caps.block_bytes) {
            info.block_tokens = caps.block_tokens;
            info.block_bytes = caps.block_bytes;
        }
        info.workers.push_back(worker_info(i, slots_[i]));
    }
    for (DeviceView& view : info.scheduler.devices)
        if (view.device.value < info.workers.size()) info.workers[view.device.value].device = std::move(view);
    info.scheduler.devices.clear();
    if (info.block_bytes) info.host_blocks_max = config_.model->own.kv_host_bytes / info.block_bytes;
    if (info.block_bytes && kv_tier_) info.disk_blocks_max = config_.model->own.kv_disk_bytes / info.block_bytes;
    // Before the files are read, and where they cannot be: the workers that there are to be.
    for (auto i = uint32_t(slots_.size()); i < worker_count(*config_.model); ++i) {
        WorkerInfo worker = worker_info(i, Slot{});
        if (state_ == ModelState::failed) {
            worker.state = WorkerState::down;
            worker.problem = problem_;
        }
        info.workers.push_back(std::move(worker));
    }
    return info;
}

ModelInfo TokenScheduler::info() const {
    ModelInfo info = figures();
    info.decisions.assign(decisions_.begin(), decisions_.end());
    return info;
}

/// Whatever changes arms it: a model that rests counts nothing, and what happened is told within the interval.
void TokenScheduler::arm_count() {
    if (!metrics_ || std::exchange(counting_, true)) return;
    self_->delayed_send(self_, std::chrono::milliseconds(count_interval_ms), watch_atom::value, advance_atom::value);
}

void TokenScheduler::count() {
    counting_ = false;
    metrics_->follow(figures());
}

void TokenScheduler::drain(DrainWorker& drain) {
    if (drain.index >= slots_.size()) {
        std::string message = "there is no worker " + name_of(config_.model->name, drain.index) + "; ";
        if (slots_.empty())
            message += "the model is " + std::string(to_string(state_));
        else if (slots_.size() == 1)
            message += "there is " + name_of(config_.model->name, 0);
        else
            message += "there are " + name_of(config_.model->name, 0) + " to " + std::to_string(slots_.size() - 1);
        return drain.done(Error{ErrorCode::not_found, std::move(message), "worker"});
    }
    Slot& slot = slots_[drain.index];
    slot.draining = drain.on;
    if (slot.state == Slot::State::down && !drain.on) {
        slot.restarts = RestartIntensity{RestartLimit{limits::device_restarts_max, limits::device_restart_window_ms}};
        start_worker(slot);
    }
    if (scheduler_) scheduler_->drain(DeviceId{drain.index}, drain.on, now());
    advance();
    drain.done(info());
}

/// What runs is given up: a restart takes it up from the journal. What is on its way to the disk is waited for, so that
/// the restart need not compute it.
void TokenScheduler::stop() {
    if (std::exchange(stopping_, true)) return;
    config_.published->set(nullptr);
    const ModelError error = make_model_error(ErrorClass::lost, "the node stops");
    auto active = std::exchange(active_, {});
    for (auto& [handle, one] : active) {
        scheduler_->cancel(handle, now());
        fail(*one.call, error);
    }
    for (const GenerateStepPtr& step : std::exchange(held_, {})) fail(*step->call, error);
    self_->delayed_send(self_, std::chrono::milliseconds(stop_patience_ms), drain_atom::value, advance_atom::value);
    if (scheduler_)
        advance();
    else
        end_if_still();
}

void TokenScheduler::end_if_still() {
    const bool busy = std::any_of(slots_.begin(), slots_.end(), [](const Slot& slot) {
        return slot.state == Slot::State::up && slot.busy_since != 0;
    });
    if (!busy && stores_ == 0) end();
}

void TokenScheduler::end() {
    for (Slot& slot : slots_)
        if (const auto worker = std::exchange(slot.actor, nullptr)) self_->send(worker, drain_atom::value);
    if (const auto tier = std::exchange(kv_tier_, nullptr)) self_->send(tier, drain_atom::value);
    self_->quit();
}

caf::behavior token_scheduler(caf::stateful_actor<TokenSchedulerState>* self, TokenSchedulerConfig config) {
    auto& slot = self->state.scheduler;
    slot = std::make_unique<TokenScheduler>(self, std::move(config));
    TokenScheduler* scheduler = slot.get();
    self->set_down_handler([scheduler, self](caf::down_msg& down) {
        scheduler->worker_down(down.source, self->system().render(down.reason));
    });
    scheduler->load();
    return {
        [scheduler](const GenerateStepPtr& step) { scheduler->generate(step); },
        [scheduler](const DeviceWorkDonePtr& done) { scheduler->work_done(*done); },
        [scheduler](const CancelStep& cancel) { scheduler->cancel(cancel.request_id); },
        [scheduler](const PauseStep& pause) { scheduler->pause(pause.request_id); },
        [scheduler](advance_atom) { scheduler->advance(); },
        [scheduler](watch_atom) { scheduler->watch(); },
        [scheduler](watch_atom, advance_atom) { scheduler->count(); },
        [scheduler](const ModelLoadedPtr& loaded) { scheduler->loaded(*loaded); },
        [scheduler](const DeviceOpenedPtr& opened) { scheduler->opened(*opened); },
        [scheduler](const KvFoundPtr& found) { scheduler->found(*found); },
        [scheduler](const KvStoredPtr& stored) { scheduler->stored(*stored); },
        [scheduler](const KvLostPtr& lost) { scheduler->lost(*lost); },
        [scheduler](const KvReadPtr& read) { scheduler->read_from_disk(*read); },
        [scheduler](const ListKvPtr& list) { scheduler->list_kv(*list); },
        [scheduler](const ExportKvPtr& wanted) { scheduler->export_kv(*wanted); },
        [scheduler](const TakeKvPtr& take) { scheduler->take_kv(*take); },
        [scheduler](const CountKv& count) { scheduler->count_kv(count); },
        [scheduler](const SessionRests& rests) { scheduler->session_rests(rests.key); },
        [scheduler](const SessionGone& gone) { scheduler->session_gone(gone.key); },
        [scheduler](const ReadModelPtr& read) { read->done(scheduler->info()); },
        [scheduler](const DrainWorkerPtr& drain) { scheduler->drain(*drain); },
        [scheduler](drain_atom) { scheduler->stop(); },
        [scheduler](drain_atom, advance_atom) { scheduler->end(); },
    };
}

}  // namespace mainstay
