#pragma once
// This node's place in a cluster: coordinator, links and shards put together, what people ask of the cluster, and
// placement when it falls to this node. Who uses it gives callbacks for what is not the cluster's own: sessions and
// the door.
//
// Order of life: make(), which reads the certificates and asks etcd what the cluster is like; the store is opened with
// that; then a ClusterNode, start(), and at the end leave() and stop().

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cluster/cluster_admin.h"
#include "cluster/cluster_metrics.h"
#include "cluster/etcd_coordinator.h"
#include "cluster/link.h"
#include "cluster/placement.h"
#include "cluster/shard_host.h"

namespace mainstay {

/// What an operator says of the cluster (config/mainstay.toml).
struct ClusterSettings {
    std::string directory;  // cluster.id, ca.pem, node.pem, node.key
    EtcdSettings etcd;      // cluster, self and details are filled in
    std::string link_address, link_advertise;
    std::string zone, version;
    std::vector<std::string> models = {"*"};  // NodeDetails::models
    ClusterMeta wanted;                       // of a new cluster
    uint32_t lease_ms = limits::node_lease_ms;
    TimeMs hand_over_hold_ms = limits::hand_over_unfollowed_ms;  // ClusterCallbacks::busy is heeded for so long
};

/// Who this node is, and what the cluster is like.
struct ClusterIdentity {
    ClusterMeta meta;
    LiveNode self;
};

/// From certificates and etcd, which is asked again until it answers, for `patience_ms`. `disk` and `incarnation` are
/// of the data directory and this process. Errors: those of certificates; coordinator_unavailable; conflict where the
/// cluster was made with other bounds than this release has.
Result<ClusterIdentity> find_cluster(const ClusterSettings& settings, const NodeUuid& disk, uint64_t incarnation,
                                     uint32_t patience_ms);

struct ClusterCallbacks {
    std::function<void(ShardId, Epoch)> led;  // host's thread, must not block
    std::function<void(ShardId)> lost;        // likewise
    /// Likewise: a planned hand-over of this shard to that node had better wait.
    std::function<bool(ShardId, const NodeUuid& to, TimeMs held_ms)> busy;
    std::function<void(const NodeUuid&)> peer_up;  // link's thread, must not block
    /// Link's thread, must not block. Null: such calls are refused.
    std::function<void(const NodeUuid&from, std::string request, std::shared_ptr<CallReply> reply)> hop, shard_call,
        model_step, kv_call, left_work;
};

class ClusterNode final : public ClusterAdmin, private ShardHostEvents, private LinkHandler {
  public:
    /// `log` and `registry` outlive it. `first_copy`: the store was adopted and this is its first start in a cluster.
    ClusterNode(ClusterSettings settings, ClusterIdentity identity, ShardLog& log, ClusterCallbacks callbacks,
                std::optional<Epoch> first_copy, prometheus::Registry& registry);
    ~ClusterNode() override;

    ShardHost& host() { return host_; }
    const ClusterIdentity& identity() const { return identity_; }
    /// As it was last read; null: never.
    std::shared_ptr<const ClusterView> view() const { return host_.view(); }

    /// Opens the link's port and joins. `client_address`: where clients reach this node.
    Result<void> start(const std::string& client_address);
    /// Hands over what this node leads, within `patience_ms`, and gives the lease back.
    void leave(uint32_t patience_ms);
    /// Ends all threads; calls under way end with errors.
    void stop();

    /// Asks another node, in the words of Link::call; any thread, at any time. Before start() and after stop() nothing
    /// is sent: on_end comes at once, with misdirected, and no handle.
    std::shared_ptr<LinkCall> call_node(const NodeUuid& to, CallKind kind, std::string request,
                                        std::function<void(std::string part)> on_part,
                                        std::function<void(std::optional<Error>)> on_end, uint32_t timeout_ms);
    /// The same for an answer that is used whole.
    void ask_node(const NodeUuid& to, CallKind kind, std::string request, uint32_t timeout_ms,
                  std::function<void(Result<std::string>)> done);
    /// There is a link to it; any thread, at any time.
    bool linked(const NodeUuid& node) const;

    // --- ClusterAdmin, any thread
    uint16_t shard_count() const override { return identity_.meta.shards; }
    void status(Answer<ClusterStatus> done) override;
    void nodes(Answer<std::vector<ClusterNodeInfo>> done) override;
    void shards(Answer<std::vector<ClusterShardInfo>> done) override;
    void decisions(std::optional<ShardId> shard, size_t limit, Answer<std::vector<PlacementDecision>> done) override;
    void drain(const NodeUuid& node, bool on, Answer<ClusterNodeInfo> done) override;
    void move(ShardId shard, const NodeUuid& to, Answer<ClusterShardInfo> done) override;
    void force_lead(ShardId shard, uint64_t last_index, const std::string& who, Answer<ClusterShardInfo> done) override;

  private:
    void led(ShardId shard, Epoch epoch) override;
    void lost(ShardId shard, Epoch epoch) override;
    void viewed(const ClusterView& view) override;
    void figures(const ShardFigures& figures, const CoordinatorFigures& coordinator) override;
    void peer_up(const NodeUuid& node, uint64_t) override {
        if (callbacks_.peer_up) callbacks_.peer_up(node);
    }
    void replication(const NodeUuid& from, std::vector<ReplicationMessage> messages) override;
    void call(const NodeUuid& from, CallKind kind, std::string request, std::shared_ptr<CallReply> reply) override;

    void plan(const ClusterView& view);
    std::vector<ClusterNodeInfo> node_infos() const;
    std::vector<ClusterShardInfo> shard_infos() const;
    void change_record(ShardChange change, ShardId shard, std::string what, std::string why,
                       Answer<ClusterShardInfo> done);

    const ClusterSettings settings_;
    const ClusterIdentity identity_;
    const ClusterCallbacks callbacks_;
    ShardHost host_;
    std::unique_ptr<EtcdCoordinator> coordinator_;
    mutable std::mutex link_mutex_;  // held while others than the host's threads use the link: stop() takes it away
    std::unique_ptr<Link> link_;
    ClusterMetrics metrics_;  // host's thread
    PlacementSelf self_;      // host's thread
    PlacementWatch watch_;    // host's thread
    std::atomic<size_t> placing_{0};
};

}  // namespace mainstay
