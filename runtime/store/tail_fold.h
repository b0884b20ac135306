#pragma once
// What both stores do with records that are durable and not applied: give them to the fold and read its row operations
// as if they were applied. Pure.

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/fold.h"
#include "runtime/store/tail.h"

namespace mainstay {

/// Those that a fold understands (events, entities), pointing into `records`.
std::vector<FoldRecord> fold_records(const std::vector<TailRecord>& records);

/// What `rows` make of one row: its new value, an empty optional if they delete it, nothing if they leave it alone.
std::optional<std::optional<std::string>> row_after(const std::vector<RowOp>& rows, Table table, std::string_view key);

/// Applies the operations of one table: prefix deletes first, then the others in order.
void apply_rows(const std::vector<RowOp>& rows, Table table, std::map<std::string, std::string>& to);

/// Whether an operation deletes text, after which its journal and state bytes must be erased; the rows of open turns
/// and timers come and go without holding any.
bool deletes_text(const RowOp& row);

}  // namespace mainstay
