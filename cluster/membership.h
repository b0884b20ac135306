#pragma once
// Which changes of a shard's record may be proposed, by whom, and what binds a primary while the outcome of one is not
// known. Pure functions over records; the numbers T0 to T7 are those of docs/CLUSTER.md.
//
// Invariants, held by every change made here: I1 the epoch never falls, and rises with every change of primary; I7 no
// change takes replicas out of the in-sync set so that fewer than min_in_sync are left. A change is compared with the
// version that its proposer knew, so of two that meet one fails.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cluster/coordinator.h"

namespace mainstay {

bool contains(const std::vector<ReplicaName>& all, const ReplicaName& one);
/// How a decision names a node: the beginning of its uuid.
std::string short_text(const NodeUuid& node);

/// T0, by whoever balances, where there is no record: the first of `copies` leads, and all are in sync, because none
/// holds anything. The other case is one copy alone, which holds what `epoch` is one above of; then min_in_sync may be
/// more than there are, and the shard takes no writes until others have come in. Precondition: copies, each another
/// node.
ShardChange birth(ShardId shard, Epoch epoch, const std::vector<LiveNode>& copies, uint32_t min_in_sync);
/// T2, by a replica in sync: it becomes the primary of the next epoch if the primary on record has no lease.
ShardChange take_over(const ShardRecord& record, const LiveNode& self);
/// T3, by the primary, with everything committed and nothing under way: `to` becomes the primary of the next epoch.
ShardChange hand_over(const ShardRecord& record, const LiveNode& to);
/// T4 and T5, by the primary: another in-sync set. Nodes that come in must be live when it takes effect.
ShardChange resize(const ShardRecord& record, std::vector<ReplicaName> in_sync, const std::vector<LiveNode>& incoming);
/// The same record again, by the primary: once confirmed, nothing proposed on the version before can take effect.
ShardChange confirm(const ShardRecord& record);
/// T6, by whoever balances: a wish, no change of ownership. Handing over clears it, and else only another wish.
ShardChange wish(const ShardRecord& record, std::optional<NodeUuid> target);
/// T7, by whoever balances: the nodes that are to hold a copy. Moves no data by itself: the primary brings in who is
/// new (T5) and lets go who is no longer meant to (T4).
ShardChange assign(const ShardRecord& record, std::vector<NodeUuid> replicas);

/// Why `after` must not follow `before`; null: it may. For simulator, coordinators and audits.
const char* broken_rule(const ShardRecord& before, const ShardRecord& after);

/// Whether `self` may try T2, and how many candidates on record come before it. Nothing: it may not, because it is not
/// in sync or the primary on record has a lease.
std::optional<uint32_t> take_over_rank(const ShardRecord& record, const std::vector<LiveNode>& nodes,
                                       const LiveNode& self);

/// What binds a primary: the record that it knows, and every change of it that was proposed and may still take effect.
class Configurations {
  public:
    /// The newest record known; older ones are ignored. A higher version shuts out all that was proposed before.
    void adopt(const ShardRecord& record);
    const ShardRecord& record() const { return record_; }

    void proposed(uint64_t request, const ShardChange& change);
    /// With ok the record becomes what was proposed; with unknown the proposal goes on to bind.
    void settled(uint64_t request, const ChangeAnswer& answer);
    /// A proposal was answered with unknown and may still take effect.
    bool unsettled() const { return unsettled_; }

    /// Replicas that must hold an entry before it is acknowledged, and answer a round before a read is: the in-sync set
    /// on record and every one that was proposed.
    const std::vector<ReplicaName>& required() const { return required_; }

  private:
    struct Proposal {
        uint64_t request = 0;
        ShardChange change;
    };
    void renew();

    ShardRecord record_;
    std::vector<Proposal> proposals_;
    std::vector<ReplicaName> required_;
    bool unsettled_ = false;
};

}  // namespace mainstay
