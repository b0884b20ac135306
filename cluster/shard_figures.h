#pragma once
// What a ShardHost counts, as plain numbers: totals since it started, and states as they are. Kept by the threads that
// they are of, without locks on the way of an entry; given to who shows them once a second (ShardHostEvents::figures).

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string_view>

#include "cluster/membership.h"
#include "cluster/shard_step.h"

namespace mainstay {

/// What became of what sessions proposed. The first ProposeRefusals have their own numbers.
enum class ProposalOutcome : uint8_t {
    not_primary,
    recovering,
    handing_over,  // not refused: it waits for the hand-over, and is counted again then
    under_replicated,
    storage_full,
    backlog_full,
    other_epoch,  // of a session that was activated in another epoch
    accepted,
    dropped,  // was accepted, or waited for a hand-over, when the shard went: it may have happened or not
};
constexpr std::array<std::string_view, 9> proposal_outcome_words = {"not_primary",      "recovering",   "handing_over",
                                                                    "under_replicated", "storage_full", "backlog_full",
                                                                    "other_epoch",      "accepted",     "dropped"};
static_assert(static_cast<uint8_t>(ProposalOutcome::backlog_full) ==
              static_cast<uint8_t>(ProposeRefusal::backlog_full));

/// Kinds of changes of a record (docs/CLUSTER.md).
enum class ChangeKind : uint8_t {
    birth,      // T0
    take_over,  // T2; also when people force it
    hand_over,  // T3
    in_sync,    // T4, T5
    wish,       // T6
    assign,     // T7
    confirm,
    other,  // cannot be told: the record is another one already
};
constexpr std::array<std::string_view, 8> change_kind_words = {"birth", "take_over", "hand_over", "in_sync",
                                                               "wish",  "assign",    "confirm",   "other"};
constexpr std::array<std::string_view, 3> change_outcome_words = {"ok", "conflict", "unknown"};

/// Of a change to `before`, as far as that is the record which it was made from.
ChangeKind kind_of(const ShardChange& change, const ShardRecord& before);

/// How often something took how long. Not cumulative; the last bucket is what exceeds all bounds.
struct DurationFigures {
    // From one synced write on a fast disk to a lease that has to run out.
    static constexpr std::array<double, 16> bounds_seconds = {0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05,
                                                              0.1,    0.2,    0.5,   1,     2,     5,    10,   30};
    std::array<uint64_t, bounds_seconds.size() + 1> counts{};
    double sum_seconds = 0;

    void add(double seconds) {
        const auto at = std::lower_bound(bounds_seconds.begin(), bounds_seconds.end(), seconds);
        ++counts[static_cast<size_t>(at - bounds_seconds.begin())];
        sum_seconds += seconds;
    }
};

/// The coordinator's threads count, the host's reads.
struct CoordinatorFigures {
    using Count = std::atomic<uint64_t>;
    Count reads{0}, reads_failed{0};
    Count leases_taken{0}, leases_lost{0};
    Count beats_failed{0};  // of a lease that was neither prolonged nor lost: no answer
    std::array<std::array<Count, change_outcome_words.size()>, change_kind_words.size()> changes{};

    void changed(ChangeKind kind, ChangeOutcome outcome) {
        ++changes[static_cast<size_t>(kind)][static_cast<size_t>(outcome)];
    }
};

struct ShardFigures {
    // as they stand; all but `halted` of shards that this node leads, so that the sum over nodes is the cluster's
    uint32_t shards_led = 0, shards_serving = 0, shards_under_replicated = 0, shards_moving = 0;
    uint32_t shards_halted = 0;      // copies of this node
    uint64_t follower_lag_max = 0;   // entries that a copy which this node keeps up is behind, over its shards
    uint64_t proposals_waiting = 0;  // accepted and not committed, or waiting for a hand-over
    uint64_t reads_waiting = 0;      // not confirmed
    // as this node last read the coordinator
    uint32_t shards_unled = 0;  // no record, or the primary on it has no lease
    uint32_t nodes_live = 0;    // with a lease
    std::optional<uint64_t> view_age_ms;
    // totals
    std::array<uint64_t, proposal_outcome_words.size()> proposals{};
    uint64_t entries_sent = 0, entry_bytes_sent = 0, entries_received = 0, entry_bytes_received = 0;
    uint64_t snapshot_parts_sent = 0, snapshot_bytes_sent = 0;
    uint64_t snapshots_sent = 0, snapshots_installed = 0;
    uint64_t reads_confirmed = 0, reads_refused = 0;
    DurationFigures commit, confirmation;

    void proposal(ProposalOutcome outcome) { ++proposals[static_cast<size_t>(outcome)]; }
    void sent(const ReplicationBody& body);
    void received(const ReplicationBody& body);
};

}  // namespace mainstay
