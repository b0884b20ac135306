#pragma once
// What replication keeps of a shard on this node's disk, and the contract of the store that keeps it: the promised
// epoch, the entries of the replicated log that are not in the state yet, and the state itself, which may be copied out
// and replaced as a whole. A store either journals what sessions append (one node) or what replication says
// (replicated); docs/formats/journal.md has the records of both. The cluster's pure core and its simulator use the
// values; DiskStore implements the contract.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/base/id.h"
#include "runtime/base/result.h"

namespace mainstay {

enum class EntryKind : uint8_t {
    record = 1,   // of a session or entity; the payload is encode_entry()'s
    barrier = 2,  // the first entry of an epoch; without payload
};

struct LogEntry {
    Epoch epoch;
    uint64_t index = 0;  // from 1 without gaps
    EntryKind kind = EntryKind::record;
    uint64_t chain = 0;
    std::shared_ptr<const std::string> payload;  // never null but for a barrier

    std::string_view bytes() const { return payload ? std::string_view(*payload) : std::string_view(); }
};

/// Names an entry together with everything before it. Index 0: before the first.
struct LogPosition {
    uint64_t index = 0;
    Epoch epoch;
    uint64_t chain = 0;
    friend bool operator==(const LogPosition&, const LogPosition&) = default;
};

/// xxHash64 of epoch, index and kind (17 bytes, little-endian), seeded with the xxHash64 of the payload, which is
/// seeded with the chain before. Finds damage and confusion, not forgery.
uint64_t chain_of(uint64_t previous, const LogEntry& entry);

inline LogPosition position_of(const LogEntry& entry) { return {entry.index, entry.epoch, entry.chain}; }

/// What a start finds on the disk.
struct DurableShard {
    Epoch promised;
    LogPosition base;  // of the state that was applied and of which no entries are left
    std::vector<LogEntry> entries;
    uint64_t commit = 0;  // advisory: at least this much is committed
};

/// One write of a shard. In the order of the members; a crash may leave a beginning of it, and does so only before it
/// was reported as synced.
struct WriteGroup {
    uint64_t ticket = 0;
    std::optional<Epoch> promise;
    std::optional<LogPosition> install;   // the staged snapshot becomes the state, the log is empty from here
    std::optional<uint64_t> truncate_to;  // what follows this index is void
    std::vector<LogEntry> entries;
    uint64_t commit = 0;
};

/// A part of a snapshot, to be kept aside until its install; need not be durable before. Part 0 voids what was aside.
struct StagePart {
    uint64_t transfer = 0;
    uint32_t part = 0;
    std::shared_ptr<const std::string> bytes;
};

/// The rows of one shard as they were at one moment, in parts. Any thread, one at a time.
class ShardSnapshot {
  public:
    virtual ~ShardSnapshot() = default;
    virtual LogPosition position() const = 0;
    virtual uint32_t parts() const = 0;  // at least one
    /// At most replication_snapshot_part_bytes_max bytes.
    virtual Result<std::string> read(uint32_t part) = 0;
};

/// Told by the store, on its own threads; must not block.
class ShardLogEvents {
  public:
    virtual ~ShardLogEvents() = default;
    /// These groups are durable, each shard's in the order in which they were written.
    virtual void groups_synced(const std::vector<std::pair<ShardId, uint64_t>>& tickets) = 0;
    /// The state holds these shards' entries up to these indexes, durably.
    virtual void state_applied(const std::vector<std::pair<ShardId, uint64_t>>& indexes) = 0;
};

class ShardLog {
  public:
    virtual ~ShardLog() = default;
    /// What the start found, by shard; once, before start_shards().
    virtual std::vector<DurableShard> recovered_shards() = 0;
    virtual void start_shards(ShardLogEvents& events) = 0;
    /// Nothing is told any more when this returns.
    virtual void stop_shards() = 0;

    /// Any thread, never blocks. Groups of a shard become durable in their order; those of one call with as few syncs
    /// as the disk's groups allow.
    virtual void write_groups(std::vector<std::pair<ShardId, WriteGroup>> groups) = 0;
    /// Entries up to these indexes are committed and durable: they go to the state, and whoever loads a session sees
    /// them when the call returns.
    virtual void apply_entries(const std::vector<std::pair<ShardId, uint64_t>>& indexes) = 0;
    /// A copy of the applied state. Takes as long as reading the shard takes.
    virtual Result<std::unique_ptr<ShardSnapshot>> snapshot(ShardId shard) = 0;
    virtual void stage(ShardId shard, const StagePart& part) = 0;
    /// No room for new entries; those that come all the same are kept for as long as the reserve lasts.
    virtual bool out_of_space() const = 0;
};

}  // namespace mainstay
