#pragma once
// What goes into a shard's member on this node and what comes out: the whole surface between the pure core of
// replication and the shell that has the threads, the sockets, the disk and the coordinator's client. Values only.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "cluster/coordinator.h"
#include "cluster/replica.h"
#include "cluster/replication_message.h"
#include "runtime/base/clock.h"
#include "runtime/base/limits.h"

namespace mainstay {

/// Milliseconds of a monotonic clock, and what a member keeps. No safety depends on any of them.
struct ReplicationSettings {
    uint32_t heartbeat_ms = limits::replication_heartbeat_ms;
    uint32_t resend_ms = limits::replication_resend_ms;
    uint32_t replica_timeout_ms = limits::replica_timeout_ms;
    uint32_t probation_ms = limits::replica_probation_ms;
    uint32_t list_interval_ms = limits::coordinator_list_interval_ms;
    uint32_t stagger_ms = limits::take_over_stagger_ms;
    size_t log_bytes_kept = limits::replication_log_bytes_max;
    size_t log_records_kept = limits::replication_log_records_max;
    size_t message_records_max = limits::replication_message_records_max;
    size_t uncommitted_max = limits::replication_uncommitted_max;
};

// --- in -------------------------------------------------------------------------------------------------------------

/// A linearizable read of the coordinator, begun after the member asked for it or after a hint.
struct RecordRead {
    ShardRecord record;
    std::vector<LiveNode> nodes;
};
/// Each change that the member asked for is answered once.
struct ChangeSettled {
    uint64_t request = 0;
    ChangeAnswer answer;
};
struct GroupSynced {
    uint64_t ticket = 0;
};
struct SpaceChanged {
    bool full = false;
};
/// Records that sessions of this shard have decided, with tokens that count on from `first_token`: they share what is
/// written and sent. Answered in the same step and in their order, by `proposed` and then, for those from which on
/// there is no room or no right to more, `refused`.
struct Propose {
    uint64_t first_token = 0;
    std::vector<std::shared_ptr<const std::string>> payloads;
};
/// An answer from this primary's state as it is now, which must not leave before `reads_ready` names it. It shows what
/// the entries up to `index` made (0: nothing that was proposed in this epoch).
struct BeginRead {
    uint64_t token = 0;
    uint64_t index = 0;
};
/// The state holds everything up to `index` durably: the log may begin there.
struct StateApplied {
    uint64_t index = 0;
};
/// The part that `parts_wanted` asked for. All parts of a transfer are of one state.
struct SnapshotData {
    uint64_t transfer = 0;
    LogPosition at;
    uint32_t part = 0;
    bool last = false;
    std::shared_ptr<const std::string> bytes;
};
/// Whether something of this shard is under way here that had better end before another node leads it: a wish to hand
/// over waits meanwhile. A disk without space does not.
struct HoldHandOver {
    bool hold = false;
};
/// Time has passed. At least every heartbeat_ms.
struct ShardTick {};

using ShardInput = std::variant<RecordRead, ChangeSettled, ReplicationMessage, GroupSynced, SpaceChanged, Propose,
                                BeginRead, StateApplied, SnapshotData, HoldHandOver, ShardTick>;

// --- out ------------------------------------------------------------------------------------------------------------

enum class ProposeRefusal : uint8_t {
    not_primary,
    recovering,        // the epoch's barrier is not committed yet
    handing_over,      // ask the next primary in a moment
    under_replicated,  // fewer in sync than the record wants
    storage_full,
    backlog_full,  // replication_uncommitted_max or replication_reads_max
};

struct ShardOutputs {
    std::vector<WriteGroup> writes;
    std::vector<StagePart> staged;
    std::vector<ReplicationMessage> sends;
    struct Change {
        uint64_t request = 0;
        ShardChange change;
    };
    std::vector<Change> changes;  // at most one is under way
    bool list = false;            // read the record and the leases again
    std::optional<Epoch> lead;  // this node is the epoch's primary, and all of its log is committed: activate sessions
    std::optional<Epoch> step_down;  // no more: what was proposed and is not committed may have happened or not
    struct Proposed {
        uint64_t token = 0, index = 0;
    };
    std::vector<Proposed> proposed;
    struct Refused {
        uint64_t token = 0;
        ProposeRefusal why = ProposeRefusal::not_primary;
    };
    std::vector<Refused> refused;
    std::vector<uint64_t> reads_ready;
    std::optional<uint64_t> committed;   // as a primary: what was proposed up to here may be told
    std::optional<uint64_t> applicable;  // may be applied to the state, on any replica
    std::optional<uint64_t> trimmed;     // the log begins after this index
    struct PartWanted {
        uint64_t transfer = 0;
        uint32_t part = 0;
    };
    std::vector<PartWanted> parts_wanted;    // of a snapshot of the applied state, opened by the first
    std::vector<uint64_t> transfers_closed;  // ... and to be let go
    const char* halt = nullptr;              // nothing more may be done with this copy before people have looked at it

    void clear();
};

}  // namespace mainstay
