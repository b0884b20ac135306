#pragma once
// Who owns a shard. The record is the same with one machine and with many: an epoch that only rises, the primary that
// may acknowledge in it, and the replicas that must hold an event before it counts. A node acknowledges nothing in an
// epoch that is not durably its own; no clock takes part in that.
//
// Drivers: local_coordinator (one node, one lock on the data directory). A driver over etcd comes with replication and
// adds the compare-and-set transitions; what is here stays.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/id.h"
#include "runtime/base/result.h"

namespace mainstay {

using NodeUuid = std::array<uint8_t, 16>;

/// A copy is named by node and disk: a node that lost its disk is another replica.
struct ReplicaName {
    NodeUuid node{}, disk{};
    friend bool operator==(const ReplicaName&, const ReplicaName&) = default;
};

struct ShardOwnership {
    Epoch epoch;                       // generation of the ownership
    ReplicaName primary;               // the one that acknowledges
    uint64_t incarnation = 0;          // of the primary's process: a restarted process is another one
    std::vector<ReplicaName> in_sync;  // the primary included
    uint64_t config_version = 0;       // changes with every change of this record
};

class Coordinator {
  public:
    virtual ~Coordinator() = default;
    /// This node. Constant for the life of the object, as is its incarnation.
    virtual ReplicaName self() const = 0;
    virtual uint64_t incarnation() const = 0;
    /// The record of a shard. Any thread. Errors are of the driver: the coordinator cannot be reached.
    virtual Result<ShardOwnership> ownership(ShardId shard) = 0;
};

/// "8-4-4-4-12" in lower-case hex.
std::string to_text(const NodeUuid& uuid);

}  // namespace mainstay
