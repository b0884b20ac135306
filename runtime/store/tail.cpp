#include "runtime/store/tail.h"

#include <algorithm>

#include "runtime/base/invariant.h"

namespace mainstay {

bool may_touch(const std::vector<TailRecord>& records, TurnNo turn) {
    return std::any_of(records.begin(), records.end(),
                       [turn](const TailRecord& record) { return record.deletes || record.turn <= turn; });
}

TailGeneration& Tail::open_generation() {
    if (generations_.empty() || sealed_) {
        generations_.push_back(std::make_shared<TailGeneration>());
        sealed_ = false;
    }
    return *generations_.back();
}

void Tail::add_locked(const RecordHeader& header, std::shared_ptr<const std::string> payload, size_t stored_bytes) {
    TailGeneration& generation = open_generation();
    generation.sessions[header.session].push_back({header.lsn, header.epoch, header.kind, header.first_sequence,
                                                   header.turn, (header.flags & record_at_rest) != 0,
                                                   (header.flags & record_deletes) != 0, std::move(payload)});
    if (header.shard.value != shard_all) generation.indexes.emplace_back(header.shard.value, header.index);
    generation.bytes += stored_bytes;
    ++generation.records;
    bytes_ += stored_bytes;
    ++records_;
}

uint64_t Tail::close_locked(uint64_t end_lsn, uint64_t appended_count) {
    TailGeneration& generation = open_generation();
    generation.end_lsn = end_lsn;
    generation.appended_count = appended_count;
    generation.touched = true;
    // Generations end at group boundaries: a position inside a group would be no place to start a recovery from.
    if (generation.bytes >= generation_bytes_) sealed_ = true;
    return bytes_;
}

void Tail::add(const RecordHeader& header, std::shared_ptr<const std::string> payload, size_t stored_bytes) {
    std::lock_guard lock(mutex_);
    add_locked(header, std::move(payload), stored_bytes);
}

void Tail::add_index(ShardId shard, uint64_t index) {
    std::lock_guard lock(mutex_);
    open_generation().indexes.emplace_back(shard.value, index);
}

uint64_t Tail::close_group(uint64_t end_lsn, uint64_t appended_count) {
    std::lock_guard lock(mutex_);
    return close_locked(end_lsn, appended_count);
}

std::vector<TailRecord> Tail::records_of(const SessionKey& key) const {
    std::lock_guard lock(mutex_);
    std::vector<TailRecord> out;
    for (const auto& generation : generations_) {
        const auto found = generation->sessions.find(key);
        if (found != generation->sessions.end()) out.insert(out.end(), found->second.begin(), found->second.end());
    }
    return out;
}

std::vector<SessionKey> Tail::sessions() const {
    std::lock_guard lock(mutex_);
    std::vector<SessionKey> out;
    for (const auto& generation : generations_)
        for (const auto& [key, records] : generation->sessions)
            if (key.session.valid()) out.push_back(key);
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
}

std::vector<SessionKey> Tail::resting() const {
    std::lock_guard lock(mutex_);
    std::unordered_map<SessionKey, bool> newest;
    for (const auto& generation : generations_)
        for (const auto& [key, records] : generation->sessions)
            if (key.session.valid()) newest[key] = records.back().at_rest;
    std::vector<SessionKey> out;
    for (const auto& [key, at_rest] : newest)
        if (at_rest) out.push_back(key);
    return out;
}

std::vector<std::pair<SessionKey, std::vector<TailRecord>>> Tail::entities() const {
    std::lock_guard lock(mutex_);
    std::map<SessionKey, std::vector<TailRecord>> found;
    for (const auto& generation : generations_)
        for (const auto& [key, records] : generation->sessions) {
            if (key.session != SessionId{}) continue;
            for (const auto& record : records)
                if (record.kind == RecordKind::entity) found[key].push_back(record);
        }
    return {found.begin(), found.end()};
}

std::vector<std::pair<uint16_t, uint64_t>> Tail::indexes() const {
    std::lock_guard lock(mutex_);
    std::vector<std::pair<uint16_t, uint64_t>> out;
    for (const auto& generation : generations_)
        out.insert(out.end(), generation->indexes.begin(), generation->indexes.end());
    return out;
}

std::shared_ptr<const TailGeneration> Tail::take() {
    std::lock_guard lock(mutex_);
    if (generations_.empty() || !generations_.front()->touched) return nullptr;
    if (generations_.size() == 1) sealed_ = true;
    return generations_.front();
}

void Tail::drop() {
    std::shared_ptr<TailGeneration> dropped;  // its payloads are freed outside the lock
    std::lock_guard lock(mutex_);
    INVARIANT(!generations_.empty(), "a generation that was taken is dropped once");
    dropped = std::move(generations_.front());
    generations_.pop_front();
    if (generations_.empty()) sealed_ = false;
    bytes_ -= dropped->bytes;
    records_ -= dropped->records;
}

uint64_t Tail::bytes() const {
    std::lock_guard lock(mutex_);
    return bytes_;
}

uint64_t Tail::records() const {
    std::lock_guard lock(mutex_);
    return records_;
}

bool Tail::empty() const {
    std::lock_guard lock(mutex_);
    return generations_.empty();
}

bool Tail::has_full_generation() const {
    std::lock_guard lock(mutex_);
    return generations_.size() > 1 || (generations_.size() == 1 && sealed_);
}

}  // namespace mainstay
