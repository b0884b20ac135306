#include "cluster/shard_figures.h"

namespace mainstay {

ChangeKind kind_of(const ShardChange& change, const ShardRecord& before) {
    if (change.expected_version == 0) return ChangeKind::birth;
    if (change.expected_version != before.config_version) return ChangeKind::other;
    const ShardRecord& after = change.desired;
    if (after.epoch != before.epoch) return change.gone ? ChangeKind::take_over : ChangeKind::hand_over;
    // In need, who comes in may also be put on the list of replicas.
    if (after.in_sync != before.in_sync) return ChangeKind::in_sync;
    if (after.target != before.target) return ChangeKind::wish;
    if (after.replicas != before.replicas) return ChangeKind::assign;
    return ChangeKind::confirm;
}

void ShardFigures::sent(const ReplicationBody& body) {
    if (const auto* append = std::get_if<AppendEntries>(&body)) {
        entries_sent += append->entries.size();
        for (const auto& entry : append->entries) entry_bytes_sent += entry.bytes().size();
    } else if (const auto* part = std::get_if<SnapshotPart>(&body)) {
        ++snapshot_parts_sent;
        snapshot_bytes_sent += part->bytes ? part->bytes->size() : 0;
        snapshots_sent += part->last;
    }
}

void ShardFigures::received(const ReplicationBody& body) {
    const auto* append = std::get_if<AppendEntries>(&body);
    if (!append) return;
    entries_received += append->entries.size();
    for (const auto& entry : append->entries) entry_bytes_received += entry.bytes().size();
}

}  // namespace mainstay
