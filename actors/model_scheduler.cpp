#include "actors/model_scheduler.h"

#include <algorithm>
#include <atomic>
#include <caf/send.hpp>

#include "actors/messages.h"
#include "actors/own_model.h"
#include "cluster/coordinator.h"
#include "runtime/base/digest.h"
#include "runtime/inference/device_set.h"
#include "runtime/inference/model_error.h"
#include "runtime/inference/own_device.h"

namespace mainstay {

/// Turns a device's callbacks into messages. One per step, so that a cancelled step's late callbacks find the request
/// gone.
class ModelScheduler::Sink final : public ModelSink {
  public:
    Sink(ModelScheduler& scheduler, caf::actor session) : scheduler_(scheduler), session_(std::move(session)) {}

    void delta(uint64_t request_id, std::string text) override {
        caf::anon_send(session_, ModelDelta{request_id, std::move(text)});
    }
    void done(uint64_t request_id, ModelResult result) override { settle(request_id, std::move(result)); }
    void failed(uint64_t request_id, ModelError error) override { settle(request_id, std::move(error)); }
    void paused(uint64_t request_id, StepTokens so_far) override { settle(request_id, std::move(so_far)); }

    /// Said by whoever submitted when submit() has returned: true if the step was settled by then, and its place is to
    /// be given on by the caller. Otherwise the device's thread does it.
    bool settled_on_submit() { return stage_.exchange(Stage::submitted) == Stage::settled; }

  private:
    enum class Stage : uint8_t { submitting, submitted, settled };

    void settle(uint64_t request_id, std::variant<ModelResult, ModelError, StepTokens> outcome) {
        caf::anon_send(session_, std::make_shared<ModelSettled>(ModelSettled{request_id, std::move(outcome)}));
        if (stage_.exchange(Stage::settled) == Stage::submitted) scheduler_.finished(request_id);
    }

    ModelScheduler& scheduler_;
    caf::actor session_;
    std::atomic<Stage> stage_{Stage::submitting};
};

/// A step on a model of this node, whoever asked for it.
class ModelScheduler::HereSink final : public ModelSink {
  public:
    HereSink(ModelScheduler& scheduler, std::shared_ptr<ModelSink> sink)
        : scheduler_(scheduler), sink_(std::move(sink)) {}
    void delta(uint64_t request_id, std::string text) override { sink_->delta(request_id, std::move(text)); }
    void done(uint64_t request_id, ModelResult result) override {
        scheduler_.left_here(request_id);
        sink_->done(request_id, std::move(result));
    }
    void failed(uint64_t request_id, ModelError error) override {
        scheduler_.left_here(request_id);
        sink_->failed(request_id, std::move(error));
    }
    void paused(uint64_t request_id, StepTokens so_far) override {
        scheduler_.left_here(request_id);
        sink_->paused(request_id, std::move(so_far));
    }

  private:
    ModelScheduler& scheduler_;
    const std::shared_ptr<ModelSink> sink_;
};

class ModelScheduler::OwnDevices final : public TextDevice {
  public:
    explicit OwnDevices(ModelScheduler& scheduler) : scheduler_(scheduler) {}
    void submit(ModelRequest request, std::shared_ptr<ModelSink> sink) override {
        scheduler_.run_here(std::move(request), sink);
    }
    void cancel(uint64_t request_id) override {
        if (const auto device = scheduler_.device_here(request_id)) device->cancel(request_id);
        scheduler_.left_here(request_id);
    }
    bool pause(uint64_t request_id) override {
        const auto device = scheduler_.device_here(request_id);
        return device && device->pause(request_id);
    }
    void session_idle(const SessionKey& session) override {
        for (const auto& model : scheduler_.own_models()) model->session_idle(session);
    }
    void session_deleted(const SessionKey& session) override { scheduler_.forget_session(session); }

