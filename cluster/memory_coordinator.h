#pragma once
// The coordinator's contract on memory, for tests and the simulator. MemoryCluster is what all nodes share: records and
// leases, changed by one transaction at a time, in a time that the caller passes in. MemoryCoordinator is one node's
// way to it, and the way is what fails: requests that never arrive, answers that are lost, changes that take effect
// long after everybody gave up on them. Not thread-safe.

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "cluster/coordinator.h"
#include "runtime/base/clock.h"

namespace mainstay {

class MemoryCluster {
  public:
    explicit MemoryCluster(uint32_t lease_ms) : lease_ms_(lease_ms) {}

    /// Time passes; leases expire. Never backwards.
    void advance(TimeMs now);
    bool join(const LiveNode& node, const NodeDetails& details = {});
    bool keep_alive(const Incarnation& incarnation);
    void leave(const Incarnation& incarnation);
    const ClusterMeta& meta(const ClusterMeta& if_absent);
    void set_draining(const NodeUuid& node, bool draining);
    /// Both only what they say: never unknown.
    ChangeAnswer change(const ShardChange& change);
    const ShardRecord* record(ShardId shard) const;
    bool live(const Incarnation& incarnation) const;
    ClusterView list() const;
    std::vector<PlacementDecision> decisions(std::optional<ShardId> shard, size_t limit) const;
    size_t leases() const { return leases_.size(); }
    /// Sees each change that took effect: the record before (nothing for the first) and after.
    void on_change(std::function<void(const ShardRecord* before, const ShardRecord& after)> callback) {
        on_change_ = std::move(callback);
    }

  private:
    using Key = std::pair<NodeUuid, uint64_t>;
    struct Lease {
        ReplicaName name;
        NodeDetails details;
        TimeMs expires = 0;
    };

    const uint32_t lease_ms_;
    TimeMs now_ = 0;
    uint64_t revision_ = 0;
    std::map<ShardId, ShardRecord> records_;
    std::map<Key, Lease> leases_;
    std::set<NodeUuid> draining_;
    std::vector<ForcedLead> forced_;
    std::vector<PlacementDecision> decisions_;  // oldest first
    std::optional<ClusterMeta> meta_;
    std::function<void(const ShardRecord*, const ShardRecord&)> on_change_;
};

/// What happens to the calls of one node, in the order of the calls; then nothing more happens.
enum class CoordinatorFault : uint8_t {
    none,
    request_lost,  // no effect, no answer
    answer_lost,   // effect, no answer
    late,          // no answer; the effect comes with deliver_late()
};

class MemoryCoordinator final : public ClusterCoordinator {
  public:
    MemoryCoordinator(MemoryCluster& cluster, const LiveNode& self, NodeDetails details = {})
        : cluster_(cluster), self_(self), details_(std::move(details)) {}

    ReplicaName self() const override { return self_.name; }
    uint64_t incarnation() const override { return self_.incarnation; }
    Result<ShardRecord> ownership(ShardId shard) override;
    Result<ClusterMeta> meta(const ClusterMeta& if_absent) override;
    Result<void> join() override;
    Result<void> keep_alive() override;
    Result<void> leave() override;
    Result<void> set_draining(const NodeUuid& node, bool draining) override;
    Result<ClusterView> list() override;
    ChangeAnswer change(const ShardChange& change) override;
    Result<std::vector<PlacementDecision>> decisions(std::optional<ShardId> shard, size_t limit) override {
        return cluster_.decisions(shard, limit);
    }
    void on_hint(std::function<void()> callback) override { hint_ = std::move(callback); }

    void fail_next(CoordinatorFault fault) { faults_.push_back(fault); }
    /// Changes that were given up on arrive now.
    void deliver_late();
    void hint() const {
        if (hint_) hint_();
    }

  private:
    CoordinatorFault next_fault();

    MemoryCluster& cluster_;
    const LiveNode self_;
    const NodeDetails details_;
    std::deque<CoordinatorFault> faults_;
    std::vector<ShardChange> late_;
    std::function<void()> hint_;
};

}  // namespace mainstay
