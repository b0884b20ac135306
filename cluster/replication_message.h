#pragma once
// What replicas of a shard say to each other, as plain structs; their bytes come with the link between nodes. Messages
// may be lost, doubled, late and out of order: each says all that its receiver needs, and answers report a state rather
// than a step. A peer may crash, it does not lie; damage on the way is found by the chains of the entries.

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "cluster/coordinator.h"
#include "cluster/replication_log.h"

namespace mainstay {

/// Primary to replica: entries that follow `previous`, perhaps none (a heartbeat, a round, a probe).
struct AppendEntries {
    Epoch epoch;
    LogPosition previous;
    std::vector<LogEntry> entries;
    uint64_t commit = 0;  // of the primary; means something to this replica only as far as its log is verified
    uint64_t round = 0;   // counts what the primary sends; an answer shows which of it had arrived
};

enum class AppendStatus : uint8_t {
    ok,        // `matched` holds
    mismatch,  // `previous` is not in the log: go on after `hint`
    fenced,    // this replica has promised the epoch `promised`
};

struct AppendAnswer {
    AppendStatus status = AppendStatus::ok;
    Epoch epoch;           // that it answers
    uint64_t matched = 0;  // the log up to here is the primary's, and durable
    uint64_t round = 0;    // highest that has arrived in this epoch
    uint64_t hint = 0;
    Epoch promised;
    bool full = false;  // takes no entries for want of space
};

/// Primary to replica: part of the committed state at `at`.
struct SnapshotPart {
    Epoch epoch;
    uint64_t transfer = 0;
    LogPosition at;
    uint32_t part = 0;  // from 0
    bool last = false;
    uint64_t round = 0;
    std::shared_ptr<const std::string> bytes;
};

struct SnapshotAnswer {
    Epoch epoch;
    uint64_t transfer = 0;
    uint32_t parts = 0;  // taken so far
    uint64_t round = 0;
    bool full = false;
};

using ReplicationBody = std::variant<AppendEntries, AppendAnswer, SnapshotPart, SnapshotAnswer>;

struct ReplicationMessage {
    ClusterUuid cluster{};
    ShardId shard;
    ReplicaName from, to;           // a message to a disk that is gone is dropped by the node that lost it
    uint64_t from_incarnation = 0;  // of the sender's process
    ReplicationBody body;
};

}  // namespace mainstay
