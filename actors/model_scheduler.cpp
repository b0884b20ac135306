#include "actors/model_scheduler.h"

#include <caf/send.hpp>

#include "actors/messages.h"
#include "runtime/inference/device_set.h"

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

  private:
    void settle(uint64_t request_id, std::variant<ModelResult, ModelError> outcome) {
        caf::anon_send(session_, std::make_shared<ModelSettled>(ModelSettled{request_id, std::move(outcome)}));
        scheduler_.finished(request_id);
    }

    ModelScheduler& scheduler_;
    caf::actor session_;
};

ModelScheduler::ModelScheduler(Metrics& metrics, size_t in_flight_max, std::shared_ptr<HttpClient> http,
                               uint32_t stall_timeout_ms)
    : metrics_(metrics), in_flight_max_(in_flight_max), stall_timeout_ms_(stall_timeout_ms), http_(std::move(http)) {}
ModelScheduler::~ModelScheduler() = default;

size_t ModelScheduler::in_flight() const {
    std::lock_guard lock(mutex_);
    return in_flight_.size();
}

TextDevice* ModelScheduler::device_of(const ModelSpec& model, ModelError& error) {
    auto& slot = devices_[model.version];
    if (!slot) {
        auto made = make_text_device(model, http_, stall_timeout_ms_);
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
        if (in_flight_.size() >= in_flight_max_) {
            waiting_.push_back({std::move(request), std::move(session)});
            return;
        }
        in_flight_.emplace(request.request_id, nullptr);
    }
    start({std::move(request), std::move(session)});
}

void ModelScheduler::start(Waiting waiting) {
    ModelError error;
    TextDevice* device = nullptr;
    const uint64_t id = waiting.request.request_id;
    {
        std::lock_guard lock(mutex_);
        device = device_of(*waiting.request.model, error);
        in_flight_[id] = device;
        metrics_.model_requests_in_flight(in_flight_.size());
    }
    auto sink = std::make_shared<Sink>(*this, waiting.session);
    // Outside the lock: a device may answer on this very thread.
    if (device)
        device->submit(std::move(waiting.request), std::move(sink));
    else
        sink->failed(id, std::move(error));
}

void ModelScheduler::finished(uint64_t request_id) {
    Waiting next;
    {
        std::lock_guard lock(mutex_);
        if (in_flight_.erase(request_id) == 0) return;
        metrics_.model_requests_in_flight(in_flight_.size());
        if (waiting_.empty() || in_flight_.size() >= in_flight_max_) return;
        next = std::move(waiting_.front());
        waiting_.pop_front();
        in_flight_.emplace(next.request.request_id, nullptr);
    }
    start(std::move(next));
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
        device = found->second;
    }
    if (device) device->cancel(request_id);
    finished(request_id);
}

}  // namespace mainstay
