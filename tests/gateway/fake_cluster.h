#pragma once
// A cluster of a few values, for tests of the door: what it is asked is kept, what it answers is the test's. Answers
// come on a thread of their own, as a real one's do.

#include <mutex>
#include <string>
#include <vector>

#include "cluster/cluster_admin.h"
#include "gateway/fake_bridge.h"

namespace mainstay {

class FakeCluster final : public ClusterAdmin {
  public:
    uint16_t shard_count() const override { return 8; }
    void status(Answer<ClusterStatus> done) override { later(std::move(done), status_now); }
    void nodes(Answer<std::vector<ClusterNodeInfo>> done) override { later(std::move(done), nodes_now); }
    void shards(Answer<std::vector<ClusterShardInfo>> done) override { later(std::move(done), shards_now); }
    void decisions(std::optional<ShardId> shard, size_t limit, Answer<std::vector<PlacementDecision>> done) override {
        keep("decisions " + (shard ? std::to_string(shard->value) : "all") + " " + std::to_string(limit));
        later(std::move(done), decisions_now);
    }
    void drain(const NodeUuid& node, bool on, Answer<ClusterNodeInfo> done) override {
        keep((on ? "drain " : "undrain ") + to_text(node));
        ClusterNodeInfo info;
        for (const auto& one : nodes_now)
            if (one.node.name.node == node) info = one;
        info.draining = on;
        later(std::move(done), info);
    }
    void move(ShardId shard, const NodeUuid& to, Answer<ClusterShardInfo> done) override {
        keep("move " + std::to_string(shard.value) + " " + to_text(to));
        answer_shard(shard, std::move(done), to);
    }
    void force_lead(ShardId shard, uint64_t last_index, const std::string& who,
                    Answer<ClusterShardInfo> done) override {
        keep("force_lead " + std::to_string(shard.value) + " " + std::to_string(last_index) + " by " + who);
        answer_shard(shard, std::move(done), {});
    }
    std::vector<std::string> asked() {
        std::lock_guard lock(mutex_);
        return asked_;
    }

    ClusterStatus status_now;
    std::vector<ClusterNodeInfo> nodes_now;
    std::vector<ClusterShardInfo> shards_now;
    std::vector<PlacementDecision> decisions_now;
    std::optional<Error> fails;  // instead of any answer
    bool drops = false;          // no answer at all

  private:
    template <class T>
    void later(Answer<T> done, T value) {
        if (drops) return;
        worker_.post(
            [done = std::move(done), value = std::move(value), fails = fails] { fails ? done(*fails) : done(value); });
    }
    void answer_shard(ShardId shard, Answer<ClusterShardInfo> done, std::optional<NodeUuid> target) {
        for (auto one : shards_now) {
            if (one.record.shard != shard) continue;
            one.record.target = target;
            return later(std::move(done), one);
        }
        worker_.post([done = std::move(done)] { done(Error{ErrorCode::shard_not_found, "There are 2.", "shard"}); });
    }
    void keep(std::string what) {
        std::lock_guard lock(mutex_);
        asked_.push_back(std::move(what));
    }
    std::mutex mutex_;
    std::vector<std::string> asked_;
    Worker worker_;
};

}  // namespace mainstay
