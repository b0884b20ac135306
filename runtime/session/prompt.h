#pragma once
// What of a session's history goes into a prompt: a summary where turns were compacted, the newest settled turns within
// a bound of bytes, then the open turn. Prompts only append, so that the KV cache of earlier steps stays good; nothing
// is copied, a turn's items are shared with whoever shows them.
//
// Owned by one session: not thread-safe; what it hands out is immutable.

#include <memory>
#include <string>
#include <vector>

#include "runtime/base/limits.h"
#include "runtime/session/turn.h"

namespace mainstay {

using ItemsPtr = std::shared_ptr<const std::vector<ItemPtr>>;

/// The items of a turn that belong into a prompt: all but those of `withheld`. Shares the turn where nothing is left
/// out.
ItemsPtr prompt_items(const TurnPtr& turn);
ItemsPtr prompt_items(const Turn& turn);

class Window {
  public:
    void set_bytes(size_t bytes);
    /// Older turns leave when the bound is passed; the newest stays, however large it is.
    void push(TurnPtr turn);
    void drop_up_to(TurnNo no);
    void clear();
    TurnPtr find(TurnNo no) const;
    /// The items of its turns, oldest first; shared by the steps of a turn, made anew when a turn joins or leaves.
    std::shared_ptr<const std::vector<ItemsPtr>> snapshot() const;

  private:
    struct Entry {
        TurnPtr turn;
        ItemsPtr items;
        size_t bytes = 0;
    };
    void trim();

    std::vector<Entry> entries_;  // oldest first, from first_ on
    size_t first_ = 0, bytes_ = 0;
    size_t bytes_max_ = limits::history_window_bytes;
    mutable std::shared_ptr<const std::vector<ItemsPtr>> snapshot_;
};

}  // namespace mainstay
