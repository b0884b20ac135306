// The replicated half of DiskStore: groups of shards in the journal, entries that wait to be committed, positions in
// the state, snapshots out and in.

#include <algorithm>
#include <cstring>

#include "runtime/base/invariant.h"
#include "runtime/store/disk_store.h"
#include "runtime/store/disk_store_meta.h"

namespace mainstay {
namespace {

constexpr size_t shard_row_bytes = 32;

std::string shard_row_key(ShardId shard) {
    std::string key("shard\0\0\0", 8);
    key.append(6, '\0');
    return key + shard_prefix(shard);
}

std::string shard_row(const LogPosition& base, Epoch promised) {
    std::string row(shard_row_bytes, '\0');
    const uint64_t fields[] = {base.index, base.epoch.value, base.chain, promised.value};
    static_assert(sizeof fields == shard_row_bytes);
    std::memcpy(row.data(), fields, sizeof fields);
    return row;
}

bool read_shard_row(std::string_view row, LogPosition& base, Epoch& promised) {
    uint64_t fields[4];
    if (row.size() < sizeof fields) return false;
    std::memcpy(fields, row.data(), sizeof fields);
    base = {fields[0], Epoch{fields[1]}, fields[2]};
    promised = Epoch{fields[3]};
    return true;
}

}  // namespace

// --- opening --------------------------------------------------------------------------------------------------------

Result<void> DiskStore::read_shards() {
    held_ = HeldEntries(config_.shard_count);
    shards_.resize(config_.shard_count);
    for (uint16_t number = 0; number < config_.shard_count; ++number) {
        const auto row = state_->get(Table::meta, shard_row_key(ShardId{number}));
        if (!row) return row.error();
        ShardState& shard = shards_[number];
        if (*row && !read_shard_row(**row, shard.base, shard.promised))
            return {ErrorCode::state_damaged, "the row of shard " + std::to_string(number) + " is short", ""};
        shard.writing = shard.promised;
    }
    return {};
}

Result<void> DiskStore::take_recovered(const RecordView& record) {
    const RecordHeader& header = record.header;
    const auto damaged = [&](const std::string& what) -> Result<void> {
        return {ErrorCode::journal_damaged, "lsn " + std::to_string(header.lsn.value) + ": " + what, ""};
    };
    if (header.shard.value >= shards_.size()) return damaged("there is no such shard");
    ShardState& shard = shards_[header.shard.value];
    switch (header.kind) {
        case RecordKind::promise:
            shard.promised = shard.writing = std::max(shard.promised, header.epoch);
            shard.dirty = true;
            return {};
        case RecordKind::truncate: held_.truncate(header.shard, header.index); return {};
        case RecordKind::replicated:
        case RecordKind::barrier: break;
        default: return damaged("the record is of a store that is alone");
    }
    if (header.index <= shard.base.index) return {};  // in the state
    LogEntry entry;
    entry.epoch = header.epoch;
    entry.index = header.index;
    entry.kind = header.kind == RecordKind::barrier ? EntryKind::barrier : EntryKind::record;
    if (entry.kind == EntryKind::record) entry.payload = std::make_shared<const std::string>(record.payload);
    held_.truncate(header.shard, entry.index - 1);
    const auto& held = held_.of(header.shard);
    const LogPosition last = held.empty() ? shard.base : position_of(held.back().entry);
    if (entry.index != last.index + 1)
        return damaged("shard " + std::to_string(header.shard.value) + " lacks what is before index " +
                       std::to_string(entry.index));
    entry.chain = chain_of(last.chain, entry);
    held_.add(header.shard, std::move(entry));
    held_.durable(header.shard, header.index, header.epoch, header.lsn.value, header.lsn.value - header.group_offset,
                  record.stored_bytes);
    return {};
}

std::vector<DurableShard> DiskStore::recovered_shards() {
    std::lock_guard lock(shards_mutex_);
    std::vector<DurableShard> out(shards_.size());
    for (size_t number = 0; number < shards_.size(); ++number) {
        out[number].promised = shards_[number].promised;
        out[number].base = shards_[number].base;
        out[number].commit = shards_[number].base.index;
        for (const auto& held : held_.of(ShardId{static_cast<uint16_t>(number)}))
            out[number].entries.push_back(held.entry);
    }
    return out;
}

void DiskStore::start_shards(ShardLogEvents& events) {
    std::lock_guard lock(events_mutex_);
    events_ = &events;
}

void DiskStore::stop_shards() {
    std::lock_guard lock(events_mutex_);
    events_ = nullptr;
}

void DiskStore::tell_synced(const Tickets& tickets) {
    if (tickets.empty()) return;
    std::lock_guard lock(events_mutex_);
    if (events_) events_->groups_synced(tickets);
}

void DiskStore::tell_applied(const Tickets& indexes) {
    if (indexes.empty()) return;
    std::lock_guard lock(events_mutex_);
    if (events_) events_->state_applied(indexes);
}

// --- writing --------------------------------------------------------------------------------------------------------

void DiskStore::write_groups(std::vector<std::pair<ShardId, WriteGroup>> groups) {
    std::lock_guard lock(shards_mutex_);
    std::vector<StampedRecord> records;
    for (auto& [shard, group] : groups) {
        ShardState& state = shards_[shard.value];
        if (state.installing)
            state.waiting.push_back(std::move(group));
        else
            stamp_group(shard, std::move(group), records);
    }
    // Under the lock: a shard's records go to the journal in the order of its entries that are held.
    log_->append_stamped(std::move(records));
}

/// Under the lock.
void DiskStore::stamp_group(ShardId shard, WriteGroup group, std::vector<StampedRecord>& out) {
    ShardState& state = shards_[shard.value];
    if (group.promise) state.writing = *group.promise;
    if (group.install) {
        INVARIANT(group.entries.empty() && !group.truncate_to, "an install is a group of its own");
        state.installing = true;
        state.install = Install{shard, *group.install, group.ticket, std::move(state.staged)};
        group.truncate_to = 0;
    }
    size_t left = group.promise.has_value() + group.truncate_to.has_value() + group.entries.size();
    INVARIANT(left > 0, "a group writes something");
    const auto stamp = [&](RecordKind kind, Epoch epoch, uint64_t index) {
        return LogStamp{kind, shard, epoch, index, --left == 0 ? group.ticket : 0};
    };
    if (group.promise) out.push_back({stamp(RecordKind::promise, *group.promise, 0), nullptr});
    if (group.truncate_to) {
        held_.truncate(shard, *group.truncate_to);
        out.push_back({stamp(RecordKind::truncate, state.writing, *group.truncate_to), nullptr});
    }
    for (auto& entry : group.entries) {
        const auto kind = entry.kind == EntryKind::barrier ? RecordKind::barrier : RecordKind::replicated;
        out.push_back({stamp(kind, entry.epoch, entry.index), entry.payload});
        held_.add(shard, std::move(entry));
    }
}

/// The journal's writer.
void DiskStore::group_durable(DurableGroup& group) {
    Tickets tickets;
    {
        std::lock_guard lock(shards_mutex_);
        for (const auto& record : group.records) {
            const RecordHeader& header = record.header;
            ShardState& state = shards_[header.shard.value];
            if (header.kind == RecordKind::promise) {
                state.promised = std::max(state.promised, header.epoch);
                state.dirty = true;
            } else if (header.kind != RecordKind::truncate) {
                held_.durable(header.shard, header.index, header.epoch, header.lsn.value,
                              header.lsn.value - header.group_offset, record.stored_bytes);
            }
            if (record.ticket == 0) continue;
            if (state.install && state.install->ticket == record.ticket) {
                installs_.push_back(std::move(*state.install));
                state.install.reset();
                installs_wait_ = true;
            } else {
                tickets.emplace_back(header.shard, record.ticket);
            }
        }
        held_end_lsn_ = group.end_lsn;
        close_held();
    }
    wake_applier();
    tell_synced(tickets);
}

/// A recovery may begin where the oldest entry lies that is not in the state and may still be wanted.
void DiskStore::close_held() { tail_.close_group(held_.oldest_group().value_or(held_end_lsn_), handed_count_); }

void DiskStore::apply_entries(const std::vector<std::pair<ShardId, uint64_t>>& indexes) {
    {
        std::lock_guard lock(shards_mutex_);
        for (const auto& [shard, index] : indexes)
            if (!hand_entries(shard, index))
                return die("an entry of shard " + std::to_string(shard.value) + " is of no known format");
        close_held();
    }
    wake_applier();
}

/// Under the lock.
bool DiskStore::hand_entries(ShardId shard, uint64_t index) {
    ShardState& state = shards_[shard.value];
    while (auto held = held_.take(shard, index)) {
        const LogEntry& entry = held->entry;
        state.handed.push_back(position_of(entry));
        if (entry.kind == EntryKind::barrier) {
            tail_.add_index(shard, entry.index);
            continue;
        }
        const auto view = decode_entry(entry.bytes());
        if (!view) return false;
        RecordHeader header = view->header;
        header.lsn = Lsn{held->lsn};
        header.epoch = entry.epoch;
        header.index = entry.index;
        header.shard = shard;
        tail_.add(header, std::make_shared<const std::string>(view->payload), held->stored_bytes);
        ++handed_count_;
    }
    return true;
}

void DiskStore::wake_applier() {
    std::lock_guard lock(mutex_);
    if (applier_sleeps_ && (!applier_waits_for_more_ || tail_.has_full_generation() || installs_wait_))
        applier_wakes_.notify_one();
}

/// The positions that a generation brings the shards to, and promises that the state does not have: their records may
/// be released with it.
void DiskStore::add_shard_rows(const TailGeneration& generation, std::vector<RowOp>& rows,
                               std::vector<ShardAt>& reached) const {
    std::lock_guard lock(shards_mutex_);
    std::vector<uint64_t> highest(shards_.size(), 0);
    for (const auto& [shard, index] : generation.indexes) highest[shard] = std::max(highest[shard], index);
    for (size_t number = 0; number < shards_.size(); ++number) {
        const ShardState& state = shards_[number];
        LogPosition base = state.base;
        for (const auto& position : state.handed)
            if (position.index <= highest[number]) base = position;
        if (base == state.base && !state.dirty) continue;
        const ShardId shard{static_cast<uint16_t>(number)};
        rows.push_back({Table::meta, shard_row_key(shard), shard_row(base, state.promised), false});
        reached.push_back({shard, base, state.promised});
    }
}

void DiskStore::shards_reached(const std::vector<ShardAt>& reached) {
    Tickets told;
    {
        std::lock_guard lock(shards_mutex_);
        for (const auto& [shard, base, promised] : reached) {
            ShardState& state = shards_[shard.value];
            if (base.index > state.base.index) told.emplace_back(shard, base.index);
            state.base = base;
            while (!state.handed.empty() && state.handed.front().index <= base.index) state.handed.pop_front();
            if (state.promised == promised) state.dirty = false;
        }
    }
    tell_applied(told);
}

// --- snapshots ------------------------------------------------------------------------------------------------------

Result<std::unique_ptr<ShardSnapshot>> DiskStore::snapshot(ShardId shard) {
    auto writer = ShardRowsWriter::create(config_.directory / "spool");
    if (!writer) return writer.error();
    const auto row = state_->scan_shard(
        shard, shard_row_key(shard),
        [&](Table table, std::string_view key, std::string_view value) { return (*writer)->add(table, key, value); });
    if (!row) return row.error();
    LogPosition position;
    Epoch promised;
    if (!*row || !read_shard_row(**row, position, promised))
        return {ErrorCode::internal, "the state of shard " + std::to_string(shard.value) + " has no position", ""};
    return std::move(**writer).finish(position);
}

void DiskStore::stage(ShardId shard, const StagePart& part) {
    std::lock_guard lock(shards_mutex_);
    ShardState& state = shards_[shard.value];
    if (part.part == 0) {
        auto reader = ShardRowsReader::create(config_.directory / "spool");
        if (!reader) return die("staging a snapshot: " + reader.error().message);
        state.staged = std::move(reader).value();
    }
    if (!state.staged) return;
    if (auto added = state.staged->add(*part.bytes); !added) die("staging a snapshot: " + added.error().message);
}

bool DiskStore::out_of_space() const {
    {
        std::lock_guard lock(mutex_);
        if (apply_blocked_) return true;
    }
    const auto room = log_->admit(limits::group_bytes_max);
    return !room && room.error().code == ErrorCode::storage_full;
}

/// Applier only. The shard's rows are replaced as a whole, in one transaction; what the tail had of it is applied
/// before, so that nothing older comes afterwards.
void DiskStore::install_pending() {
    while (installs_wait_) {
        Install install;
        {
            std::lock_guard lock(shards_mutex_);
            if (installs_.empty()) {
                installs_wait_ = false;
                return;
            }
            install = std::move(installs_.front());
            installs_.pop_front();
        }
        while (const auto generation = tail_.take()) {
            apply_generation(*generation);
            std::lock_guard lock(mutex_);
            if (apply_blocked_) break;
        }
        this->install(install);
    }
}

void DiskStore::install(Install& install) {
    if (!install.rows) return die("a snapshot is installed that was not staged");
    auto rows = install.rows->rows();
    if (!rows) return die("a snapshot of shard " + std::to_string(install.shard.value) + ": " + rows.error().message);
    std::vector<RowOp> ops;
    for (const Table table : shard_tables)
        if (table != Table::due) ops.push_back({table, shard_prefix(install.shard), std::nullopt, true});
    const auto scanned = state_->scan(Table::due, {}, {}, SIZE_MAX, [&](std::string_view key, std::string_view) {
        if (in_shard(Table::due, key, install.shard)) ops.push_back({Table::due, std::string(key), {}, false});
        return true;
    });
    if (!scanned)
        return die("a snapshot of shard " + std::to_string(install.shard.value) + ": " + scanned.error().message);
    for (auto& row : *rows) {
        if (!in_shard(row.table, row.key, install.shard)) return die("a snapshot holds rows of another shard");
        ops.push_back(std::move(row));
    }
    Epoch promised;
    {
        std::lock_guard lock(shards_mutex_);
        promised = shards_[install.shard.value].promised;
    }
    ops.push_back({Table::meta, shard_row_key(install.shard), shard_row(install.at, promised), false});
    if (auto applied = state_->apply(ops); !applied) return die("installing a snapshot: " + applied.error().message);

    {
        std::lock_guard lock(shards_mutex_);
        ShardState& state = shards_[install.shard.value];
        state.base = install.at;
        state.handed.clear();
        state.installing = false;
        std::vector<StampedRecord> records;
        while (!state.waiting.empty() && !state.installing) {
            WriteGroup next = std::move(state.waiting.front());
            state.waiting.pop_front();
            stamp_group(install.shard, std::move(next), records);
        }
        log_->append_stamped(std::move(records));
    }
    tell_applied({{install.shard, install.at.index}});
    tell_synced({{install.shard, install.ticket}});
}

// --- from one node to a cluster -------------------------------------------------------------------------------------

Result<void> DiskStore::adopt(const StoreUuid& cluster, Epoch epoch) {
    if (replicated()) return {ErrorCode::conflict, config_.directory.string() + " belongs to a cluster", ""};
    if (!tail_.empty()) return {ErrorCode::conflict, "not everything is applied", ""};
    std::vector<RowOp> rows;
    std::string row(reinterpret_cast<const char*>(cluster.data()), cluster.size());
    row.append(reinterpret_cast<const char*>(&epoch.value), sizeof epoch.value);
    rows.push_back({Table::meta, meta_cluster, std::move(row), false});
    for (size_t number = 0; number < shard_indexes_.size(); ++number) {
        // A shard that had nothing is as on every empty disk: its log must not differ from theirs.
        const uint64_t index = shard_indexes_[number];
        const LogPosition base = index == 0 ? LogPosition{} : LogPosition{index, epoch, 0};
        rows.push_back(
            {Table::meta, shard_row_key(ShardId{static_cast<uint16_t>(number)}), shard_row(base, epoch), false});
    }
    return state_->apply(rows);
}

}  // namespace mainstay
