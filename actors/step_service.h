#pragma once
// Model steps that this node's devices compute for other nodes: decodes what is asked, runs it as a step of its own,
// and answers in parts. The other end of RemoteModel.
//
// Invariants: not more than model_steps_served_max at once; beyond, the asking node is told that this one is
// overloaded. Whoever does not wait any more, because it cancelled or is gone, is noticed within model_step_look_ms,
// and its step ends. A model is served in the version that was asked for, or not at all: the prompt was made for that
// one.
//
// One actor knows all steps that run here for others; from any thread.

#include <prometheus/registry.h>

#include <caf/actor.hpp>
#include <caf/actor_system.hpp>
#include <functional>
#include <memory>
#include <string>

#include "actors/model_step_message.h"
#include "cluster/link.h"
#include "runtime/base/clock.h"

namespace mainstay {

struct StepServiceConfig {
    TextDevice* devices = nullptr;  // this node's own
    const Clock* clock = nullptr;
    /// A model that this node computes, in this version; null: it does not.
    std::function<ModelPtr(const std::string& name, uint64_t version)> model;
    std::function<HostLoad(const std::string& model)> load;  // of all steps here, whoever asked for them
    std::function<uint64_t()> next_request;                  // a name for a step, unique in this process
    prometheus::Registry* registry = nullptr;
};

class StepService {
  public:
    /// What `config` points to outlives the actor system.
    StepService(caf::actor_system& system, StepServiceConfig config);
    ~StepService();
    StepService(const StepService&) = delete;
    StepService& operator=(const StepService&) = delete;

    /// A call of kind `model_step` of another node. Never blocks.
    void serve(const NodeUuid& from, std::string request, std::shared_ptr<CallReply> reply);
    /// Nothing further is served. Idempotent.
    void stop();

  private:
    class Worker;
    class Served;
    struct Figures;
    const std::shared_ptr<Worker> worker_;  // touched in its actor only
    caf::actor actor_;
};

}  // namespace mainstay
