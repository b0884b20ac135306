#pragma once
// Sessions whose records cannot be folded. One session's damage, or a fault of the program that only its records meet,
// must cost that session alone: what folds of it is applied, the records from the first bad one on are set aside as
// rows, by position and byte for byte, and loads name that position until an operator deletes the session. Everything
// else is applied, and the journal goes on being freed. At each start the fold is tried again, since the program may be
// another one. Rows: docs/formats/state.md.
//
// Invariant: a mark is in memory before the records that it stands for leave the tail, and goes only when what replaces
// them is in the state. fold(), commit() and abandon() belong to the applier; the rest may be called by any thread.

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/fold.h"
#include "runtime/store/tail.h"

namespace mainstay {

struct Damage {
    Lsn lsn;  // of the first record that is set aside
    std::string message;
};

class Quarantine {
  public:
    using Visit = std::function<bool(std::string_view key, std::string_view value)>;
    /// As Store::scan, without bounds: rows of a table that start with `prefix`.
    using Scan = std::function<Result<void>(Table table, std::string_view prefix, const Visit& visit)>;
    using Head = std::function<Result<std::optional<std::string>>(const SessionKey& key)>;

    Quarantine(Fold& fold, uint16_t shard_count, Scan scan, Head head)
        : fold_(fold), shard_count_(shard_count), scan_(std::move(scan)), head_(std::move(head)) {}

    /// Before anything is folded: takes up the marks, and appends the rows of the sessions that fold by now. Then
    /// commit() or abandon(), as after fold().
    Result<void> recover(std::vector<RowOp>& rows);

    /// Appends what one key's records make of the state. Fails only where the state cannot be asked for the head;
    /// records that do not fold are set aside.
    Result<void> fold(const SessionKey& key, const std::vector<TailRecord>& records, std::vector<RowOp>& rows);
    /// The rows are durable, or never will be. commit() logs what is new.
    void commit();
    void abandon() { changes_.clear(); }

    /// Rows of a tenant's entities, without those that cannot be folded. Any thread; changes nothing.
    std::vector<RowOp> fold_entities(const SessionKey& key, const std::vector<TailRecord>& records) const;

    /// state_damaged, naming the position, where the session is set aside.
    std::optional<Error> error_of(const SessionKey& key) const;
    size_t sessions() const { return count_.load(std::memory_order_acquire); }

  private:
    struct Change {
        SessionKey key;
        std::optional<Damage> damage;  // absent: whole again, or deleted
        std::string told;              // what the log says; empty: nothing
    };

    bool marked(const SessionKey& key) const;
    Result<void> fold_part(const SessionKey& key, const std::optional<std::string>& head,
                           const std::vector<FoldRecord>& records, size_t from, size_t to,
                           std::vector<RowOp>& rows) const;
    bool deletion(const SessionKey& key, const std::vector<FoldRecord>& records, size_t at,
                  std::vector<RowOp>& rows) const;
    void set_aside(const SessionKey& key, const std::vector<FoldRecord>& records, size_t from,
                   std::vector<RowOp>& rows) const;
    void mark(const SessionKey& key, const std::vector<FoldRecord>& records, size_t from, std::string why,
              std::vector<RowOp>& rows);
    void forget(const SessionKey& key, std::vector<RowOp>& rows) const;
    Result<bool> heal(const SessionKey& key, std::vector<RowOp>& rows) const;

    Fold& fold_;
    const uint16_t shard_count_;
    const Scan scan_;
    const Head head_;
    std::vector<Change> changes_;  // of the transaction under way

    mutable std::mutex mutex_;
    std::map<SessionKey, Damage> damaged_;
    std::atomic<size_t> count_{0};
};

}  // namespace mainstay
