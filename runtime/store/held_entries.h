#pragma once
// Entries of replicated logs between the journal and the tail: journalled, or about to be, and not known to be
// committed. The journal must not be released beyond the oldest of them, so each durable one pins the group that holds
// it. Plain; DiskStore guards it with a mutex.

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "runtime/store/shard_log.h"

namespace mainstay {

class HeldEntries {
  public:
    struct Held {
        LogEntry entry;
        uint64_t lsn = 0;    // 0: not durable yet
        uint64_t group = 0;  // where its group starts
        size_t stored_bytes = 0;
    };

    explicit HeldEntries(size_t shards) : shards_(shards) {}

    /// Follows the shard's last one.
    void add(ShardId shard, LogEntry entry);
    void durable(ShardId shard, uint64_t index, Epoch epoch, uint64_t lsn, uint64_t group, size_t stored_bytes);
    /// The oldest, if its index is at most `index`; it is no longer held. Nothing where it is not durable yet.
    std::optional<Held> take(ShardId shard, uint64_t index);
    /// Drops what follows `index`.
    void truncate(ShardId shard, uint64_t index);

    /// Where the oldest group with a durable entry starts; nothing if there is none.
    std::optional<uint64_t> oldest_group() const;
    const std::deque<Held>& of(ShardId shard) const { return shards_[shard.value]; }
    size_t bytes() const { return bytes_; }

  private:
    void forget(const Held& held);

    std::vector<std::deque<Held>> shards_;
    std::map<uint64_t, size_t> groups_;  // start, durable entries held
    size_t bytes_ = 0;
};

}  // namespace mainstay
