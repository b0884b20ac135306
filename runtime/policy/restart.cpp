#include "runtime/policy/restart.h"

#include <algorithm>

namespace mainstay {

RestartVerdict RestartIntensity::failed(TimeMs now) {
    if (!failures_.empty()) now = std::max(now, failures_.back());
    while (!failures_.empty() && failures_.front() + limit_.window_ms <= now) failures_.pop_front();
    failures_.push_back(now);
    if (failures_.size() <= limit_.restarts_max) return RestartVerdict::restart;
    // The oldest is no longer needed: one more failure decides the same with or without it.
    if (failures_.size() > limit_.restarts_max + 1) failures_.pop_front();
    return RestartVerdict::escalate;
}

uint32_t RestartIntensity::recent(TimeMs now) const {
    return static_cast<uint32_t>(
        std::count_if(failures_.begin(), failures_.end(), [&](TimeMs at) { return at + limit_.window_ms > now; }));
}

}  // namespace mainstay
