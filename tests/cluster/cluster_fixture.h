#pragma once
// A shard's members driven by hand: messages wait until a case delivers or drops them, groups until it syncs them, and
// changes until it settles them against a MemoryCluster. For cases about one order of things; orders by the thousand
// are the simulator's (tests/cluster_sim).

#include <doctest/doctest.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "cluster/memory_coordinator.h"
#include "cluster/shard_member.h"

namespace mainstay {

inline std::shared_ptr<const std::string> text(const std::string& bytes) {
    return std::make_shared<const std::string>(bytes);
}

inline ReplicaName replica_name(uint8_t node, uint8_t disk = 1) {
    ReplicaName name;
    name.node[0] = node;
    name.disk[0] = disk;
    return name;
}

/// An entry that follows `previous`.
inline LogEntry entry_after(const LogPosition& previous, uint64_t epoch, const std::string& bytes) {
    LogEntry entry;
    entry.epoch = Epoch(epoch);
    entry.index = previous.index + 1;
    entry.payload = text(bytes);
    entry.chain = chain_of(previous.chain, entry);
    return entry;
}

/// One node: its member, its disk, and what it has asked for.
struct TestNode {
    LiveNode self;
    std::unique_ptr<ShardMember> member;
    DurableShard disk;
    std::deque<WriteGroup> groups;
    std::deque<ReplicationMessage> sent;
    std::deque<ShardOutputs::Change> changes;
    ShardOutputs last;
    std::vector<uint64_t> reads_ready;
    uint64_t committed = 0;
    std::optional<Epoch> stepped_down;
};

struct TestCluster {
    MemoryCluster coordinator{5000};
    TimeMs now = 10'000;
    std::deque<TestNode> nodes;
    ReplicationSettings settings;

    explicit TestCluster(size_t count, uint32_t min_in_sync = 2) {
        settings.probation_ms = 1000;
        coordinator.advance(now);
        ShardChange first;
        for (size_t i = 0; i < count; ++i) {
            TestNode& node = nodes.emplace_back();
            node.self.name = replica_name(static_cast<uint8_t>(i + 1));
            node.self.incarnation = 100 + i;
            first.desired.in_sync.push_back(node.self.name);
            first.desired.replicas.push_back(node.self.name.node);
            start(i);
        }
        first.desired.epoch = Epoch(1);
        first.desired.primary = nodes[0].self.name;
        first.desired.incarnation = nodes[0].self.incarnation;
        first.desired.min_in_sync = min_in_sync;
        REQUIRE(coordinator.change(first).outcome == ChangeOutcome::ok);
    }

    ShardRecord record() const { return *coordinator.record(ShardId()); }
    void start(size_t n) {
        TestNode& node = nodes[n];
        REQUIRE(coordinator.join(node.self));
        MemberIdentity identity;
        identity.self = node.self.name;
        identity.incarnation = node.self.incarnation;
        node.groups.clear();
        node.sent.clear();
        node.changes.clear();
        node.member = std::make_unique<ShardMember>(identity, node.disk, settings);
    }
    /// Another process on the same disk. What was not synced is gone.
    void restart(size_t n) {
        nodes[n].self.incarnation += 1000;
        start(n);
    }
    const ShardOutputs& input(size_t n, const ShardInput& what) {
        TestNode& node = nodes[n];
        node.member->step(what, now, node.last);
        for (const auto& group : node.last.writes) node.groups.push_back(group);
        for (const auto& message : node.last.sends) node.sent.push_back(message);
        for (const auto& change : node.last.changes) node.changes.push_back(change);
        for (const uint64_t token : node.last.reads_ready) node.reads_ready.push_back(token);
        if (node.last.committed) node.committed = *node.last.committed;
        if (node.last.step_down) node.stepped_down = node.last.step_down;
        return node.last;
    }
    void list(size_t n) { input(n, RecordRead{record(), coordinator.list().nodes}); }
    void sync(size_t n) {
        TestNode& node = nodes[n];
        while (!node.groups.empty()) {
            const WriteGroup group = node.groups.front();
            node.groups.pop_front();
            if (group.promise) node.disk.promised = *group.promise;
            if (group.truncate_to)
                std::erase_if(node.disk.entries, [&](const LogEntry& e) { return e.index > *group.truncate_to; });
            for (const auto& entry : group.entries) node.disk.entries.push_back(entry);
            node.disk.commit = group.commit;
            input(n, GroupSynced{group.ticket});
        }
    }
    /// Everything that `from` has sent: to `to` if it is there, else dropped.
    void deliver(size_t from, std::optional<size_t> to) {
        auto sent = std::move(nodes[from].sent);
        nodes[from].sent.clear();
        for (const auto& message : sent)
            if (to && message.to == nodes[*to].self.name)
                input(*to, message);
            else if (to)
                nodes[from].sent.push_back(message);
    }
    void settle(size_t n, std::optional<ChangeOutcome> instead = std::nullopt) {
        TestNode& node = nodes[n];
        REQUIRE(!node.changes.empty());
        const auto change = node.changes.front();
        node.changes.pop_front();
        ChangeAnswer answer{instead.value_or(ChangeOutcome::ok), 0};
        if (!instead) answer = coordinator.change(change.change);
        input(n, ChangeSettled{change.request, answer});
    }
    /// Messages and syncs among these nodes until there are none.
    void run(const std::vector<size_t>& among) {
        for (int round = 0; round < 50; ++round) {
            bool busy = false;
            for (const size_t n : among) {
                busy = busy || !nodes[n].groups.empty();
                sync(n);
                auto sent = std::move(nodes[n].sent);
                nodes[n].sent.clear();
                for (const auto& message : sent)
                    for (const size_t to : among)
                        if (message.to == nodes[to].self.name) {
                            busy = true;
                            input(to, message);
                        }
            }
            if (!busy) return;
        }
    }
    void pass(TimeMs ms, const std::vector<size_t>& among) {
        for (TimeMs end = now + ms; now < end;) {
            now += 50;
            coordinator.advance(now);
            for (const size_t n : among) {
                coordinator.keep_alive({nodes[n].self.name.node, nodes[n].self.incarnation});
                input(n, ShardTick{});
            }
            run(among);
        }
    }
    /// The first node serves its first epoch, and all are in step.
    void begin() {
        std::vector<size_t> all;
        for (size_t n = 0; n < nodes.size(); ++n) {
            list(n);
            all.push_back(n);
        }
        run(all);
        pass(200, all);
        REQUIRE(nodes[0].member->serving() == Epoch(1));
    }
    uint64_t propose(size_t n, const std::string& bytes) {
        const auto& out = input(n, Propose{1, {text(bytes)}});
        return out.proposed.empty() ? 0 : out.proposed.front().index;
    }
};

}  // namespace mainstay
