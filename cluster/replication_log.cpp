#include "cluster/replication_log.h"

#include <utility>

#include "runtime/base/invariant.h"

namespace mainstay {

std::optional<LogPosition> ReplicationLog::at(uint64_t index) const {
    if (index == base_.index) return base_;
    if (index < base_.index || index > last_index()) return std::nullopt;
    return position_of(entry(index));
}

uint64_t ReplicationLog::epoch_start(uint64_t index) const {
    const Epoch epoch = entry(index).epoch;
    while (index - 1 > base_.index && entry(index - 1).epoch == epoch) --index;
    return index;
}

void ReplicationLog::append(LogEntry entry) {
    INVARIANT(entry.index == last_index() + 1, "a log has no gaps");
    bytes_ += entry.bytes().size();
    entries_.push_back(std::move(entry));
}

void ReplicationLog::truncate(uint64_t index) {
    INVARIANT(index >= base_.index, "what is in a snapshot is not taken back");
    while (last_index() > index) {
        bytes_ -= entries_.back().bytes().size();
        entries_.pop_back();
    }
}

void ReplicationLog::trim(uint64_t index) {
    INVARIANT(index <= last_index(), "a log is trimmed where it is");
    while (base_.index < index) {
        base_ = position_of(entries_.front());
        bytes_ -= entries_.front().bytes().size();
        entries_.pop_front();
    }
}

void ReplicationLog::reset(const LogPosition& base) {
    base_ = base;
    entries_.clear();
    bytes_ = 0;
}

}  // namespace mainstay
