#pragma once
// What every coordinator of many nodes promises, as cases that each driver's test runs on its own world: two nodes of
// one cluster, both joined, and a way to let a lease run out.

#include <doctest/doctest.h>

#include <algorithm>

#include "cluster/coordinator.h"

namespace mainstay {

inline LiveNode contract_node(uint8_t n, uint64_t incarnation) {
    LiveNode out;
    out.name.node[0] = n;
    out.name.disk[0] = n;
    out.incarnation = incarnation;
    return out;
}
inline NodeDetails contract_details(uint8_t n) {
    NodeDetails out;
    out.link_address = "10.0.0." + std::to_string(n) + ":7000";
    out.client_address = "http://node-" + std::to_string(n) + ":8080";
    out.zone = "z\xc3\xbcrich-" + std::to_string(n);
    out.version = "1.2.3";
    out.capacity = n;
    out.events = n;
    return out;
}

/// Node 1 with incarnation 11 and node 2 with 22, joined, with contract_details.
class ContractWorld {
  public:
    virtual ~ContractWorld() = default;
    virtual ClusterCoordinator& one() = 0;
    virtual ClusterCoordinator& two() = 0;
    /// Returns when the lease of node 1 is gone; that of node 2 was kept alive.
    virtual void expire_one() = 0;
    virtual ClusterUuid cluster() const = 0;
};

inline ShardChange contract_change(ContractWorld& world, uint64_t expected, uint64_t epoch) {
    ShardChange out;
    out.expected_version = expected;
    out.desired.shard = ShardId(7);
    out.desired.epoch = Epoch(epoch);
    out.desired.primary = world.one().self();
    out.desired.incarnation = world.one().incarnation();
    out.desired.in_sync = {world.one().self(), world.two().self()};
    return out;
}

inline void check_compare_and_set(ContractWorld& world) {
    CHECK(world.one().ownership(ShardId(7)).error().code == ErrorCode::not_found);
    const auto made = world.one().change(contract_change(world, 0, 1));
    REQUIRE(made.outcome == ChangeOutcome::ok);
    CHECK(world.two().change(contract_change(world, 0, 1)).outcome == ChangeOutcome::conflict);
    // The same content again is a change all the same: it settles whatever was under way.
    const auto again = world.two().change(contract_change(world, made.config_version, 1));
    REQUIRE(again.outcome == ChangeOutcome::ok);
    CHECK(again.config_version > made.config_version);
    CHECK(world.one().change(contract_change(world, made.config_version, 2)).outcome == ChangeOutcome::conflict);
    CHECK(world.one().ownership(ShardId(7))->config_version == again.config_version);
    CHECK(world.one().ownership(ShardId(7))->epoch == Epoch(1));
}

inline void check_leases_are_compared(ContractWorld& world) {
    const uint64_t version = world.one().change(contract_change(world, 0, 1)).config_version;
    auto take_over = contract_change(world, version, 2);
    take_over.gone = Incarnation{world.one().self().node, 11};
    CHECK(world.two().change(take_over).outcome == ChangeOutcome::conflict);
    world.expire_one();
    CHECK(world.one().keep_alive().error().code == ErrorCode::conflict);
    CHECK(world.two().join().error().code == ErrorCode::conflict);  // it has one
    auto grow = contract_change(world, version, 1);
    grow.present = {Incarnation{world.two().self().node, 22}, Incarnation{world.one().self().node, 11}};
    CHECK(world.two().change(grow).outcome == ChangeOutcome::conflict);
    REQUIRE(world.two().list()->nodes.size() == 1);
    CHECK(world.two().list()->nodes[0] == contract_node(2, 22));
    CHECK(world.two().change(take_over).outcome == ChangeOutcome::ok);
    CHECK(world.one().join());  // late: the record names somebody else by now
    CHECK(world.two().change(grow).outcome == ChangeOutcome::conflict);
    grow.expected_version = world.one().ownership(ShardId(7))->config_version;
    CHECK(world.two().change(grow).outcome == ChangeOutcome::ok);
    // A lease that is given back is gone at once.
    take_over.expected_version = world.one().ownership(ShardId(7))->config_version;
    CHECK(world.two().change(take_over).outcome == ChangeOutcome::conflict);
    CHECK(world.one().leave());
    CHECK(world.one().leave());
    CHECK(world.two().change(take_over).outcome == ChangeOutcome::ok);
    CHECK(world.one().keep_alive().error().code == ErrorCode::conflict);
    CHECK(world.one().join());
    CHECK(world.one().keep_alive());
}

inline void check_list_is_whole(ContractWorld& world) {
    ShardRecord full;
    full.epoch = Epoch(~0ull);
    full.primary = world.one().self();
    full.incarnation = ~0ull;
    for (uint8_t n = 1; n <= 7; ++n) {
        full.in_sync.push_back(contract_node(n, 0).name);
        full.replicas.push_back(contract_node(n, 0).name.node);
    }
    full.target = world.two().self().node;
    full.min_in_sync = 2;
    std::vector<ShardRecord> made;
    for (const uint16_t shard : {uint16_t{10}, uint16_t{2}, uint16_t{4095}, uint16_t{0}}) {
        ShardChange change;
        change.desired = full;
        change.desired.shard = ShardId(shard);
        if (shard == 2) change.desired.target.reset();
        if (shard == 0) {
            change.desired.replicas.clear();
            change.desired.in_sync.clear();
        }
        change.desired.config_version = world.one().change(change).config_version;
        made.push_back(change.desired);
    }
    std::sort(made.begin(), made.end(), [](const auto& a, const auto& b) { return a.shard < b.shard; });
    CHECK(world.one().set_draining(world.two().self().node, true));
    CHECK(world.one().set_draining(world.two().self().node, true));
    NodeUuid absent{};
    absent[15] = 9;
    CHECK(world.two().set_draining(absent, true));
    const auto view = world.two().list();
    REQUIRE(view.ok());
    CHECK(view->shards == made);
    CHECK(view->nodes == std::vector{contract_node(1, 11), contract_node(2, 22)});
    CHECK(view->details == std::vector{contract_details(1), contract_details(2)});
    CHECK(view->draining == std::vector{absent, world.two().self().node});
    CHECK(world.one().set_draining(world.two().self().node, false));
    CHECK(world.one().set_draining(world.two().self().node, false));
    CHECK(world.one().list()->draining == std::vector{absent});
}

inline void check_force_is_kept(ContractWorld& world) {
    auto change = contract_change(world, 0, 1);
    const uint64_t version = world.one().change(change).config_version;
    ForcedLead forced;
    forced.shard = ShardId(7);
    forced.epoch = Epoch(~0ull);
    forced.at_ms = 1'700'000'000'000;
    forced.copy = world.two().self();
    forced.last_index = 12;
    forced.in_sync = {world.one().self(), world.two().self()};
    forced.who = "somebody \xc3\xbc";
    change.forced = forced;
    CHECK(world.two().change(change).outcome == ChangeOutcome::conflict);
    CHECK(world.one().list()->forced.empty());  // what did not happen is not told
    change.expected_version = version;
    REQUIRE(world.two().change(change).outcome == ChangeOutcome::ok);
    change.expected_version = world.one().ownership(ShardId(7))->config_version;
    change.forced.reset();
    REQUIRE(world.two().change(change).outcome == ChangeOutcome::ok);
    CHECK(world.one().list()->forced == std::vector{forced});
    CHECK(world.two().list()->forced == std::vector{forced});
}

inline void check_decisions_are_kept(ContractWorld& world) {
    auto first = contract_change(world, 0, 1);
    first.decision = PlacementDecision{1'700'000'000'000, first.desired.shard, "born on a", "emptiest \xc3\xbc"};
    auto refused = first;
    const auto made = world.one().change(first);
    REQUIRE(made.outcome == ChangeOutcome::ok);
    refused.decision->what = "never";
    CHECK(world.two().change(refused).outcome == ChangeOutcome::conflict);
    auto other = contract_change(world, 0, 1);
    other.desired.shard = ShardId(70);
    other.decision = PlacementDecision{1'700'000'000'001, ShardId(70), "born on b", "likewise"};
    REQUIRE(world.two().change(other).outcome == ChangeOutcome::ok);
    auto second = first;
    second.expected_version = made.config_version;
    second.decision = PlacementDecision{1'700'000'000'002, first.desired.shard, "target b", "asked for"};
    REQUIRE(world.two().change(second).outcome == ChangeOutcome::ok);
    for (ClusterCoordinator* asked : {&world.one(), &world.two()}) {
        CHECK(*asked->decisions(std::nullopt, 10) ==
              std::vector{*second.decision, *other.decision, *first.decision});  // newest first
        CHECK(*asked->decisions(std::nullopt, 2) == std::vector{*second.decision, *other.decision});
        CHECK(*asked->decisions(first.desired.shard, 10) == std::vector{*second.decision, *first.decision});
        CHECK(asked->decisions(ShardId(0), 10)->empty());
        CHECK(asked->list()->shards.size() == 2);  // the trail is not in the list
    }
}

inline void check_meta_is_decided_once(ContractWorld& world) {
    ClusterMeta first, second;
    first.cluster = second.cluster = world.cluster();
    first.shards = 16;
    first.replicas = 3;
    first.min_in_sync = 2;
    second.shards = 4096;
    CHECK(*world.one().meta(first) == first);
    CHECK(*world.two().meta(second) == first);
    CHECK(*world.one().meta(first) == first);
}

}  // namespace mainstay
