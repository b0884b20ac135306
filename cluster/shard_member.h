#pragma once
// This node's part in one shard: a replica always, the primary while the record says so and the epoch is its own. Takes
// what happens (messages, synced groups, reads of the record, outcomes of changes, proposals, time) and says what is to
// be done. No thread, clock, socket or disk; whoever drives it calls step() from one thread and performs the outputs:
// writes in their order and each with one sync, sends in any way at all.
//
// Invariants. I5: it leads only an epoch whose record names this incarnation, so a process that was started again, or
// stood still while others went on, acknowledges nothing. It leads no epoch before its own disk has promised it, and
// one change of the record is under way at a time. Whatever it does not know about a change binds it
// (Configurations). Leases and timeouts decide only when something is tried.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cluster/membership.h"
#include "cluster/primary.h"
#include "cluster/shard_step.h"

namespace mainstay {

struct MemberIdentity {
    ClusterUuid cluster{};
    ShardId shard;
    ReplicaName self;
    uint64_t incarnation = 0;  // another one for each start of the process
};

class ShardMember {
  public:
    ShardMember(const MemberIdentity& identity, const DurableShard& durable, const ReplicationSettings& settings);

    /// `now` never goes back. `out` is cleared first.
    void step(const ShardInput& input, TimeMs now, ShardOutputs& out);

    /// The epoch that this node leads and serves.
    std::optional<Epoch> serving() const;
    const Replica& replica() const { return replica_; }
    const Configurations& configurations() const { return configurations_; }
    bool halted() const { return halted_; }
    /// Entries that the copy farthest behind lacks; 0 where this node does not lead.
    uint64_t lag_max() const { return primary_ ? primary_->lag_max(replica_) : 0; }

  private:
    void take(const RecordRead& input);
    void take(const ChangeSettled& input);
    void take(const ReplicationMessage& input);
    void take(const GroupSynced& input);
    void take(const SpaceChanged& input);
    void take(const Propose& input);
    void take(const BeginRead& input);
    void take(const StateApplied& input);
    void take(const SnapshotData& input);
    void take(const HoldHandOver& input);
    void take(const ShardTick& input);

    void deliver(const ReplicationMessage& message);
    void merge(ReplicaOutputs& from, const ReplicaName& answer_to);
    void follow_record();
    void lead();
    void step_down();
    void settle_step();

    std::optional<ProposeRefusal> refusal() const;
    void propose(ShardChange change, std::string what = {}, std::string why = {});
    void decide_change();
    void decide_as_primary();
    bool decide_in_sync();
    std::string why_resized(const std::vector<ReplicaName>& keep, const std::vector<LiveNode>& incoming) const;
    bool drop_retired(std::vector<ReplicaName>& keep) const;
    bool decide_hand_over();
    void decide_take_over();
    const LiveNode* successor() const;
    const LiveNode* live(const ReplicaName& name) const;
    bool assigned(const NodeUuid& node) const;
    bool absent(const ReplicaName& name) const;
    void trim();
    LiveNode self() const { return {identity_.self, identity_.incarnation}; }

    const MemberIdentity identity_;
    const ReplicationSettings settings_;
    Replica replica_;
    std::optional<Primary> primary_;
    Configurations configurations_;
    std::vector<LiveNode> nodes_;  // as last read
    bool fresh_ = false;           // the record was read since the last change was settled
    bool halted_ = false;
    bool handing_over_ = false;
    bool held_ = false;               // no hand-over by wish
    std::optional<uint64_t> change_;  // request under way
    uint64_t requests_ = 0;
    std::optional<TimeMs> take_over_at_;
    std::vector<NodeUuid> assigned_, newcomers_;  // of the record, as primary: as last seen; not yet followed
    ReplicaName heard_from_;                      // primary, last
    uint64_t applied_ = 0;                        // of the state, durable
    uint64_t told_applicable_ = 0;
    TimeMs now_ = 0, ticked_ = 0, listed_ = 0;
    ShardOutputs* out_ = nullptr;  // of this step
};

}  // namespace mainstay
