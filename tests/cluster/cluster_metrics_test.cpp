#include "cluster/cluster_metrics.h"

#include <doctest/doctest.h>
#include <prometheus/text_serializer.h>

#include <string>

#include "cluster/membership.h"
#include "tests/cluster/cluster_fixture.h"

using namespace mainstay;

namespace {

/// The value of a series in the text exposition; -1: there is none.
double value(prometheus::Registry& registry, const std::string& series) {
    const std::string text = "\n" + prometheus::TextSerializer().Serialize(registry.Collect());
    const auto at = text.find("\n" + series + " ");
    return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size() + 2));
}

ShardRecord some_record() {
    ShardRecord record;
    record.epoch = Epoch{4};
    record.primary = replica_name(1);
    record.incarnation = 11;
    record.in_sync = {replica_name(1), replica_name(2)};
    record.replicas = {replica_name(1).node, replica_name(2).node, replica_name(3).node};
    record.config_version = 20;
    record.min_in_sync = 2;
    return record;
}

}  // namespace

TEST_CASE("cluster metrics: a change is named after what it does to the record that it was made from") {
    const ShardRecord record = some_record();
    const LiveNode second{replica_name(2), 12}, third{replica_name(3), 13};
    CHECK(kind_of(birth(ShardId{1}, Epoch{1}, {second, third}, 2), {}) == ChangeKind::birth);
    CHECK(kind_of(take_over(record, second), record) == ChangeKind::take_over);
    CHECK(kind_of(hand_over(record, second), record) == ChangeKind::hand_over);
    CHECK(kind_of(resize(record, {replica_name(1)}, {}), record) == ChangeKind::in_sync);
    auto grown = record.in_sync;
    grown.push_back(third.name);
    CHECK(kind_of(resize(record, grown, {third}), record) == ChangeKind::in_sync);
    CHECK(kind_of(wish(record, third.name.node), record) == ChangeKind::wish);
    CHECK(kind_of(assign(record, {second.name.node}), record) == ChangeKind::assign);
    CHECK(kind_of(confirm(record), record) == ChangeKind::confirm);
    ShardRecord newer = record;
    ++newer.config_version;
    CHECK(kind_of(confirm(record), newer) == ChangeKind::other);
}

TEST_CASE("cluster metrics: states stand as they are, totals grow by what was added, durations by their buckets") {
    prometheus::Registry registry;
    ClusterMetrics metrics(registry, 24, 70000);
    ShardFigures figures;
    CoordinatorFigures coordinator;
    figures.shards_led = 8;
    figures.shards_under_replicated = 3;
    figures.follower_lag_max = 41;
    figures.view_age_ms = 1500;
    figures.proposal(ProposalOutcome::accepted);
    figures.proposal(static_cast<ProposalOutcome>(ProposeRefusal::under_replicated));
    figures.commit.add(0.0003);
    figures.commit.add(0.5);
    figures.commit.add(100);
    coordinator.changed(ChangeKind::hand_over, ChangeOutcome::ok);
    coordinator.changed(ChangeKind::take_over, ChangeOutcome::unknown);
    ++coordinator.leases_lost;
    metrics.follow(figures, coordinator);
    metrics.follow(figures, coordinator);  // again: nothing is added
    CHECK(value(registry, "mainstay_cluster_shards_configured") == 24);
    CHECK(value(registry, "mainstay_cluster_shards{state=\"led\"}") == 8);
    CHECK(value(registry, "mainstay_cluster_shards{state=\"under_replicated\"}") == 3);
    CHECK(value(registry, "mainstay_cluster_shards{state=\"halted\"}") == 0);
    CHECK(value(registry, "mainstay_cluster_follower_lag_entries") == 41);
    CHECK(value(registry, "mainstay_cluster_coordinator_read_age_seconds") == doctest::Approx(1.5));
    CHECK(value(registry, "mainstay_cluster_certificate_seconds") == doctest::Approx(70000));
    CHECK(value(registry, "mainstay_cluster_proposals_total{outcome=\"accepted\"}") == 1);
    CHECK(value(registry, "mainstay_cluster_proposals_total{outcome=\"under_replicated\"}") == 1);
    CHECK(value(registry, "mainstay_cluster_proposals_total{outcome=\"dropped\"}") == 0);
    CHECK(value(registry, "mainstay_cluster_record_changes_total{change=\"hand_over\",outcome=\"ok\"}") == 1);
    CHECK(value(registry, "mainstay_cluster_record_changes_total{change=\"take_over\",outcome=\"unknown\"}") == 1);
    CHECK(value(registry, "mainstay_cluster_record_changes_total{change=\"take_over\",outcome=\"ok\"}") == 0);
    CHECK(value(registry, "mainstay_cluster_leases_lost_total") == 1);
    CHECK(value(registry, "mainstay_cluster_commit_duration_seconds_count") == 3);
    CHECK(value(registry, "mainstay_cluster_commit_duration_seconds_sum") == doctest::Approx(100.5003));
    CHECK(value(registry, "mainstay_cluster_commit_duration_seconds_bucket{le=\"0.0002\"}") == 0);
    CHECK(value(registry, "mainstay_cluster_commit_duration_seconds_bucket{le=\"0.0005\"}") == 1);
    CHECK(value(registry, "mainstay_cluster_commit_duration_seconds_bucket{le=\"0.5\"}") == 2);
    CHECK(value(registry, "mainstay_cluster_commit_duration_seconds_bucket{le=\"+Inf\"}") == 3);
    figures.shards_led = 7;
    figures.proposal(ProposalOutcome::accepted);
    metrics.follow(figures, coordinator);
    CHECK(value(registry, "mainstay_cluster_shards{state=\"led\"}") == 7);
    CHECK(value(registry, "mainstay_cluster_proposals_total{outcome=\"accepted\"}") == 2);
}

