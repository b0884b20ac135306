#include "actors/step_placement.h"

#include <xxhash.h>

#include <algorithm>

namespace mainstay {
namespace {

// What a host told of others' steps is old by the time that those have ended.
constexpr TimeMs told_for_ms = 2'000;
constexpr size_t models_of_session_max = 4;  // whose places are remembered
constexpr size_t loads_kept_max = 4096;      // pairs of model and node; those without a step go first

bool has(const std::vector<NodeUuid>& nodes, const NodeUuid& node) {
    return std::find(nodes.begin(), nodes.end(), node) != nodes.end();
}

/// Equally busy nodes: each session has its own order of them, and every node of the cluster knows the same.
uint64_t rank(const NodeUuid& node, const SessionKey& session) {
    return XXH64(node.data(), node.size(), session.session.low ^ session.session.high);
}

}  // namespace

const NodeUuid* StepPlacement::place_of(const SessionKey& session, const std::string& model) const {
    const auto found = places_.find(session);
    if (found == places_.end()) return nullptr;
    for (const auto& [name, node] : found->second.models)
        if (name == model) return &node;
    return nullptr;
}

bool StepPlacement::less_busy(const NodeUuid& a, const NodeUuid& b, const SessionKey& session, const std::string& model,
                              TimeMs now) const {
    const auto load = [&](const NodeUuid& node) {
        const auto found = loads_.find({model, node});
        if (found == loads_.end()) return std::pair<uint64_t, uint64_t>(0, 1);
        const Load& known = found->second;
        const uint64_t others = now < known.told_at + told_for_ms ? known.told.steps : 0;
        return std::pair<uint64_t, uint64_t>(known.own + others, known.told.devices);
    };
    const auto [steps_a, devices_a] = load(a);
    const auto [steps_b, devices_b] = load(b);
    // Steps for each device, without a division.
    const uint64_t busy_a = steps_a * devices_b, busy_b = steps_b * devices_a;
    if (busy_a != busy_b) return busy_a < busy_b;
    return rank(a, session) < rank(b, session);
}

std::optional<StepChoice> StepPlacement::choose(const SessionKey& session, const std::string& model,
                                                const std::vector<StepNode>& nodes,
                                                const std::vector<NodeUuid>& left_out, TimeMs now) const {
    std::vector<const StepNode*> serving;
    for (const StepNode& node : nodes)
        if (node.reachable && names_model(node.models, model)) serving.push_back(&node);
    StepChoice choice;
    choice.serving = serving.size();
    choice.nodes = nodes.size();
    std::erase_if(serving, [&](const StepNode* node) { return has(left_out, node->node); });
    if (serving.empty()) return std::nullopt;
    // Sessions leave a node that drains, and their steps with them; this node's own move when they do.
    const auto stays = [&](const StepNode* node) { return !node->draining || node->node == self_; };
    if (std::any_of(serving.begin(), serving.end(), stays))
        std::erase_if(serving, [&](const StepNode* node) { return !stays(node); });
    const auto there = [&](const NodeUuid& uuid) {
        return std::any_of(serving.begin(), serving.end(), [&](const StepNode* node) { return node->node == uuid; });
    };
    const auto chosen = [&](const NodeUuid& node, StepWhy why) {
        choice.node = node;
        choice.why = why;
        return choice;
    };
    if (const NodeUuid* place = place_of(session, model); place && there(*place)) return chosen(*place, StepWhy::kv);
    if (there(self_)) return chosen(self_, StepWhy::here);
    const auto* least = *std::min_element(serving.begin(), serving.end(), [&](const StepNode* a, const StepNode* b) {
        return less_busy(a->node, b->node, session, model, now);
    });
    return chosen(least->node, StepWhy::least_loaded);
}

void StepPlacement::began(const NodeUuid& node, const std::string& model) { ++loads_[{model, node}].own; }

void StepPlacement::ended(const NodeUuid& node, const std::string& model) {
    const auto found = loads_.find({model, node});
    if (found != loads_.end() && found->second.own > 0) --found->second.own;
}

void StepPlacement::told(const NodeUuid& node, const std::string& model, const HostLoad& load, TimeMs now) {
    if (loads_.size() >= loads_kept_max) std::erase_if(loads_, [](const auto& one) { return one.second.own == 0; });
    Load& known = loads_[{model, node}];
    known.told = load;
    known.told.devices = std::max(1u, load.devices);
    known.told_at = now;
}

bool StepPlacement::ran(const SessionKey& session, const std::string& model, const NodeUuid& node) {
    const auto found = places_.find(session);
    if (node == self_) {
        // Where nothing is remembered it is here.
        if (found == places_.end()) return false;
        auto& models = found->second.models;
        const bool moved = std::erase_if(models, [&](const auto& one) { return one.first == model; }) > 0;
        if (models.empty()) forget(session);
        return moved;
    }
    if (found == places_.end()) {
        while (places_.size() >= sessions_max_) {
            places_.erase(order_.back());
            order_.pop_back();
        }
        order_.push_front(session);
        places_.emplace(session, Place{{{model, node}}, order_.begin()});
        return true;
    }
    order_.splice(order_.begin(), order_, found->second.order);
    auto& models = found->second.models;
    for (auto& [name, where] : models)
        if (name == model) return std::exchange(where, node) != node;
    if (models.size() >= models_of_session_max) models.erase(models.begin());
    models.emplace_back(model, node);
    return true;
}

void StepPlacement::forget(const SessionKey& session) {
    const auto found = places_.find(session);
    if (found == places_.end()) return;
    order_.erase(found->second.order);
    places_.erase(found);
}

std::vector<NodeUuid> StepPlacement::elsewhere(const SessionKey& session) const {
    std::vector<NodeUuid> out;
    const auto found = places_.find(session);
    if (found == places_.end()) return out;
    for (const auto& [model, node] : found->second.models)
        if (!has(out, node)) out.push_back(node);
    return out;
}

}  // namespace mainstay
