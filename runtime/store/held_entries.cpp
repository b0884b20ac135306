#include "runtime/store/held_entries.h"

#include <utility>

#include "runtime/base/invariant.h"

namespace mainstay {

void HeldEntries::add(ShardId shard, LogEntry entry) {
    auto& held = shards_[shard.value];
    INVARIANT(held.empty() || entry.index == held.back().entry.index + 1, "a log has no gaps");
    bytes_ += entry.bytes().size();
    held.push_back({std::move(entry), 0, 0, 0});
}

/// One that was truncated meanwhile is not here, or here with another epoch: an index is written again only in a later
/// one.
void HeldEntries::durable(ShardId shard, uint64_t index, Epoch epoch, uint64_t lsn, uint64_t group,
                          size_t stored_bytes) {
    auto& held = shards_[shard.value];
    if (held.empty() || index < held.front().entry.index || index > held.back().entry.index) return;
    Held& found = held[index - held.front().entry.index];
    if (found.entry.epoch != epoch || found.lsn != 0) return;
    found.lsn = lsn;
    found.group = group;
    found.stored_bytes = stored_bytes;
    ++groups_[group];
}

std::optional<HeldEntries::Held> HeldEntries::take(ShardId shard, uint64_t index) {
    auto& held = shards_[shard.value];
    if (held.empty() || held.front().entry.index > index || held.front().lsn == 0) return std::nullopt;
    Held taken = std::move(held.front());
    held.pop_front();
    forget(taken);
    return taken;
}

void HeldEntries::truncate(ShardId shard, uint64_t index) {
    auto& held = shards_[shard.value];
    while (!held.empty() && held.back().entry.index > index) {
        forget(held.back());
        held.pop_back();
    }
}

std::optional<uint64_t> HeldEntries::oldest_group() const {
    return groups_.empty() ? std::nullopt : std::optional(groups_.begin()->first);
}

void HeldEntries::forget(const Held& held) {
    bytes_ -= held.entry.bytes().size();
    if (held.lsn == 0) return;
    const auto found = groups_.find(held.group);
    if (--found->second == 0) groups_.erase(found);
}

}  // namespace mainstay
