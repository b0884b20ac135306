#include "runtime/store/disk_store.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "runtime/base/crash_point.h"
#include "runtime/base/digest.h"
#include "runtime/base/heap.h"
#include "runtime/base/invariant.h"
#include "runtime/store/disk_store_meta.h"
#include "runtime/store/tail_fold.h"

namespace mainstay {
namespace {

using namespace std::chrono_literals;

// Rows of the meta table (docs/formats/state.md).
const std::string meta_format("format\0\0", 8);
const std::string meta_applied("applied\0", 8);
const std::string meta_indexes("indexes\0", 8);
const std::string meta_promise("promise\0", 8);
const std::string meta_deleted("deleted\0", 8);
constexpr uint32_t state_format = 1;
constexpr size_t format_row_bytes = 32;
constexpr auto blocked_retry = 500ms;
constexpr auto erase_poll = 50ms;
constexpr uint64_t erase_retry_ms = 1000;
constexpr auto quiet_before_rest = 5s;  // without anything to apply
constexpr size_t apply_margin_bytes = 4 * 1024 * 1024;

std::string u64_row(uint64_t value) {
    std::string out(8, '\0');
    std::memcpy(out.data(), &value, sizeof value);
    return out;
}

uint64_t u64_of(const std::optional<std::string>& row) {
    uint64_t value = 0;
    if (row && row->size() >= sizeof value) std::memcpy(&value, row->data(), sizeof value);
    return value;
}

uint64_t now_ms() { return SystemClock().now_ms(); }

}  // namespace

DiskStore::DiskStore(DiskStoreConfig config) : config_(std::move(config)), tail_(config_.apply_batch_bytes) {}

Result<std::unique_ptr<Store>> DiskStore::open(DiskStoreConfig config) {
    auto store = open_disk(std::move(config));
    if (!store) return store.error();
    return std::unique_ptr<Store>(std::move(store).value());
}

Result<std::unique_ptr<DiskStore>> DiskStore::open_disk(DiskStoreConfig config) {
    INVARIANT(config.fold != nullptr, "a store folds");
    std::unique_ptr<DiskStore> store(new DiskStore(std::move(config)));
    if (auto recovered = store->recover(); !recovered) return recovered.error();
    return store;
}

// --- opening ------------------------------------------------------------------------------------------------------

Result<void> DiskStore::recover() {
    std::error_code failed;
    const bool created = std::filesystem::create_directories(config_.directory, failed);
    if (failed)
        return {ErrorCode::storage_full, config_.directory.string() + " cannot be made: " + failed.message(), ""};
    auto state = LmdbState::open(
        {config_.directory / "state", config_.state_map_bytes, [this](const std::string& what) { die(what); }});
    if (!state) return state.error();
    state_ = std::move(state).value();

    SegmentLogConfig log_config;
    log_config.directory = config_.directory / "journal";
    log_config.uuid = config_.uuid;
    log_config.epoch = config_.epoch;
    log_config.shard_count = config_.shard_count;
    log_config.segment_bytes = config_.segment_bytes;
    log_config.segments_ready_min = config_.segments_ready_min;
    log_config.group_bytes_max = config_.group_bytes_max;
    log_config.disk_reserve_bytes = config_.disk_reserve_bytes;
    log_config.direct = config_.direct_io;
    log_config.abort = config_.abort;
    log_config.fault = config_.fault;

    auto format = state_->get(Table::meta, meta_format);
    if (!format) return format.error();
    uint64_t applied_lsn = 0;
    if (*format) {
        if (auto read = read_meta(**format, log_config.segment_bytes, applied_lsn); !read) return read;
    } else if (auto made = make_meta(applied_lsn); !made) {
        return made;
    }
    if (auto taken_up = recover_quarantine(); !taken_up) return taken_up;

    if (replicated())
        if (auto read = read_shards(); !read) return read;

    Result<void> taken;
    auto log = SegmentLog::open(std::move(log_config), applied_lsn, [&](const RecordView& record) {
        if (replicated()) {
            if (taken) taken = take_recovered(record);
            return;
        }
        // A group begins: what came before is a place to start from.
        if (record.header.group_offset == 0) tail_.close_group(record.header.lsn.value, 0);
        tail_.add(record.header, std::make_shared<const std::string>(record.payload), record.stored_bytes);
    });
    if (!log) return log.error();
    if (!taken) return taken;
    log_ = std::move(log).value();
    // A replicated shard has epochs of its own, which its replica guards.
    if (!replicated() && log_->recovered().epoch_max > config_.epoch)
        return {ErrorCode::conflict,
                "epoch " + std::to_string(config_.epoch.value) + " is below the journal's " +
                    std::to_string(log_->recovered().epoch_max.value),
                ""};
    if (created) sync_directory(config_.directory.parent_path().empty() ? "." : config_.directory.parent_path());
    if (const int error = sync_directory(config_.directory))
        return {ErrorCode::storage_full, config_.directory.string() + " cannot be synced: " + std::strerror(error), ""};

    applied_lsn_ = applied_lsn;
    held_end_lsn_ = log_->durable_lsn();
    if (held_end_lsn_ != applied_lsn) {
        if (replicated())
            close_held();
        else
            tail_.close_group(held_end_lsn_, 0);
    }
    std::vector<uint64_t> indexes = shard_indexes_;
    for (const auto& [shard, index] : tail_.indexes()) indexes[shard] = std::max(indexes[shard], index);
    log_->start(std::move(indexes), [this](DurableGroup& group) {
        if (replicated()) return group_durable(group);
        tail_.add_group(group.records, group.end_lsn, group.appended_count);
        wake_applier();
    });
    // Known from the first moment, not from the first attempt to apply: until then writes would be taken.
    apply_blocked_ = !tail_.empty() && !room_to_apply(tail_.bytes());
    applier_ = std::thread([this] { apply_loop(); });
    return {};
}

Result<void> DiskStore::read_meta(const std::string& format, size_t& segment_bytes, uint64_t& applied_lsn) {
    const std::string place = (config_.directory / "state").string();
    uint32_t version = 0, shards = 0;
    uint64_t stored_segment_bytes = 0;
    if (format.size() < format_row_bytes) return {ErrorCode::state_damaged, place + ": the format row is short", ""};
    std::memcpy(&version, format.data(), 4);
    std::memcpy(&shards, format.data() + 4, 4);
    std::memcpy(&stored_segment_bytes, format.data() + 8, 8);
    if (version != state_format)
        return {
            ErrorCode::conflict,
            place + " has format " + std::to_string(version) + ", this program reads " + std::to_string(state_format),
            ""};
    if (shards != config_.shard_count)
        return {ErrorCode::conflict,
                place + " has " + std::to_string(shards) + " shards, not " + std::to_string(config_.shard_count), ""};
    if (std::memcmp(format.data() + 16, config_.uuid.data(), config_.uuid.size()) != 0)
        return {ErrorCode::conflict, place + " belongs to another node", ""};
    segment_bytes = stored_segment_bytes;

    auto applied = state_->get(Table::meta, meta_applied);
    auto indexes = state_->get(Table::meta, meta_indexes);
    auto promise = state_->get(Table::meta, meta_promise);
    auto deleted = state_->get(Table::meta, meta_deleted);
    for (const auto* row : {&applied, &indexes, &promise, &deleted})
        if (!*row) return row->error();
    if (!*applied) return {ErrorCode::state_damaged, place + ": the applied position is missing", ""};
    applied_lsn = u64_of(*applied);
    shard_indexes_.assign(config_.shard_count, 0);
    if (*indexes)
        std::memcpy(shard_indexes_.data(), (*indexes)->data(), std::min((*indexes)->size(), shard_indexes_.size() * 8));
    if (u64_of(*promise) > config_.epoch.value)
        return {ErrorCode::conflict,
                "epoch " + std::to_string(config_.epoch.value) + " is below the promised " +
                    std::to_string(u64_of(*promise)),
                ""};
    delete_pending_since_ms_ = u64_of(*deleted);

    const auto cluster = state_->get(Table::meta, meta_cluster);
    if (!cluster) return cluster.error();
    if (cluster->has_value() != replicated())
        return {ErrorCode::conflict,
                place + (replicated() ? " is of a node that is alone; `mainstay cluster adopt` takes it into a cluster"
                                      : " belongs to a cluster"),
                ""};
    if (!replicated()) return {};
    const StoreUuid& wanted = *config_.cluster;
    if ((*cluster)->size() < wanted.size() || std::memcmp((*cluster)->data(), wanted.data(), wanted.size()) != 0)
        return {ErrorCode::conflict, place + " belongs to another cluster", ""};
    if ((*cluster)->size() >= wanted.size() + 8) adopted_in_ = Epoch{u64_of((*cluster)->substr(wanted.size(), 8))};
    return {};
}

Result<void> DiskStore::recover_quarantine() {
    quarantine_ = std::make_unique<Quarantine>(
        *config_.fold, config_.shard_count,
        [this](Table table, std::string_view prefix, const Quarantine::Visit& visit) {
            return state_->scan(table, prefix, {}, SIZE_MAX, visit);
        },
        [this](const SessionKey& key) { return state_->get(Table::head, session_row_key(key, config_.shard_count)); });
    std::vector<RowOp> rows;
    if (auto taken_up = quarantine_->recover(rows); !taken_up) return taken_up;
    if (rows.empty()) return {};
    // On a full disk they stay as they are, until a start that finds room.
    if (const auto applied = state_->apply(rows)) {
        quarantine_->commit();
    } else {
        quarantine_->abandon();
    }
    return {};
}

Result<void> DiskStore::make_meta(uint64_t& applied_lsn) {
    std::string format(format_row_bytes, '\0');
    const uint32_t shards = config_.shard_count;
    const uint64_t segment_bytes = config_.segment_bytes;
    std::memcpy(format.data(), &state_format, 4);
    std::memcpy(format.data() + 4, &shards, 4);
    std::memcpy(format.data() + 8, &segment_bytes, 8);
    std::memcpy(format.data() + 16, config_.uuid.data(), config_.uuid.size());
    applied_lsn = SegmentLog::first_lsn(config_.segment_bytes);
    std::vector<RowOp> rows;
    rows.push_back({Table::meta, meta_format, format, false});
    rows.push_back({Table::meta, meta_applied, u64_row(applied_lsn), false});
    if (replicated())
        rows.push_back({Table::meta, meta_cluster,
                        std::string(reinterpret_cast<const char*>(config_.cluster->data()), config_.cluster->size()),
                        false});
    shard_indexes_.assign(config_.shard_count, 0);
    return state_->apply(rows);
}

DiskStore::~DiskStore() {
    {
        std::lock_guard lock(mutex_);
        stopping_ = true;
        applier_wakes_.notify_all();
        applied_.notify_all();
    }
    if (applier_.joinable()) applier_.join();
    log_.reset();  // syncs and acknowledges what is queued
}

void DiskStore::die(const std::string& what) {
    if (config_.abort) {
        config_.abort(what);
        return;
    }
    std::fprintf(stderr, "store: %s; the process ends, acknowledged records are safe\n", what.c_str());
    std::fflush(stderr);
    std::abort();
}

// --- the contract -------------------------------------------------------------------------------------------------

Result<void> DiskStore::admit(size_t bytes) {
    {
        std::lock_guard lock(mutex_);
        if (apply_blocked_)
            return {ErrorCode::storage_full,
                    "disk_reserve_bytes (" + std::to_string(config_.disk_reserve_bytes) + ") of free disk are not left",
                    ""};
    }
    if (tail_.bytes() + bytes > config_.apply_backlog_bytes_max)
        return {ErrorCode::apply_backlog_full,
                "apply_backlog_bytes_max (" + std::to_string(config_.apply_backlog_bytes_max) + ") would be exceeded",
                ""};
    return log_->admit(bytes);
}

void DiskStore::append(Append append) {
    INVARIANT(!replicated(), "what sessions append to a replicated store goes through their shard");
    log_->append(std::move(append));
}

Result<SessionImage> DiskStore::load(const SessionKey& key) {
    // The tail first: what leaves it is in the state before. The other way round a record could be missed.
    const auto records = tail_.records_of(key);
    if (auto damaged = quarantine_->error_of(key)) return *damaged;
    auto head = state_->get(Table::head, session_row_key(key, config_.shard_count));
    if (!head) return head.error();
    SessionImage image;
    image.head = std::move(head).value();
    image.tail.reserve(records.size());
    for (const auto& record : records)
        if (record.kind == RecordKind::events)
            image.tail.push_back({record.lsn, record.first_sequence, record.payload});
    return image;
}

Result<std::optional<std::string>> DiskStore::read_row(Table table, std::string_view key) {
    return state_->get(table, key);
}

Result<void> DiskStore::scan(Table table, std::string_view prefix, std::string_view from, size_t limit,
                             const std::function<bool(std::string_view, std::string_view)>& visit) {
    return state_->scan(table, prefix, from, limit, visit);
}

Result<std::vector<RowOp>> DiskStore::fold_tail(const SessionKey& key, const std::vector<TailRecord>& records) {
    std::optional<std::string> head;
    if (key.session.valid()) {
        auto row = state_->get(Table::head, session_row_key(key, config_.shard_count));
        if (!row) return row.error();
        head = std::move(row).value();
    }
    std::vector<RowOp> rows;
    const auto folded = config_.fold->fold(key, head ? std::optional<std::string_view>(*head) : std::nullopt,
                                           fold_records(records), rows);
    if (!folded) return folded.error();
    return rows;
}

Result<std::optional<std::string>> DiskStore::read_turn(const SessionKey& key, TurnNo turn) {
    const std::string row_key = turn_row_key(key, turn, config_.shard_count);
    const auto records = tail_.records_of(key);
    if (may_touch(records, turn)) {
        auto rows = fold_tail(key, records);
        if (!rows) return rows.error();
        if (auto row = row_after(*rows, Table::turn, row_key)) return std::move(*row);
    }
    return state_->get(Table::turn, row_key);
}

std::vector<SessionKey> DiskStore::sessions_in_tail() { return tail_.sessions(); }

std::vector<SessionKey> DiskStore::resting_in_tail() { return tail_.resting(); }

void DiskStore::on_applied(std::function<void()> callback) {
    std::lock_guard lock(mutex_);
    on_applied_ = std::move(callback);
}

Result<std::vector<std::string>> DiskStore::entities() {
    const auto pending = tail_.entities();
    std::map<std::string, std::string> found;
    auto scanned = state_->scan(Table::entity, {}, {}, SIZE_MAX, [&](std::string_view key, std::string_view value) {
        found.emplace(key, value);
        return true;
    });
    if (!scanned) return scanned.error();
    for (const auto& [key, records] : pending)
        apply_rows(quarantine_->fold_entities(key, records), Table::entity, found);
    std::vector<std::string> out;
    out.reserve(found.size());
    for (auto& [key, value] : found) out.push_back(std::move(value));
    return out;
}

Result<std::optional<std::string>> DiskStore::read_memory(const SessionKey& key) {
    const std::string row_key = memory_row_key(key, config_.shard_count);
    const auto records = tail_.records_of(key);  // the tail first, as in load()
    if (!records.empty()) {
        auto rows = fold_tail(key, records);
        if (!rows) return rows.error();
        if (auto row = row_after(*rows, Table::memory, row_key)) return std::move(*row);
    }
    return state_->get(Table::memory, row_key);
}

StoreStats DiskStore::stats() const {
    StoreStats stats;
    {
        std::lock_guard lock(mutex_);
        stats.applied_lsn = applied_lsn_;
        stats.read_only = apply_blocked_;
    }
    stats.damaged_sessions = quarantine_->sessions();
    stats.state_syncs = state_->syncs();
    stats.state_commits = state_->commits();
    stats.state_rows = state_->rows_written();
    stats.apply_backlog_bytes = tail_.bytes();
    stats.apply_backlog_records = tail_.records();
    log_->fill(stats);
    return stats;
}

void DiskStore::flush() {
    uint64_t goal = log_->appended_count(), goal_lsn = log_->durable_lsn();
    if (replicated()) {
        // What is not committed is not applied either.
        std::lock_guard lock(shards_mutex_);
        goal = handed_count_;
        goal_lsn = 0;
    }
    std::unique_lock lock(mutex_);
    ++flushing_;
    applier_wakes_.notify_one();
    applied_.wait(lock, [&] {
        return (applied_count_ >= goal && applied_lsn_ >= goal_lsn) || stopping_ || apply_blocked_ || log_->dead();
    });
    --flushing_;
}

bool DiskStore::deletions_erased() const {
    std::lock_guard lock(mutex_);
    return delete_pending_since_ms_ == 0;
}

// --- applying -----------------------------------------------------------------------------------------------------

/// One transaction a second, or per full generation: large transactions write each head and each page once. Sooner when
/// somebody waits or the backlog approaches its bound.
bool DiskStore::must_apply() const {
    return flushing_ > 0 || installs_wait_ || tail_.has_full_generation() ||
           tail_.bytes() > config_.apply_backlog_bytes_max / 2;
}

void DiskStore::apply_loop() {
    ::pthread_setname_np(::pthread_self(), "applier");
    std::unique_lock lock(mutex_);
    while (!stopping_) {
        applier_sleeps_ = true;
        if (apply_blocked_) {
            applier_wakes_.wait_for(lock, blocked_retry);
        } else if (tail_.empty() && !installs_wait_) {
            applier_waits_for_more_ = false;
            if (applied_since_rest_ && !erasing_) {
                // A node that has fallen quiet, or an idle moment of a busy one: then the next generation waits for
                // this.
                applied_since_rest_ = applier_wakes_.wait_for(lock, quiet_before_rest) == std::cv_status::no_timeout;
                if (!applied_since_rest_) {
                    lock.unlock();
                    give_back_memory();
                    lock.lock();
                }
                continue;
            }
            if (erasing_)
                applier_wakes_.wait_for(lock, erase_poll);
            else if (delete_pending_since_ms_ != 0)
                applier_wakes_.wait_for(lock, until_erase());
            else
                applier_wakes_.wait(lock);
        }
        if (!stopping_ && !apply_blocked_ && !tail_.empty() && !must_apply()) {
            applier_waits_for_more_ = true;
            applier_wakes_.wait_for(lock, std::chrono::milliseconds(config_.apply_interval_ms),
                                    [this] { return stopping_ || must_apply(); });
        }
        applier_sleeps_ = false;
        if (stopping_) break;
        lock.unlock();
        if (const auto generation = tail_.take()) {
            apply_generation(*generation);
            applied_since_rest_ = true;
        }
        if (installs_wait_) install_pending();
        if (erase_due()) erase_deleted();
        lock.lock();
    }
}

bool DiskStore::room_to_apply(size_t bytes) const {
    return free_bytes(config_.directory) >= config_.disk_reserve_bytes + 2 * bytes + apply_margin_bytes;
}

void DiskStore::apply_generation(const TailGeneration& generation) {
    std::vector<RowOp> rows;
    bool applied = room_to_apply(generation.bytes);
    if (applied) {
        sweep_keys(rows);  // before the fold: a key that comes anew is put behind the deletion of its old row
        if (auto folded = fold_generation(generation, rows); !folded) {
            die("applying: " + folded.error().message);
            applied = false;
        }
    }
    if (applied)
        keys_added_ = static_cast<size_t>(std::count_if(
            rows.begin(), rows.end(), [](const RowOp& row) { return row.table == Table::key && row.value; }));
    std::vector<ShardAt> reached;
    if (applied && replicated()) add_shard_rows(generation, rows, reached);
    bool deletes = applied && std::any_of(rows.begin(), rows.end(), deletes_text);
    uint64_t delete_pending = 0;
    if (applied) {
        {
            std::lock_guard lock(mutex_);
            delete_pending = delete_pending_since_ms_;
        }
        if (deletes && delete_pending == 0) delete_pending = now_ms();
        if (deletes) rows.push_back({Table::meta, meta_deleted, u64_row(delete_pending), false});
        rows.push_back({Table::meta, meta_applied, u64_row(generation.end_lsn), false});
        crash_point("state.before_commit");
        applied = static_cast<bool>(state_->apply(rows));
        crash_point("state.after_commit");
    }
    {
        std::lock_guard lock(mutex_);
        apply_blocked_ = !applied;
        if (applied) {
            applied_lsn_ = generation.end_lsn;
            applied_count_ = std::max(applied_count_, generation.appended_count);
            delete_pending_since_ms_ = delete_pending;
            deleted_again_ = deleted_again_ || deletes;
        }
    }
    if (!applied) {
        quarantine_->abandon();
        applied_.notify_all();
        return;
    }
    const uint64_t end_lsn = generation.end_lsn;
    quarantine_->commit();  // before its records leave the tail: no load may find neither
    tail_.drop();
    shards_reached(reached);
    crash_point("state.before_release");
    log_->release(end_lsn);
    std::function<void()> callback;
    {
        std::lock_guard lock(mutex_);
        callback = on_applied_;
    }
    applied_.notify_all();
    if (callback) callback();
}

/// A part of the key table per transaction, round and round: readers ignore expired keys, and nobody asks for them
/// again, so they would stay for ever. What cannot be scanned is left to those who read it.
void DiskStore::sweep_keys(std::vector<RowOp>& rows) {
    const size_t wanted = limits::key_sweep_rows_min + limits::key_sweep_rows_per_added * keys_added_;
    const TimeMs now = now_ms();
    size_t seen = 0;
    std::string last;
    const auto scanned =
        state_->scan_whole(Table::key, sweep_from_, wanted, [&](std::string_view key, std::string_view value) {
            ++seen;
            last = key;
            if (config_.fold->expired(Table::key, value, now))
                rows.push_back({Table::key, std::string(key), std::nullopt, false});
            return true;
        });
    sweep_from_ = scanned && seen == wanted ? last + '\0' : std::string();
}

Result<void> DiskStore::fold_generation(const TailGeneration& generation, std::vector<RowOp>& rows) {
    // In the order of their rows: heads are looked up from left to right, and the sort before writing finds runs.
    std::vector<std::pair<std::string, const SessionKey*>> order;
    order.reserve(generation.sessions.size());
    for (const auto& [key, records] : generation.sessions)
        order.emplace_back(session_row_key(key, config_.shard_count), &key);
    std::sort(order.begin(), order.end());
    uint64_t promised = 0;
    for (const auto& [row_key, key] : order) {
        const auto& records = generation.sessions.at(*key);
        for (const auto& record : records)
            if (record.kind == RecordKind::promise) promised = std::max(promised, record.epoch.value);
        if (auto folded = quarantine_->fold(*key, records, rows); !folded) return folded;
    }
    for (const auto& [shard, index] : generation.indexes)
        shard_indexes_[shard] = std::max(shard_indexes_[shard], index);
    if (!generation.indexes.empty())
        rows.push_back({Table::meta, meta_indexes,
                        std::string(reinterpret_cast<const char*>(shard_indexes_.data()), shard_indexes_.size() * 8),
                        false});
    if (promised > 0) rows.push_back({Table::meta, meta_promise, u64_row(promised), false});
    return {};
}

// --- erasing what was deleted -------------------------------------------------------------------------------------

/// Half of the lifetime passes before the work begins: one pass serves all deletions of that time.
std::chrono::milliseconds DiskStore::until_erase() const {
    const uint64_t due =
        std::max(delete_pending_since_ms_ + config_.deleted_text_lifetime_ms / 2, erase_not_before_ms_);
    const uint64_t now = now_ms();
    return std::chrono::milliseconds(due > now ? due - now : 0);
}

bool DiskStore::erase_due() const {
    std::lock_guard lock(mutex_);
    return !stopping_ && !apply_blocked_ && (erasing_ || (delete_pending_since_ms_ != 0 && until_erase().count() == 0));
}

/// First half: leave the segments that hold the text, apply what they hold, erase the state. Second half, when the
/// preparer has zeroed them: note that it is done.
void DiskStore::erase_deleted() {
    if (!erasing_) {
        {
            std::lock_guard lock(mutex_);
            deleted_again_ = false;
        }
        log_->taint();
        if (!log_->roll()) return;
        const uint64_t rolled_lsn = log_->durable_lsn();
        while (true) {
            {
                std::lock_guard lock(mutex_);
                if (stopping_ || apply_blocked_) return;
                if (applied_lsn_ >= rolled_lsn) break;
            }
            const auto generation = tail_.take();
            if (!generation) {
                // Entries that are not committed hold their segment.
                std::lock_guard lock(mutex_);
                erase_not_before_ms_ = now_ms() + erase_retry_ms;
                return;
            }
            apply_generation(*generation);
        }
        if (auto erased = state_->erase_deleted(); !erased) {
            if (erased.error().code != ErrorCode::storage_full) die("erasing deleted rows: " + erased.error().message);
            return;
        }
        erasing_ = true;
    }
    if (!log_->clean()) return;
    std::vector<RowOp> rows;
    bool again = false;
    {
        std::lock_guard lock(mutex_);
        again = deleted_again_;
    }
    // Deletions that came meanwhile start a lifetime of their own.
    rows.push_back({Table::meta, meta_deleted, again ? std::optional(u64_row(now_ms())) : std::nullopt, false});
    if (!state_->apply(rows)) return;
    erasing_ = false;
    std::lock_guard lock(mutex_);
    delete_pending_since_ms_ = again ? now_ms() : 0;
}

}  // namespace mainstay
