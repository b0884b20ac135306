#pragma once
// Steps of models on devices of our own, in a cluster: each goes to the node that placement chooses, this one or
// another, and comes back as if it had run here. In front of this node's own devices and of the link.
//
// Invariants: a host that is lost, or refuses before the end, costs no attempt of the step: it goes to another, twice
// at most (scheduler_redispatch_max), as the token scheduler does when it loses a worker (DECISIONS 11). Text that was
// passed on is never passed on twice: what another host repeats of it is dropped, and if it says something else, the
// step fails as lost, because nobody could make one text of the two. Devices are deterministic for a kernel, so that is
// rare.
//
// Any thread. Sinks are called on the device's or the link's thread.

#include <prometheus/registry.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "actors/step_placement.h"
#include "cluster/link.h"
#include "runtime/base/clock.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

using StepNodes = std::shared_ptr<const std::vector<StepNode>>;

struct RemoteModelConfig {
    NodeUuid self{};
    const Clock* clock = nullptr;
    TextDevice* here = nullptr;        // this node's own devices
    std::function<StepNodes()> nodes;  // that live, this one with them; never null
    /// Asks another node, with calls of kind `model_step`; the rest as ClusterNode::call_node.
    std::function<std::shared_ptr<LinkCall>(const NodeUuid& to, std::string request,
                                            std::function<void(std::string part)> on_part,
                                            std::function<void(std::optional<Error>)> on_end, uint32_t timeout_ms)>
        call;
    prometheus::Registry* registry = nullptr;
};

class RemoteModel final : public TextDevice {
  public:
    /// What `config` points to outlives it, and so does whoever may still call back.
    explicit RemoteModel(RemoteModelConfig config);
    ~RemoteModel() override;
    RemoteModel(const RemoteModel&) = delete;
    RemoteModel& operator=(const RemoteModel&) = delete;

    void submit(ModelRequest request, std::shared_ptr<ModelSink> sink) override;
    /// A call to the sink that has already begun may still be under way when this returns; no further one follows.
    void cancel(uint64_t request_id) override;
    bool pause(uint64_t request_id) override;
    /// Told to the node that has computed for it, if it was another one.
    void session_idle(const SessionKey& session) override;
    /// Of this node's memory of where its steps ran; that other nodes drop what they hold of it is KvTransfer's.
    void session_deleted(const SessionKey& session) override;

    /// Where the session's next step of a model would run; for a session that is not there yet, where it had better be.
    std::optional<StepChoice> place(const SessionKey& session, const std::string& model) const;

  private:
    /// What became of a step on another node.
    enum class Sent : uint8_t { done, failed, paused, cancelled, refused, lost };
    struct Step;
    struct Metrics;
    class HereSink;
    using StepPtr = std::shared_ptr<Step>;

    void dispatch(const StepPtr& step);
    void send(const StepPtr& step, const NodeUuid& to, uint64_t number);
    void text_came(const StepPtr& step, uint64_t number, std::string text);
    void part_came(const StepPtr& step, uint64_t number, const std::string& bytes);
    void call_ended(const StepPtr& step, uint64_t number, const std::optional<Error>& failure);
    void ended(const StepPtr& step, uint64_t number, StepEnded ended);
    void host_failed(const StepPtr& step, uint64_t number, Sent how, ModelError why, std::optional<HostLoad> load = {});
    void give_up(const StepPtr& step, uint64_t number, ModelError why);
    void leave_host(const Step& step, const std::shared_ptr<LinkCall>& call, Sent how);
    std::shared_ptr<const StepPlaced> placed(const Step& step) const;
    StepPtr find(uint64_t request_id) const;
    void forget(const Step& step);
    TimeMs now() const;

    const RemoteModelConfig config_;
    const std::unique_ptr<Metrics> metrics_;
    mutable std::mutex mutex_;  // never held while a step's is taken
    StepPlacement placement_;
    std::unordered_map<uint64_t, StepPtr> steps_;  // by the caller's request_id
};

}  // namespace mainstay
