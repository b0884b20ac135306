#pragma once
// A page of a session's journalled events, by sequence, from what the store has: settled turns, the open batches of the
// head, the tail. A page costs what the page holds and a few lookups, however long the session is.
//
// It rests on how a session writes: its own sequences run from 1 without a gap; the first event of a turn comes before
// the first of the next; and a turn that ran did so when all turns before it were settled. Only turns that were
// cancelled while they waited settle out of that order. Pure but for the reads; any thread.

#include <vector>

#include "actors/answers.h"
#include "runtime/store/journal.h"

namespace mainstay {

/// Events with sequences after `after`, at most `limit`, oldest first. `first_own`: the first turn that is the
/// session's own and not its parent's. state_damaged or journal_damaged where something cannot be read.
Result<std::vector<EventEntry>> read_event_page(Store& store, const SessionKey& key, TurnNo first_own, uint64_t after,
                                                size_t limit, uint16_t shard_count);

}  // namespace mainstay