TEST_CASE("cluster metrics: a link's numbers are shown by closed words") {
    prometheus::Registry registry;
    ClusterMetrics metrics(registry, 1, 1);
    LinkStats link;
    link.peers_connected = 2;
    link.queue_bytes = 5;
    link.messages_sent = 7;
    link.messages_dropped_link_lost = 3;
    link.refused_tls = 4;
    link.bytes_received = 9;
    metrics.follow(link);
    link.messages_sent = 8;
    link.queue_bytes = 0;
    metrics.follow(link);
    CHECK(value(registry, "mainstay_link_peers_connected") == 2);
    CHECK(value(registry, "mainstay_link_pending_bytes{state=\"queued\"}") == 0);
    CHECK(value(registry, "mainstay_link_messages_total{outcome=\"sent\"}") == 8);
    CHECK(value(registry, "mainstay_link_messages_total{outcome=\"dropped_link_lost\"}") == 3);
    CHECK(value(registry, "mainstay_link_refusals_total{why=\"tls\"}") == 4);
    CHECK(value(registry, "mainstay_link_bytes_total{direction=\"received\"}") == 9);
}

TEST_CASE("cluster metrics: entries and snapshots are counted with their bytes") {
    ShardFigures figures;
    AppendEntries append;
    append.entries = {entry_after({}, 1, "four"), entry_after({1, Epoch{1}, 0}, 1, "nine too!")};
    figures.sent(append);
    figures.received(append);
    figures.sent(AppendAnswer{});
    figures.received(AppendAnswer{});
    CHECK(figures.entries_sent == 2);
    CHECK(figures.entry_bytes_sent == 13);
    CHECK(figures.entries_received == 2);
    CHECK(figures.entry_bytes_received == 13);
    figures.sent(SnapshotPart{Epoch{1}, 1, {}, 0, false, 1, text("part")});
    CHECK(figures.snapshots_sent == 0);
    figures.sent(SnapshotPart{Epoch{1}, 1, {}, 1, true, 1, text("last")});
    CHECK(figures.snapshots_sent == 1);
    CHECK(figures.snapshot_bytes_sent == 8);
}

TEST_CASE("cluster metrics: the lag of a primary is what its farthest copy lacks") {
    TestCluster cluster(3);
    cluster.coordinator.advance(cluster.now);
    for (size_t n = 0; n < 3; ++n) cluster.list(n);
    cluster.run({0, 1, 2});
    auto& primary = *cluster.nodes[0].member;
    REQUIRE(primary.serving());
    CHECK(primary.lag_max() == 0);
    for (uint64_t token = 1; token <= 5; ++token) cluster.input(0, Propose{token, {text("entry")}});
    cluster.run({0, 1});
    CHECK(primary.lag_max() == 5);
    CHECK(cluster.nodes[1].member->lag_max() == 0);
    cluster.now += cluster.settings.resend_ms;
    cluster.input(0, ShardTick{});
    cluster.now += cluster.settings.resend_ms;
    cluster.input(0, ShardTick{});
    cluster.run({0, 1, 2});
    CHECK(primary.lag_max() == 0);
}
