#include "cluster_sim/disk.h"

#include <algorithm>
#include <utility>

namespace mainstay::cluster_sim {

void Disk::sync_one() {
    Pending one = std::move(pending.front());
    pending.pop_front();
    if (one.group.promise) promised = *one.group.promise;
    if (one.group.install) {
        log.reset(*one.group.install);
        base_state = Registers::restore(one.snapshot);
    }
    if (one.group.truncate_to) log.truncate(std::max(*one.group.truncate_to, log.base().index));
    for (auto& entry : one.group.entries) log.append(std::move(entry));
    commit = std::max(commit, one.group.commit);
}

void Disk::tear(size_t records) {
    WriteGroup& group = pending.front().group;
    const auto arrives = [&records] { return records > 0 ? records-- > 0 : false; };
    group.commit = 0;
    if (group.promise && !arrives()) group.promise.reset();
    group.install.reset();  // as a whole, after everything else
    if (group.truncate_to && !arrives()) group.truncate_to.reset();
    group.entries.resize(std::min(records, group.entries.size()));
}

size_t Disk::lose_pending() {
    const size_t lost = pending.size();
    pending.clear();
    staged.clear();
    return lost;
}

void Disk::trim(uint64_t index) {
    for (uint64_t i = log.base().index + 1; i <= index; ++i)
        if (log.entry(i).payload) base_state.apply(*log.entry(i).payload);
    log.trim(index);
}

DurableShard Disk::read() const {
    DurableShard out;
    out.promised = promised;
    out.base = log.base();
    for (uint64_t i = log.base().index + 1; i <= log.last_index(); ++i) out.entries.push_back(log.entry(i));
    out.commit = log.base().index;
    return out;
}

}  // namespace mainstay::cluster_sim
