#pragma once
// The fold of a whole node: records of sessions go to the session's fold; entities (agents, models) become rows of
// their own, so that what was applied once is there after every restart. Here, because no room of the runtime knows
// both. Pure; runs on the store's background thread.
//
// An entity's row: shard (2 bytes), 0 (2), tenant (4), kind padded with NUL to 8, version (8), name padded with NUL to
// a multiple of 8; all numbers big-endian; the value is the journalled record's payload (schema/entity.capnp). Every
// version keeps its row, since turns are bound to versions; the latest is the one with the greatest time. A user's
// memory, whose records have a key of their own, has one row in a table of its own: the newest record's payload.

#include "runtime/session/fold.h"

namespace mainstay {

class NodeFold final : public Fold {
  public:
    explicit NodeFold(uint16_t shard_count = shard_count_default) : sessions_(shard_count), shard_count_(shard_count) {}

    /// state_damaged where a record cannot be read.
    Result<void> fold(const SessionKey& key, std::optional<std::string_view> head,
                      const std::vector<FoldRecord>& records, std::vector<RowOp>& rows) override;
    bool expired(Table table, std::string_view value, TimeMs now) const override {
        return sessions_.expired(table, value, now);
    }

  private:
    SessionFold sessions_;
    const uint16_t shard_count_;
};

}  // namespace mainstay
