#include "runtime/base/crash_point.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

namespace mainstay {
namespace {

std::string armed_name;
std::atomic<long> visits_left{0};
long stall_ms = 0;

}  // namespace

namespace crash_point_detail {

bool armed = false;

void visit(std::string_view name) {
    if (name != armed_name) return;
    if (visits_left.fetch_sub(1) != 1) return;
    if (stall_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(stall_ms));
    ::kill(::getpid(), SIGKILL);
}

}  // namespace crash_point_detail

void arm_crash_point() {
    const char* wanted = std::getenv("MAINSTAY_CRASH_POINT");
    if (!wanted || !*wanted) return;
    armed_name = wanted;
    long count = 1;
    if (const auto colon = armed_name.find(':'); colon != std::string::npos) {
        char* rest = nullptr;
        count = std::strtol(armed_name.c_str() + colon + 1, &rest, 10);
        if (*rest == ':') stall_ms = std::strtol(rest + 1, nullptr, 10);
        armed_name.resize(colon);
    }
    visits_left = count > 0 ? count : 1;
    crash_point_detail::armed = true;
}

}  // namespace mainstay
