#pragma once
// What of a session's history goes into a prompt: a summary where turns were compacted, the newest settled turns within
// a bound of bytes, then the open turn. Prompts only append, so that the KV cache of earlier steps stays good; nothing
// is copied, a turn's items are shared with whoever shows them.
//
// Owned by one session: not thread-safe; what it hands out is immutable.

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/limits.h"
#include "runtime/base/turn_run.h"
#include "runtime/session/turn.h"

namespace mainstay {

/// The items of a turn that belong into a prompt: all but those of `withheld`. Shares the turn where nothing is left
/// out.
ItemsPtr prompt_items(const TurnPtr& turn);
ItemsPtr prompt_items(const Turn& turn);

class Window {
  public:
    Window() = default;
    Window(const Window& other);  // with a buffer of its own
    Window& operator=(const Window& other) { return *this = Window(other); }
    Window(Window&&) noexcept = default;
    Window& operator=(Window&&) noexcept = default;

    void set_bytes(size_t bytes);
    /// Older turns leave when the bound is passed; the newest stays, however large it is.
    void push(TurnPtr turn);
    void drop_up_to(TurnNo no);
    void clear();
    TurnPtr find(TurnNo no) const;
    /// The items of its turns, oldest first.
    TurnRun run() const;

  private:
    struct Entry {
        TurnPtr turn;
        size_t bytes = 0;
    };
    void drop_first();
    void trim();
    void renew(size_t capacity);

    std::deque<Entry> entries_;  // oldest first
    size_t bytes_ = 0;
    size_t bytes_max_ = limits::history_window_bytes;
    /// The entries' items, behind those of `dropped_` turns that left: slices that were handed out may still show them.
    /// Never grown beyond its capacity, but replaced.
    std::shared_ptr<TurnRun::Turns> items_;
    size_t dropped_ = 0, dropped_bytes_ = 0;
};

}  // namespace mainstay
