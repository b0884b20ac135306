#include "cluster/membership.h"

#include <algorithm>
#include <utility>

#include "runtime/base/crash_point.h"
#include "runtime/base/digest.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

ShardChange change_of(const ShardRecord& record) {
    ShardChange change;
    change.expected_version = record.config_version;
    change.desired = record;
    return change;
}

}  // namespace

bool contains(const std::vector<ReplicaName>& all, const ReplicaName& one) {
    return std::find(all.begin(), all.end(), one) != all.end();
}

ShardChange birth(ShardId shard, Epoch epoch, const std::vector<LiveNode>& copies, uint32_t min_in_sync) {
    ShardChange change;
    ShardRecord& record = change.desired;
    record.shard = shard;
    record.epoch = epoch;
    record.primary = copies.front().name;
    record.incarnation = copies.front().incarnation;
    record.min_in_sync = min_in_sync;
    for (const auto& copy : copies) {
        record.in_sync.push_back(copy.name);
        record.replicas.push_back(copy.name.node);
        change.present.push_back({copy.name.node, copy.incarnation});
    }
    return change;
}

ShardChange take_over(const ShardRecord& record, const LiveNode& self) {
    ShardChange change = change_of(record);
    change.gone = Incarnation{record.primary.node, record.incarnation};
    change.desired.epoch = Epoch(record.epoch.value + 1);
    change.desired.primary = self.name;
    change.desired.incarnation = self.incarnation;
    return change;
}

ShardChange hand_over(const ShardRecord& record, const LiveNode& to) {
    ShardChange change = change_of(record);
    if (!mutant("hand_over_without_epoch")) change.desired.epoch = Epoch(record.epoch.value + 1);
    change.desired.primary = to.name;
    change.desired.incarnation = to.incarnation;
    change.desired.target.reset();
    return change;
}

ShardChange resize(const ShardRecord& record, std::vector<ReplicaName> in_sync, const std::vector<LiveNode>& incoming) {
    ShardChange change = change_of(record);
    change.desired.in_sync = std::move(in_sync);
    for (const auto& node : incoming) {
        change.present.push_back({node.name.node, node.incarnation});
        auto& replicas = change.desired.replicas;
        if (std::find(replicas.begin(), replicas.end(), node.name.node) == replicas.end())
            replicas.push_back(node.name.node);
    }
    return change;
}

ShardChange confirm(const ShardRecord& record) { return change_of(record); }

ShardChange wish(const ShardRecord& record, std::optional<NodeUuid> target) {
    ShardChange change = change_of(record);
    change.desired.target = target;
    return change;
}

ShardChange assign(const ShardRecord& record, std::vector<NodeUuid> replicas) {
    ShardChange change = change_of(record);
    change.desired.replicas = std::move(replicas);
    return change;
}

const char* broken_rule(const ShardRecord& before, const ShardRecord& after) {
    if (after.epoch < before.epoch) return "I1: the epoch of a record falls";
    const bool same = after.primary == before.primary && after.incarnation == before.incarnation;
    if (!same && after.epoch == before.epoch) return "I1: another primary in the same epoch";
    if (after.config_version <= before.config_version) return "a change without a version of its own";
    // A record may begin with fewer: one copy that others have yet to join.
    if (after.in_sync.size() < after.min_in_sync && after.in_sync.size() < before.in_sync.size())
        return "I7: fewer in sync than the record wants";
    if (!contains(after.in_sync, after.primary)) return "a primary that is not in sync";
    for (const auto& name : after.in_sync)
        if (std::count(after.in_sync.begin(), after.in_sync.end(), name) > 1) return "I7: a replica that counts twice";
    for (const auto& node : after.replicas)
        if (std::count(after.replicas.begin(), after.replicas.end(), node) > 1) return "a node that holds two copies";
    if (after.replicas.size() > limits::replicas_max) return "more copies than a record may have";
    if (!same && !contains(before.in_sync, after.primary)) return "a primary that was not in sync";
    return nullptr;
}

std::optional<uint32_t> take_over_rank(const ShardRecord& record, const std::vector<LiveNode>& nodes,
                                       const LiveNode& self) {
    uint32_t rank = 0;
    std::optional<uint32_t> mine;
    for (const auto& name : record.in_sync) {
        if (name == self.name) mine = rank;
        const auto live = [&name](const LiveNode& node) { return node.name == name; };
        if (std::any_of(nodes.begin(), nodes.end(), live)) ++rank;
    }
    for (const auto& node : nodes)
        if (node.name.node == record.primary.node && node.incarnation == record.incarnation) return std::nullopt;
    return mine;
}

std::string short_text(const NodeUuid& node) {
    return to_hex(std::string_view(reinterpret_cast<const char*>(node.data()), 4));
}

// --- what binds -----------------------------------------------------------------------------------------------------

void Configurations::adopt(const ShardRecord& record) {
    if (mutant("settle_by_read") && record.config_version == record_.config_version) {
        proposals_.clear();
        unsettled_ = false;
    }
    if (record.config_version > record_.config_version) {
        record_ = record;
        proposals_.clear();
        unsettled_ = false;
    }
    renew();
}

void Configurations::proposed(uint64_t request, const ShardChange& change) {
    proposals_.push_back({request, change});
    renew();
}

void Configurations::settled(uint64_t request, const ChangeAnswer& answer) {
    const auto found = std::find_if(proposals_.begin(), proposals_.end(),
                                    [request](const Proposal& proposal) { return proposal.request == request; });
    if (found == proposals_.end()) return;  // a higher version has shut it out meanwhile
    switch (answer.outcome) {
        case ChangeOutcome::ok: {
            ShardRecord record = found->change.desired;
            record.config_version = answer.config_version;
            return adopt(record);
        }
        case ChangeOutcome::conflict: proposals_.erase(found); break;
        case ChangeOutcome::unknown:
            unsettled_ = true;
            if (mutant("grow_forgets_the_unknown")) proposals_.erase(found);
            break;
    }
    renew();
}

void Configurations::renew() {
    required_ = record_.in_sync;
    if (mutant("shrink_before_confirmed")) {
        for (const auto& proposal : proposals_)
            if (proposal.change.desired.in_sync.size() < required_.size()) required_ = proposal.change.desired.in_sync;
        return;
    }
    if (mutant("proposals_do_not_bind")) return;
    for (const auto& proposal : proposals_)
        for (const auto& name : proposal.change.desired.in_sync)
            if (!contains(required_, name)) required_.push_back(name);
}

}  // namespace mainstay
