#pragma once
// Admission of model steps to whole-text devices: a bound on what is in flight in this process, first come first served
// beyond it. The bound protects upstreams and memory; a step that waits holds nothing but its request. Any thread.
// (Batching schedulers of token devices live in runtime/inference; this is the shell in front of text devices.)

#include <caf/actor.hpp>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "runtime/base/http_client.h"
#include "runtime/base/limits.h"
#include "runtime/base/metrics.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

class ModelScheduler {
  public:
    /// `http` serves all upstream devices; null: each makes its own. `stall_timeout_ms`: how long an upstream may be
    /// silent.
    ModelScheduler(Metrics& metrics, size_t in_flight_max, std::shared_ptr<HttpClient> http = nullptr,
                   uint32_t stall_timeout_ms = limits::upstream_stall_timeout_ms);
    ~ModelScheduler();
    ModelScheduler(const ModelScheduler&) = delete;
    ModelScheduler& operator=(const ModelScheduler&) = delete;

    /// Deltas and the outcome come to `session` as ModelDelta and ModelSettled messages, the outcome exactly once
    /// unless cancelled. An unknown device is reported as an outcome too.
    void submit(ModelRequest request, caf::actor session);
    /// After this no message of the request is sent any more, except one that is already on its way.
    void cancel(uint64_t request_id);
    size_t in_flight() const;

  private:
    class Sink;
    struct Waiting {
        ModelRequest request;
        caf::actor session;
    };
    TextDevice* device_of(const ModelSpec& model, ModelError& error);
    void start(Waiting first);
    std::optional<Waiting> give_place_on(uint64_t request_id);
    void finished(uint64_t request_id);

    Metrics& metrics_;
    const size_t in_flight_max_;
    const uint32_t stall_timeout_ms_;
    mutable std::mutex mutex_;
    std::unordered_map<uint64_t, TextDevice*> in_flight_;  // request -> device
    std::deque<Waiting> waiting_;
    std::shared_ptr<HttpClient> http_;
    // Last, so that they are destroyed first: their threads call back into what is above.
    std::unordered_map<uint64_t, std::unique_ptr<TextDevice>> devices_;  // by digest of the model's specification
};

}  // namespace mainstay
