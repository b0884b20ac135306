// MemoryCoordinator keeps what every coordinator promises (coordinator_contract.h), and fails as it is told to.

#include <doctest/doctest.h>

#include "cluster/coordinator_contract.h"
#include "cluster/memory_coordinator.h"

namespace mainstay {
namespace {

struct TwoNodes final : ContractWorld {
    MemoryCluster memory{5000};
    MemoryCoordinator first{memory, contract_node(1, 11), contract_details(1)};
    MemoryCoordinator second{memory, contract_node(2, 22), contract_details(2)};

    TwoNodes() {
        memory.advance(1000);
        REQUIRE(first.join());
        REQUIRE(second.join());
    }
    ClusterCoordinator& one() override { return first; }
    ClusterCoordinator& two() override { return second; }
    void expire_one() override {
        memory.advance(4000);
        CHECK(second.keep_alive());
        memory.advance(6500);  // the first node's lease ran to 6000
    }
    ClusterUuid cluster() const override { return {1, 2, 3}; }
    ShardChange change(uint64_t expected, uint64_t epoch) { return contract_change(*this, expected, epoch); }
};

}  // namespace

TEST_CASE("cluster coordinator: a record changes by compare-and-set, and each change has a version of its own") {
    TwoNodes nodes;
    check_compare_and_set(nodes);
}

TEST_CASE("cluster coordinator: leases are compared with the change") {
    TwoNodes nodes;
    check_leases_are_compared(nodes);
}

TEST_CASE("cluster coordinator: a list holds every record, lease and wish") {
    TwoNodes nodes;
    check_list_is_whole(nodes);
}

TEST_CASE("cluster coordinator: that a copy was forced to lead is kept with the record") {
    TwoNodes nodes;
    check_force_is_kept(nodes);
}

TEST_CASE("cluster coordinator: why something was placed is kept with the change") {
    TwoNodes nodes;
    check_decisions_are_kept(nodes);
}

TEST_CASE("cluster coordinator: what holds for a cluster is decided once") {
    TwoNodes nodes;
    check_meta_is_decided_once(nodes);
}

TEST_CASE("cluster coordinator: of many who take over, one wins") {
    TwoNodes nodes;
    const uint64_t version = nodes.first.change(nodes.change(0, 1)).config_version;
    int winners = 0;
    for (int i = 0; i < 50; ++i)
        winners += (i % 2 ? nodes.first : nodes.second).change(nodes.change(version, 2)).outcome == ChangeOutcome::ok;
    CHECK(winners == 1);
}

TEST_CASE("cluster coordinator: an unknown change may have happened, may not, or may happen late") {
    TwoNodes nodes;
    const uint64_t version = nodes.first.change(nodes.change(0, 1)).config_version;
    nodes.first.fail_next(CoordinatorFault::request_lost);
    CHECK(nodes.first.change(nodes.change(version, 2)).outcome == ChangeOutcome::unknown);
    CHECK(nodes.second.ownership(ShardId(7))->epoch == Epoch(1));
    nodes.first.fail_next(CoordinatorFault::late);
    CHECK(nodes.first.change(nodes.change(version, 3)).outcome == ChangeOutcome::unknown);
    CHECK(nodes.second.ownership(ShardId(7))->epoch == Epoch(1));  // a read proves nothing
    nodes.first.deliver_late();
    CHECK(nodes.second.ownership(ShardId(7))->epoch == Epoch(3));
    const uint64_t now = nodes.second.ownership(ShardId(7))->config_version;
    nodes.first.fail_next(CoordinatorFault::answer_lost);
    CHECK(nodes.first.change(nodes.change(now, 4)).outcome == ChangeOutcome::unknown);
    CHECK(nodes.second.ownership(ShardId(7))->epoch == Epoch(4));
    // A confirmed change shuts out what is still under way.
    const uint64_t last = nodes.second.ownership(ShardId(7))->config_version;
    nodes.first.fail_next(CoordinatorFault::late);
    CHECK(nodes.first.change(nodes.change(last, 9)).outcome == ChangeOutcome::unknown);
    CHECK(nodes.first.change(nodes.change(last, 4)).outcome == ChangeOutcome::ok);
    nodes.first.deliver_late();
    CHECK(nodes.second.ownership(ShardId(7))->epoch == Epoch(4));
}

TEST_CASE("cluster coordinator: an unreachable coordinator is an error, not an answer") {
    TwoNodes nodes;
    nodes.first.fail_next(CoordinatorFault::request_lost);
    CHECK_FALSE(nodes.first.list());
    nodes.first.fail_next(CoordinatorFault::request_lost);
    CHECK_FALSE(nodes.first.keep_alive());
    CHECK(nodes.first.keep_alive());
    int hints = 0;
    nodes.first.on_hint([&hints] { ++hints; });
    nodes.first.hint();
    CHECK(hints == 1);
}

}  // namespace mainstay
