#pragma once
// Records of a session to rows of the state: what the store's background thread runs over the journal. The journal's
// own bytes become the turn row, so folding never re-encodes history. Formats: docs/formats/items.md.
//
// Invariant: rows depend on the records alone, not on how they were grouped into calls. Pure; a SessionFold may be used
// by one thread at a time, several may run at once.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/base/fold.h"
#include "runtime/session/session.h"

namespace mainstay {

class SessionFold final : public Fold {
  public:
    explicit SessionFold(uint16_t shard_count = shard_count_default) : shard_count_(shard_count) {}
    /// Fails with journal_damaged or state_damaged, and then has appended nothing.
    Result<void> fold(const SessionKey& key, std::optional<std::string_view> head,
                      const std::vector<FoldRecord>& records, std::vector<RowOp>& rows) override;
    /// Idempotency keys beyond their lifetime. A row of another format is not ours to judge.
    bool expired(Table table, std::string_view value, TimeMs now) const override;

  private:
    uint16_t shard_count_;
};

/// A settled turn from its row.
Result<Turn> turn_from_row(SessionKey key, TurnNo no, std::string_view row);

using SequencedBatch = std::pair<uint64_t, EventBatch>;  // sequence of the first event
/// The batches of a turn row or of a session row, oldest first.
Result<std::vector<SequencedBatch>> batches_from_row(std::string_view row);

/// Key of the row that keeps a batch of the session itself (turn 0): in the turn table, behind every turn, by sequence.
std::string session_batch_row_key(const SessionKey& key, Sequence first_sequence,
                                  uint16_t shard_count = shard_count_default);
/// First key of the turn table behind the session's turns; what follows within the session are session batches.
std::string turn_rows_end(const SessionKey& key, uint16_t shard_count = shard_count_default);

/// A key row: which turn answers an idempotency key.
Result<KnownKey> decode_key_row(std::string_view row);
std::string encode_key_row(const KnownKey& known);
/// True for a row that readers ignore and a sweep may delete; also for bytes that are no key row.
bool key_row_expired(std::string_view row, TimeMs now);

}  // namespace mainstay
