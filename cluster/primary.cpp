#include "cluster/primary.h"

#include <algorithm>
#include <utility>

#include "cluster/membership.h"
#include "runtime/base/crash_point.h"

namespace mainstay {

Primary::Follower* Primary::find(const ReplicaName& name) {
    for (auto& follower : followers_)
        if (follower.name == name) return &follower;
    return nullptr;
}

const Primary::Follower* Primary::find(const ReplicaName& name) const { return const_cast<Primary*>(this)->find(name); }

void Primary::follow(const std::vector<ReplicaName>& names, std::vector<NodeUuid>& newcomers, const Replica& own,
                     TimeMs now, ShardOutputs& out) {
    for (auto& follower : followers_)
        if (!contains(names, follower.name)) close_transfer(follower, out);
    std::erase_if(followers_, [&names](const Follower& follower) { return !contains(names, follower.name); });
    for (const auto& name : names) {
        const bool newcomer = std::erase(newcomers, name.node) > 0;
        if (find(name)) continue;
        Follower follower;
        follower.name = name;
        follower.next = own.log().last_index() + 1;
        follower.heard = follower.progress = follower.good_since = now;
        follower.newcomer = newcomer;
        followers_.push_back(std::move(follower));
    }
}

// --- answers --------------------------------------------------------------------------------------------------------

void Primary::hear(Follower& follower, uint64_t round, bool full, TimeMs now) {
    const bool was_silent = now - follower.heard > settings_.replica_timeout_ms;
    if (was_silent || full) {
        follower.good_since = now;
        follower.newcomer = false;
    }
    follower.heard = now;
    follower.full = full;
    follower.round = std::max(follower.round, round);
}

void Primary::speaks(const ReplicaName& from, uint64_t incarnation) {
    if (Follower* follower = find(from)) follower->incarnation = incarnation;
}

uint64_t Primary::incarnation(const ReplicaName& name) const {
    const Follower* follower = find(name);
    return follower ? follower->incarnation : 0;
}

void Primary::answered(const ReplicaName& from, const AppendAnswer& answer, TimeMs now, ShardOutputs& out) {
    Follower* follower = find(from);
    if (!follower) return;
    hear(*follower, answer.round, answer.full, now);
    if (answer.matched > follower->matched) {
        follower->matched = answer.matched;
        follower->progress = now;
        while (!follower->window.empty() && follower->window.front().last <= answer.matched) {
            follower->window_bytes -= follower->window.front().bytes;
            follower->window.pop_front();
        }
    }
    if (follower->transfer) {
        const auto& at = follower->transfer->at;
        if (answer.status == AppendStatus::ok && at && answer.matched >= at->index) close_transfer(*follower, out);
        return;
    }
    if (answer.status == AppendStatus::ok) {
        follower->due = follower->due || follower->probing;
        follower->probing = false;
        follower->next = std::max(follower->next, follower->matched + 1);
    } else if (const uint64_t from_here = std::max(answer.hint, follower->matched) + 1; from_here < follower->next) {
        // A hint skips a whole epoch, so it may lie below what is known to agree.
        follower->next = from_here;
        follower->probing = follower->due = true;
        follower->window.clear();
        follower->window_bytes = 0;
    }
}

void Primary::answered(const ReplicaName& from, const SnapshotAnswer& answer, TimeMs now) {
    Follower* follower = find(from);
    if (!follower) return;
    hear(*follower, answer.round, answer.full, now);
    if (!follower->transfer || follower->transfer->id != answer.transfer) return;
    auto& transfer = *follower->transfer;
    if (answer.parts > transfer.taken) {
        transfer.taken = answer.parts;
        transfer.progress = now;
    } else if (answer.parts == 0 && transfer.taken > 0) {
        transfer.taken = transfer.asked = 0;  // it was restarted, and what it had aside is gone
    }
}

void Primary::close_transfer(Follower& follower, ShardOutputs& out) {
    if (!follower.transfer) return;
    out.transfers_closed.push_back(follower.transfer->id);
    follower.transfer.reset();
    follower.next = follower.matched + 1;
    follower.probing = follower.due = true;
    follower.window.clear();
    follower.window_bytes = 0;
}

void Primary::close(ShardOutputs& out) {
    for (auto& follower : followers_) close_transfer(follower, out);
}

void Primary::part_read(const SnapshotData& data, const Replica& own, TimeMs now) {
    for (auto& follower : followers_) {
        if (!follower.transfer || follower.transfer->id != data.transfer) continue;
        auto& transfer = *follower.transfer;
        if (!transfer.at) transfer.at = data.at;
        if (data.at != *transfer.at || own.log().base().index > data.at.index) return;
        if (data.last) transfer.parts = data.part + 1;
        sends_.push_back(
            {follower.name, SnapshotPart{epoch_, data.transfer, data.at, data.part, data.last, round_, data.bytes}});
        follower.sent = now;
        follower.round_sent = round_;
    }
}

// --- commit and reads -----------------------------------------------------------------------------------------------

void Primary::commit(Replica& own, const ReplicaName& self, const std::vector<ReplicaName>& required,
                     ShardOutputs& out) {
    uint64_t everywhere = own.durable_index();
    if (mutant("acknowledge_before_sync")) everywhere = own.log().last_index();
    for (const auto& name : required) {
        if (name == self || mutant("acknowledge_before_replication")) continue;
        const Follower* follower = find(name);
        everywhere = std::min(everywhere, follower ? follower->matched : 0);
    }
    if (everywhere < barrier_) return;
    if (everywhere > own.commit()) {
        own.committed(everywhere);
        out.committed = everywhere;
    }
    if (!serving_ && (own.commit() >= barrier_)) {
        serving_ = true;
        out.lead = epoch_;
    }
}

void Primary::confirm_reads(const Replica& own, const ReplicaName& self, const std::vector<ReplicaName>& required,
                            ShardOutputs& out) {
    uint64_t everywhere = round_;
    for (const auto& name : required) {
        if (name == self) continue;
        const Follower* follower = find(name);
        everywhere = std::min(everywhere, follower ? follower->round : 0);
    }
    round_confirmed_ = std::max(round_confirmed_, everywhere);
    // One round at a time: reads that come meanwhile share the next.
    if (round_confirmed_ == round_ && !reads_.empty() && reads_.back().round == 0) {
        ++round_;
        for (auto& read : reads_)
            if (read.round == 0) read.round = round_;
        bool alone = true;
        for (const auto& name : required) alone = alone && name == self;
        if (alone) round_confirmed_ = round_;
    }
    // In any order: a read of one session need not wait for another's entries.
    std::erase_if(reads_, [&](const PendingRead& read) {
        const bool confirmed = (read.round != 0 && read.round <= round_confirmed_) || mutant("read_without_round");
        if (!confirmed || read.index > own.commit()) return false;
        out.reads_ready.push_back(read.token);
        return true;
    });
}

// --- sending --------------------------------------------------------------------------------------------------------

void Primary::advance(Replica& own, const ReplicaName& self, const std::vector<ReplicaName>& required, TimeMs now,
                      ShardOutputs& out) {
    commit(own, self, required, out);
    if (serving_) confirm_reads(own, self, required, out);
    for (auto& follower : followers_) {
        watch_lag(follower, own, now);
        pump(follower, own, now, out);
    }
}

void Primary::watch_lag(Follower& follower, const Replica& own, TimeMs now) const {
    if (follower.mark != 0 && follower.matched < follower.mark) return;
    follower.mark = follower.matched < own.log().last_index() ? own.log().last_index() : 0;
    follower.mark_time = now;
}

void Primary::pump(Follower& follower, const Replica& own, TimeMs now, ShardOutputs& out) {
    const auto& log = own.log();
    const bool silent = now - follower.heard > settings_.replica_timeout_ms;
    if (!follower.transfer && follower.next <= log.base().index && silent) {
        follower.next = log.base().index + 1;  // a probe is enough to hear of it again
        follower.probing = true;
    } else if (!follower.transfer && follower.next <= log.base().index) {
        follower.transfer.emplace();
        follower.transfer->id = ++transfers_;
        follower.transfer->progress = now;
    }
    if (follower.transfer) return pump_snapshot(follower, now, out);
    const bool stalled = follower.matched + 1 < follower.next && now - follower.progress >= settings_.resend_ms;
    if (stalled && !follower.probing && now - follower.sent >= settings_.resend_ms / 2) {
        follower.next = std::max(follower.matched, log.base().index) + 1;
        follower.progress = now;
        follower.window.clear();
        follower.window_bytes = 0;
    }
    if (follower.matched + 1 >= follower.next) follower.progress = now;
    if (follower.probing) {
        if (follower.due || now - follower.sent >= settings_.resend_ms) send(follower, own, false, now);
        return;
    }
    while (follower.next <= log.last_index() && follower.window_bytes < limits::replication_window_bytes &&
           !follower.full)
        send(follower, own, true, now);
    // One that is full is asked again by each heartbeat with entries: how else would it be seen that it has space?
    if (follower.round_sent < round_ || now - follower.sent >= settings_.heartbeat_ms)
        send(follower, own, follower.full, now);
}

void Primary::pump_snapshot(Follower& follower, TimeMs now, ShardOutputs& out) {
    auto& transfer = *follower.transfer;
    if (now - follower.heard > settings_.replica_timeout_ms)
        return close_transfer(follower, out);  // the reader of the state is not held for one that is silent
    if (now - transfer.progress >= settings_.resend_ms) {
        transfer.asked = transfer.taken;
        transfer.progress = now;
        if (transfer.parts && transfer.taken >= *transfer.parts) transfer.asked = *transfer.parts - 1;
    }
    const uint32_t window = transfer.taken + static_cast<uint32_t>(limits::replication_snapshot_parts_in_flight);
    while (transfer.asked < window && (!transfer.parts || transfer.asked < *transfer.parts))
        out.parts_wanted.push_back({transfer.id, transfer.asked++});
}

void Primary::send(Follower& follower, const Replica& own, bool with_entries, TimeMs now) {
    const auto& log = own.log();
    AppendEntries message;
    message.epoch = epoch_;
    message.previous = *log.at(follower.next - 1);
    message.commit = own.commit();
    message.round = round_;
    size_t bytes = 0;
    uint64_t next = follower.next;
    while (with_entries && next <= log.last_index() && message.entries.size() < settings_.message_records_max) {
        const auto& entry = log.entry(next);
        if (!message.entries.empty() && bytes + entry.bytes().size() > limits::replication_message_bytes_max) break;
        bytes += entry.bytes().size();
        message.entries.push_back(entry);
        ++next;
    }
    if (!follower.full && next > follower.next) {
        follower.next = next;
        follower.window.push_back({next - 1, bytes});
        follower.window_bytes += bytes;
    }
    follower.sent = now;
    follower.round_sent = round_;
    follower.due = false;
    sends_.push_back({follower.name, std::move(message)});
}

// --- what membership asks -------------------------------------------------------------------------------------------

void Primary::forgive(TimeMs now) {
    for (auto& follower : followers_) {
        follower.heard = follower.progress = now;
        follower.mark_time = now;
    }
}

const char* Primary::fault(const ReplicaName& name, TimeMs now) const {
    const Follower* follower = find(name);
    if (!follower) return "is not followed";
    if (now - follower->heard > settings_.replica_timeout_ms) return "is silent";
    if (follower->mark != 0 && now - follower->mark_time > settings_.replica_timeout_ms) return "does not keep up";
    return follower->full ? "has no space" : nullptr;
}

bool Primary::caught_up(const ReplicaName& name, const Replica& own) const {
    const Follower* follower = find(name);
    const uint64_t least = mutant("swap_in_before_barrier") ? own.commit() : floor(own);
    return follower && !follower->transfer && !follower->full && follower->matched >= least &&
           follower->matched + settings_.message_records_max >= own.log().last_index();
}

bool Primary::level(const ReplicaName& name, const Replica& own) const {
    const Follower* follower = find(name);
    return follower && !follower->full && follower->matched == own.log().last_index();
}

bool Primary::past_probation(const ReplicaName& name, TimeMs now) const {
    const Follower* follower = find(name);
    return follower && (follower->newcomer || now - follower->good_since >= settings_.probation_ms);
}

uint64_t Primary::lag_max(const Replica& own) const {
    uint64_t most = 0;
    for (const auto& follower : followers_) most = std::max(most, own.log().last_index() - follower.matched);
    return most;
}

std::optional<uint64_t> Primary::needed_from() const {
    std::optional<uint64_t> least;
    for (const auto& follower : followers_) {
        if (!follower.transfer || !follower.transfer->at) continue;
        least = std::min(least.value_or(UINT64_MAX), follower.transfer->at->index);
    }
    return least;
}

}  // namespace mainstay