  private:
    ModelScheduler& scheduler_;
};

ModelScheduler::ModelScheduler(Metrics& metrics, size_t in_flight_max, std::shared_ptr<HttpClient> http,
                               uint32_t stall_timeout_ms)
    : metrics_(metrics),
      in_flight_max_(in_flight_max),
      stall_timeout_ms_(stall_timeout_ms),
      http_(std::move(http)),
      own_devices_(std::make_unique<OwnDevices>(*this)) {}
ModelScheduler::~ModelScheduler() {
    stop();
    {
        // A callback that is under way must find nothing to start.
        std::lock_guard lock(mutex_);
        waiting_.clear();
    }
    devices_.clear();
}

size_t ModelScheduler::in_flight() const {
    std::lock_guard lock(mutex_);
    return in_flight_.size();
}

size_t ModelScheduler::waiting() const {
    std::lock_guard lock(mutex_);
    return waiting_.size();
}

// --- models on devices of our own ------------------------------------------------------------------------------------

void ModelScheduler::attach(caf::actor_system& system, OwnModelsConfig config) {
    std::lock_guard lock(mutex_);
    system_ = &system;
    own_config_ = std::move(config);
}

void ModelScheduler::stop() {
    std::vector<std::shared_ptr<OwnModel>> models;
    {
        std::lock_guard lock(mutex_);
        system_ = nullptr;
        for (auto& [name, versions] : own_)
            for (OwnEntry& entry : versions) models.push_back(entry.device);
        own_.clear();
        // A step may still be cancelled by whoever asked for it: what it ran on is there until this object goes.
        stopped_ = models;
    }
    for (const auto& model : models) model->stop();
}

namespace {

/// One folder for each version: two of them may be open at the same time.
std::string kv_folder(const OwnModelsConfig& config, const ModelSpec& model) {
    if (config.kv_directory.empty()) return {};
    std::string bytes(sizeof model.version, 0);
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = char(model.version >> (56 - 8 * i));
    return config.kv_directory + "/" + to_hex(bytes);
}

}  // namespace

/// Under the lock. Null: not attached.
std::shared_ptr<OwnModel> ModelScheduler::own_model(const ModelPtr& model) {
    auto& versions = own_[model->name];
    for (OwnEntry& entry : versions)
        if (entry.version == model->version) return entry.device;
    if (!system_) return nullptr;
    TokenSchedulerConfig config;
    config.model = model;
    config.load = [model, directory = own_config_.models_directory] { return load_model(*model, directory); };
    config.open = [model](const LoadedModel& loaded, uint32_t index) { return open_device(*model, loaded, index); };
    config.kv_directory = kv_folder(own_config_, *model);
    config.step_timeout_ms = own_config_.step_timeout_ms;
    config.detached = own_config_.detached;
    config.clock = own_config_.clock;
    config.metrics = &metrics_;
    for (OwnEntry& entry : versions) entry.retired = true;
    versions.push_back({std::make_shared<OwnModel>(*system_, std::move(config)), model->version, false});
    return versions.back().device;
}

std::vector<std::shared_ptr<OwnModel>> ModelScheduler::own_models() const {
    std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<OwnModel>> out;
    for (const auto& [name, versions] : own_)
        for (const OwnEntry& entry : versions) out.push_back(entry.device);
    return out;
}

/// Under the lock: versions that were replaced end when nothing runs there.
void ModelScheduler::retire_idle() {
    for (auto& [name, versions] : own_) {
        std::erase_if(versions, [&](const OwnEntry& entry) {
            if (!entry.retired) return false;
            return std::none_of(here_.begin(), here_.end(),
                                [&](const auto& step) { return step.second == entry.device; });
        });
    }
}

void ModelScheduler::load(const ModelPtr& model) {
    if (!runs_on_own_device(*model)) return;
    std::lock_guard lock(mutex_);
    if (names_model(own_config_.computed, model->name)) own_model(model);
}

TextDevice& ModelScheduler::own_devices() { return *own_devices_; }

void ModelScheduler::run_here(ModelRequest request, const std::shared_ptr<ModelSink>& sink) {
    const uint64_t id = request.request_id;
    const std::string& name = request.model->name;
    std::shared_ptr<OwnModel> device;
    ModelError error = make_model_error(ErrorClass::lost, "the node is starting or stopping");
    {
        std::lock_guard lock(mutex_);
        if (names_model(own_config_.computed, name))
            device = own_model(request.model);
        else
            error = {ErrorClass::invalid, ErrorCode::model_unavailable,
                     "this node does not compute the model " + name + " (inference.models)", 0};
        if (device) here_[id] = device;
    }
    if (!device) return sink->failed(id, std::move(error));
    device->submit(std::move(request), std::make_shared<HereSink>(*this, sink));
}

std::shared_ptr<OwnModel> ModelScheduler::device_here(uint64_t request_id) const {
    std::lock_guard lock(mutex_);
    const auto found = here_.find(request_id);
    return found == here_.end() ? nullptr : found->second;
}

void ModelScheduler::left_here(uint64_t request_id) {
    std::lock_guard lock(mutex_);
    if (here_.erase(request_id) > 0) retire_idle();
}

uint32_t ModelScheduler::steps_here(const std::string& model) const {
    std::lock_guard lock(mutex_);
    return uint32_t(
        std::count_if(here_.begin(), here_.end(), [&](const auto& step) { return step.second->name() == model; }));
}

void ModelScheduler::session_idle(const SessionKey& session) {
    own_devices_->session_idle(session);
    if (placed_) placed_->session_idle(session);
}

std::shared_ptr<OwnModel> ModelScheduler::own_model_named(const std::string& name) const {
    std::lock_guard lock(mutex_);
    const auto found = own_.find(name);
    return found == own_.end() || found->second.empty() ? nullptr : found->second.back().device;
}

void ModelScheduler::session_deleted(const SessionKey& session) {
    forget_session(session);
    if (placed_) placed_->session_deleted(session);
    if (told_of_deleted_) told_of_deleted_(session);
}

void ModelScheduler::forget_session(const SessionKey& session) {
    for (const auto& model : own_models()) model->session_deleted(session);
}

void ModelScheduler::read_models(std::function<void(std::vector<ModelInfo>)> done) {
    struct Gathered {
        std::mutex mutex;
        std::vector<ModelInfo> infos;
        size_t missing = 0;
        std::function<void(std::vector<ModelInfo>)> done;
    };
    std::vector<std::shared_ptr<OwnModel>> models;  // of each name the version that serves what is new
    {
        std::lock_guard lock(mutex_);
        for (const auto& [name, versions] : own_)
            if (!versions.empty()) models.push_back(versions.back().device);
    }
    if (models.empty()) return done({});
    auto gathered = std::make_shared<Gathered>();
    gathered->missing = models.size();
    gathered->done = std::move(done);
    for (const auto& model : models) {
        model->read(ReplyTo<ModelInfo>([gathered](Result<ModelInfo> info) {
            std::unique_lock lock(gathered->mutex);
            if (info.ok()) gathered->infos.push_back(std::move(*info));
            if (--gathered->missing > 0) return;
            lock.unlock();
            std::sort(gathered->infos.begin(), gathered->infos.end(),
                      [](const ModelInfo& a, const ModelInfo& b) { return a.model < b.model; });
            gathered->done(std::move(gathered->infos));
        }));
    }
}

void ModelScheduler::drain_worker(const std::string& model, uint32_t worker, bool on,
                                  std::function<void(Result<ModelInfo>)> done) {
    std::shared_ptr<OwnModel> device;
    std::string others;
    {
        std::lock_guard lock(mutex_);
        for (const auto& [name, versions] : own_) {
            if (versions.empty()) continue;
            if (name == model) device = versions.back().device;
            others += (others.empty() ? "; there is " : ", ") + name;
        }
    }
    if (!device)
        return done(Error{ErrorCode::not_found, "no model of this name runs on devices of our own" + others, "worker"});
    device->drain(worker, on, ReplyTo<ModelInfo>(std::move(done)));
}

// --- steps -----------------------------------------------------------------------------------------------------------

/// Under the lock.
TextDevice* ModelScheduler::device_of(const ModelPtr& model, ModelError& error) {
    if (runs_on_own_device(*model)) {
        if (!system_) {
            error = make_model_error(ErrorClass::lost, "the node is starting or stopping");
            return nullptr;
        }
        return placed_ ? placed_ : own_devices_.get();
    }
    auto& slot = devices_[model->version];
    if (!slot) {
        auto made = make_text_device(*model, http_, stall_timeout_ms_);
        if (!made.ok()) {
            error = {ErrorClass::invalid, made.error().code, made.error().message, 0};
            return nullptr;
        }
        slot = std::move(*made);
    }
    return slot.get();
}

void ModelScheduler::submit(ModelRequest request, caf::actor session) {
    {
        std::lock_guard lock(mutex_);
        const bool own = runs_on_own_device(*request.model);
        if (!own && bounded_ >= in_flight_max_) {
            waiting_.push_back({std::move(request), std::move(session)});
            return;
        }
        in_flight_.emplace(request.request_id, Flight{nullptr, own});
        bounded_ += !own;
    }
    start({std::move(request), std::move(session)});
}

/// A device may answer on this very thread, and then the place goes to the next that waits: in a loop, so that a long
/// queue is no deep stack.
void ModelScheduler::start(Waiting first) {
    for (std::optional<Waiting> now(std::move(first)); now;) {
        ModelError error;
        TextDevice* device = nullptr;
        const uint64_t id = now->request.request_id;
        {
            std::lock_guard lock(mutex_);
            const auto place = in_flight_.find(id);
            if (place == in_flight_.end()) return;  // cancelled meanwhile, and its place given on
            place->second.device = device = device_of(now->request.model, error);
            metrics_.model_requests_in_flight(in_flight_.size());
        }
        auto sink = std::make_shared<Sink>(*this, std::move(now->session));
        if (device)
            device->submit(std::move(now->request), sink);
        else
            sink->failed(id, std::move(error));
        if (!sink->settled_on_submit()) return;
        now = give_place_on(id);
    }
}

/// The next that waits, with a place, if `request_id` had one that is free now.
std::optional<ModelScheduler::Waiting> ModelScheduler::give_place_on(uint64_t request_id) {
    std::lock_guard lock(mutex_);
    const auto left = in_flight_.find(request_id);
    if (left == in_flight_.end()) return std::nullopt;
    const bool own = left->second.own;
    bounded_ -= !own;
    in_flight_.erase(left);
    metrics_.model_requests_in_flight(in_flight_.size());
    if (own) return std::nullopt;
    if (waiting_.empty() || bounded_ >= in_flight_max_) return std::nullopt;
    Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    in_flight_.emplace(next.request.request_id, Flight{});
    ++bounded_;
    return next;
}

void ModelScheduler::finished(uint64_t request_id) {
    if (auto next = give_place_on(request_id)) start(std::move(*next));
}

bool ModelScheduler::pause(uint64_t request_id) {
    TextDevice* device = nullptr;
    {
        std::lock_guard lock(mutex_);
        const auto found = in_flight_.find(request_id);
        if (found != in_flight_.end()) device = found->second.device;
    }
    return device && device->pause(request_id);
}

void ModelScheduler::cancel(uint64_t request_id) {
    TextDevice* device = nullptr;
    {
        std::lock_guard lock(mutex_);
        for (auto at = waiting_.begin(); at != waiting_.end(); ++at) {
            if (at->request.request_id != request_id) continue;
            waiting_.erase(at);
            return;
        }
        const auto found = in_flight_.find(request_id);
        if (found == in_flight_.end()) return;
        device = found->second.device;
    }
    if (device) device->cancel(request_id);
    finished(request_id);
}

}  // namespace mainstay
