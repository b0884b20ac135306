// Which changes of a record are proposed, and what a primary is bound by while it does not know what became of one.

#include "cluster/membership.h"

#include <doctest/doctest.h>

#include "cluster/cluster_fixture.h"

namespace mainstay {
namespace {

ShardRecord record_of(std::vector<uint8_t> in_sync, uint64_t version = 5) {
    ShardRecord record;
    record.epoch = Epoch(3);
    record.config_version = version;
    record.min_in_sync = 2;
    for (const uint8_t node : in_sync) record.in_sync.push_back(replica_name(node));
    record.primary = record.in_sync.front();
    record.incarnation = 100;
    return record;
}

std::vector<ReplicaName> names(std::vector<uint8_t> nodes) {
    std::vector<ReplicaName> out;
    for (const uint8_t node : nodes) out.push_back(replica_name(node));
    return out;
}

}  // namespace

TEST_CASE("membership: who takes over raises the epoch, and only where the primary has no lease") {
    const auto change = take_over(record_of({1, 2, 3}), {replica_name(2), 200});
    CHECK(change.expected_version == 5);
    CHECK(change.gone == Incarnation{replica_name(1).node, 100});
    CHECK(change.desired.epoch == Epoch(4));
    CHECK(change.desired.primary == replica_name(2));
    CHECK(change.desired.incarnation == 200);
    CHECK(change.desired.in_sync == names({1, 2, 3}));
}

TEST_CASE("membership: candidates come in the order on record, and the primary's lease stops them all") {
    const auto record = record_of({1, 2, 3});
    const LiveNode two{replica_name(2), 200}, three{replica_name(3), 300}, four{replica_name(4), 400};
    CHECK_FALSE(take_over_rank(record, {{replica_name(1), 100}, two, three}, two).has_value());
    CHECK(take_over_rank(record, {two, three}, two) == 0u);
    CHECK(take_over_rank(record, {two, three}, three) == 1u);
    CHECK(take_over_rank(record, {three}, three) == 0u);
    // Not in sync: it may lack what was acknowledged. A node with another disk is another replica.
    CHECK_FALSE(take_over_rank(record, {four}, four).has_value());
    const LiveNode new_disk{replica_name(2, 9), 200};
    CHECK_FALSE(take_over_rank(record, {new_disk}, new_disk).has_value());
    // The primary's node, started again, is one candidate among the others.
    const LiveNode again{replica_name(1), 101};
    CHECK(take_over_rank(record, {again, two}, again) == 0u);
}

TEST_CASE("membership: changes of a record that are never made") {
    const auto before = record_of({1, 2, 3});
    auto next = [&before] {
        auto after = before;
        ++after.config_version;
        return after;
    };
    CHECK(broken_rule(before, next()) == nullptr);
    auto after = next();
    after.epoch = Epoch(2);
    CHECK(broken_rule(before, after) != nullptr);
    after = next();
    after.primary = replica_name(2);
    CHECK(broken_rule(before, after) != nullptr);
    after.epoch = Epoch(4);
    CHECK(broken_rule(before, after) == nullptr);
    after = next();
    after.incarnation = 101;
    CHECK(broken_rule(before, after) != nullptr);
    after = next();
    after.in_sync = names({1});
    CHECK(broken_rule(before, after) != nullptr);
    after.in_sync = names({1, 1});  // by two leases of one node
    CHECK(broken_rule(before, after) != nullptr);
    after.in_sync = names({2, 3});
    CHECK(broken_rule(before, after) != nullptr);
    after = next();
    after.epoch = Epoch(4);
    after.primary = replica_name(4);
    after.in_sync = names({1, 2, 4});
    CHECK(broken_rule(before, after) != nullptr);
    CHECK(broken_rule(before, before) != nullptr);
}

TEST_CASE("membership: a record begins with all its copies in sync, or with the one that holds something") {
    const std::vector<LiveNode> copies = {{replica_name(2), 200}, {replica_name(1), 100}, {replica_name(3), 300}};
    const auto change = birth(ShardId{7}, Epoch(1), copies, 2);
    CHECK(change.expected_version == 0);
    CHECK_FALSE(change.gone.has_value());
    CHECK(change.present == std::vector<Incarnation>{
                                {replica_name(2).node, 200}, {replica_name(1).node, 100}, {replica_name(3).node, 300}});
    CHECK(change.desired.shard == ShardId{7});
    CHECK(change.desired.primary == replica_name(2));
    CHECK(change.desired.incarnation == 200);
    CHECK(change.desired.in_sync == names({2, 1, 3}));
    CHECK(change.desired.replicas ==
          std::vector<NodeUuid>{replica_name(2).node, replica_name(1).node, replica_name(3).node});
    // One copy of a shard that wants two: whatever is not about the in-sync set may change before others come in.
    auto before = birth(ShardId{7}, Epoch(9), {copies[0]}, 2).desired;
    before.config_version = 1;
    auto after = assign(before, {replica_name(2).node, replica_name(1).node}).desired;
    CHECK(after.in_sync == before.in_sync);
    after.config_version = 2;
    CHECK(broken_rule(before, after) == nullptr);
    after.replicas.push_back(replica_name(1).node);
    CHECK(broken_rule(before, after) != nullptr);
    after.replicas.clear();
    for (uint8_t i = 0; i <= limits::replicas_max; ++i) after.replicas.push_back(replica_name(i).node);
    CHECK(broken_rule(before, after) != nullptr);
}

TEST_CASE("configurations: growth binds from its proposal, shrinking from its confirmation") {
    Configurations configurations;
    const auto record = record_of({1, 2});
    configurations.adopt(record);
    configurations.proposed(1, resize(record, names({1, 2, 3}), {}));
    CHECK(configurations.required() == names({1, 2, 3}));
    configurations.settled(1, {ChangeOutcome::conflict, 0});
    CHECK(configurations.required() == names({1, 2}));
    configurations.proposed(2, resize(record, names({1}), {}));
    CHECK(configurations.required() == names({1, 2}));
    configurations.settled(2, {ChangeOutcome::ok, 6});
    CHECK(configurations.required() == names({1}));
    CHECK(configurations.record().config_version == 6);
}

TEST_CASE(
    "configurations: an unknown change binds until the version moves; reading the old record again frees nobody") {
    Configurations configurations;
    const auto record = record_of({1, 2});
    configurations.adopt(record);
    configurations.proposed(1, resize(record, names({1, 2, 3}), {}));
    configurations.settled(1, {ChangeOutcome::unknown, 0});
    CHECK(configurations.unsettled());
    configurations.adopt(record);
    CHECK(configurations.unsettled());
    CHECK(configurations.required() == names({1, 2, 3}));
    configurations.proposed(2, confirm(record));
    configurations.settled(2, {ChangeOutcome::unknown, 0});
    CHECK(configurations.required() == names({1, 2, 3}));
    configurations.proposed(3, confirm(record));
    configurations.settled(3, {ChangeOutcome::ok, 7});
    CHECK_FALSE(configurations.unsettled());
    CHECK(configurations.required() == names({1, 2}));
    // An answer to what the version has shut out, and a record from before, change nothing.
    configurations.settled(1, {ChangeOutcome::ok, 6});
    configurations.adopt(record);
    CHECK(configurations.record().config_version == 7);
}

}  // namespace mainstay
