#include "runtime/store/memory_store.h"

#include <algorithm>

#include "runtime/base/invariant.h"
#include "runtime/store/tail_fold.h"

namespace mainstay {
namespace {

constexpr uint64_t slow_steps_max = 16, no_space_steps_max = 64;
constexpr uint64_t until_told = ~0ull;

class MemorySource final : public SegmentSource {
  public:
    explicit MemorySource(const std::map<uint64_t, std::string>& segments) : segments_(segments) {}
    std::vector<uint64_t> numbers() override {
        std::vector<uint64_t> out;
        for (const auto& [number, bytes] : segments_) out.push_back(number);
        return out;
    }
    Result<std::string_view> read(uint64_t number, size_t limit) override {
        return std::string_view(segments_.at(number)).substr(0, limit);
    }
    std::string name(uint64_t number) const override { return "segment " + std::to_string(number); }

  private:
    const std::map<uint64_t, std::string>& segments_;
};

}  // namespace

MemoryStore::MemoryStore(MemoryStoreConfig config) : config_(std::move(config)) {
    INVARIANT(config_.fold != nullptr, "a store folds");
    INVARIANT(config_.segment_bytes % config_.block == 0, "segments are whole blocks");
    applied_lsn_ = end_lsn_ = segment_start(1, config_.segment_bytes);
    segments_[1];
    applied_indexes_.assign(config_.shard_count, 0);
    next_index_ = applied_indexes_;
    tail_ = std::make_unique<Tail>(SIZE_MAX);
    INVARIANT(recover_quarantine().ok(), "nothing is damaged yet");
}

Result<void> MemoryStore::recover_quarantine() {
    quarantine_ = std::make_unique<Quarantine>(
        *config_.fold, config_.shard_count,
        [this](Table t, std::string_view prefix, const Quarantine::Visit& visit) {
            return scan(t, prefix, {}, SIZE_MAX, visit);
        },
        [this](const SessionKey& key) { return read_row(Table::head, session_row_key(key, config_.shard_count)); });
    std::vector<RowOp> rows;
    if (auto taken_up = quarantine_->recover(rows); !taken_up) return taken_up;
    for (size_t t = 0; t < table_count; ++t) apply_rows(rows, static_cast<Table>(t), tables_[t]);
    quarantine_->commit();
    return {};
}

// --- faults -------------------------------------------------------------------------------------------------------

void MemoryStore::inject(StoreFault fault, uint64_t parameter) {
    ordered_[static_cast<size_t>(fault)].push_back(parameter);
}

void MemoryStore::inject_randomly(uint64_t seed, const StoreFaultRates& rates) {
    random_.emplace(seed);
    rates_ = rates;
}

/// Counts the strike: the caller carries it out.
bool MemoryStore::strikes(StoreFault fault, uint64_t& parameter) {
    const auto at = static_cast<size_t>(fault);
    if (!ordered_[at].empty()) {
        parameter = ordered_[at].front();
        ordered_[at].pop_front();
    } else if (random_ && rates_.per_thousand[at] > 0 && random_->below(1000) < rates_.per_thousand[at]) {
        parameter = random_->next();
        if (fault == StoreFault::slow) parameter = 1 + parameter % slow_steps_max;
        if (fault == StoreFault::no_space) parameter = 1 + parameter % no_space_steps_max;
    } else {
        return false;
    }
    ++struck_[at];
    return true;
}

void MemoryStore::must_abort(std::string why) {
    must_abort_ = true;
    abort_reason_ = std::move(why);
}

// --- the journal --------------------------------------------------------------------------------------------------

void MemoryStore::append(Append append) {
    if (must_abort_ || crashed_) return;
    Pending pending;
    RecordHeader& header = pending.header = header_of(append, config_.epoch, config_.shard_count);
    if (header.shard.value < next_index_.size()) header.index = ++next_index_[header.shard.value];
    pending.stored_bytes = record_stored_bytes(0, append.payload.size());
    INVARIANT(pending.stored_bytes <= config_.segment_bytes - segment_header_bytes, "a record fits a segment");
    pending.payload = std::make_shared<const std::string>(std::move(append.payload));
    pending.target = std::move(append.target);
    queue_bytes_ += pending.stored_bytes;
    queue_.push_back(std::move(pending));
}

bool MemoryStore::step_journal() {
    if (must_abort_ || crashed_) return false;
    if (no_space_steps_ != 0 && no_space_steps_ != until_told) --no_space_steps_;
    if (slow_steps_ > 0) {
        --slow_steps_;
        return true;
    }
    switch (stage_) {
        case Stage::written: sync_group(); return true;
        case Stage::synced: acknowledge_group(); return true;
        case Stage::idle: break;
    }
    if (queue_.empty()) return false;
    write_group();
    return true;
}

bool MemoryStore::step() { return step_journal() || step_apply(); }

void MemoryStore::run() {
    while (step()) {
    }
}

void MemoryStore::put(uint64_t lsn, std::string_view bytes) {
    const uint64_t number = segment_of(lsn + 1, config_.segment_bytes);
    std::string& segment = segments_[number];
    const size_t offset = static_cast<size_t>(lsn - number * config_.segment_bytes);
    if (segment.size() < offset + bytes.size()) segment.resize(offset + bytes.size());
    overwritten_ = segment.substr(offset, bytes.size());
    segment.replace(offset, bytes.size(), bytes);
}

void MemoryStore::write_group() {
    // A first record that does not fit closes the segment; the next one begins with what an applied segment held.
    uint64_t number = segment_of(end_lsn_, config_.segment_bytes);
    uint64_t previous_end = 0;
    if (end_lsn_ + queue_.front().stored_bytes > (number + 1) * config_.segment_bytes) {
        previous_end = end_lsn_;
        end_lsn_ = segment_start(++number, config_.segment_bytes);
        header_written_ = false;
        std::string stale;
        if (!recycled_.empty()) {
            stale = std::move(recycled_.front());
            recycled_.pop_front();
        }
        segments_[number] = std::move(stale);
    }
    const uint64_t room = (number + 1) * config_.segment_bytes - end_lsn_;
    group_lsn_ = end_lsn_;
    std::string bytes;
    size_t last = 0;
    while (!queue_.empty()) {
        Pending& next = queue_.front();
        const size_t grown = bytes.size() + next.stored_bytes;
        if (grown > room || (!bytes.empty() && grown > config_.group_bytes_max)) break;
        next.header.lsn = Lsn{group_lsn_ + bytes.size()};
        next.header.group_offset = static_cast<uint32_t>(bytes.size());
        last = bytes.size();
        bytes.resize(grown);
        encode_record(bytes.data() + last, next.header, *next.payload);
        queue_bytes_ -= next.stored_bytes;
        group_.push_back(std::move(next));
        queue_.pop_front();
    }
    mark_last_of_group(bytes.data() + last);
    bytes.resize(round_up(bytes.size(), config_.block));
    group_end_ = group_lsn_ + bytes.size();
    written_from_ = group_lsn_;
    if (!header_written_) {
        std::string header(segment_header_bytes, '\0');
        encode_segment_header(header.data(), {config_.uuid, number, previous_end, config_.epoch, config_.segment_bytes,
                                              static_cast<uint32_t>(config_.block)});
        bytes.insert(0, header);
        written_from_ = number * config_.segment_bytes;
    }
    written_to_ = group_end_;
    uint64_t parameter = 0;
    const bool failed = strikes(StoreFault::write_error, parameter);
    put(written_from_, bytes);
    if (failed) cut_written(parameter % bytes.size());
    stage_ = Stage::written;
    if (failed) {
        must_abort("write at lsn " + std::to_string(group_lsn_) + ": EIO");
        return;
    }
    header_written_ = true;
    if (strikes(StoreFault::slow, parameter)) slow_steps_ = parameter;
}

void MemoryStore::sync_group() {
    uint64_t parameter = 0;
    if (strikes(StoreFault::sync_error, parameter)) {
        must_abort("sync at lsn " + std::to_string(group_lsn_) + ": EIO");
        // The kernel may have dropped any of it; what a crash finds is a prefix.
        cut_written(parameter % (written_to_ - written_from_ + 1));
        return;
    }
    ++stats_.journal_syncs;
    ++stats_.journal_groups;
    stats_.journal_records += group_.size();
    stats_.journal_bytes += written_to_ - written_from_;
    end_lsn_ = group_end_;
    tail_->add_group(group_, group_end_, 0);
    stage_ = Stage::synced;
}

void MemoryStore::acknowledge_group() {
    std::vector<Ack> acks;
    for (Pending& record : group_) {
        if (!record.target) continue;
        const Sequence last{record.header.first_sequence.value + std::max(1u, record.header.event_count) - 1};
        const auto same =
            std::find_if(acks.begin(), acks.end(), [&](const Ack& a) { return a.target == record.target; });
        if (same == acks.end()) {
            acks.push_back({std::move(record.target), last});
        } else {
            same->sequence = std::max(same->sequence, last);
        }
    }
    group_.clear();
    stage_ = Stage::idle;
    for (const Ack& ack : acks) ack.target->acknowledged(ack.sequence, ack.sequence);
}

/// Keeps a prefix of what the group in flight wrote; the rest reads as what was there before it.
void MemoryStore::cut_written(uint64_t keep) {
    const uint64_t number = segment_of(written_from_ + 1, config_.segment_bytes);
    std::string& segment = segments_[number];
    const size_t offset = static_cast<size_t>(written_from_ - number * config_.segment_bytes + keep);
    if (keep < overwritten_.size()) segment.replace(offset, overwritten_.size() - keep, overwritten_.substr(keep));
}

void MemoryStore::crash() {
    uint64_t parameter = 0;
    if (!must_abort_) {
        // The crash comes at the worst moment: while the queued group is being written.
        const bool lost = strikes(StoreFault::lost_unsynced, parameter);
        const bool torn = !lost && strikes(StoreFault::torn, parameter);
        if ((lost || torn) && stage_ == Stage::idle && !queue_.empty()) write_group();
        if ((lost || torn) && stage_ == Stage::written) {
            cut_written(lost ? 0 : parameter % (written_to_ - written_from_));
        } else if (lost || torn) {
            --struck_[static_cast<size_t>(lost ? StoreFault::lost_unsynced : StoreFault::torn)];  // nothing to strike
        }
    }
    crashed_ = true;
    must_abort_ = false;
    queue_.clear();
    queue_bytes_ = 0;
    group_.clear();
    stage_ = Stage::idle;
    slow_steps_ = no_space_steps_ = 0;
    on_applied_ = nullptr;
    tail_ = std::make_unique<Tail>(SIZE_MAX);
}

Result<void> MemoryStore::reopen(Epoch epoch) {
    INVARIANT(crashed_, "only what ended can begin again");
    if (auto taken_up = recover_quarantine(); !taken_up) return taken_up;
    MemorySource source(segments_);
    next_index_ = applied_indexes_;
    tail_ = std::make_unique<Tail>(SIZE_MAX);
    auto end = scan_journal(source, config_.uuid, config_.segment_bytes, applied_lsn_, [&](const RecordView& record) {
        if (record.header.group_offset == 0) tail_->close_group(record.header.lsn.value, 0);
        const ShardId shard = record.header.shard;
        if (shard.value < next_index_.size())
            next_index_[shard.value] = std::max(next_index_[shard.value], record.header.index);
        tail_->add(record.header, std::make_shared<const std::string>(record.payload), record.stored_bytes);
    });
    if (!end) return end.error();
    if (end->epoch_max > epoch)
        return {ErrorCode::conflict, "epoch " + std::to_string(epoch.value) + " is below the journal's", ""};
    if (end->end_lsn != applied_lsn_) tail_->close_group(end->end_lsn, 0);
    // The torn tail is erased, and so are segments after the end: they were never used or hold the torn group.
    std::string& segment = segments_[end->number];
    const size_t offset = static_cast<size_t>(end->end_lsn - end->number * config_.segment_bytes);
    if (segment.size() > offset) std::fill(segment.begin() + static_cast<std::ptrdiff_t>(offset), segment.end(), '\0');
    segments_.erase(segments_.upper_bound(end->number), segments_.end());
    end_lsn_ = end->end_lsn;
    header_written_ = end->header_written;
    stats_.recovered_records = end->records;
    stats_.recovered_bytes = end->bytes;
    stats_.torn_bytes = end->torn_bytes;
    config_.epoch = epoch;
    crashed_ = false;
    return {};
}

// --- the state ----------------------------------------------------------------------------------------------------

bool MemoryStore::step_apply() {
    if (must_abort_ || crashed_ || no_space_steps_ != 0) return false;
    const auto generation = tail_->take();
    if (!generation) return false;
    std::vector<RowOp> rows;
    std::map<SessionKey, const std::vector<TailRecord>*> order;
    for (const auto& [key, records] : generation->sessions) order.emplace(key, &records);
    for (const auto& [key, records] : order) {
        if (auto folded = quarantine_->fold(key, *records, rows); !folded) {
            must_abort("applying: " + folded.error().message);
            return false;
        }
    }
    for (size_t t = 0; t < table_count; ++t) apply_rows(rows, static_cast<Table>(t), tables_[t]);
    for (const auto& [shard, index] : generation->indexes)
        applied_indexes_[shard] = std::max(applied_indexes_[shard], index);
    applied_lsn_ = generation->end_lsn;
    quarantine_->commit();
    tail_->drop();
    while (segments_.size() > 1 && segments_.begin()->first < segment_of(applied_lsn_, config_.segment_bytes)) {
        recycled_.push_back(std::move(segments_.begin()->second));
        segments_.erase(segments_.begin());
    }
    ++stats_.state_commits;
    stats_.state_syncs += 2;
    stats_.state_rows += rows.size();
    if (on_applied_) on_applied_();
    return true;
}

Result<std::vector<RowOp>> MemoryStore::fold_tail(const SessionKey& key, const std::vector<TailRecord>& records) {
    std::vector<RowOp> rows;
    const auto folding = fold_records(records);
    if (folding.empty()) return rows;
    std::optional<std::string_view> head;
    if (key.session.valid()) {
        const auto& heads = table(Table::head);
        const auto found = heads.find(session_row_key(key, config_.shard_count));
        if (found != heads.end()) head = found->second;
    }
    const auto folded = config_.fold->fold(key, head, folding, rows);
    if (!folded) return folded.error();
    return rows;
}

Result<void> MemoryStore::admit(size_t bytes) {
    uint64_t parameter = 0;
    if (no_space_steps_ == 0 && strikes(StoreFault::no_space, parameter))
        no_space_steps_ = parameter == 0 ? until_told : parameter;
    if (no_space_steps_ != 0) return {ErrorCode::storage_full, "the disk has no room for another journal segment", ""};
    if (queue_bytes_ + bytes > config_.append_queue_bytes_max)
        return {ErrorCode::journal_backlog_full, "append_queue_bytes_max would be exceeded", ""};
    if (tail_->bytes() + bytes > config_.apply_backlog_bytes_max)
        return {ErrorCode::apply_backlog_full, "apply_backlog_bytes_max would be exceeded", ""};
    return {};
}

Result<SessionImage> MemoryStore::load(const SessionKey& key) {
    if (auto damaged = quarantine_->error_of(key)) return *damaged;
    SessionImage image;
    const auto& heads = table(Table::head);
    const auto found = heads.find(session_row_key(key, config_.shard_count));
    if (found != heads.end()) image.head = found->second;
    for (const auto& record : tail_->records_of(key))
        if (record.kind == RecordKind::events)
            image.tail.push_back({record.lsn, record.first_sequence, record.payload});
    return image;
}

Result<std::optional<std::string>> MemoryStore::read_row(Table t, std::string_view key) {
    const auto found = table(t).find(std::string(key));
    return found == table(t).end() ? std::optional<std::string>() : std::optional(found->second);
}

Result<void> MemoryStore::scan(Table t, std::string_view prefix, std::string_view from, size_t limit,
                               const std::function<bool(std::string_view, std::string_view)>& visit) {
    const auto& rows = table(t);
    for (auto at = rows.lower_bound(std::string(std::max(prefix, from)));
         at != rows.end() && limit > 0 && at->first.starts_with(prefix); ++at, --limit)
        if (!visit(at->first, at->second)) break;
    return {};
}

Result<std::optional<std::string>> MemoryStore::read_turn(const SessionKey& key, TurnNo turn) {
    const std::string row_key = turn_row_key(key, turn, config_.shard_count);
    const auto records = tail_->records_of(key);
    if (may_touch(records, turn)) {
        auto rows = fold_tail(key, records);
        if (!rows) return rows.error();
        if (auto row = row_after(*rows, Table::turn, row_key)) return std::move(*row);
    }
    return read_row(Table::turn, row_key);
}

std::vector<SessionKey> MemoryStore::sessions_in_tail() { return tail_->sessions(); }

std::vector<SessionKey> MemoryStore::resting_in_tail() { return tail_->resting(); }

Result<std::vector<std::string>> MemoryStore::entities() {
    std::map<std::string, std::string> found = table(Table::entity);
    for (const auto& [key, records] : tail_->entities())
        apply_rows(quarantine_->fold_entities(key, records), Table::entity, found);
    std::vector<std::string> out;
    for (auto& [key, value] : found) out.push_back(std::move(value));
    return out;
}

Result<std::optional<std::string>> MemoryStore::read_memory(const SessionKey& key) {
    const std::string row_key = memory_row_key(key, config_.shard_count);
    auto rows = fold_tail(key, tail_->records_of(key));
    if (!rows) return rows.error();
    if (auto row = row_after(*rows, Table::memory, row_key)) return std::move(*row);
    return read_row(Table::memory, row_key);
}

StoreStats MemoryStore::stats() const {
    StoreStats stats = stats_;
    stats.append_queue_bytes = queue_bytes_;
    stats.apply_backlog_bytes = tail_->bytes();
    stats.apply_backlog_records = tail_->records();
    stats.segments = segments_.size();
    stats.damaged_sessions = quarantine_->sessions();
    stats.applied_lsn = applied_lsn_;
    stats.durable_lsn = end_lsn_;
    stats.read_only = must_abort_ || no_space_steps_ != 0;
    return stats;
}

}  // namespace mainstay
