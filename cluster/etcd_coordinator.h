#pragma once
// The coordinator's contract over etcd (v3, HTTP/JSON gateway). Every change is one transaction that compares the
// record (its mod_revision is the config_version) and the leases it depends on, so the guarantees are etcd's; what this
// adds is honesty about what it does not know. Keys and values: docs/formats/coordinator.md.
//
// Any thread; no call waits for another, so a lease is kept alive while a list is slow. One thread of its own watches,
// from the first on_hint(). No call may be under way when the object is destroyed, which may wait for the watch's own:
// up to request_timeout_ms where etcd is silent.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cluster/coordinator.h"
#include "cluster/etcd_client.h"
#include "runtime/base/limits.h"

namespace mainstay {

struct EtcdSettings {
    std::vector<std::string> urls;  // of the members of one etcd, at least one
    std::string user, password;     // empty user: none
    std::string ca_file;            // PEM; empty: the system's
    std::string certificate_file, key_file;
    ClusterUuid cluster{};  // others in the same etcd are neither seen nor touched
    LiveNode self;
    NodeDetails details;
    uint32_t lease_ms = limits::node_lease_ms;  // etcd counts in seconds: rounded up
    uint32_t request_timeout_ms = limits::coordinator_request_timeout_ms;
    uint32_t page_keys = limits::coordinator_answer_bytes_max / 4096;  // of a list; no value of ours is as large
    uint32_t trail_days = 8;             // so long are decisions kept, or a day less; then etcd forgets them
    uint32_t watch_silence_ms = 30'000;  // then the watch is opened anew, perhaps elsewhere
};

class EtcdCoordinator final : public ClusterCoordinator {
  public:
    /// Asks nothing of etcd yet. Errors: unsupported_value (a URL, or a detail that is not UTF-8 or too long).
    static Result<std::unique_ptr<EtcdCoordinator>> open(EtcdSettings settings);
    ~EtcdCoordinator() override;
    EtcdCoordinator(const EtcdCoordinator&) = delete;
    EtcdCoordinator& operator=(const EtcdCoordinator&) = delete;

    ReplicaName self() const override { return settings_.self.name; }
    uint64_t incarnation() const override { return settings_.self.incarnation; }

    // Errors of all: coordinator_unavailable; state_damaged naming a key whose value cannot be read.
    Result<ShardRecord> ownership(ShardId shard) override;
    Result<ClusterMeta> meta(const ClusterMeta& if_absent) override;
    Result<void> join() override;
    Result<void> keep_alive() override;
    Result<void> leave() override;
    Result<void> set_draining(const NodeUuid& node, bool draining) override;
    Result<ClusterView> list() override;
    ChangeAnswer change(const ShardChange& change) override;
    Result<std::vector<PlacementDecision>> decisions(std::optional<ShardId> shard, size_t limit) override;
    void on_hint(std::function<void()> callback) override;

  private:
    explicit EtcdCoordinator(EtcdSettings settings);

    std::string node_key(const Incarnation& incarnation) const;
    std::string shard_key(ShardId shard) const;
    std::string forced_key(const ForcedLead& forced) const;
    std::string trail_prefix() const { return prefix_ + "trail/"; }
    /// Of everything but the trail, which is read when somebody asks for it.
    std::string listed_end() const { return trail_prefix(); }
    /// The lease that new decisions hang on; 0: none can be had now.
    int64_t trail_lease(EtcdDeadline deadline);
    EtcdDeadline deadline() const;
    /// The time that a lease has left in seconds, prolonged; 0: there is no such lease.
    Result<int64_t> prolong(int64_t lease, EtcdDeadline deadline);
    Result<int64_t> grant(int64_t seconds, EtcdDeadline deadline);
    EtcdAnswer revoke(int64_t lease, EtcdDeadline deadline);
    /// Revision 0: as it is now; then `revision` is set to that of the answer. False: compacted, begin again.
    Result<bool> list_page(std::string& from, int64_t& revision, bool& more, ClusterView& view, EtcdDeadline deadline);
    Result<void> take_pair(const std::string& key, const std::string& value, int64_t mod_revision, ClusterView& view);
    void watch();
    /// Until the stream ends. True: it had come up.
    bool watch_once();
    void hint();

    const EtcdSettings settings_;
    const std::string prefix_;
    EtcdClient client_;

    std::mutex join_lock_;  // one join() or leave() at a time
    // The lease that was granted for this incarnation. It counts once the node's key is known to hang on it; until then
    // an earlier request of ours may still put it there, so it is used again rather than replaced.
    int64_t candidate_ = 0;                 // under join_lock_
    std::atomic<int64_t> joined_lease_{0};  // 0: none

    std::mutex trail_lock_;
    int64_t trail_lease_ = 0;                            // under trail_lock_
    std::chrono::steady_clock::time_point trail_since_;  // likewise

    std::mutex hint_lock_;
    std::condition_variable stopping_;
    std::function<void()> callback_;
    bool stop_ = false;
    HttpCall watch_connection_;
    std::thread watcher_;
};

}  // namespace mainstay
