#include "cluster/memory_coordinator.h"

#include <utility>

namespace mainstay {
namespace {

Error unreachable() { return {ErrorCode::coordinator_unavailable, "the coordinator did not answer", {}}; }

}  // namespace

void MemoryCluster::advance(TimeMs now) {
    if (now > now_) now_ = now;
    std::erase_if(leases_, [this](const auto& lease) { return lease.second.expires <= now_; });
}

bool MemoryCluster::join(const LiveNode& node, const NodeDetails& details) {
    const Key key{node.name.node, node.incarnation};
    if (leases_.contains(key)) return false;
    leases_[key] = {node.name, details, now_ + lease_ms_};
    return true;
}

bool MemoryCluster::keep_alive(const Incarnation& incarnation) {
    const auto found = leases_.find({incarnation.node, incarnation.incarnation});
    if (found == leases_.end()) return false;
    found->second.expires = now_ + lease_ms_;
    return true;
}

void MemoryCluster::leave(const Incarnation& incarnation) {
    leases_.erase({incarnation.node, incarnation.incarnation});
}

const ClusterMeta& MemoryCluster::meta(const ClusterMeta& if_absent) {
    if (!meta_) meta_ = if_absent;
    return *meta_;
}

void MemoryCluster::set_draining(const NodeUuid& node, bool draining) {
    if (draining)
        draining_.insert(node);
    else
        draining_.erase(node);
}

bool MemoryCluster::live(const Incarnation& incarnation) const {
    return leases_.contains({incarnation.node, incarnation.incarnation});
}

const ShardRecord* MemoryCluster::record(ShardId shard) const {
    const auto found = records_.find(shard);
    return found == records_.end() ? nullptr : &found->second;
}

ChangeAnswer MemoryCluster::change(const ShardChange& change) {
    const ShardRecord* before = record(change.desired.shard);
    if ((before ? before->config_version : 0) != change.expected_version) return {ChangeOutcome::conflict};
    if (change.gone && live(*change.gone)) return {ChangeOutcome::conflict};
    for (const auto& incarnation : change.present)
        if (!live(incarnation)) return {ChangeOutcome::conflict};
    ShardRecord after = change.desired;
    after.config_version = ++revision_;
    if (on_change_) on_change_(before, after);
    records_[after.shard] = std::move(after);
    if (change.forced) forced_.push_back(*change.forced);
    if (change.decision) decisions_.push_back(*change.decision);
    return {ChangeOutcome::ok, revision_, {}};
}

std::vector<PlacementDecision> MemoryCluster::decisions(std::optional<ShardId> shard, size_t limit) const {
    std::vector<PlacementDecision> out;
    for (auto one = decisions_.rbegin(); one != decisions_.rend() && out.size() < limit; ++one)
        if (!shard || one->shard == *shard) out.push_back(*one);
    return out;
}

ClusterView MemoryCluster::list() const {
    ClusterView view;
    for (const auto& [shard, record] : records_) view.shards.push_back(record);
    for (const auto& [key, lease] : leases_) {
        view.nodes.push_back({lease.name, key.second});
        view.details.push_back(lease.details);
    }
    view.draining.assign(draining_.begin(), draining_.end());
    view.forced = forced_;
    return view;
}

CoordinatorFault MemoryCoordinator::next_fault() {
    if (faults_.empty()) return CoordinatorFault::none;
    const auto fault = faults_.front();
    faults_.pop_front();
    return fault;
}

Result<ShardRecord> MemoryCoordinator::ownership(ShardId shard) {
    if (next_fault() != CoordinatorFault::none) return unreachable();
    const ShardRecord* record = cluster_.record(shard);
    if (!record) return {ErrorCode::not_found, "shard " + std::to_string(shard.value) + " has no record"};
    return *record;
}

Result<ClusterMeta> MemoryCoordinator::meta(const ClusterMeta& if_absent) {
    const auto fault = next_fault();
    if (fault == CoordinatorFault::request_lost) return unreachable();
    const ClusterMeta meta = cluster_.meta(if_absent);
    if (fault != CoordinatorFault::none) return unreachable();
    return meta;
}

Result<void> MemoryCoordinator::leave() {
    const auto fault = next_fault();
    if (fault == CoordinatorFault::request_lost) return unreachable();
    cluster_.leave({self_.name.node, self_.incarnation});
    if (fault != CoordinatorFault::none) return unreachable();
    return {};
}

Result<void> MemoryCoordinator::set_draining(const NodeUuid& node, bool draining) {
    const auto fault = next_fault();
    if (fault == CoordinatorFault::request_lost) return unreachable();
    cluster_.set_draining(node, draining);
    if (fault != CoordinatorFault::none) return unreachable();
    return {};
}

Result<void> MemoryCoordinator::join() {
    const auto fault = next_fault();
    if (fault == CoordinatorFault::request_lost) return unreachable();
    const bool joined = cluster_.join(self_, details_);
    if (fault != CoordinatorFault::none) return unreachable();
    if (!joined) return {ErrorCode::conflict, "this incarnation has its lease"};
    return {};
}

Result<void> MemoryCoordinator::keep_alive() {
    const auto fault = next_fault();
    if (fault == CoordinatorFault::request_lost) return unreachable();
    const bool alive = cluster_.keep_alive({self_.name.node, self_.incarnation});
    if (fault != CoordinatorFault::none) return unreachable();
    if (!alive) return {ErrorCode::conflict, "the lease of this incarnation has expired"};
    return {};
}

Result<ClusterView> MemoryCoordinator::list() {
    if (next_fault() != CoordinatorFault::none) return unreachable();
    return cluster_.list();
}

ChangeAnswer MemoryCoordinator::change(const ShardChange& change) {
    switch (next_fault()) {
        case CoordinatorFault::request_lost: return {};
        case CoordinatorFault::answer_lost: cluster_.change(change); return {};
        case CoordinatorFault::late: late_.push_back(change); return {};
        case CoordinatorFault::none: break;
    }
    return cluster_.change(change);
}

void MemoryCoordinator::deliver_late() {
    for (const auto& change : std::exchange(late_, {})) cluster_.change(change);
}

}  // namespace mainstay
