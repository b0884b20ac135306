#pragma once
// How long a session's blocks stay on the device while a tool runs. For each tool the durations of its calls are kept
// as a histogram; the time to keep is the one that is expected to win most: what a return in time saves, minus what the
// blocks could have done for others meanwhile (Continuum, InferCept). Without pressure on the device's memory
// everything stays. Pure; one owner, the scheduler.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

namespace mainstay {

struct PauseTerms {
    double saved_us = 0;        // by a return in time: the cheaper of computing and loading, and waiting for it
    double cost_us_per_us = 0;  // of keeping the blocks: 0 while blocks are free
    uint64_t keep_max_us = 60'000'000;
};

class ToolDurations {
  public:
    /// Tools beyond `measured_tools_max` share one histogram.
    void record(std::string_view tool, uint64_t us);
    uint64_t samples(std::string_view tool) const;
    /// Microseconds; 0: let go at once. A tool of which nothing is known is taken as any tool.
    uint64_t keep_us(std::string_view tool, const PauseTerms& terms) const;

  private:
    static constexpr size_t buckets = 28;  // bucket i: below 128 us * 2^i; the last one is open
    static constexpr uint64_t edge(size_t bucket) { return 128ull << bucket; }
    struct Histogram {
        std::array<uint32_t, buckets> count{};
        uint64_t total = 0;
        void add(size_t bucket);
    };
    const Histogram& of(std::string_view tool) const;

    std::unordered_map<std::string, Histogram> tools_;
    Histogram any_;
};

}  // namespace mainstay
