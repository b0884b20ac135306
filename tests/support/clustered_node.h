#pragma once
// A node of a cluster, as far as actors see it (tests/support/actor_fixture.h): shards come and go, and with them what
// is awake.

#include <map>

#include "tests/support/actor_fixture.h"

namespace mainstay {

/// Leads every shard but those that it is told not to.
class Leads final : public ShardDirectory {
  public:
    std::map<uint16_t, ShardPlace::Where> other;
    Epoch epoch{1};
    uint16_t shard_count() const override { return shard_count_default; }
    ShardPlace find(ShardId shard) const override {
        const auto found = other.find(shard.value);
        if (found == other.end()) return {ShardPlace::Where::here, {}, epoch, {}};
        return {found->second, NodeUuid{9}, {}, {}};
    }
    void when_changed(uint64_t, std::function<void()>) override {}
    uint64_t version() const override { return 1; }
};

struct Clustered {
    Clustered() { node.node().shards = &leads; }
    void lose(const SessionKey& key, ShardPlace::Where where = ShardPlace::Where::there) {
        leads.other[shard(key).value] = where;
        caf::anon_send(node.supervisor(), ShardLost{shard(key)});
    }
    void lead(const SessionKey& key) {
        leads.other.erase(shard(key).value);
        ++leads.epoch.value;
        caf::anon_send(node.supervisor(), ShardLed{shard(key), leads.epoch});
    }
    ShardId shard(const SessionKey& key) const { return shard_of(key); }
    std::string number(const SessionKey& key) const { return std::to_string(shard(key).value); }

    Leads leads;
    ActorFixture node;
};

/// What a peer's call is answered.
class Answered final : public CallReply {
  public:
    void part(std::string bytes) override { parts.push_back(std::move(bytes)); }
    void end(std::optional<Error> failure) override {
        ++ended;
        error = std::move(failure);
    }
    bool cancelled() const override { return false; }
    std::vector<std::string> parts;
    size_t ended = 0;
    std::optional<Error> error;
};

}  // namespace mainstay
