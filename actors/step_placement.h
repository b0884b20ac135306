#pragma once
// Which node of a cluster computes a model step: the one that holds the session's attention state, else the one that
// has the session, else the one with the least to do. Pure, and the same decision for a session that is not there yet,
// so that it is born where its steps will run (docs/decisions/0023).
//
// A view, not a promise: whoever is asked may refuse or be gone, is then left out for that step, and the next is
// chosen. What is remembered is bounded (model_step_places_max); a session that was forgotten is placed as if it had
// never run. One owner, which locks.

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "actors/model_step_message.h"
#include "cluster/coordinator.h"
#include "runtime/base/limits.h"

namespace mainstay {

/// A node as far as steps go.
struct StepNode {
    NodeUuid node{};
    std::vector<std::string> models;  // NodeDetails::models
    bool draining = false;            // asked only where nobody else serves the model, unless the session is there
    bool reachable = true;            // this node itself, or there is a link
};

enum class StepWhy : uint8_t {
    kv,            // the session's last step of this model ran there
    here,          // this node computes it
    least_loaded,  // of those that do
};

struct StepChoice {
    NodeUuid node{};
    StepWhy why = StepWhy::here;
    size_t serving = 0;  // nodes that compute the model and can be reached, ...
    size_t nodes = 0;    // ... of so many
    friend bool operator==(const StepChoice&, const StepChoice&) = default;
};

class StepPlacement {
  public:
    explicit StepPlacement(const NodeUuid& self, size_t sessions_max = limits::model_step_places_max)
        : self_(self), sessions_max_(sessions_max) {}

    /// Nothing: no node that can be reached and is not left out computes the model. `now`: any clock that only rises,
    /// the same in all calls.
    std::optional<StepChoice> choose(const SessionKey& session, const std::string& model,
                                     const std::vector<StepNode>& nodes, const std::vector<NodeUuid>& left_out,
                                     TimeMs now) const;

    /// This node has a step there, until ended().
    void began(const NodeUuid& node, const std::string& model);
    void ended(const NodeUuid& node, const std::string& model);
    /// What an answer told of the host; believed for a while.
    void told(const NodeUuid& node, const std::string& model, const HostLoad& load, TimeMs now);
    /// A step of the session ran there. True where it is not known to have run there before: somebody may want to know.
    bool ran(const SessionKey& session, const std::string& model, const NodeUuid& node);
    void forget(const SessionKey& session);
    /// Other nodes than this one where steps of the session ran last, one for each model.
    std::vector<NodeUuid> elsewhere(const SessionKey& session) const;
    size_t sessions() const { return places_.size(); }

  private:
    struct Load {
        uint32_t own = 0;  // this node's steps there
        HostLoad told;
        TimeMs told_at = 0;
    };
    struct Place {
        std::vector<std::pair<std::string, NodeUuid>> models;  // where the last step of each ran, if not here
        std::list<SessionKey>::iterator order;
    };
    const NodeUuid* place_of(const SessionKey& session, const std::string& model) const;
    bool less_busy(const NodeUuid& a, const NodeUuid& b, const SessionKey& session, const std::string& model,
                   TimeMs now) const;

    const NodeUuid self_;
    const size_t sessions_max_;
    std::map<std::pair<std::string, NodeUuid>, Load> loads_;
    std::unordered_map<SessionKey, Place> places_;
    std::list<SessionKey> order_;  // the one that was served last in front
};

}  // namespace mainstay
