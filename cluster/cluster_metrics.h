#pragma once
// What a node of a cluster shows of it, for Prometheus (docs/METRICS.md). Families and label values are resolved when
// this is made and are words of closed lists: no ids of nodes, shards or sessions. A node without a cluster has none of
// them.
//
// Follows figures that others keep (ShardFigures, CoordinatorFigures, LinkStats), once a second at most, so that
// nothing is counted twice and no entry waits for a registry. One thread, the shards' host; the registry outlives it.

#include <prometheus/registry.h>

#include <cstdint>
#include <memory>

#include "cluster/link.h"
#include "cluster/shard_figures.h"

namespace mainstay {

class ClusterMetrics {
  public:
    /// `shards`: of the cluster. `certificate_seconds`: how long this node's certificate lasts
    /// from now.
    ClusterMetrics(prometheus::Registry& registry, uint32_t shards, int64_t certificate_seconds);
    ~ClusterMetrics();
    ClusterMetrics(const ClusterMetrics&) = delete;
    ClusterMetrics& operator=(const ClusterMetrics&) = delete;

    void follow(const ShardFigures& figures, const CoordinatorFigures& coordinator);
    void follow(const LinkStats& link);

  private:
    struct Series;
    std::unique_ptr<Series> series_;
};

}  // namespace mainstay
