#pragma once
// What one model on devices of our own counts, for Prometheus (docs/METRICS.md). Every series that can be known when
// the model is made is made then, the rest when a device opens, so that counting is one atomic addition. Labels: the
// model's name and a worker's index, which are the operator's configuration, and words of closed lists. Sequences are
// counted when they end; totals and states are followed from the scheduler's own figures, once a second at most.
//
// Two versions of one model may run for a while and share their series: counters add up, and so do gauges, each of
// which moves by what changed and goes back when this is destroyed.
//
// One owner, the token scheduler. The registry outlives it.

#include <prometheus/registry.h>

#include <memory>
#include <string>

#include "actors/worker_info.h"

namespace mainstay {

class TokenMetrics {
  public:
    /// `workers`: how many the model will have; their indices are below it.
    TokenMetrics(prometheus::Registry& registry, const std::string& model, uint32_t workers);
    ~TokenMetrics();
    TokenMetrics(const TokenMetrics&) = delete;
    TokenMetrics& operator=(const TokenMetrics&) = delete;

    /// A sequence, however it ended. Allocates nothing.
    void ended(const SequenceEnded& sequence);
    /// The device of a worker: from here on its seconds and joules are counted, labelled as simulated or not.
    void opened(uint32_t worker, bool simulated);
    /// The worker was lost, and with it the totals of its device: call follow() before, for what they had become.
    void lost(uint32_t worker);
    /// Blocks that the tier on disk dropped for want of room.
    void evicted_from_disk(size_t blocks);
    /// Totals, which only grow while a device lives, and states as they are.
    void follow(const ModelInfo& info);

  private:
    struct Series;
    struct WorkerSeries;
    std::unique_ptr<Series> series_;
};

}  // namespace mainstay
