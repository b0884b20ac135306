#include "cluster/replica.h"

#include <algorithm>
#include <utility>

#include "runtime/base/crash_point.h"
#include "runtime/base/invariant.h"
#include "runtime/base/limits.h"

namespace mainstay {

Replica::Replica(const DurableShard& durable)
    : log_(durable.base),
      promised_(durable.promised),
      promised_durable_(durable.promised),
      commit_(std::max(durable.commit, durable.base.index)) {
    for (const auto& entry : durable.entries) log_.append(entry);
    durable_index_ = log_.last_index();
    commit_ = std::min(commit_, durable_index_);
}

// --- as a replica of another primary --------------------------------------------------------------------------------

/// False: the sender is of the past and was told so. A higher epoch is promised in `group`, which the caller writes.
bool Replica::fence(Epoch epoch, ReplicaOutputs& out, WriteGroup& group) {
    if (epoch < promised_ && !mutant("replica_does_not_fence")) {
        out.answer = AppendAnswer{AppendStatus::fenced, epoch, 0, 0, 0, promised_, full_};
        return false;
    }
    if (epoch > promised_) {
        drop_unwritten();
        promised_ = epoch;
        group.promise = epoch;
        verified_ = round_ = transfer_ = 0;
        parts_ = 0;
    }
    heard_ = true;
    return true;
}

void Replica::append(const AppendEntries& message, ReplicaOutputs& out) {
    WriteGroup group;
    if (!fence(message.epoch, out, group)) return;
    const bool reads = message.round > round_;
    round_ = std::max(round_, message.round);
    const auto here = log_.at(message.previous.index);
    const bool below = message.previous.index < log_.base().index;  // in the snapshot, so committed, so the same
    if (!below && here && *here != message.previous && message.previous.index <= commit_) {
        out.halt = "a primary's log differs in what is committed";
        return;
    }
    if (!below && (!here || *here != message.previous)) {
        if (group.promise) write(std::move(group), out);
        uint64_t hint = std::min(log_.last_index(), message.previous.index > 0 ? message.previous.index - 1 : 0);
        if (here && message.previous.index > log_.base().index) hint = log_.epoch_start(message.previous.index) - 1;
        return answer_mismatch(std::max(hint, commit_), out);
    }
    const bool refused = full_ && !message.entries.empty();
    if (!refused) {
        if (!take_entries(message, group, out)) {
            if (group.promise && !out.halt) write(std::move(group), out);  // the epoch counts all the same
            return;
        }
        verified_ = std::max(verified_, message.previous.index + message.entries.size());
    } else if (!below) {
        verified_ = std::max(verified_, message.previous.index);
    }
    commit_ = std::max(commit_, std::min({message.commit, verified_, log_.last_index()}));
    const bool writes = group.promise || group.truncate_to || !group.entries.empty();
    if (writes) write(std::move(group), out);
    // What is written is answered when it is durable; only who reads does not wait for that.
    if (!writes || reads) answer(out);
}

/// Keeps what is equal, cuts at the first that differs, appends the rest. False: nothing of the message counts.
bool Replica::take_entries(const AppendEntries& message, WriteGroup& group, ReplicaOutputs& out) {
    uint64_t chain = message.previous.chain, index = message.previous.index;
    for (const auto& entry : message.entries) {
        // What was damaged on the way, or does not follow, is no entry; the primary sends again.
        const bool whole = chain_of(chain, entry) == entry.chain || mutant("damaged_entries_are_taken");
        if (entry.index != ++index || !whole) return false;
        chain = entry.chain;
    }
    for (const auto& entry : message.entries) {
        if (entry.index <= log_.base().index) continue;
        if (const auto here = log_.at(entry.index)) {
            if (*here == position_of(entry)) continue;
            if (entry.index <= commit_) {
                out.halt = "a primary would cut what is committed";
                return false;
            }
            truncate(entry.index - 1, group);
        }
        log_.append(entry);
        group.entries.push_back(entry);
    }
    return true;
}

void Replica::truncate(uint64_t index, WriteGroup& group) {
    log_.truncate(index);
    group.truncate_to = index;
    durable_index_ = std::min(durable_index_, index);
    verified_ = std::min(verified_, index);
    for (auto& flight : in_flight_) flight.last = std::min(flight.last, index);
}

void Replica::take_part(const SnapshotPart& message, ReplicaOutputs& out) {
    WriteGroup group;
    if (!fence(message.epoch, out, group)) return;
    round_ = std::max(round_, message.round);
    const bool holds = log_.at(message.at.index) == message.at;
    const bool have = message.at.index <= commit_ || holds;
    if (have) {
        // A log that has the snapshot's position is not replaced by it: what follows there may be acknowledged.
        if (group.promise) write(std::move(group), out);
        verified_ = std::max(verified_, message.at.index);
        transfer_ = 0;
        return answer(out);
    }
    if (message.part == 0 && message.transfer != transfer_) {
        transfer_ = message.transfer;
        parts_ = 0;
    }
    if (!full_ && message.transfer == transfer_ && message.part == parts_) {
        out.staged.push_back({message.transfer, message.part, message.bytes});
        ++parts_;
        if (message.last) {
            group.install = message.at;
            log_.reset(message.at);
            commit_ = verified_ = message.at.index;
            durable_index_ = 0;
            for (auto& flight : in_flight_) flight.last = 0;
            transfer_ = 0;
        }
    }
    const bool installs = group.install.has_value();
    if (group.promise || installs) write(std::move(group), out);
    if (installs) return answer(out);
    const uint32_t parts = message.transfer == transfer_ ? parts_ : 0;
    out.answer = SnapshotAnswer{message.epoch, message.transfer, parts, promise_durable() ? round_ : 0, full_};
}

/// Says what is true and durable; nothing while the promise is not, for the answer would promise it.
void Replica::answer(ReplicaOutputs& out) const {
    if (!promise_durable() && !mutant("acknowledge_before_sync")) return;
    const uint64_t matched = mutant("acknowledge_before_sync") ? verified_ : std::min(verified_, durable_index_);
    out.answer = AppendAnswer{AppendStatus::ok, promised_, matched, round_, 0, promised_, full_};
}

void Replica::answer_mismatch(uint64_t hint, ReplicaOutputs& out) const {
    // Its round counts for a read, so it waits for the promise as well.
    const uint64_t round = promise_durable() ? round_ : 0;
    const uint64_t matched = promise_durable() ? std::min(verified_, durable_index_) : 0;
    out.answer = AppendAnswer{AppendStatus::mismatch, promised_, matched, round, hint, promised_, full_};
}

// --- as the primary's own copy --------------------------------------------------------------------------------------

void Replica::begin_epoch(Epoch epoch, ReplicaOutputs& out) {
    INVARIANT(epoch > promised_ || mutant("hand_over_without_epoch") || mutant("restart_resumes_its_epoch"),
              "an epoch is begun once");
    drop_unwritten();
    WriteGroup group;
    group.promise = promised_ = epoch;
    verified_ = round_ = 0;
    heard_ = false;
    transfer_ = 0;
    LogEntry barrier;
    barrier.epoch = epoch;
    barrier.index = log_.last_index() + 1;
    barrier.kind = EntryKind::barrier;
    barrier.chain = chain_of(log_.last().chain, barrier);
    log_.append(barrier);
    group.entries.push_back(std::move(barrier));
    write(std::move(group), out);
}

uint64_t Replica::add_own(std::shared_ptr<const std::string> payload) {
    LogEntry entry;
    entry.epoch = promised_;
    entry.index = log_.last_index() + 1;
    entry.payload = std::move(payload);
    entry.chain = chain_of(log_.last().chain, entry);
    if (unwritten_ == 0) unwritten_ = entry.index;
    log_.append(std::move(entry));
    return log_.last_index();
}

bool Replica::write_own(ReplicaOutputs& out) {
    if (unwritten_ == 0) return false;
    WriteGroup group;
    size_t bytes = 0;
    while (unwritten_ <= log_.last_index()) {
        const auto& entry = log_.entry(unwritten_);
        bytes += entry.bytes().size();
        if (!group.entries.empty() && bytes > limits::group_bytes_max) break;
        group.entries.push_back(entry);
        ++unwritten_;
    }
    if (unwritten_ > log_.last_index()) unwritten_ = 0;
    write(std::move(group), out);
    return true;
}

/// What an earlier primaryship added and never wrote: on this disk it does not exist.
void Replica::drop_unwritten() {
    if (unwritten_ > 0) log_.truncate(unwritten_ - 1);
    unwritten_ = 0;
}

void Replica::committed(uint64_t index) { commit_ = std::max(commit_, index); }

// --- the disk -------------------------------------------------------------------------------------------------------

void Replica::write(WriteGroup group, ReplicaOutputs& out) {
    if (mutant("promise_outside_the_group")) group.promise.reset();
    group.ticket = next_ticket_++;
    group.commit = commit_;
    const uint64_t last = group.entries.empty() ? log_.last_index() : group.entries.back().index;
    in_flight_.push_back({group.ticket, std::min(last, unwritten_ ? unwritten_ - 1 : last), promised_});
    out.writes.push_back(std::move(group));
}

void Replica::synced(uint64_t ticket, ReplicaOutputs& out) {
    INVARIANT(!in_flight_.empty() && in_flight_.front().ticket == ticket, "groups become durable in their order");
    durable_index_ = std::max(durable_index_, in_flight_.front().last);
    promised_durable_ = in_flight_.front().promised;
    in_flight_.pop_front();
    if (heard_) answer(out);
}

void Replica::trim(uint64_t index) { log_.trim(std::min(index, applicable())); }

}  // namespace mainstay
