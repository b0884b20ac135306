#pragma once
// Idempotency keys of turns that may not be in LMDB yet. Bounded: where it is full, a command with a key is refused
// until the store has caught up (forget). A flat list in order of acceptance; a key is a digest, so its first bytes
// tell keys apart and a scan costs less than a tree would.
//
// Owned by one session.

#include <cstring>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/id.h"
#include "runtime/base/limits.h"

namespace mainstay {

struct RecentKey {
    KeyHash hash{};
    TurnNo turn;
    uint64_t request_digest = 0;
    TimeMs at = 0;
};

class RecentKeys {
  public:
    bool full() const { return keys_.size() >= limits::recent_keys_max; }
    void add(const RecentKey& key) { keys_.push_back(key); }
    /// The newest with this hash that is not older than a key's lifetime; null: none.
    const RecentKey* find(const KeyHash& hash, TimeMs now) const {
        for (size_t i = keys_.size(); i > 0; --i) {
            const RecentKey& key = keys_[i - 1];
            if (std::memcmp(key.hash.data(), hash.data(), hash.size()) != 0) continue;
            return now < key.at + limits::idempotency_key_lifetime_ms ? &key : nullptr;
        }
        return nullptr;
    }
    void forget(TurnNo up_to) {
        std::erase_if(keys_, [up_to](const RecentKey& key) { return key.turn <= up_to; });
    }
    void clear() { keys_.clear(); }

  private:
    std::vector<RecentKey> keys_;
};

}  // namespace mainstay
