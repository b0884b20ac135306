// The failure cases of a replicated shard, one by one and by hand (docs/CLUSTER.md, "When something fails").

#include "cluster/shard_member.h"

#include <doctest/doctest.h>

#include "cluster/cluster_fixture.h"

namespace mainstay {

TEST_CASE("shard: an entry is committed when every replica in sync has synced it, and the gate opens then") {
    TestCluster cluster(3);
    cluster.begin();
    const uint64_t index = cluster.propose(0, "a");
    cluster.sync(0);
    cluster.deliver(0, 1);
    cluster.sync(1);
    cluster.deliver(1, 0);
    CHECK(cluster.nodes[0].committed < index);  // the third has not answered
    cluster.deliver(0, 2);
    cluster.deliver(2, 0);
    CHECK(cluster.nodes[0].committed < index);  // nor synced
    cluster.sync(2);
    cluster.deliver(2, 0);
    CHECK(cluster.nodes[0].committed == index);
}

TEST_CASE("shard: a replica that is silent leaves by a confirmed change, and only then is it not waited for") {
    TestCluster cluster(3);
    cluster.begin();
    const uint64_t index = cluster.propose(0, "a");
    cluster.run({0, 1});
    cluster.pass(700, {0, 1});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    CHECK(cluster.nodes[0].changes[0].change.desired.in_sync.size() == 2);
    CHECK(cluster.nodes[0].committed < index);
    cluster.settle(0);
    CHECK(cluster.nodes[0].committed == index);
    CHECK(cluster.record().in_sync.size() == 2);
    // It comes back by itself when it has caught up and behaved for a while.
    cluster.list(0);
    cluster.pass(500, {0, 1, 2});
    CHECK(cluster.nodes[0].changes.empty());
    cluster.pass(800, {0, 1, 2});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    cluster.settle(0);
    CHECK(cluster.record().in_sync.size() == 3);
    CHECK(cluster.nodes[2].disk.entries.size() == cluster.nodes[0].disk.entries.size());
}

TEST_CASE("shard: no change makes the in-sync set smaller than the record wants") {
    TestCluster cluster(3);
    cluster.begin();
    cluster.propose(0, "a");
    cluster.run({0});
    cluster.pass(2000, {0});
    CHECK(cluster.nodes[0].changes.empty());
    CHECK(cluster.nodes[0].committed == 1);  // its barrier
    CHECK(cluster.record().in_sync.size() == 3);
}

TEST_CASE("shard: the primary dies before or after the acknowledgement; a replica in sync takes over and has it") {
    TestCluster cluster(3);
    cluster.begin();
    const uint64_t acknowledged = cluster.propose(0, "acknowledged");
    cluster.run({0, 1, 2});
    REQUIRE(cluster.nodes[0].committed == acknowledged);
    cluster.propose(0, "only on the primary");
    cluster.sync(0);
    cluster.nodes[0].sent.clear();
    cluster.pass(4000, {1, 2});
    cluster.list(1);
    CHECK(cluster.nodes[1].changes.empty());  // the lease still runs
    cluster.pass(2000, {1, 2});
    cluster.list(1);
    cluster.pass(100, {1, 2});
    cluster.settle(1);
    CHECK(cluster.record().epoch == Epoch(2));
    CHECK(cluster.record().primary == cluster.nodes[1].self.name);
    cluster.run({1, 2});
    cluster.pass(700, {1, 2});
    CHECK_FALSE(cluster.nodes[1].member->serving().has_value());  // the dead one is still in sync on record
    cluster.list(1);
    cluster.pass(100, {1, 2});
    cluster.settle(1);
    cluster.run({1, 2});
    CHECK(cluster.nodes[1].member->serving() == Epoch(2));
    CHECK(cluster.nodes[1].disk.entries[acknowledged - 1].bytes() == "acknowledged");
    // The old one starts again and what it alone had is cut.
    cluster.restart(0);
    cluster.list(0);
    cluster.list(1);
    cluster.pass(500, {0, 1, 2});
    CHECK(cluster.nodes[0].disk.entries.back().kind == EntryKind::barrier);
    CHECK(cluster.nodes[0].disk.entries.back().epoch == Epoch(2));
}

TEST_CASE("shard: a primary that stood still finds the others fenced, acknowledges nothing and steps down") {
    TestCluster cluster(3);
    cluster.begin();
    cluster.pass(6000, {1, 2});  // the first stands still
    cluster.list(1);
    cluster.pass(100, {1, 2});
    cluster.settle(1);
    cluster.run({1, 2});
    const uint64_t before = cluster.nodes[0].committed;
    CHECK(cluster.propose(0, "of the past") > 0);  // it knows nothing yet
    cluster.input(0, BeginRead{9, 0});
    cluster.sync(0);
    cluster.deliver(0, 1);
    cluster.deliver(0, 2);
    cluster.deliver(1, 0);
    cluster.deliver(2, 0);
    CHECK(cluster.nodes[0].stepped_down == Epoch(1));
    CHECK(cluster.nodes[0].committed == before);
    CHECK(cluster.nodes[0].reads_ready.empty());
    CHECK(cluster.propose(0, "again") == 0);
}

TEST_CASE("shard: a process that was started again may not go on in its epoch") {
    TestCluster cluster(3);
    cluster.begin();
    cluster.restart(0);
    cluster.list(0);
    cluster.pass(500, {0});
    CHECK_FALSE(cluster.nodes[0].member->serving().has_value());
    CHECK(cluster.propose(0, "a") == 0);
    CHECK(cluster.nodes[0].changes.empty());  // its first lease still runs
}

TEST_CASE("shard: a read waits for an answer of every replica that was asked after it began") {
    TestCluster cluster(3);
    cluster.begin();
    cluster.input(0, BeginRead{7, 0});
    CHECK(cluster.nodes[0].reads_ready.empty());
    cluster.deliver(0, 1);
    cluster.deliver(1, 0);
    CHECK(cluster.nodes[0].reads_ready.empty());
    cluster.deliver(0, 2);
    cluster.deliver(2, 0);
    CHECK(cluster.nodes[0].reads_ready == std::vector<uint64_t>{7});
}

TEST_CASE("shard: growth of which nobody knows whether it happened binds to both sets until a change confirms") {
    TestCluster cluster(3);
    cluster.begin();
    cluster.pass(700, {0, 1});
    cluster.settle(0);  // the third leaves
    cluster.list(0);
    cluster.pass(1500, {0, 1, 2});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    const auto growth = cluster.nodes[0].changes[0].change;
    cluster.settle(0, ChangeOutcome::unknown);
    const uint64_t index = cluster.propose(0, "a");
    cluster.run({0, 1});
    cluster.list(0);  // shows the old record, which proves nothing
    cluster.run({0, 1});
    CHECK(cluster.nodes[0].committed < index);
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    CHECK(cluster.nodes[0].changes[0].change.desired == cluster.record());
    cluster.settle(0);
    CHECK(cluster.nodes[0].committed == index);
    CHECK(cluster.coordinator.change(growth).outcome == ChangeOutcome::conflict);  // late, and shut out
}

TEST_CASE("shard: a hand-over waits until all is committed, raises the epoch, and the target serves") {
    TestCluster cluster(3);
    cluster.begin();
    REQUIRE(cluster.coordinator.change(wish(cluster.record(), cluster.nodes[2].self.name.node)).outcome ==
            ChangeOutcome::ok);
    const uint64_t index = cluster.propose(0, "before");
    cluster.list(0);
    CHECK(cluster.nodes[0].changes.empty());
    const auto& out = cluster.input(0, Propose{1, {text("after")}});
    REQUIRE(out.refused.size() == 1);
    CHECK(out.refused[0].why == ProposeRefusal::handing_over);
    cluster.run({0, 1, 2});
    CHECK(cluster.nodes[0].committed == index);
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    cluster.settle(0);
    CHECK(cluster.nodes[0].stepped_down == Epoch(1));
    CHECK(cluster.record().epoch == Epoch(2));
    CHECK_FALSE(cluster.record().target.has_value());
    cluster.list(2);
    cluster.run({0, 1, 2});
    CHECK(cluster.nodes[2].member->serving() == Epoch(2));
}

TEST_CASE("shard: a primary without space hands over to one that has some; a replica without space leaves") {
    TestCluster cluster(3);
    cluster.begin();
    cluster.list(0);
    cluster.input(0, SpaceChanged{true});
    CHECK(cluster.propose(0, "a") == 0);
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    CHECK(cluster.nodes[0].changes[0].change.desired.primary == cluster.nodes[1].self.name);
    cluster.settle(0);
    cluster.list(1);
    cluster.list(2);
    cluster.run({0, 1, 2});
    CHECK_FALSE(cluster.nodes[1].member->serving().has_value());  // the full one has not taken its barrier
    cluster.pass(100, {0, 1, 2});
    REQUIRE(cluster.nodes[1].changes.size() == 1);
    CHECK_FALSE(contains(cluster.nodes[1].changes[0].change.desired.in_sync, cluster.nodes[0].self.name));
    cluster.settle(1);
    REQUIRE(cluster.nodes[1].member->serving() == Epoch(2));
    cluster.propose(1, "b");
    cluster.run({0, 1, 2});
    CHECK(cluster.nodes[1].committed == 3);
    cluster.input(0, SpaceChanged{false});
    cluster.pass(2000, {0, 1, 2});
    REQUIRE(cluster.nodes[1].changes.size() == 1);
    cluster.settle(1);
    CHECK(cluster.record().in_sync.size() == 3);
}

TEST_CASE("shard: a replica on a new disk is another replica, and takes the place of the old one in need") {
    TestCluster cluster(2);
    cluster.begin();
    cluster.propose(0, "a");
    cluster.run({0, 1});
    cluster.nodes[1].disk = DurableShard{};
    cluster.nodes[1].self.name = replica_name(2, 7);
    cluster.restart(1);
    cluster.list(0);
    cluster.list(1);
    cluster.pass(800, {0, 1});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    const auto& change = cluster.nodes[0].changes[0].change;
    CHECK(change.desired.in_sync == std::vector<ReplicaName>{cluster.nodes[0].self.name, replica_name(2, 7)});
    CHECK(change.present == std::vector<Incarnation>{{replica_name(2).node, cluster.nodes[1].self.incarnation}});
    cluster.settle(0);
    CHECK(cluster.nodes[1].disk.entries.size() == 2);
}

TEST_CASE("shard: who is no longer to hold a copy leaves the in-sync set, but not below what the record wants") {
    TestCluster cluster(3);
    cluster.begin();
    const auto assigned = [&cluster](std::vector<size_t> nodes) {
        std::vector<NodeUuid> replicas;
        for (const size_t n : nodes) replicas.push_back(cluster.nodes[n].self.name.node);
        REQUIRE(cluster.coordinator.change(assign(cluster.record(), replicas)).outcome == ChangeOutcome::ok);
        cluster.list(0);
    };
    // The primary does not put itself out: it has to be told to whom the shard goes.
    assigned({1, 2});
    CHECK(cluster.nodes[0].changes.empty());
    assigned({0, 1});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    CHECK(cluster.nodes[0].changes[0].change.desired.in_sync ==
          std::vector<ReplicaName>{cluster.nodes[0].self.name, cluster.nodes[1].self.name});
    cluster.settle(0);
    cluster.list(0);
    // One more would be one too few: it stays, and what is written goes to it as before.
    assigned({0});
    cluster.pass(300, {0, 1});
    CHECK(cluster.nodes[0].changes.empty());
    const uint64_t index = cluster.propose(0, "a");
    cluster.run({0, 1});
    CHECK(cluster.nodes[0].committed == index);
    // The other one is wanted again, and then the first may go.
    assigned({0, 2});
    cluster.pass(2000, {0, 1, 2});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    cluster.settle(0);
    CHECK(cluster.record().in_sync == std::vector<ReplicaName>{cluster.nodes[0].self.name, cluster.nodes[2].self.name});
}

TEST_CASE("shard: a copy that was alone takes no writes until another is in sync, which comes in without probation") {
    TestCluster cluster(3);
    auto alone = birth(ShardId{1}, Epoch(5), {cluster.nodes[0].self}, 2);
    alone.desired.shard = ShardId();
    alone.desired.config_version = 9;
    alone.desired.replicas.push_back(cluster.nodes[1].self.name.node);
    const auto nodes = cluster.coordinator.list().nodes;
    cluster.input(0, RecordRead{alone.desired, nodes});
    cluster.run({0, 1});
    REQUIRE(cluster.nodes[0].member->serving() == Epoch(5));
    const auto& out = cluster.input(0, Propose{1, {text("a")}});
    REQUIRE(out.refused.size() == 1);
    CHECK(out.refused[0].why == ProposeRefusal::under_replicated);
    cluster.pass(300, {0, 1});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    CHECK(cluster.nodes[0].changes[0].change.desired.in_sync ==
          std::vector<ReplicaName>{cluster.nodes[0].self.name, cluster.nodes[1].self.name});
}

TEST_CASE("shard: of two leases of one node, the process that answers comes in, and once") {
    TestCluster cluster(3);
    cluster.begin();
    cluster.pass(700, {0, 1});
    cluster.settle(0);
    cluster.restart(2);  // the lease of the process before still runs
    cluster.list(2);
    cluster.list(0);
    REQUIRE(cluster.coordinator.list().nodes.size() == 4);
    cluster.pass(1500, {0, 1, 2});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    const auto& change = cluster.nodes[0].changes[0].change;
    CHECK(change.desired.in_sync.size() == 3);
    CHECK(change.present == std::vector<Incarnation>{{replica_name(3).node, cluster.nodes[2].self.incarnation}});
}

TEST_CASE("shard: who was just given a copy comes in when it has caught up; who was in and failed waits") {
    TestCluster cluster(4);
    cluster.begin();
    // The fourth loses its copy, and is given one again: now it has no past in this shard.
    const auto assign_to = [&cluster](size_t count) {
        std::vector<NodeUuid> replicas;
        for (size_t n = 0; n < count; ++n) replicas.push_back(cluster.nodes[n].self.name.node);
        REQUIRE(cluster.coordinator.change(assign(cluster.record(), replicas)).outcome == ChangeOutcome::ok);
        cluster.list(0);
    };
    assign_to(3);
    cluster.pass(100, {0, 1, 2, 3});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    cluster.settle(0);
    REQUIRE(cluster.record().in_sync.size() == 3);
    assign_to(4);
    cluster.pass(200, {0, 1, 2, 3});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    CHECK(cluster.nodes[0].changes[0].change.decision->why == "node 04000000 has caught up");
    cluster.settle(0);
    REQUIRE(cluster.record().in_sync.size() == 4);
    // It falls silent and leaves. From then on it is as everybody else.
    cluster.propose(0, "a");
    cluster.pass(700, {0, 1, 2});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    cluster.settle(0);
    cluster.list(0);
    cluster.pass(800, {0, 1, 2, 3});
    CHECK(cluster.nodes[0].changes.empty());
    cluster.pass(500, {0, 1, 2, 3});
    REQUIRE(cluster.nodes[0].changes.size() == 1);
    cluster.settle(0);
    CHECK(cluster.record().in_sync.size() == 4);
}

TEST_CASE("shard: why another node leads, and why the set in sync changes, is told with the change") {
    TestCluster cluster(3);
    cluster.begin();
    const auto told = [&cluster](size_t n) {
        REQUIRE(cluster.nodes[n].changes.size() == 1);
        const auto& change = cluster.nodes[n].changes[0].change;
        REQUIRE(change.decision.has_value());
        CHECK(change.decision->shard == change.desired.shard);
        const std::string out = change.decision->what + ": " + change.decision->why;
        cluster.settle(n);
        return out;
    };
    cluster.pass(700, {0, 1});
    CHECK(told(0) == "in sync: nodes 01000000, 02000000: node 03000000 is silent");
    cluster.list(0);
    cluster.pass(1300, {0, 1, 2});
    CHECK(told(0) == "in sync: nodes 01000000, 02000000, 03000000: node 03000000 has caught up");
    cluster.input(0, SpaceChanged{true});
    CHECK(told(0) == "primary node 02000000, epoch 2: node 01000000 has no space");
    cluster.input(0, SpaceChanged{false});
    cluster.list(1);
    cluster.list(2);
    cluster.pass(200, {0, 1, 2});
    REQUIRE(cluster.nodes[1].member->serving() == Epoch(2));
    cluster.pass(6000, {0, 2});
    cluster.list(2);
    cluster.pass(100, {0, 2});
    CHECK(told(2) == "primary node 03000000, epoch 3: node 02000000 has no lease");
    cluster.list(2);
    cluster.pass(100, {0, 2});
    CHECK(told(2) == "in sync: nodes 01000000, 03000000: node 02000000 has no lease");
    // A wish was told by who wished.
    cluster.pass(200, {0, 2});
    REQUIRE(cluster.nodes[2].member->serving() == Epoch(3));
    REQUIRE(cluster.coordinator.change(wish(cluster.record(), replica_name(1).node)).outcome == ChangeOutcome::ok);
    cluster.list(2);
    cluster.pass(100, {0, 2});
    REQUIRE(cluster.nodes[2].changes.size() == 1);
    CHECK(cluster.nodes[2].changes[0].change.desired.primary == replica_name(1));
    CHECK_FALSE(cluster.nodes[2].changes[0].change.decision.has_value());
}

TEST_CASE("shard: messages of another cluster, or to a disk that is gone, are not looked at") {
    TestCluster cluster(3);
    cluster.begin();
    cluster.propose(0, "a");
    cluster.sync(0);
    for (auto message : cluster.nodes[0].sent) {
        message.cluster[0] = 1;
        CHECK(cluster.input(1, message).sends.empty());
        CHECK(cluster.nodes[1].last.writes.empty());
        message.cluster[0] = 0;
        message.to = replica_name(2, 5);
        CHECK(cluster.input(1, message).writes.empty());
    }
    CHECK(cluster.nodes[1].member->replica().log().last_index() == 1);
}

TEST_CASE("shard: records that come together share one write and one message to each copy") {
    TestCluster cluster(3);
    cluster.begin();
    const auto& out = cluster.input(0, Propose{10, {text("a"), text("b"), text("c")}});
    CHECK(out.refused.empty());
    REQUIRE(out.proposed.size() == 3);
    for (size_t i = 0; i < 3; ++i) {
        CHECK(out.proposed[i].token == 10 + i);
        CHECK(out.proposed[i].index == out.proposed[0].index + i);
    }
    REQUIRE(out.writes.size() == 1);
    CHECK(out.writes[0].entries.size() == 3);
    REQUIRE(out.sends.size() == 2);
    for (const auto& send : out.sends) CHECK(std::get<AppendEntries>(send.body).entries.size() == 3);
}

TEST_CASE("shard: records that wait for others are bounded") {
    TestCluster cluster(3);
    cluster.settings.uncommitted_max = 4;
    for (size_t n = 0; n < 3; ++n) cluster.restart(n);
    ShardChange change = confirm(cluster.record());
    change.desired.epoch = Epoch(2);
    change.desired.incarnation = cluster.nodes[0].self.incarnation;
    REQUIRE(cluster.coordinator.change(change).outcome == ChangeOutcome::ok);
    for (size_t n = 0; n < 3; ++n) cluster.list(n);
    cluster.run({0, 1, 2});
    cluster.pass(100, {0, 1, 2});
    for (int i = 0; i < 4; ++i) CHECK(cluster.propose(0, "a") > 0);
    const auto& out = cluster.input(0, Propose{1, {text("a")}});
    REQUIRE(out.refused.size() == 1);
    CHECK(out.refused[0].why == ProposeRefusal::backlog_full);
    cluster.run({0, 1, 2});
    CHECK(cluster.propose(0, "a") > 0);
    // The bound cuts through what comes together.
    cluster.run({0, 1, 2});
    const auto& cut = cluster.input(0, Propose{20, std::vector(6, text("b"))});
    CHECK(cut.proposed.size() == 4);
    REQUIRE(cut.refused.size() == 2);
    CHECK(cut.refused[0].token == 24);
    CHECK(cut.refused[1].token == 25);
}

}  // namespace mainstay
