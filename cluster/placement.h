#pragma once
// Which node is to hold and to lead which shard: from the records and leases of one moment, the few changes that bring
// a cluster closer to what it should be. Pure: no clock, no I/O, the same plan from the same input.
//
// One node does it, the one with the smallest (node, incarnation) that lives, and nothing rests on it being one: every
// change is compared with the version that was read, so of two that plan one meets a conflict. Nothing is remembered
// between plans but since when somebody is missing; where a move stands is read off the record.
//
// What it aims at, in this order: each shard has meta.replicas copies on nodes that live and do not drain, in as many
// zones as there are (a node without a zone is a zone of its own), and copies and primaries are even, weighed by
// capacity: no single move between two nodes, of a copy without loss of zones or of a primary along its copies, makes
// the fuller one emptier than the other was. With equal capacities and no zones that is a difference of one at most.
//
// What it never does: take a copy out of `replicas` before meta.replicas others that live are in sync (so a move is:
// add one, wait, remove one; a cluster with replicas_max copies has no room for that, and its copies stay); take out
// the primary or a target; begin a move beyond moves_max and hand_overs_max. The primary lets go of who was taken out
// (T4).

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "cluster/cluster_admin.h"
#include "cluster/membership.h"
#include "runtime/base/limits.h"

namespace mainstay {

/// A node that was away for so long is replaced. Shorter: a restart, which would only move data to and fro.
constexpr uint32_t placement_gone_ms = 5 * 60 * 1000;
/// With min_in_sync nodes, but not yet meta.replicas, for so long, the shards are made on those that are there.
constexpr uint32_t placement_birth_wait_ms = 60 * 1000;

struct PlacementSettings {
    uint32_t gone_ms = placement_gone_ms;
    uint32_t birth_wait_ms = placement_birth_wait_ms;
    /// Shards to which copies are on their way.
    size_t moves_max = limits::placement_moves_max;
    /// Beside them, shards that only change hands: that takes a moment each and must not wait for what takes long.
    size_t hand_overs_max = 4 * limits::placement_moves_max;
    /// Shards without enough copies to take writes that are given some at the same time, beside all moves: they are out
    /// of service, and as many as there are after an adoption.
    size_t rescues_max = 4 * limits::placement_moves_max;
};

/// This node.
struct PlacementSelf {
    LiveNode node;
    /// Its disk was adopted and has what the cluster begins with, up to this epoch: it makes all records at once, with
    /// itself as the only one in sync in the epoch after, whoever else lives. It must be the first node to be started:
    /// what others make on empty disks cannot lead it (it has promised a higher epoch), and people have to sort it out.
    std::optional<Epoch> first_copy;
};

/// What one view does not say: since when. Feed it every view that is planned with; one thread. A node that begins to
/// plan knows nothing yet and waits the whole time.
class PlacementWatch {
  public:
    /// `now`: milliseconds of a monotonic clock.
    void observe(const ClusterMeta& meta, const ClusterView& view, TimeMs now);
    /// How long a node that is on some record has had no lease. 0: it has one.
    TimeMs absent_ms(const NodeUuid& node) const;
    /// How long min_in_sync nodes could have held shards of which some have no record.
    TimeMs unborn_ms() const { return unborn_since_ ? now_ - *unborn_since_ : 0; }

  private:
    TimeMs now_ = 0;
    std::map<NodeUuid, TimeMs> absent_since_;
    std::optional<TimeMs> unborn_since_;
};

struct PlacementStep {
    ShardChange change;
    PlacementDecision decision;
};

struct PlacementPlan {
    std::vector<PlacementStep> births;  // of all shards without a record, in any order and number at a time
    std::vector<PlacementStep> steps;   // at most moves_max + hand_overs_max, each of another shard
    size_t under_way = 0;               // shards that were on the move before these, hand-overs included
};

/// Whether it is for this node to plan.
bool places(const ClusterView& view, const LiveNode& self);

/// Empty unless places() or a first copy has records to make. `wall` dates the decisions. What it costs:
/// docs/CLUSTER.md.
PlacementPlan plan_placement(const ClusterMeta& meta, const ClusterView& view, const PlacementSelf& self,
                             const PlacementWatch& watch, const PlacementSettings& settings, TimeMs wall);

}  // namespace mainstay
