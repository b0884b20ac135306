#include "actors/step_service.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <caf/event_based_actor.hpp>
#include <caf/send.hpp>
#include <chrono>
#include <map>
#include <mutex>
#include <utility>

#include "actors/messages.h"
#include "runtime/base/limits.h"
#include "runtime/inference/model_error.h"

namespace mainstay {

/// What the worker is to do next.
struct StepTask {
    std::function<void()> run;
};
using look_atom = caf::atom_constant<caf::atom("look")>;

}  // namespace mainstay

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::StepTask)

namespace mainstay {
namespace {

enum class Outcome : uint8_t { done, failed, paused, cancelled, refused };
constexpr std::array<const char*, 5> outcome_words = {"done", "failed", "paused", "cancelled", "refused"};

}  // namespace

/// What counts is touched by the worker and by devices' threads.
struct StepService::Figures {
    explicit Figures(prometheus::Registry& registry)
        : serving(prometheus::BuildGauge()
                      .Name("mainstay_cluster_model_steps_serving")
                      .Help("Model steps of other nodes' sessions that this node computes now.")
                      .Register(registry)
                      .Add({})) {
        auto& family = prometheus::BuildCounter()
                           .Name("mainstay_cluster_model_steps_served_total")
                           .Help("Model steps that this node computed for other nodes, by how they ended.")
                           .Register(registry);
        for (size_t i = 0; i < served.size(); ++i) served[i] = &family.Add({{"outcome", outcome_words[i]}});
    }
    void count(Outcome outcome) { served[size_t(outcome)]->Increment(); }

    /// How many steps of a model somebody has here, who knows of them himself.
    uint32_t of(const NodeUuid& from, const std::string& model) {
        std::lock_guard lock(mutex);
        const auto found = by_caller.find({from, model});
        return found == by_caller.end() ? 0 : found->second;
    }
    void began(const NodeUuid& from, const std::string& model) {
        serving.Increment();
        std::lock_guard lock(mutex);
        ++by_caller[{from, model}];
    }
    void ended(const NodeUuid& from, const std::string& model) {
        serving.Decrement();
        std::lock_guard lock(mutex);
        const auto found = by_caller.find({from, model});
        if (--found->second == 0) by_caller.erase(found);
    }

    prometheus::Gauge& serving;
    std::array<prometheus::Counter*, outcome_words.size()> served{};
    std::mutex mutex;
    std::map<std::pair<NodeUuid, std::string>, uint32_t> by_caller;
};

/// One step of another node.
class StepService::Served final : public ModelSink, public std::enable_shared_from_this<Served> {
  public:
    Served(std::shared_ptr<const StepServiceConfig> config, std::shared_ptr<Figures> figures, const NodeUuid& from,
           std::string model, std::shared_ptr<CallReply> reply, std::function<void()> left)
        : config_(std::move(config)),
          figures_(std::move(figures)),
          from_(from),
          model_(std::move(model)),
          reply_(std::move(reply)),
          left_(std::move(left)) {
        figures_->began(from_, model_);
    }

    // On the device's thread, one after the other.
    void delta(uint64_t, std::string text) override {
        if (over_) return;
        in_deltas(text, [&](std::string_view piece) { reply_->part(encode_delta(piece)); });
    }
    void done(uint64_t, ModelResult result) override { end(Outcome::done, std::move(result)); }
    void failed(uint64_t, ModelError error) override { end(Outcome::failed, std::move(error)); }
    void paused(uint64_t, StepTokens so_far) override { end(Outcome::paused, std::move(so_far)); }

    bool unwanted() const { return reply_->cancelled(); }
    /// Of a step that was cancelled at its device. Its answer is dropped and not ended, because the device may be amid
    /// a last word.
    void cancelled() {
        if (over_.exchange(true)) return;
        figures_->ended(from_, model_);
        figures_->count(Outcome::cancelled);
    }

  private:
    void end(Outcome how, std::variant<ModelResult, ModelError, StepTokens> outcome) {
        if (over_.exchange(true)) return;
        figures_->ended(from_, model_);
        figures_->count(how);
        HostLoad load = config_->load(model_);
        load.steps -= std::min(load.steps, figures_->of(from_, model_));
        reply_->part(encode_ended({std::move(outcome), load}));
        reply_->end();
        left_();
    }

    const std::shared_ptr<const StepServiceConfig> config_;
    const std::shared_ptr<Figures> figures_;
    const NodeUuid from_;
    const std::string model_;
    const std::shared_ptr<CallReply> reply_;
    const std::function<void()> left_;
    std::atomic<bool> over_{false};
};

/// Everything below runs in one actor.
class StepService::Worker {
  public:
    explicit Worker(StepServiceConfig config)
        : config_(std::make_shared<const StepServiceConfig>(std::move(config))),
          figures_(std::make_shared<Figures>(*config_->registry)) {}

    /// First of all.
    void live_in(caf::event_based_actor* self) { self_ = self; }
    void serve(const NodeUuid& from, const std::string& bytes, const std::shared_ptr<CallReply>& reply);
    void look();
    void end_all();

