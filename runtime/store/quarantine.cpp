#include "runtime/store/quarantine.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "runtime/base/limits.h"
#include "runtime/store/tail_fold.h"

namespace mainstay {
namespace {

// Both in the meta table: a mark per session, and a row per record that is set aside.
constexpr std::string_view mark_prefix("damaged\0", 8);
constexpr std::string_view record_prefix("setaside", 8);
constexpr size_t session_bytes = 32, record_fields_bytes = 16;

std::string joined(std::string_view prefix, std::string_view session) { return std::string(prefix).append(session); }

std::string record_key(std::string_view session, Lsn lsn) {
    std::string key = joined(record_prefix, session);
    for (int shift = 56; shift >= 0; shift -= 8) key += static_cast<char>(lsn.value >> shift);
    return key;
}

void append_u64(std::string& out, uint64_t value) { out.append(reinterpret_cast<const char*>(&value), sizeof value); }

uint64_t u64_at(std::string_view bytes, size_t at) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
}

std::optional<std::string_view> view(const std::optional<std::string>& head) {
    return head ? std::optional<std::string_view>(*head) : std::nullopt;
}

void append(std::vector<RowOp>& rows, std::vector<RowOp>&& more) {
    rows.insert(rows.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

}  // namespace

bool Quarantine::marked(const SessionKey& key) const {
    if (count_.load(std::memory_order_acquire) == 0) return false;
    std::lock_guard lock(mutex_);
    return damaged_.contains(key);
}

std::optional<Error> Quarantine::error_of(const SessionKey& key) const {
    if (count_.load(std::memory_order_acquire) == 0) return std::nullopt;
    std::lock_guard lock(mutex_);
    const auto found = damaged_.find(key);
    if (found == damaged_.end()) return std::nullopt;
    return Error{ErrorCode::state_damaged,
                 "the session's records from lsn " + std::to_string(found->second.lsn.value) +
                     " on are set aside: " + found->second.message,
                 ""};
}

Result<void> Quarantine::fold_part(const SessionKey& key, const std::optional<std::string>& head,
                                   const std::vector<FoldRecord>& records, size_t from, size_t to,
                                   std::vector<RowOp>& rows) const {
    const size_t before = rows.size();
    Result<void> folded;
    if (from == 0 && to == records.size()) {
        folded = fold_.fold(key, view(head), records, rows);
    } else {
        const std::vector<FoldRecord> part(records.begin() + static_cast<std::ptrdiff_t>(from),
                                           records.begin() + static_cast<std::ptrdiff_t>(to));
        folded = fold_.fold(key, view(head), part, rows);
    }
    if (!folded) rows.resize(std::min(rows.size(), before));
    return folded;
}

/// Whether a record makes and deletes the session by itself: what an operator's deletion of a damaged session is, which
/// nobody can load to decide upon.
bool Quarantine::deletion(const SessionKey& key, const std::vector<FoldRecord>& records, size_t at,
                          std::vector<RowOp>& rows) const {
    std::vector<RowOp> made;
    if (!fold_part(key, std::nullopt, records, at, at + 1, made)) return false;
    const std::string session = session_row_key(key, shard_count_);
    const bool deletes = std::any_of(made.begin(), made.end(), [&](const RowOp& row) {
        return row.table == Table::turn && row.prefix && row.key == session;
    });
    if (deletes) append(rows, std::move(made));
    return deletes;
}

void Quarantine::set_aside(const SessionKey& key, const std::vector<FoldRecord>& records, size_t from,
                           std::vector<RowOp>& rows) const {
    const std::string session = session_row_key(key, shard_count_);
    for (size_t i = from; i < records.size(); ++i) {
        std::string value;
        value.reserve(record_fields_bytes + records[i].payload.size());
        append_u64(value, records[i].epoch.value);
        append_u64(value, records[i].first_sequence.value);
        value += records[i].payload;
        rows.push_back({Table::meta, record_key(session, records[i].lsn), std::move(value), false});
    }
}

void Quarantine::forget(const SessionKey& key, std::vector<RowOp>& rows) const {
    const std::string session = session_row_key(key, shard_count_);
    rows.push_back({Table::meta, joined(mark_prefix, session), std::nullopt, false});
    rows.push_back({Table::meta, joined(record_prefix, session), std::nullopt, true});
}

std::vector<RowOp> Quarantine::fold_entities(const SessionKey& key, const std::vector<TailRecord>& records) const {
    const auto folding = fold_records(records);
    std::vector<RowOp> rows;
    if (fold_part(key, std::nullopt, folding, 0, folding.size(), rows)) return rows;
    for (size_t i = 0; i < folding.size(); ++i) (void)fold_part(key, std::nullopt, folding, i, i + 1, rows);
    return rows;
}

Result<void> Quarantine::fold(const SessionKey& key, const std::vector<TailRecord>& records, std::vector<RowOp>& rows) {
    const auto folding = fold_records(records);
    if (folding.empty()) return {};
    if (!key.session.valid()) {  // entities stand each by itself
        if (fold_part(key, std::nullopt, folding, 0, folding.size(), rows)) return {};
        for (size_t i = 0; i < folding.size(); ++i) {
            const auto folded = fold_part(key, std::nullopt, folding, i, i + 1, rows);
            if (folded) continue;
            set_aside(key, {folding[i]}, 0, rows);
            changes_.push_back({key, std::nullopt,
                                "an entity of tenant " + std::to_string(key.tenant.value) + " at lsn " +
                                    std::to_string(folding[i].lsn.value) +
                                    " cannot be applied and is set aside: " + folded.error().message});
        }
        return {};
    }

    const std::string session = session_row_key(key, shard_count_);
    const bool was_marked = marked(key);
    size_t good = 0;  // how many records fold
    std::optional<std::string> head;
    std::string message;
    if (!was_marked) {
        auto row = head_(key);
        if (!row && row.error().code != ErrorCode::state_damaged) return row.error();
        if (row) {
            head = std::move(row).value();
            const auto folded = fold_part(key, head, folding, 0, folding.size(), rows);
            if (folded) return {};
            message = folded.error().message;
            // The longest part that folds: a longer one never does where a shorter one does not.
            size_t bad = folding.size();
            std::vector<RowOp> ignored;
            while (bad - good > 1) {
                const size_t middle = good + (bad - good) / 2;
                const auto tried = fold_part(key, head, folding, 0, middle, ignored);
                ignored.clear();
                if (tried) {
                    good = middle;
                } else {
                    bad = middle;
                    message = tried.error().message;
                }
            }
        } else {
            message = row.error().message;
        }
    }

    for (size_t at = folding.size(); at-- > good;) {
        std::vector<RowOp> made;
        if (!deletion(key, folding, at, made)) continue;
        // What came before is deleted with the session; its rows of other tables are found by looking.
        if (auto scanned = scan_(Table::due, {},
                                 [&](std::string_view due, std::string_view) {
                                     if (due.substr(std::min<size_t>(8, due.size())) == session)
                                         made.push_back({Table::due, std::string(due), std::nullopt, false});
                                     return true;
                                 });
            !scanned)
            return scanned.error();
        forget(key, made);
        // A keyed session may have been made anew behind its deletion.
        const auto after = row_after(made, Table::head, session);
        const std::optional<std::string> new_head = after ? *after : std::nullopt;
        changes_.push_back({key, std::nullopt, "session " + to_text(key.session) + ", which was damaged, is deleted"});
        if (at + 1 < folding.size()) {
            if (const auto folded = fold_part(key, new_head, folding, at + 1, folding.size(), made); !folded)
                mark(key, folding, at + 1, folded.error().message, made);
        }
        append(rows, std::move(made));
        return {};
    }

    if (good > 0)
        if (auto folded = fold_part(key, head, folding, 0, good, rows); !folded) return folded;
    if (was_marked) {
        set_aside(key, folding, good, rows);
    } else {
        mark(key, folding, good, std::move(message), rows);
    }
    return {};
}

void Quarantine::mark(const SessionKey& key, const std::vector<FoldRecord>& records, size_t from, std::string why,
                      std::vector<RowOp>& rows) {
    set_aside(key, records, from, rows);
    const std::string session = session_row_key(key, shard_count_);
    const Lsn lsn = records[from].lsn;
    why.resize(std::min(why.size(), limits::reason_bytes_max));
    std::string value;
    append_u64(value, lsn.value);
    rows.push_back({Table::meta, joined(mark_prefix, session), value + why, false});
    changes_.push_back({key, Damage{lsn, why},
                        "session " + to_text(key.session) + " is damaged, its records from lsn " +
                            std::to_string(lsn.value) + " on are set aside: " + why});
}

void Quarantine::commit() {
    for (auto& change : changes_) {
        if (!change.told.empty()) spdlog::error("store: {}", change.told);
        if (!change.key.session.valid()) continue;
        std::lock_guard lock(mutex_);
        if (change.damage) {
            damaged_.insert_or_assign(change.key, std::move(*change.damage));
        } else {
            damaged_.erase(change.key);
        }
        count_.store(damaged_.size(), std::memory_order_release);
    }
    changes_.clear();
}

/// True where the records that are set aside fold onto the head by now, whose rows then are in `rows`.
Result<bool> Quarantine::heal(const SessionKey& key, std::vector<RowOp>& rows) const {
    auto head = head_(key);
    if (!head) return false;
    std::vector<std::pair<Lsn, std::string>> stored;
    const std::string prefix = joined(record_prefix, session_row_key(key, shard_count_));
    auto scanned = scan_(Table::meta, prefix, [&](std::string_view row_key, std::string_view value) {
        Lsn lsn;
        for (const char byte : row_key.substr(prefix.size()))
            lsn.value = lsn.value << 8 | static_cast<unsigned char>(byte);
        if (value.size() >= record_fields_bytes) stored.emplace_back(lsn, value);
        return true;
    });
    if (!scanned) return false;
    std::vector<FoldRecord> records;
    records.reserve(stored.size());
    for (const auto& [lsn, value] : stored)
        records.push_back({lsn, Epoch{u64_at(value, 0)}, Sequence{u64_at(value, 8)},
                           std::string_view(value).substr(record_fields_bytes)});
    if (!fold_part(key, *head, records, 0, records.size(), rows)) return false;
    forget(key, rows);
    return true;
}

Result<void> Quarantine::recover(std::vector<RowOp>& rows) {
    {
        std::lock_guard lock(mutex_);
        damaged_.clear();
        auto scanned = scan_(Table::meta, mark_prefix, [&](std::string_view row_key, std::string_view value) {
            const auto key = parse_session_row_key(row_key.substr(mark_prefix.size()));
            if (key && value.size() >= sizeof(uint64_t))
                damaged_[*key] = {Lsn{u64_at(value, 0)}, std::string(value.substr(sizeof(uint64_t)))};
            return true;
        });
        if (!scanned) return scanned.error();
        count_.store(damaged_.size(), std::memory_order_release);
    }
    for (const auto& [key, damage] : damaged_) {
        auto healed = heal(key, rows);
        if (!healed) return healed.error();
        if (*healed) changes_.push_back({key, std::nullopt, "session " + to_text(key.session) + " can be read again"});
    }
    if (damaged_.size() > changes_.size())
        spdlog::warn("store: {} sessions are damaged and set aside", damaged_.size() - changes_.size());
    return {};
}

}  // namespace mainstay
