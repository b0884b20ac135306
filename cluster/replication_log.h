#pragma once
// One shard's log as replication sees it: entries in order of index, each with the epoch that made it and a chain, a
// checksum over everything up to it. Two logs that agree on (index, epoch, chain) of one entry agree on all before it.
// Entries below the base are in a snapshot of the state and no longer here. Held by a Replica; plain values, no thread.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/base/id.h"

namespace mainstay {

enum class EntryKind : uint8_t {
    record = 1,   // of a session or entity; the payload is the journal's
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

class ReplicationLog {
  public:
    ReplicationLog() = default;
    explicit ReplicationLog(const LogPosition& base) : base_(base) {}

    const LogPosition& base() const { return base_; }
    LogPosition last() const { return entries_.empty() ? base_ : position_of(entries_.back()); }
    uint64_t last_index() const { return base_.index + entries_.size(); }
    /// Nothing below the base or beyond the end.
    std::optional<LogPosition> at(uint64_t index) const;
    /// Precondition: base < index <= last.
    const LogEntry& entry(uint64_t index) const { return entries_[index - base_.index - 1]; }
    /// Index of the first entry of the epoch that `index` belongs to, as far as it is here.
    uint64_t epoch_start(uint64_t index) const;

    /// Precondition: entry.index == last_index() + 1, and its chain is right.
    void append(LogEntry entry);
    /// Drops what follows `index`. Precondition: base <= index.
    void truncate(uint64_t index);
    /// Makes `index` the base. No effect below the base; precondition: index <= last.
    void trim(uint64_t index);
    /// Nothing but a base.
    void reset(const LogPosition& base);

    size_t entries() const { return entries_.size(); }
    size_t bytes() const { return bytes_; }

  private:
    LogPosition base_;
    std::deque<LogEntry> entries_;
    size_t bytes_ = 0;
};

}  // namespace mainstay
