#include "runtime/inference/upstream_choice.h"

#include <optional>

#include "runtime/base/digest.h"
#include "runtime/base/invariant.h"

namespace mainstay {

size_t UpstreamChoice::pick(const std::vector<std::string>& urls, uint64_t affinity, uint64_t now_ms) {
    INVARIANT(!urls.empty(), "a model with upstreams has an address");
    std::optional<size_t> best;
    uint64_t weight = 0;
    size_t soonest = 0;
    uint64_t soonest_ms = UINT64_MAX;
    for (size_t i = 0; i < urls.size(); ++i) {
        const auto cooling = cool_until_ms_.find(urls[i]);
        if (cooling != cool_until_ms_.end() && cooling->second > now_ms) {
            if (cooling->second < soonest_ms) {
                soonest = i;
                soonest_ms = cooling->second;
            }
            continue;
        }
        if (affinity == 0) return i;
        const uint64_t own = xxh64(urls[i], affinity);  // of the address, not of its place: a list may grow
        if (best && own <= weight) continue;
        best = i;
        weight = own;
    }
    return best.value_or(soonest);
}

void UpstreamChoice::refused(const std::string& url, uint64_t now_ms) {
    std::erase_if(cool_until_ms_, [now_ms](const auto& entry) { return entry.second <= now_ms; });
    cool_until_ms_[url] = now_ms + limits::upstream_cooldown_ms;
}

}  // namespace mainstay
