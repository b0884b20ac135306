#pragma once
// Which shards have tool calls under way, from dispatch until the receipt is committed: while one has, a planned
// hand-over waits for a while, because a call whose node lost its session ends as `unknown`. Any thread.

#include <atomic>
#include <memory>
#include <vector>

#include "runtime/base/id.h"

namespace mainstay {

class ShardActivity {
  public:
    /// Of a node that is alone: nobody asks.
    ShardActivity() : ShardActivity(0) {}
    explicit ShardActivity(size_t shards) : calls_(std::make_shared<std::vector<std::atomic<uint32_t>>>(shards)) {}

    /// Counts until the last copy of what it returns is gone.
    std::shared_ptr<void> begin(ShardId shard) const {
        if (shard.value >= calls_->size()) return nullptr;
        auto& calls = (*calls_)[shard.value];
        calls.fetch_add(1, std::memory_order_relaxed);
        // The deleter keeps the counters: a session may outlive whoever asks.
        return {&calls, [counters = calls_, &calls](void*) { calls.fetch_sub(1, std::memory_order_relaxed); }};
    }
    bool busy(ShardId shard) const { return (*calls_)[shard.value].load(std::memory_order_relaxed) > 0; }

  private:
    std::shared_ptr<std::vector<std::atomic<uint32_t>>> calls_;
};

}  // namespace mainstay
