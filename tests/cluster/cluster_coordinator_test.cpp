// What every coordinator of many nodes promises. Written against MemoryCoordinator; a driver over a real service is to
// pass the same cases.

#include <doctest/doctest.h>

#include "cluster/memory_coordinator.h"

namespace mainstay {
namespace {

LiveNode node(uint8_t n, uint64_t incarnation) {
    LiveNode out;
    out.name.node[0] = n;
    out.name.disk[0] = n;
    out.incarnation = incarnation;
    return out;
}

struct TwoNodes {
    MemoryCluster cluster{5000};
    MemoryCoordinator one{cluster, node(1, 11)}, two{cluster, node(2, 22)};

    TwoNodes() {
        cluster.advance(1000);
        REQUIRE(one.join());
        REQUIRE(two.join());
    }
    ShardChange change(uint64_t expected, uint64_t epoch) const {
        ShardChange out;
        out.expected_version = expected;
        out.desired.shard = ShardId(7);
        out.desired.epoch = Epoch(epoch);
        out.desired.primary = one.self();
        out.desired.incarnation = one.incarnation();
        out.desired.in_sync = {one.self(), two.self()};
        return out;
    }
};

}  // namespace

TEST_CASE("cluster coordinator: a record changes by compare-and-set, and each change has a version of its own") {
    TwoNodes nodes;
    CHECK(nodes.one.ownership(ShardId(7)).error().code == ErrorCode::not_found);
    const auto made = nodes.one.change(nodes.change(0, 1));
    REQUIRE(made.outcome == ChangeOutcome::ok);
    CHECK(nodes.two.change(nodes.change(0, 1)).outcome == ChangeOutcome::conflict);
    // The same content again is a change all the same: it settles whatever was under way.
    const auto again = nodes.two.change(nodes.change(made.config_version, 1));
    REQUIRE(again.outcome == ChangeOutcome::ok);
    CHECK(again.config_version > made.config_version);
    CHECK(nodes.one.change(nodes.change(made.config_version, 2)).outcome == ChangeOutcome::conflict);
    CHECK(nodes.one.ownership(ShardId(7))->config_version == again.config_version);
    CHECK(nodes.one.ownership(ShardId(7))->epoch == Epoch(1));
}

TEST_CASE("cluster coordinator: of many who take over, one wins") {
    TwoNodes nodes;
    const uint64_t version = nodes.one.change(nodes.change(0, 1)).config_version;
    int winners = 0;
    for (int i = 0; i < 50; ++i)
        winners += (i % 2 ? nodes.one : nodes.two).change(nodes.change(version, 2)).outcome == ChangeOutcome::ok;
    CHECK(winners == 1);
}

TEST_CASE("cluster coordinator: leases are compared with the change") {
    TwoNodes nodes;
    const uint64_t version = nodes.one.change(nodes.change(0, 1)).config_version;
    auto take_over = nodes.change(version, 2);
    take_over.gone = Incarnation{nodes.one.self().node, 11};
    CHECK(nodes.two.change(take_over).outcome == ChangeOutcome::conflict);
    nodes.cluster.advance(4000);
    CHECK(nodes.two.keep_alive());
    nodes.cluster.advance(6500);  // the first node's lease ran to 6000
    CHECK(nodes.one.keep_alive().error().code == ErrorCode::conflict);
    CHECK(nodes.two.join().error().code == ErrorCode::conflict);  // it has one
    auto grow = nodes.change(version, 1);
    grow.present = {Incarnation{nodes.two.self().node, 22}, Incarnation{nodes.one.self().node, 11}};
    CHECK(nodes.two.change(grow).outcome == ChangeOutcome::conflict);
    REQUIRE(nodes.two.list()->nodes.size() == 1);
    CHECK(nodes.two.list()->nodes[0] == node(2, 22));
    CHECK(nodes.two.change(take_over).outcome == ChangeOutcome::ok);
    CHECK(nodes.one.join());  // late: the record names somebody else by now
    CHECK(nodes.two.change(grow).outcome == ChangeOutcome::conflict);
    grow.expected_version = nodes.one.ownership(ShardId(7))->config_version;
    CHECK(nodes.two.change(grow).outcome == ChangeOutcome::ok);
}

TEST_CASE("cluster coordinator: an unknown change may have happened, may not, or may happen late") {
    TwoNodes nodes;
    const uint64_t version = nodes.one.change(nodes.change(0, 1)).config_version;
    nodes.one.fail_next(CoordinatorFault::request_lost);
    CHECK(nodes.one.change(nodes.change(version, 2)).outcome == ChangeOutcome::unknown);
    CHECK(nodes.two.ownership(ShardId(7))->epoch == Epoch(1));
    nodes.one.fail_next(CoordinatorFault::late);
    CHECK(nodes.one.change(nodes.change(version, 3)).outcome == ChangeOutcome::unknown);
    CHECK(nodes.two.ownership(ShardId(7))->epoch == Epoch(1));  // a read proves nothing
    nodes.one.deliver_late();
    CHECK(nodes.two.ownership(ShardId(7))->epoch == Epoch(3));
    const uint64_t now = nodes.two.ownership(ShardId(7))->config_version;
    nodes.one.fail_next(CoordinatorFault::answer_lost);
    CHECK(nodes.one.change(nodes.change(now, 4)).outcome == ChangeOutcome::unknown);
    CHECK(nodes.two.ownership(ShardId(7))->epoch == Epoch(4));
    // A confirmed change shuts out what is still under way.
    const uint64_t last = nodes.two.ownership(ShardId(7))->config_version;
    nodes.one.fail_next(CoordinatorFault::late);
    CHECK(nodes.one.change(nodes.change(last, 9)).outcome == ChangeOutcome::unknown);
    CHECK(nodes.one.change(nodes.change(last, 4)).outcome == ChangeOutcome::ok);
    nodes.one.deliver_late();
    CHECK(nodes.two.ownership(ShardId(7))->epoch == Epoch(4));
}

TEST_CASE("cluster coordinator: an unreachable coordinator is an error, not an answer") {
    TwoNodes nodes;
    nodes.one.fail_next(CoordinatorFault::request_lost);
    CHECK_FALSE(nodes.one.list());
    nodes.one.fail_next(CoordinatorFault::request_lost);
    CHECK_FALSE(nodes.one.keep_alive());
    CHECK(nodes.one.keep_alive());
    int hints = 0;
    nodes.one.on_hint([&hints] { ++hints; });
    nodes.one.hint();
    CHECK(hints == 1);
}

}  // namespace mainstay
