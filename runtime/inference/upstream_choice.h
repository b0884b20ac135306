#pragma once
// Which of a model's addresses to use. Replicas keep the attention state of the prefixes that they have seen, so a
// session goes to one of them for as long as that one can be reached: rendezvous hashing, each address has a weight for
// each session and the heaviest wins. Where one refuses connections only its own sessions move, spread over the others,
// and come back when it does; nothing is remembered for a session. A request of no session takes the first address.
//
// A submit never tries a second address by itself; the next attempt, which the supervisor decides, comes here again.
// Pure; the caller brings the time and the lock.

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/base/limits.h"

namespace mainstay {

class UpstreamChoice {
  public:
    /// Index into `urls` (not empty), of those that have not refused a connection lately: the heaviest for `affinity`,
    /// a hash of the session; 0: the first in the author's order. Where all are cooling down, the one whose time ends
    /// first.
    size_t pick(const std::vector<std::string>& urls, uint64_t affinity, uint64_t now_ms);
    void refused(const std::string& url, uint64_t now_ms);
    void answered(const std::string& url) { cool_until_ms_.erase(url); }

  private:
    std::unordered_map<std::string, uint64_t> cool_until_ms_;  // only of urls that refused
};

}  // namespace mainstay
