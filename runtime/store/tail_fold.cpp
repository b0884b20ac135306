#include "runtime/store/tail_fold.h"

namespace mainstay {

std::vector<FoldRecord> fold_records(const std::vector<TailRecord>& records) {
    std::vector<FoldRecord> out;
    out.reserve(records.size());
    for (const auto& record : records)
        if (record.kind == RecordKind::events || record.kind == RecordKind::entity)
            out.push_back({record.lsn, record.epoch, record.first_sequence, *record.payload});
    return out;
}

std::optional<std::optional<std::string>> row_after(const std::vector<RowOp>& rows, Table table, std::string_view key) {
    std::optional<std::optional<std::string>> result;
    for (const RowOp& row : rows)
        if (row.table == table && row.prefix && key.starts_with(row.key)) result.emplace();
    for (const RowOp& row : rows)
        if (row.table == table && !row.prefix && row.key == key) result.emplace(row.value);
    return result;
}

void apply_rows(const std::vector<RowOp>& rows, Table table, std::map<std::string, std::string>& to) {
    for (const RowOp& row : rows) {
        if (row.table != table || !row.prefix) continue;
        auto at = to.lower_bound(row.key);
        while (at != to.end() && at->first.starts_with(row.key)) at = to.erase(at);
    }
    for (const RowOp& row : rows) {
        if (row.table != table || row.prefix) continue;
        if (row.value) {
            to[row.key] = *row.value;
        } else {
            to.erase(row.key);
        }
    }
}

bool deletes_text(const RowOp& row) { return !row.value && (row.prefix || row.table == Table::head); }

}  // namespace mainstay
