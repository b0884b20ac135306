#include "runtime/inference/upstream_choice.h"

#include "runtime/base/invariant.h"

namespace mainstay {

size_t UpstreamChoice::pick(const std::vector<std::string>& urls, uint64_t now_ms) {
    INVARIANT(!urls.empty(), "a model with upstreams has an address");
    size_t soonest = 0;
    uint64_t soonest_ms = UINT64_MAX;
    for (size_t i = 0; i < urls.size(); ++i) {
        const auto found = cool_until_ms_.find(urls[i]);
        if (found == cool_until_ms_.end() || found->second <= now_ms) return i;
        if (found->second < soonest_ms) {
            soonest = i;
            soonest_ms = found->second;
        }
    }
    return soonest;
}

void UpstreamChoice::refused(const std::string& url, uint64_t now_ms) {
    std::erase_if(cool_until_ms_, [now_ms](const auto& entry) { return entry.second <= now_ms; });
    cool_until_ms_[url] = now_ms + limits::upstream_cooldown_ms;
}

}  // namespace mainstay
