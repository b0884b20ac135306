#include "actors/model_scheduler.h"

#include <atomic>
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

    /// Said by whoever submitted when submit() has returned: true if the step was settled by then, and its place is to
    /// be given on by the caller. Otherwise the device's thread does it.
    bool settled_on_submit() { return stage_.exchange(Stage::submitted) == Stage::settled; }

  private:
    enum class Stage : uint8_t { submitting, submitted, settled };

    void settle(uint64_t request_id, std::variant<ModelResult, ModelError> outcome) {
        caf::anon_send(session_, std::make_shared<ModelSettled>(ModelSettled{request_id, std::move(outcome)}));
        if (stage_.exchange(Stage::settled) == Stage::submitted) scheduler_.finished(request_id);
    }

    ModelScheduler& scheduler_;
    caf::actor session_;
    std::atomic<Stage> stage_{Stage::submitting};
};

ModelScheduler::ModelScheduler(Metrics& metrics, size_t in_flight_max, std::shared_ptr<HttpClient> http,
                               uint32_t stall_timeout_ms)
    : metrics_(metrics), in_flight_max_(in_flight_max), stall_timeout_ms_(stall_timeout_ms), http_(std::move(http)) {}
ModelScheduler::~ModelScheduler() {
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
            place->second = device = device_of(*now->request.model, error);
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
    if (in_flight_.erase(request_id) == 0) return std::nullopt;
    metrics_.model_requests_in_flight(in_flight_.size());
    if (waiting_.empty() || in_flight_.size() >= in_flight_max_) return std::nullopt;
    Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    in_flight_.emplace(next.request.request_id, nullptr);
    return next;
}

void ModelScheduler::finished(uint64_t request_id) {
    if (auto next = give_place_on(request_id)) start(std::move(*next));
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
