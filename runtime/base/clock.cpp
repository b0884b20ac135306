#include "runtime/base/clock.h"

#include <chrono>

namespace mainstay {

TimeMs SystemClock::now_ms() const {
    using namespace std::chrono;
    return static_cast<TimeMs>(duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count());
}

uint64_t SystemClock::monotonic_ns() const {
    using namespace std::chrono;
    return static_cast<uint64_t>(duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count());
}

}  // namespace mainstay
