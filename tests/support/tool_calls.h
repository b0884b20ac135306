#pragma once
// Calls and lists of a tool host as a test wants them: asked, and waited for with a bound. Owned by the test's thread;
// the callbacks come from the host's.

#include <doctest/doctest.h>

#include <chrono>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/tool/mcp_stdio.h"

namespace mainstay {

constexpr std::chrono::seconds patience{30};  // far beyond what anything here takes; a bound, not a wait

/// Polls until `condition` holds; false after `patience`.
template <class F>
bool eventually(F&& condition) {
    const auto until = std::chrono::steady_clock::now() + patience;
    while (!condition()) {
        if (std::chrono::steady_clock::now() > until) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
}

template <class T>
T await(std::future<T>& future) {
    REQUIRE(future.wait_for(patience) == std::future_status::ready);
    return future.get();
}

/// The callback of a call; a second callback throws in the host's thread and ends the test binary.
inline std::pair<ToolDone, std::future<ToolOutcome>> expect_call() {
    auto promise = std::make_shared<std::promise<ToolOutcome>>();
    auto future = promise->get_future();
    return {[promise](uint64_t, ToolOutcome outcome) { promise->set_value(std::move(outcome)); }, std::move(future)};
}

/// What servers printed and what became of them.
class ToolLog {
  public:
    auto sink() {
        return [this](std::string_view server, std::string_view line) {
            std::lock_guard lock(mutex_);
            lines_.push_back(std::string(server) + ": " + std::string(line));
        };
    }
    std::vector<std::string> lines() const {
        std::lock_guard lock(mutex_);
        return lines_;
    }
    bool has(std::string_view part) const {
        std::lock_guard lock(mutex_);
        for (const auto& line : lines_) {
            if (line.find(part) != std::string::npos) return true;
        }
        return false;
    }
    /// Process id of the latest start; 0: none.
    int last_pid() const {
        constexpr std::string_view words = "started as process ";
        std::lock_guard lock(mutex_);
        for (auto line = lines_.rbegin(); line != lines_.rend(); ++line) {
            if (const auto at = line->find(words); at != std::string::npos) {
                return std::stoi(line->substr(at + words.size()));
            }
        }
        return 0;
    }

  private:
    mutable std::mutex mutex_;
    std::vector<std::string> lines_;
};

}  // namespace mainstay
