#pragma once
// What of a session's history goes into a prompt: a summary where turns were compacted, the newest settled turns within
// a bound of bytes, then the open turn. Prompts only append, so that the KV cache of earlier steps stays good: a window
// that is full drops half of what it holds and then grows again, instead of losing its first turn with every new one.
// Where it begins depends on the turns pushed alone, so the same turns make the same window. Nothing is copied, a
// turn's items are shared with whoever shows them.
//
// Owned by one session: not thread-safe; what it hands out is immutable.

#include <deque>
#include <memory>
#include <optional>
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
/// What a turn takes of the bound.
size_t window_bytes_of(const Turn& turn);

class Window {
  public:
    Window() = default;
    Window(const Window& other);  // with a buffer of its own
    Window& operator=(const Window& other) { return *this = Window(other); }
    Window(Window&&) noexcept = default;
    Window& operator=(Window&&) noexcept = default;

    void set_bytes(size_t bytes);
    /// Older turns leave when the bound is passed, until what stays is one part in history_window_kept of it; the
    /// newest stays, however large it is.
    void push(TurnPtr turn);
    void drop_up_to(TurnNo no);
    void clear();
    TurnPtr find(TurnNo no) const;
    TurnNo first() const;  // lowest number in it; 0: empty
    size_t bytes() const { return bytes_; }
    /// Turns up to which to drop (with drop_up_to) so that at most `keep` bytes stay, at least one turn. None: nothing
    /// may be dropped. What stays in any case: turns behind `open`, and those that asked for calls which `open`
    /// answers.
    std::optional<TurnNo> cut(size_t keep, const Turn& open) const;
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
