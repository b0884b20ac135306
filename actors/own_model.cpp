#include "actors/own_model.h"

#include <caf/send.hpp>

namespace mainstay {

/// Forgets the call when it is settled.
class OwnModel::Settled final : public ModelSink {
  public:
    Settled(std::shared_ptr<Calls> calls, std::shared_ptr<ModelSink> sink)
        : calls_(std::move(calls)), sink_(std::move(sink)) {}

    void delta(uint64_t request_id, std::string text) override { sink_->delta(request_id, std::move(text)); }
    void done(uint64_t request_id, ModelResult result) override {
        forget(request_id);
        sink_->done(request_id, std::move(result));
    }
    void failed(uint64_t request_id, ModelError error) override {
        forget(request_id);
        sink_->failed(request_id, std::move(error));
    }
    void paused(uint64_t request_id, StepTokens so_far) override {
        forget(request_id);
        sink_->paused(request_id, std::move(so_far));
    }

  private:
    void forget(uint64_t request_id) {
        std::lock_guard lock(calls_->mutex);
        calls_->open.erase(request_id);
    }
    const std::shared_ptr<Calls> calls_;
    const std::shared_ptr<ModelSink> sink_;
};

OwnModel::OwnModel(caf::actor_system& system, TokenSchedulerConfig config)
    : name_(config.model->name),
      published_(std::make_shared<PublishedModel>()),
      clock_(*config.clock),
      calls_(std::make_shared<Calls>()) {
    config.published = published_;
    scheduler_ = config.detached ? system.spawn<caf::detached>(token_scheduler, std::move(config))
                                 : system.spawn(token_scheduler, std::move(config));
}
OwnModel::~OwnModel() { stop(); }

void OwnModel::submit(ModelRequest request, std::shared_ptr<ModelSink> sink) {
    auto call = std::make_shared<ModelCall>();
    call->request_id = request.request_id;
    call->stream = request.stream;
    call->sink = std::make_shared<Settled>(calls_, std::move(sink));
    auto step = std::make_shared<GenerateStep>();
    step->call = call;
    if (const auto model = published_->get()) {
        auto begun = Generation::begin(request, *model, clock_.now_ms(), clock_.monotonic_ns() / 1000);
        if (auto* error = std::get_if<ModelError>(&begun))
            return call->sink->failed(call->request_id, std::move(*error));
        step->generation.emplace(std::get<Generation>(std::move(begun)));
    } else {
        step->request = std::move(request);
    }
    {
        std::lock_guard lock(calls_->mutex);
        calls_->open.emplace(call->request_id, call);
    }
    caf::anon_send(scheduler(), std::move(step));
}

void OwnModel::cancel(uint64_t request_id) {
    {
        std::lock_guard lock(calls_->mutex);
        const auto found = calls_->open.find(request_id);
        if (found == calls_->open.end()) return;
        found->second->cancelled = true;
        calls_->open.erase(found);
    }
    caf::anon_send(scheduler(), CancelStep{request_id});
}

bool OwnModel::pause(uint64_t request_id) {
    caf::anon_send(scheduler(), PauseStep{request_id});
    return true;
}

void OwnModel::session_idle(const SessionKey& session) { caf::anon_send(scheduler(), SessionRests{session}); }
void OwnModel::session_deleted(const SessionKey& session) { caf::anon_send(scheduler(), SessionGone{session}); }

void OwnModel::read(ReplyTo<ModelInfo> done) {
    caf::anon_send(scheduler(), std::make_shared<ReadModel>(ReadModel{std::move(done)}));
}

void OwnModel::drain(uint32_t worker, bool on, ReplyTo<ModelInfo> done) {
    caf::anon_send(scheduler(), std::make_shared<DrainWorker>(DrainWorker{worker, on, std::move(done)}));
}

void OwnModel::list_kv(ListKvPtr list) { caf::anon_send(scheduler(), std::move(list)); }
void OwnModel::export_kv(ExportKvPtr wanted) { caf::anon_send(scheduler(), std::move(wanted)); }
void OwnModel::take_kv(TakeKvPtr take) { caf::anon_send(scheduler(), std::move(take)); }
void OwnModel::count_kv(const KvTransferFigures& more) { caf::anon_send(scheduler(), CountKv{more}); }

caf::actor OwnModel::scheduler() const {
    std::lock_guard lock(calls_->mutex);
    return scheduler_;
}

void OwnModel::stop() {
    caf::actor ending;
    {
        std::lock_guard lock(calls_->mutex);
        ending = std::exchange(scheduler_, nullptr);
    }
    if (ending) caf::anon_send(ending, drain_atom::value);
}

}  // namespace mainstay
