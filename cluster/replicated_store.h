#pragma once
// The Store that sessions know, where shards are replicated: reads from this node's copy, appends by way of the
// shard's primary, which must be here. What is acknowledged is in the state that a load sees.

#include <algorithm>

#include "cluster/shard_host.h"
#include "runtime/store/journal.h"
#include "runtime/store/record.h"

namespace mainstay {

class ReplicatedStore final : public Store {
  public:
    /// Both outlive it. `host` may come later (attach()), but before anything is appended.
    explicit ReplicatedStore(Store& disk, uint16_t shard_count) : disk_(disk), shard_count_(shard_count) {}
    void attach(ShardHost& host) { host_ = &host; }

    Result<void> admit(size_t bytes) override { return disk_.admit(bytes); }
    void append(Append append) override {
        const Sequence last{append.first_sequence.value + std::max(1u, append.event_count) - 1};
        const ShardId shard = shard_of(append.session, shard_count_);
        auto target = std::move(append.target);
        host_->propose(shard, append.led_in, std::make_shared<const std::string>(encode_entry(append)),
                       std::move(target), last);
    }

    Result<SessionImage> load(const SessionKey& key) override { return disk_.load(key); }
    Result<std::optional<std::string>> read_row(Table table, std::string_view key) override {
        return disk_.read_row(table, key);
    }
    Result<void> scan(Table table, std::string_view prefix, std::string_view from, size_t limit,
                      const std::function<bool(std::string_view, std::string_view)>& visit) override {
        return disk_.scan(table, prefix, from, limit, visit);
    }
    Result<std::optional<std::string>> read_turn(const SessionKey& key, TurnNo turn) override {
        return disk_.read_turn(key, turn);
    }
    std::vector<SessionKey> sessions_in_tail() override { return disk_.sessions_in_tail(); }
    std::vector<SessionKey> resting_in_tail() override { return disk_.resting_in_tail(); }
    void on_applied(std::function<void()> callback) override { disk_.on_applied(std::move(callback)); }
    Result<std::vector<std::string>> entities() override { return disk_.entities(); }
    Result<std::optional<std::string>> read_memory(const SessionKey& key) override { return disk_.read_memory(key); }
    StoreStats stats() const override { return disk_.stats(); }
    void flush() override { disk_.flush(); }

  private:
    Store& disk_;
    const uint16_t shard_count_;
    ShardHost* host_ = nullptr;
};

}  // namespace mainstay
