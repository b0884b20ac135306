#include "runtime/inference/tool_pause.h"

#include <algorithm>

#include "runtime/base/limits.h"

namespace mainstay {
namespace {

constexpr uint64_t samples_max = 512;  // then all counts are halved: what was long ago fades

}  // namespace

void ToolDurations::Histogram::add(size_t bucket) {
    if (total >= samples_max) {
        total = 0;
        for (uint32_t& n : count) total += n /= 2;
    }
    ++count[bucket];
    ++total;
}

void ToolDurations::record(std::string_view tool, uint64_t us) {
    size_t bucket = 0;
    while (bucket + 1 < buckets && us >= edge(bucket)) ++bucket;
    any_.add(bucket);
    auto found = tools_.find(std::string(tool));
    if (found == tools_.end()) {
        if (tools_.size() >= limits::measured_tools_max) return;
        found = tools_.try_emplace(std::string(tool)).first;
    }
    found->second.add(bucket);
}

const ToolDurations::Histogram& ToolDurations::of(std::string_view tool) const {
    const auto found = tools_.find(std::string(tool));
    return found == tools_.end() ? any_ : found->second;
}

uint64_t ToolDurations::samples(std::string_view tool) const {
    const auto found = tools_.find(std::string(tool));
    return found == tools_.end() ? 0 : found->second.total;
}

uint64_t ToolDurations::keep_us(std::string_view tool, const PauseTerms& terms) const {
    const Histogram& durations = of(tool);
    if (terms.cost_us_per_us <= 0 || durations.total == 0) return terms.keep_max_us;
    // tau = argmax P(T <= tau) * saved - cost * E[min(T, tau)], over the edges of the buckets.
    double best = 0;
    uint64_t best_us = 0;
    double within = 0, spent = 0;  // share of calls below the edge, and what they kept the blocks for
    for (size_t i = 0; i + 1 < buckets && edge(i) <= terms.keep_max_us; ++i) {
        const double share = double(durations.count[i]) / double(durations.total);
        within += share;
        spent += share * double(i == 0 ? edge(0) / 2 : edge(i - 1) + edge(i - 1) / 2);
        const double kept = spent + (1 - within) * double(edge(i));
        const double gain = within * terms.saved_us - terms.cost_us_per_us * kept;
        if (gain > best) {
            best = gain;
            best_us = edge(i);
        }
    }
    return best_us;
}

}  // namespace mainstay
