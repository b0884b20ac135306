#pragma once
// What a coordinator that keeps text holds: records of shards, details of nodes, the meta of the cluster, as JSON that
// people can read and docs/formats/coordinator.md describes. Reading ignores fields that it does not know; a field that
// is missing or cannot be what it says is an error that names the key, never an empty value: a record that is read
// wrong would hand a shard to somebody. Pure; any thread.

#include <string>
#include <string_view>

#include "cluster/coordinator.h"

namespace mainstay {

/// One line, fields in a fixed order. config_version is no part of it: it belongs to who keeps the text.
std::string to_json(const ShardRecord& record);
/// `key` is for the message. The config_version is 0. Errors: state_damaged.
Result<ShardRecord> shard_record_from_json(std::string_view key, std::string_view text);

/// What a node says of itself: its disk, and what others should know.
struct NodeEntry {
    NodeUuid disk{};
    NodeDetails details;
    friend bool operator==(const NodeEntry&, const NodeEntry&) = default;
};
/// Texts must be UTF-8.
std::string to_json(const NodeEntry& entry);
Result<NodeEntry> node_entry_from_json(std::string_view key, std::string_view text);

std::string to_json(const ForcedLead& forced);
Result<ForcedLead> forced_lead_from_json(std::string_view key, std::string_view text);

/// Without its shard, which is in the key. Texts must be UTF-8.
std::string to_json(const PlacementDecision& decision);
Result<PlacementDecision> placement_decision_from_json(std::string_view key, std::string_view text);

std::string to_json(const ClusterMeta& meta);
/// Errors: state_damaged; unsupported_value where the format is one of a later release.
Result<ClusterMeta> cluster_meta_from_json(std::string_view key, std::string_view text);

/// 16 lower-case hex digits, as everywhere that an incarnation is written.
std::string incarnation_text(uint64_t incarnation);
std::optional<uint64_t> incarnation_from_text(std::string_view text);

}  // namespace mainstay
