#pragma once
// The contracts of what is durable on a partition: a journal that is the truth until it is applied, and a state (LMDB)
// that holds everything applied. Both disk_store (segment log + LMDB) and memory_store (faults by order) pass the same
// contract suite.
//
// Appends come from any thread and never block; acknowledgements come by call on the store's own thread, after the sync
// that made them durable. On one node durable and committed are the same moment; with replicas `committed` follows.
// Any failed write or sync aborts the process (DECISIONS 7): there is no error path out of append().

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/fold.h"
#include "runtime/base/id.h"
#include "runtime/base/result.h"

namespace mainstay {

/// Whoever appended. Called on the store's thread, at most once per session and group, in order of sequence.
class AckTarget {
  public:
    virtual ~AckTarget() = default;
    virtual void acknowledged(Sequence durable, Sequence committed) = 0;
    /// (replicated) This node does not lead the shard any more, or never did in that epoch: what was appended and is
    /// not acknowledged may have happened or not, and whoever appended must be dropped.
    virtual void refused() {}
};

enum class RecordKind : uint8_t {
    events = 1,      // payload: packed EventBatch of one session
    entity = 2,      // payload: packed Entity; session holds only the tenant, or names a user's memory (family 0)
    promise = 3,     // an epoch promised for a shard (all shards: shard 0xffff)
    truncate = 4,    // shard, index: what follows index in this shard is void
    replicated = 5,  // an entry of a shard's replicated log; the payload is encode_entry()'s
    barrier = 6,     // the first entry of an epoch in such a log; no payload
};

struct Append {
    RecordKind kind = RecordKind::events;
    SessionKey session;
    Sequence first_sequence;   // of the batch's first event
    uint32_t event_count = 0;  // the batch covers first_sequence .. first_sequence + event_count - 1
    TurnNo turn;
    std::string payload;
    std::shared_ptr<AckTarget> target;  // may be null
    /// After this batch the session has nothing to do by itself: a start need not take it up.
    bool at_rest = false;
    bool deletes = false;  // the batch deletes the session
    /// How many sessions are at work and so may append soon: under load a group waits a moment for some of them. A
    /// hint.
    uint32_t companions = 0;
    Epoch led_in;  // (replicated) the epoch in which the session's shard was led when it was activated
};

/// Everything that the store has of a session: enough to build it again.
struct SessionImage {
    std::optional<std::string> head;  // head row, checksum verified
    struct Record {
        Lsn lsn;
        Sequence first_sequence;
        std::shared_ptr<const std::string> payload;
    };
    std::vector<Record> tail;  // in order; may overlap the head (skip by sequence)
};

struct StoreStats {
    uint64_t journal_syncs = 0, journal_bytes = 0, journal_records = 0, journal_groups = 0;
    uint64_t state_syncs = 0, state_commits = 0, state_rows = 0;
    uint64_t append_queue_bytes = 0, apply_backlog_bytes = 0, apply_backlog_records = 0;
    uint64_t segments = 0, segments_ready = 0;
    uint64_t applied_lsn = 0, durable_lsn = 0;
    uint64_t recovered_records = 0, recovered_bytes = 0, torn_bytes = 0;
    uint64_t damaged_sessions = 0;  // set aside, because their records cannot be folded
    bool read_only = false;
};

class Store {
  public:
    virtual ~Store() = default;

    /// Asked before a command that brings `bytes` is accepted: refuses with journal_backlog_full, apply_backlog_full or
    /// storage_full, naming the bound. Results and receipts do not ask: room is kept back for them.
    virtual Result<void> admit(size_t bytes) = 0;
    virtual void append(Append append) = 0;

    /// Sees every append that was acknowledged before the call.
    virtual Result<SessionImage> load(const SessionKey& key) = 0;
    /// A row as last applied; state_damaged (naming table and key) if its checksum does not hold.
    virtual Result<std::optional<std::string>> read_row(Table table, std::string_view key) = 0;
    /// Rows with key >= from that start with `prefix`, in order, at most `limit`; `visit` returns false to stop early.
    virtual Result<void> scan(Table table, std::string_view prefix, std::string_view from, size_t limit,
                              const std::function<bool(std::string_view key, std::string_view value)>& visit) = 0;
    /// The row of a settled turn, also when it is durable but not applied yet (by folding head and tail).
    virtual Result<std::optional<std::string>> read_turn(const SessionKey& key, TurnNo turn) = 0;
    /// Sessions whose durable records are not all applied. With the `open` table they are what recovery takes up, but
    /// for those at rest.
    virtual std::vector<SessionKey> sessions_in_tail() = 0;
    /// Those of them whose newest record says that they are at rest, whatever the `open` table says.
    virtual std::vector<SessionKey> resting_in_tail() = 0;
    /// Called on the store's background thread after each applied transaction (may be empty).
    virtual void on_applied(std::function<void()> callback) = 0;
    /// Bodies of entities, latest version of each (kind, name) and all versions still referenced, in LMDB or tail.
    virtual Result<std::vector<std::string>> entities() = 0;
    /// The row of one user's memory, by the key under which its records were appended; sees every append that was
    /// acknowledged before the call. Memories are not among entities(): a node may have any number of them, and reads
    /// one by one.
    virtual Result<std::optional<std::string>> read_memory(const SessionKey& key) = 0;

    virtual StoreStats stats() const = 0;
    /// Returns when everything appended so far is applied and synced (drain, tests). Bounded by the caller's patience.
    virtual void flush() = 0;
};

}  // namespace mainstay
