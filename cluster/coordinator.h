#pragma once
// Who owns a shard. The record is the same with one machine and with many: an epoch that only rises, the primary that
// may acknowledge in it, and the replicas that must hold an event before it counts. A node acknowledges nothing in an
// epoch that is not durably its own; no clock takes part in that.
//
// Drivers: local_coordinator (one node, one lock on the data directory), which is a Coordinator and no more;
// etcd_coordinator and memory_coordinator (tests), which are ClusterCoordinators.
//
// With many nodes a record changes only by compare-and-set on its config_version, and every change gives it a new one.
// The outcome of a change may be unknown, and such a change may still take effect at any later time: it is settled
// only by a confirmed change of the same record (docs/decisions/0016-unknown-outcomes-are-closed-by-a-change.md).
// Leases say that a node may be dead, never that it is; what fences is the epoch. Watches are hints: whoever gets one
// reads again.

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/id.h"
#include "runtime/base/result.h"

namespace mainstay {

using NodeUuid = std::array<uint8_t, 16>;
using ClusterUuid = std::array<uint8_t, 16>;

/// A copy is named by node and disk: a node that lost its disk is another replica.
struct ReplicaName {
    NodeUuid node{}, disk{};
    friend bool operator==(const ReplicaName&, const ReplicaName&) = default;
};

/// One shard's record. At most replicas_max replicas.
struct ShardRecord {
    ShardId shard;
    Epoch epoch;                       // generation of the ownership
    ReplicaName primary;               // the one that acknowledges
    uint64_t incarnation = 0;          // of the primary's process: a restarted process is another one
    std::vector<ReplicaName> in_sync;  // the primary included
    uint64_t config_version = 0;       // changes with every change of this record
    std::vector<NodeUuid> replicas;    // the nodes that are to hold a copy, in sync or not
    std::optional<NodeUuid> target;    // a wish: the node to hand the shard over to
    uint32_t min_in_sync = 1;          // no change makes in_sync smaller than this
    friend bool operator==(const ShardRecord&, const ShardRecord&) = default;
};

class Coordinator {
  public:
    virtual ~Coordinator() = default;
    /// This node. Constant for the life of the object, as is its incarnation.
    virtual ReplicaName self() const = 0;
    virtual uint64_t incarnation() const = 0;
    /// The record of a shard. Any thread. Errors are of the driver: the coordinator cannot be reached.
    virtual Result<ShardRecord> ownership(ShardId shard) = 0;
};

// --- many nodes -----------------------------------------------------------------------------------------------------

/// One life of a node's process. It is live while its lease is.
struct Incarnation {
    NodeUuid node{};
    uint64_t incarnation = 0;
    friend bool operator==(const Incarnation&, const Incarnation&) = default;
};

/// A node that holds a lease.
struct LiveNode {
    ReplicaName name;
    uint64_t incarnation = 0;
    friend bool operator==(const LiveNode&, const LiveNode&) = default;
};

/// Of sessions' events, as this release reads and writes them (docs/formats/events.md). Rises when a kind is added: a
/// release that does not know a kind sets the session aside, so one that can be done without is written only where
/// every node says that it reads it. 2: StepProgress.
constexpr uint64_t events_format = 2;

/// What a node tells the others with its lease. Texts are UTF-8.
struct NodeDetails {
    std::string link_address, client_address;  // HOST:PORT for nodes, URL for clients
    std::string zone, version;                 // failure domain, empty: none; release of Mainstay
    uint64_t capacity = 1;                     // its share of primaries, relative to other nodes
    std::vector<std::string> models = {
        "*"};             // on devices of our own, that it computes; "*": all. At most node_models_max
    uint64_t events = 1;  // newest format of sessions' events that it reads
    uint64_t calls = 4;   // newest CallKind (cluster/link.h) that it answers
    friend bool operator==(const NodeDetails&, const NodeDetails&) = default;
};

/// Whether such a list of models, as of NodeDetails or of inference.models, has this one.
bool names_model(const std::vector<std::string>& models, std::string_view model);

/// What holds for a whole cluster, decided by its first node and never changed.
struct ClusterMeta {
    ClusterUuid cluster{};
    uint16_t shards = 0;
    uint32_t replicas = 0, min_in_sync = 0;  // of each shard
    uint32_t format = 1;                     // of everything that the coordinator holds
    friend bool operator==(const ClusterMeta&, const ClusterMeta&) = default;
};

/// A person made a copy the only one of its shard, and accepted the loss of what others had acknowledged beyond it.
struct ForcedLead {
    ShardId shard;
    Epoch epoch;                       // in which it leads
    uint64_t at_ms = 0;                // wall clock of the node that was asked
    ReplicaName copy;                  // the one that leads
    uint64_t last_index = 0;           // where it ended
    std::vector<ReplicaName> in_sync;  // on record until then: they held everything that was acknowledged
    std::string who;                   // the principal that asked
    friend bool operator==(const ForcedLead&, const ForcedLead&) = default;
};

/// Why something was placed or moved as it was.
struct PlacementDecision {
    TimeMs at = 0;  // wall clock
    ShardId shard;
    std::string what, why;  // "target node-2", "node-1 drains"; UTF-8
    friend bool operator==(const PlacementDecision&, const PlacementDecision&) = default;
};

/// A compare-and-set: all conditions are compared and the record is replaced in one transaction.
struct ShardChange {
    uint64_t expected_version = 0;              // config_version that the record has; 0: there is no record
    ShardRecord desired;                        // its config_version is ignored
    std::optional<Incarnation> gone;            // has no lease
    std::vector<Incarnation> present;           // each has one
    std::optional<ForcedLead> forced;           // kept for ever, in the same transaction
    std::optional<PlacementDecision> decision;  // likewise, for a week at least; of the desired shard
};

enum class ChangeOutcome : uint8_t {
    ok,        // it took effect
    conflict,  // a condition did not hold: it has no effect and never will
    unknown,   // no answer: it took effect, or not, or will
};

struct ChangeAnswer {
    ChangeOutcome outcome = ChangeOutcome::unknown;
    uint64_t config_version = 0;  // of the record that it made; only with ok
    std::string why{};            // for people; only with unknown
};

/// One linearizable read, of one moment.
struct ClusterView {
    std::vector<ShardRecord> shards;   // by shard
    std::vector<LiveNode> nodes;       // by node and incarnation
    std::vector<NodeDetails> details;  // of nodes, in the same order
    std::vector<NodeUuid> draining;    // the operator wants nothing on them, live or not
    std::vector<ForcedLead> forced;    // all that ever were
};

/// Calls may block up to coordinator_request_timeout_ms, so they belong on a thread of their own. A driver never
/// repeats a change by itself: only who asked knows what an unknown one binds it to.
class ClusterCoordinator : public Coordinator {
  public:
    /// The cluster's meta: what is there, or `if_absent`, which is then there. May be repeated.
    virtual Result<ClusterMeta> meta(const ClusterMeta& if_absent) = 0;
    /// Takes a lease for this incarnation and publishes its details with it. conflict: it has one. After an expired one
    /// it may have another: a lease fences nothing, and whether somebody took over meanwhile is in the records.
    virtual Result<void> join() = 0;
    /// Prolongs it. conflict: it has expired, join again.
    virtual Result<void> keep_alive() = 0;
    /// Gives the lease back: others may take over at once. Without one it does nothing.
    virtual Result<void> leave() = 0;
    /// The operator's intent for any node, live or not. After an error it may or may not be so: ask again.
    virtual Result<void> set_draining(const NodeUuid& node, bool draining) = 0;
    /// All records and all leases. Linearizable: sees every change whose answer was given before the call.
    virtual Result<ClusterView> list() = 0;
    virtual ChangeAnswer change(const ShardChange& change) = 0;
    /// The newest `limit` decisions that are kept with changes, newest first, of one shard or all. Not part of list():
    /// they are for people.
    virtual Result<std::vector<PlacementDecision>> decisions(std::optional<ShardId> shard, size_t limit) = 0;
    /// Called on any thread when something may have changed; may be late, doubled or missing.
    virtual void on_hint(std::function<void()> callback) = 0;
};

/// "8-4-4-4-12" in lower-case hex.
std::string to_text(const NodeUuid& uuid);
/// The reverse; nothing for any other text.
std::optional<NodeUuid> uuid_from_text(std::string_view text);

}  // namespace mainstay
