#pragma once
// Time as a parameter: pure code receives it, shells own a Clock, tests own a ManualClock.

#include <cstdint>

namespace mainstay {

using TimeMs = uint64_t;  // milliseconds since 1970, UTC

class Clock {
  public:
    virtual ~Clock() = default;
    /// Wall time; may jump. Recorded in events, never used for safety.
    virtual TimeMs now_ms() const = 0;
    /// Monotonic nanoseconds; for measuring and for timeouts in this process.
    virtual uint64_t monotonic_ns() const = 0;
};

class SystemClock final : public Clock {
  public:
    TimeMs now_ms() const override;
    uint64_t monotonic_ns() const override;
};

class ManualClock final : public Clock {
  public:
    TimeMs now_ms() const override { return now_ms_; }
    uint64_t monotonic_ns() const override { return now_ms_ * 1'000'000; }
    void set(TimeMs now) { now_ms_ = now; }
    void advance(TimeMs by) { now_ms_ += by; }

  private:
    TimeMs now_ms_ = 1'700'000'000'000;
};

}  // namespace mainstay
