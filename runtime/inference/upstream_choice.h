#pragma once
// Which of a model's addresses to use: the first, in the author's order, that has not refused a connection lately. A
// submit never tries a second address by itself; the next attempt, which the supervisor decides, comes here again.
// Pure; the caller brings the time and the lock.

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/base/limits.h"

namespace mainstay {

class UpstreamChoice {
  public:
    /// Index into `urls` (not empty). Where all are cooling down, the one whose time ends first.
    size_t pick(const std::vector<std::string>& urls, uint64_t now_ms);
    void refused(const std::string& url, uint64_t now_ms);
    void answered(const std::string& url) { cool_until_ms_.erase(url); }

  private:
    std::unordered_map<std::string, uint64_t> cool_until_ms_;  // only of urls that refused
};

}  // namespace mainstay
