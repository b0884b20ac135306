#pragma once
// Waits: one mechanism for timers, approvals, signals and children. A wait belongs to a turn, usually to one of its
// calls, and ends in exactly one outcome, which becomes the call's output. Its number is the low 32 bits of the
// sequence of the event that opened it, so a late answer to an old wait never meets a new one.
//
// Owned by a TurnProgress.

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/session/event.h"

namespace mainstay {

struct OpenWait {
    uint32_t wait = 0;
    WaitKind kind = WaitKind::timer;
    TimeMs opened_at = 0, due = 0;  // timer: fires; others: expires; 0: never
    uint32_t call = 0;
    std::string subject;
};

class Waits {
  public:
    bool empty() const { return waits_.empty(); }
    const std::vector<OpenWait>& all() const { return waits_; }
    const OpenWait* find(uint32_t wait) const;
    bool open(const WaitOpened& event, TimeMs at);  // false: the number is taken
    bool close(uint32_t wait);                      // false: no such wait
    TimeMs earliest() const;                        // 0: none

  private:
    std::vector<OpenWait> waits_;
};

/// Which outcome a wait of this kind has when its time has come.
WaitOutcome outcome_when_due(WaitKind kind);
/// Whether a person, signal or child may give this outcome to a wait of this kind.
bool outcome_allowed(WaitKind kind, WaitOutcome outcome);
/// The receipt that an outcome gives to the call which waited. `at` is the recorded time.
ToolReceipt receipt_of(const OpenWait& wait, WaitOutcome outcome, const std::string& payload, TimeMs at);

}  // namespace mainstay