  private:
    struct Running {
        uint64_t request = 0;  // as this node names it
        std::shared_ptr<Served> served;
    };
    using Name = std::pair<NodeUuid, uint64_t>;  // who asked, and how it names the step

    void run(const NodeUuid& from, RunRemoteStep& step, const std::shared_ptr<CallReply>& reply);
    void cancel(const Running& running);
    void left(const Name& name, uint64_t request);

    caf::event_based_actor* self_ = nullptr;
    const std::shared_ptr<const StepServiceConfig> config_;
    const std::shared_ptr<Figures> figures_;
    std::map<Name, Running> running_;
    bool looking_ = false;
};

void StepService::Worker::serve(const NodeUuid& from, const std::string& bytes,
                                const std::shared_ptr<CallReply>& reply) {
    auto call = decode_step_call(bytes);
    if (!call) {
        figures_->count(Outcome::refused);
        return reply->end(call.error());
    }
    if (auto* step = std::get_if<RunRemoteStep>(&*call)) return run(from, *step, reply);
    if (const auto* pause = std::get_if<PauseRemoteStep>(&*call)) {
        const auto found = running_.find({from, pause->request_id});
        if (found != running_.end()) config_->devices->pause(found->second.request);
    } else {
        config_->devices->session_idle(std::get<RestRemoteSession>(*call).session);
    }
    reply->end();
}

void StepService::Worker::run(const NodeUuid& from, RunRemoteStep& step, const std::shared_ptr<CallReply>& reply) {
    const auto model = config_->model(step.model, step.model_version);
    if (!model) {
        figures_->count(Outcome::refused);
        return reply->end(Error{ErrorCode::peer_refused,
                                "this node does not compute the model " + step.model + " in that version", "model"});
    }
    if (running_.size() >= limits::model_steps_served_max) {
        figures_->count(Outcome::refused);
        reply->part(encode_ended(
            {make_model_error(ErrorClass::overloaded, "model_steps_served_max steps of other nodes run there"),
             config_->load(step.model)}));
        return reply->end();
    }
    const Name name{from, step.request.request_id};
    ModelRequest request = std::move(step.request);
    request.request_id = config_->next_request();
    request.model = model;
    if (step.timeout_ms != 0)
        request.deadline = config_->clock->now_ms() + TimeMs(std::min<uint64_t>(step.timeout_ms, 366ull * 86'400'000));
    // Another process of the same node, which counts anew: its old step is nobody's.
    if (const auto old = running_.find(name); old != running_.end()) {
        cancel(old->second);
        running_.erase(old);
    }
    auto served =
        std::make_shared<Served>(config_, figures_, from, step.model, reply,
                                 [to = caf::actor_cast<caf::actor>(self_), this, name, id = request.request_id] {
                                     caf::anon_send(to, StepTask{[this, name, id] { left(name, id); }});
                                 });
    running_.insert_or_assign(name, Running{request.request_id, served});
    config_->devices->submit(std::move(request), std::move(served));
    if (std::exchange(looking_, true)) return;
    self_->delayed_send(self_, std::chrono::milliseconds(limits::model_step_look_ms), look_atom::value);
}

void StepService::Worker::cancel(const Running& running) {
    config_->devices->cancel(running.request);
    running.served->cancelled();
}

void StepService::Worker::left(const Name& name, uint64_t request) {
    const auto found = running_.find(name);
    if (found != running_.end() && found->second.request == request) running_.erase(found);
}

/// Nobody is told that a caller is gone, so somebody looks.
void StepService::Worker::look() {
    std::erase_if(running_, [&](const auto& one) {
        const bool unwanted = one.second.served->unwanted();
        if (unwanted) cancel(one.second);
        return unwanted;
    });
    looking_ = !running_.empty();
    if (looking_) self_->delayed_send(self_, std::chrono::milliseconds(limits::model_step_look_ms), look_atom::value);
}

void StepService::Worker::end_all() {
    for (const auto& [name, running] : running_) cancel(running);
    running_.clear();
}

StepService::StepService(caf::actor_system& system, StepServiceConfig config)
    : worker_(std::make_shared<Worker>(std::move(config))) {
    actor_ = system.spawn([worker = worker_](caf::event_based_actor* self) -> caf::behavior {
        worker->live_in(self);
        return {
            [worker](const StepTask& task) { task.run(); },
            [worker](look_atom) { worker->look(); },
            [self, worker](drain_atom) {
                worker->end_all();
                self->quit();
            },
        };
    });
}
StepService::~StepService() { stop(); }

void StepService::serve(const NodeUuid& from, std::string request, std::shared_ptr<CallReply> reply) {
    caf::anon_send(actor_, StepTask{[worker = worker_, from, request = std::move(request), reply = std::move(reply)] {
                       worker->serve(from, request, reply);
                   }});
}

void StepService::stop() { caf::anon_send(actor_, drain_atom::value); }

}  // namespace mainstay
