#pragma once
// Restart intensity: how often something may fail and be started again before whoever supervises it stops trying.
// A session that crashes its actor `max` times within the window is quarantined at the next crash; a tenant that
// collects too many quarantines escalates to the node. Pure; the supervisor's thread.

#include <cstdint>
#include <deque>

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"

namespace mainstay {

struct RestartLimit {
    uint32_t restarts_max = limits::restarts_max;
    uint64_t window_ms = limits::restart_window_ms;
};

enum class RestartVerdict : uint8_t { restart, escalate };

/// Failures of one supervised thing.
class RestartIntensity {
  public:
    explicit RestartIntensity(RestartLimit limit = {}) : limit_(limit) {}

    /// It failed at `now` (time of this process; going backwards is taken as standing still). escalate: it failed more
    /// than restarts_max times within the window, do not start it again.
    RestartVerdict failed(TimeMs now);
    /// Failures that still count at `now`.
    uint32_t recent(TimeMs now) const;

  private:
    RestartLimit limit_;
    std::deque<TimeMs> failures_;  // never longer than restarts_max + 1
};

/// Quarantined sessions of one tenant.
class QuarantineCount {
  public:
    explicit QuarantineCount(uint32_t quarantines_max = limits::tenant_quarantines_max) : max_(quarantines_max) {}

    /// escalate: this one is one too many, tell the node supervisor.
    RestartVerdict quarantined() { return ++count_ > max_ ? RestartVerdict::escalate : RestartVerdict::restart; }
    void released() { count_ -= count_ != 0; }
    uint32_t count() const { return count_; }

  private:
    uint32_t max_, count_ = 0;
};

}  // namespace mainstay
