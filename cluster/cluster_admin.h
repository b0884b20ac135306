#pragma once
// What people ask of a cluster, on any of its nodes: who is there, who has what, what is wrong; and wishes. Values
// only; answers come once, on any thread.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cluster/coordinator.h"
#include "runtime/base/clock.h"

namespace mainstay {

struct ClusterNodeInfo {
    LiveNode node;  // incarnation 0: it has no lease, but is on some record
    NodeDetails details;
    bool live = false, self = false, draining = false;
    bool linked = false;                              // this node has a link to it
    uint32_t primaries = 0, in_sync = 0, copies = 0;  // shards that it leads, holds in sync, is to hold
};

struct ClusterShardInfo {
    ShardRecord record;
    bool led_here = false, serving = false;     // by this node
    std::optional<NodeUuid> primary;            // with a lease; absent: nobody leads it now
    uint64_t last_index = 0, commit_index = 0;  // of this node's copy; 0: none
    std::string problem;  // for people, empty: none ("2 of 3 copies in sync: node ... has no lease")
};

struct ClusterStatus {
    ClusterMeta meta;
    NodeUuid self{};
    bool coordinator_reached = false;
    uint64_t coordinator_age_ms = 0;  // since it was last read
    uint32_t nodes_live = 0, shards_serving = 0, shards_under_replicated = 0, shards_unavailable = 0, shards_moving = 0;
    std::vector<std::string> problems;  // for people, the worst first
};

class ClusterAdmin {
  public:
    virtual ~ClusterAdmin() = default;
    template <class T>
    using Answer = std::function<void(Result<T>)>;

    virtual uint16_t shard_count() const = 0;
    virtual void status(Answer<ClusterStatus> done) = 0;
    virtual void nodes(Answer<std::vector<ClusterNodeInfo>> done) = 0;
    virtual void shards(Answer<std::vector<ClusterShardInfo>> done) = 0;
    /// The newest decisions, newest first, of one shard or all: those of this node's placement since it was started,
    /// and every force_lead of any node.
    virtual void decisions(std::optional<ShardId> shard, size_t limit, Answer<std::vector<PlacementDecision>> done) = 0;
    /// Everything is moved off it, or it takes part again. node_not_found, coordinator_unavailable.
    virtual void drain(const NodeUuid& node, bool on, Answer<ClusterNodeInfo> done) = 0;
    /// A wish; answers when it is on record, before the move. shard_not_found, node_not_found, conflict,
    /// coordinator_unavailable.
    virtual void move(ShardId shard, const NodeUuid& to, Answer<ClusterShardInfo> done) = 0;
    /// The only way to lose data: this node's copy becomes the shard's only one, whoever else may hold more. Refused
    /// with conflict while the primary on record has a lease, or `last_index` is not this copy's last index (which
    /// the refusal names: whoever asks must have seen what is lost). What was done, and by `who`, is among the
    /// decisions of every node for ever.
    virtual void force_lead(ShardId shard, uint64_t last_index, const std::string& who,
                            Answer<ClusterShardInfo> done) = 0;
};

}  // namespace mainstay
