#pragma once
// Between the store and whoever understands its records. The store knows records and rows; a Fold turns the records of
// one session into rows. It is pure and runs on the store's background thread (and inside the simulator).

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/id.h"
#include "runtime/base/result.h"

namespace mainstay {

/// Tables of the state. Keys are big-endian and multiples of 8 bytes; the layout is docs/formats/state.md.
enum class Table : uint8_t {
    head,    // session -> snapshot
    turn,    // session, turn number -> the batches of that settled turn
    key,     // session, idempotency key hash -> turn, digest, time
    due,     // due time, session -> (empty): durable timers
    open,    // session -> (empty): has an open turn, is taken up after a start
    entity,  // shard, kind, name -> body
    meta,    // applied position, format, node
    memory,  // shard, tenant, user, memory -> body: the memories of users, one row each
};
constexpr size_t table_count = 8;

struct RowOp {
    Table table = Table::head;
    std::string key;
    std::optional<std::string> value;  // absent: delete
    bool prefix = false;               // with an absent value: delete every row whose key starts with `key`
};

/// A record as a fold sees it. The bytes live as long as the call.
struct FoldRecord {
    Lsn lsn;
    Epoch epoch;
    Sequence first_sequence;
    std::string_view payload;
};

class Fold {
  public:
    virtual ~Fold() = default;
    /// `head` is the session's present head row or absent. Records are in order and follow the head; those that the
    /// head already contains (by sequence) are skipped. Appends row operations in any order.
    virtual Result<void> fold(const SessionKey& key, std::optional<std::string_view> head,
                              const std::vector<FoldRecord>& records, std::vector<RowOp>& rows) = 0;
    /// True for a row that no reader heeds any more: the store deletes it in passing.
    virtual bool expired(Table, std::string_view, TimeMs) const { return false; }
};

/// Row keys, shared by fold, store and readers. Session prefix: shard (2 bytes), 0 (2), tenant (4), family (8), high
/// (8), low (8) = 32 bytes big-endian; a turn row adds the turn number (8), a key row the 16-byte hash.
std::string session_row_key(const SessionKey& key, uint16_t shard_count = shard_count_default);
std::string turn_row_key(const SessionKey& key, TurnNo turn, uint16_t shard_count = shard_count_default);
std::string key_row_key(const SessionKey& key, const KeyHash& hash, uint16_t shard_count = shard_count_default);
/// Of an entity that stands by itself, as memory_key() names it: shard (2 bytes), 0 (2), tenant (4), user (8), memory
/// (8).
std::string memory_row_key(const SessionKey& key, uint16_t shard_count = shard_count_default);
/// Due time (8), then the session prefix.
std::string due_row_key(TimeMs due, const SessionKey& key, uint16_t shard_count = shard_count_default);
std::optional<SessionKey> parse_session_row_key(std::string_view row_key);  // of the first 32 bytes
TurnNo turn_of_row_key(std::string_view row_key);

}  // namespace mainstay
