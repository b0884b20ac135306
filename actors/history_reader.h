#pragma once
// Settled turns of a session from the store, across forks: turns up to the fork point are the parent's rows, shared and
// never copied. Reads only; used by one session actor at a time.

#include <string>
#include <utility>
#include <vector>

#include "runtime/base/result.h"
#include "runtime/session/session.h"
#include "runtime/store/journal.h"

namespace mainstay {

class HistoryReader {
  public:
    HistoryReader(Store& store, SessionKey key) : store_(store), lineage_{{key, TurnNo{UINT32_MAX}}} {}

    /// Walks up to the root so that later reads know whose row a turn is. Fails with session_not_found if an ancestor
    /// is gone, state_damaged if it cannot be read.
    Result<void> follow_parents(const SessionCreated& created);

    /// The session whose row holds a turn (itself, or an ancestor).
    const SessionKey& owner_of(TurnNo turn) const;
    /// First turn number that is the session's own.
    TurnNo first_own() const { return TurnNo{lineage_.size() > 1 ? lineage_[1].second.value + 1 : 1}; }

    /// A settled turn; null if there is none with that number.
    Result<TurnPtr> read(TurnNo turn) const;
    /// Raw batches of a settled turn, with their first sequences.
    Result<std::vector<std::pair<uint64_t, EventBatch>>> read_batches(TurnNo turn) const;

  private:
    Store& store_;
    std::vector<std::pair<SessionKey, TurnNo>> lineage_;  // itself first; each with the last turn that it provides
};

}  // namespace mainstay
