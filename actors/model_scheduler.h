#pragma once
// Where model steps go: to whole-text devices under a bound on what is in flight in this process, first come first
// served beyond it, because upstreams and memory want protection and a step that waits holds nothing but its request;
// or to a model on devices of our own, whose token scheduler has bounds and an order of its own. Any thread.

#include <caf/actor.hpp>
#include <caf/actor_system.hpp>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "actors/worker_info.h"
#include "runtime/base/clock.h"
#include "runtime/base/http_client.h"
#include "runtime/base/limits.h"
#include "runtime/base/metrics.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

class OwnModel;

/// What models on devices of our own need beyond their files.
struct OwnModelsConfig {
    std::string models_directory;  // that relative paths of models start from
    std::string kv_directory;      // of the KV tiers on disk; empty: none
    const Clock* clock = nullptr;
    bool detached = true;  // false: on the actor system's scheduler (tests)
    uint32_t step_timeout_ms = limits::device_step_timeout_ms;
    std::vector<std::string> computed = {"*"};  // names of those that this node computes; "*": all. It loads no others
};

class ModelScheduler {
  public:
    /// `http` serves all upstream devices; null: each makes its own. `stall_timeout_ms`: how long an upstream may be
    /// silent.
    ModelScheduler(Metrics& metrics, size_t in_flight_max, std::shared_ptr<HttpClient> http = nullptr,
                   uint32_t stall_timeout_ms = limits::upstream_stall_timeout_ms);
    ~ModelScheduler();
    ModelScheduler(const ModelScheduler&) = delete;
    ModelScheduler& operator=(const ModelScheduler&) = delete;

    /// Makes models on devices of our own possible; before it, and after stop(), they are refused as unavailable.
    void attach(caf::actor_system& system, OwnModelsConfig config);
    /// Steps of models on devices of our own go by way of `placed` instead, which decides where they run and may use
    /// own_devices(). Before any session runs; it outlives them.
    void place_steps(TextDevice& placed) { placed_ = &placed; }
    /// This node's own devices as one, for steps of anybody. A model that this node does not compute is refused.
    TextDevice& own_devices();
    /// Steps of a model that run or wait on them.
    uint32_t steps_here(const std::string& model) const;
    /// Ends the actors of own models, before the actor system ends.
    void stop();
    /// Loads a model on devices of our own now instead of at its first step. Others: nothing.
    void load(const ModelPtr& model);

    /// Deltas and the outcome come to `session` as ModelDelta and ModelSettled messages, the outcome exactly once
    /// unless cancelled. An unknown device is reported as an outcome too.
    void submit(ModelRequest request, caf::actor session);
    /// After this no message of the request is sent any more, except one that is already on its way.
    void cancel(uint64_t request_id);
    /// A step on a device of our own ends between two tokens, and its outcome is what it said so far, if it was not
    /// quicker. False: where it runs it cannot be paused.
    bool pause(uint64_t request_id);
    size_t in_flight() const;
    /// Steps that wait for room among those.
    size_t waiting() const;

    /// The session sleeps; or is deleted, and nothing of it may stay in any cache: of this node, and, by way of
    /// on_deleted, of others.
    void session_idle(const SessionKey& session);
    void session_deleted(const SessionKey& session);
    /// As session_deleted, for this node alone.
    void forget_session(const SessionKey& session);
    /// Set before any session runs; must not block.
    void on_deleted(std::function<void(const SessionKey&)> told) { told_of_deleted_ = std::move(told); }

    /// Models on devices of our own, with versions that are being replaced; and the one that serves what is new of this
    /// name, or null.
    std::vector<std::shared_ptr<OwnModel>> own_models() const;
    std::shared_ptr<OwnModel> own_model_named(const std::string& name) const;

    /// Models on devices of our own, by name; the callback comes on any thread.
    void read_models(std::function<void(std::vector<ModelInfo>)> done);
    void drain_worker(const std::string& model, uint32_t worker, bool on, std::function<void(Result<ModelInfo>)> done);

  private:
    class Sink;
    class OwnDevices;
    class HereSink;
    struct OwnEntry {
        std::shared_ptr<OwnModel> device;
        uint64_t version = 0;
        bool retired = false;  // a newer version serves; ends with its last step
    };
    struct Waiting {
        ModelRequest request;
        caf::actor session;
    };
    TextDevice* device_of(const ModelPtr& model, ModelError& error);
    std::shared_ptr<OwnModel> own_model(const ModelPtr& model);
    void retire_idle();
    void run_here(ModelRequest request, const std::shared_ptr<ModelSink>& sink);
    std::shared_ptr<OwnModel> device_here(uint64_t request_id) const;
    void left_here(uint64_t request_id);
    void start(Waiting first);
    std::optional<Waiting> give_place_on(uint64_t request_id);
    void finished(uint64_t request_id);

    Metrics& metrics_;
    const size_t in_flight_max_;
    const uint32_t stall_timeout_ms_;
    mutable std::mutex mutex_;
    struct Flight {
        TextDevice* device = nullptr;
        bool own = false;  // not under the bound
    };
    std::unordered_map<uint64_t, Flight> in_flight_;  // by request
    std::deque<Waiting> waiting_;
    size_t bounded_ = 0;  // of in_flight_: those that the bound counts
    std::shared_ptr<HttpClient> http_;
    caf::actor_system* system_ = nullptr;  // null: not attached
    OwnModelsConfig own_config_;
    std::function<void(const SessionKey&)> told_of_deleted_;
    std::unordered_map<std::string, std::vector<OwnEntry>> own_;  // by name; the newest version last
    std::vector<std::shared_ptr<OwnModel>> stopped_;
    std::unordered_map<uint64_t, std::shared_ptr<OwnModel>> here_;  // steps on own models, by request
    const std::unique_ptr<OwnDevices> own_devices_;
    TextDevice* placed_ = nullptr;  // null: steps run here
    // Last, so that they are destroyed first: their threads call back into what is above.
    std::unordered_map<uint64_t, std::unique_ptr<TextDevice>> devices_;  // by digest of the model's specification
};

}  // namespace mainstay
