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

#include "runtime/store/shard_log.h"

namespace mainstay {

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
