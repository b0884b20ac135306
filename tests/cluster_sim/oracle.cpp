#include "cluster_sim/oracle.h"

#include <algorithm>

namespace mainstay::cluster_sim {

const Disk* Oracle::disk(const ReplicaName& name) const {
    for (const Disk* disk : disks_)
        if (disk->name == name) return disk;
    return nullptr;
}

void Oracle::changed(const ShardRecord* before, const ShardRecord& after) {
    if (clients_only_) return;
    if (before)
        if (const char* broken = broken_rule(*before, after)) throw Violation(broken);
    const auto named = std::pair(after.primary, after.incarnation);
    const auto [found, added] = primaries_.try_emplace(after.epoch, named);
    check(added || found->second == named, "I5: an epoch has two primaries");
    check_members(after, acknowledged_);
    record_ = after;
}

/// I3: what was acknowledged is durable on every member of the set on record. A disk that was lost holds nothing;
/// histories lose none while another member's is gone.
void Oracle::check_members(const ShardRecord& record, const LogPosition& position) const {
    if (position.index == 0) return;
    for (const auto& name : record.in_sync) {
        const Disk* member = disk(name);
        if (!member || member->log.base().index >= position.index) continue;
        const auto there = member->log.at(position.index);
        check(there.has_value(), "I3: an acknowledged entry is not on every in-sync replica");
        check(*there == position, "I3: an acknowledged entry is another one on an in-sync replica");
    }
}

void Oracle::before_sync(const Disk& disk) const {
    if (clients_only_) return;
    const auto& group = disk.pending.front().group;
    check(!group.promise || *group.promise >= disk.promised, "I2: a promise falls");
    check(!group.truncate_to || *group.truncate_to >= disk.commit, "I6: what is committed is cut");
}

void Oracle::synced(const Disk& disk, uint64_t first, uint64_t last) {
    if (clients_only_) return;
    for (uint64_t index = first; index <= last; ++index) {
        const auto entry = disk.log.at(index);
        if (!entry || index == disk.log.base().index) continue;
        if (contents_.size() <= index) contents_.resize(index + 1);
        auto& seen = contents_[index];
        const auto same = [&entry](const auto& one) { return one.first == entry->epoch; };
        const auto found = std::find_if(seen.begin(), seen.end(), same);
        if (found == seen.end())
            seen.emplace_back(entry->epoch, entry->chain);
        else
            check(found->second == entry->chain, "I4: two contents for one epoch and index");
    }
    if (contains(record_.in_sync, disk.name)) check_members(record_, acknowledged_);
}

void Oracle::attested(const ReplicaName& name, Epoch epoch) {
    for (auto& one : attested_)
        if (one.first == name) {
            one.second = std::max(one.second, epoch);
            return;
        }
    attested_.emplace_back(name, epoch);
}

void Oracle::restarted(const Disk& disk) const {
    if (clients_only_) return;
    for (const auto& [name, epoch] : attested_)
        check(name != disk.name || disk.promised >= epoch, "I2: a replica forgot the epoch in which it answered");
}

void Oracle::acknowledged(Epoch epoch, const ReplicaName& by, uint64_t incarnation, const LogPosition& up_to) {
    if (clients_only_) return;
    const auto owner = primaries_.find(epoch);
    check(owner != primaries_.end() && owner->second == std::pair(by, incarnation),
          "I5: somebody else than the epoch's primary acknowledges");
    // An older epoch may come after a newer one with answers that were long on their way: what it tells then must be
    // in the newer one's log as well.
    if (up_to.index > acknowledged_.index) acknowledged_ = up_to;
    check_members(record_, up_to);
}

void Oracle::answered_write(const Write& write, uint32_t version, const Floor& begun) {
    check(version > begun.version[write.session], "G3: a write is ordered before what was known when it began");
    const auto [found, added] = writes_.try_emplace(write.request, write.session, version);
    check(added || found->second == std::pair(write.session, version), "G4: a write was told twice, and differently");
    told_.version[write.session] = std::max(told_.version[write.session], version);
}

void Oracle::answered_read(uint8_t session, uint32_t version, uint64_t hash, const Floor& begun) {
    check(version >= begun.version[session], "G3: a read does not show what was known when it began");
    const auto [found, added] = hashes_[session].try_emplace(version, hash);
    check(added || found->second == hash, "G3: two histories of one version were read");
    told_.version[session] = std::max(told_.version[session], version);
}

void Oracle::finish(const Registers& state) const {
    for (const auto& [request, told] : writes_)
        check(state.result[request] == told.second, "G1: an acknowledged write is lost");
    for (size_t session = 0; session < session_count; ++session) {
        check(state.version[session] >= told_.version[session], "G1: an acknowledged version is lost");
        const auto same = hashes_[session].find(state.version[session]);
        check(same == hashes_[session].end() || same->second == state.hash[session],
              "G3: the end is not what was read of it");
    }
}

}  // namespace mainstay::cluster_sim
