#include "cluster/cluster_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <chrono>
#include <string>
#include <vector>

namespace mainstay {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;

/// Follows a total that somebody else keeps.
class Total {
  public:
    explicit Total(Counter& series) : series_(&series) {}
    void follow(uint64_t total) {
        if (total > seen_) series_->Increment(static_cast<double>(total - seen_));
        seen_ = total;
    }

  private:
    Counter* series_;
    uint64_t seen_ = 0;
};

class Durations {
  public:
    explicit Durations(Histogram& series) : series_(&series) {}
    void follow(const DurationFigures& figures) {
        if (figures.counts == seen_.counts) return;
        std::vector<double> more(figures.counts.size());
        for (size_t i = 0; i < more.size(); ++i) more[i] = static_cast<double>(figures.counts[i] - seen_.counts[i]);
        series_->ObserveMultiple(more, figures.sum_seconds - seen_.sum_seconds);
        seen_ = figures;
    }

  private:
    Histogram* series_;
    DurationFigures seen_;
};

class Families {
  public:
    explicit Families(prometheus::Registry& registry) : registry_(registry) {}
    Total total(const char* name, const char* help, const Labels& labels = {}) {
        return Total(prometheus::BuildCounter().Name(name).Help(help).Register(registry_).Add(labels));
    }
    Gauge& gauge(const char* name, const char* help, const Labels& labels = {}) {
        return prometheus::BuildGauge().Name(name).Help(help).Register(registry_).Add(labels);
    }
    Durations durations(const char* name, const char* help) {
        const auto& bounds = DurationFigures::bounds_seconds;
        return Durations(prometheus::BuildHistogram().Name(name).Help(help).Register(registry_).Add(
            Labels{}, Histogram::BucketBoundaries(bounds.begin(), bounds.end())));
    }

  private:
    prometheus::Registry& registry_;
};

// Families of several series.
constexpr const char* shards_name = "mainstay_cluster_shards";
constexpr const char* shards_help =
    "Shards that this node leads, by state (led: all of them); halted: copies of this node that were stopped.";
constexpr const char* proposals_name = "mainstay_cluster_proposals_total";
constexpr const char* proposals_help = "Records that sessions of this node proposed to their shards, by outcome.";
constexpr const char* changes_name = "mainstay_cluster_record_changes_total";
constexpr const char* changes_help = "Changes of shards' records that this node asked the coordinator for.";
constexpr const char* entries_name = "mainstay_cluster_replicated_entries_total";
constexpr const char* entries_help = "Log entries in messages to and from other copies, repeated ones too.";
constexpr const char* bytes_name = "mainstay_cluster_replicated_bytes_total";
constexpr const char* bytes_help = "Bytes of those entries.";
constexpr const char* snapshots_name = "mainstay_cluster_snapshots_total";
constexpr const char* snapshots_help =
    "Copies of a shard's state: sent to the last part, or installed in place of a log.";
constexpr const char* reads_name = "mainstay_cluster_reads_total";
constexpr const char* reads_help = "Answers from the state: confirmed by all copies in sync, or refused.";
constexpr const char* coordinator_reads_name = "mainstay_cluster_coordinator_reads_total";
constexpr const char* coordinator_reads_help = "Reads of all records and leases.";
constexpr const char* messages_name = "mainstay_link_messages_total";
constexpr const char* messages_help = "Replication messages; dropped ones were never sent, and are repeated.";
constexpr const char* link_frames_name = "mainstay_link_frames_total";
constexpr const char* link_frames_help = "Frames of all kinds; what comes together shares one.";
constexpr const char* link_bytes_name = "mainstay_link_bytes_total";
constexpr const char* link_bytes_help = "Bytes of frames of all kinds, before TLS.";
constexpr const char* pending_name = "mainstay_link_pending_bytes";
constexpr const char* pending_help =
    "Bytes held for links: waiting for a window, sent and not taken, parts of messages that are not whole.";
constexpr const char* calls_name = "mainstay_link_calls";
constexpr const char* calls_help = "Calls under way: asked by this node, or being answered by it.";
constexpr const char* events_name = "mainstay_link_events_total";
constexpr const char* events_help = "What happened to connections that this node dialled.";
constexpr const char* refusals_name = "mainstay_link_refusals_total";
constexpr const char* refusals_help = "What strangers or confused peers said, and was refused.";

}  // namespace

struct ClusterMetrics::Series {
    explicit Series(prometheus::Registry& registry) : families(registry) {
        for (const auto word : proposal_outcome_words)
            proposals.push_back(families.total(proposals_name, proposals_help, {{"outcome", std::string(word)}}));
        for (const auto kind : change_kind_words)
            for (const auto outcome : change_outcome_words)
                changes.push_back(families.total(changes_name, changes_help,
                                                 {{"change", std::string(kind)}, {"outcome", std::string(outcome)}}));
    }
    Total refusals(const char* what) { return families.total(refusals_name, refusals_help, {{"why", what}}); }
    Total events(const char* what) { return families.total(events_name, events_help, {{"event", what}}); }
    Total messages(const char* what) { return families.total(messages_name, messages_help, {{"outcome", what}}); }
    Gauge& shards(const char* state) { return families.gauge(shards_name, shards_help, {{"state", state}}); }

    Families families;

    Gauge& led = shards("led");
    Gauge& serving = shards("serving");
    Gauge& under_replicated = shards("under_replicated");
    Gauge& moving = shards("moving");
    Gauge& halted = shards("halted");
    Gauge& configured = families.gauge("mainstay_cluster_shards_configured", "Shards that the cluster has.");
    Gauge& unled = families.gauge("mainstay_cluster_shards_unled",
                                  "Shards without a primary that has a lease, as this node last read.");
    Gauge& nodes = families.gauge("mainstay_cluster_nodes_live", "Nodes with a lease, as this node last read.");
    Gauge& lag = families.gauge("mainstay_cluster_follower_lag_entries",
                                "Entries that the copy farthest behind lacks, of all shards that this node leads.");
    Gauge& proposals_waiting =
        families.gauge("mainstay_cluster_proposals_waiting", "Proposals that are neither committed nor refused.");
    Gauge& reads_waiting = families.gauge("mainstay_cluster_reads_waiting", "Reads that are not confirmed yet.");
    Gauge& certificate =
        families.gauge("mainstay_cluster_certificate_seconds", "How long the certificate in use is still valid.");

    std::vector<Total> proposals, changes;
    Durations commit = families.durations("mainstay_cluster_commit_duration_seconds",
                                          "From a record's proposal to its commit: durable on every copy in sync.");
    Durations confirmation = families.durations("mainstay_cluster_read_confirmation_duration_seconds",
                                                "Time that an answer from the state waited for its confirmation.");
    Total entries_sent = families.total(entries_name, entries_help, {{"direction", "sent"}});
    Total entries_received = families.total(entries_name, entries_help, {{"direction", "received"}});
    Total bytes_sent = families.total(bytes_name, bytes_help, {{"direction", "sent"}});
    Total bytes_received = families.total(bytes_name, bytes_help, {{"direction", "received"}});
    Total snapshots_sent = families.total(snapshots_name, snapshots_help, {{"outcome", "sent"}});
    Total snapshots_installed = families.total(snapshots_name, snapshots_help, {{"outcome", "installed"}});
    Total snapshot_bytes = families.total("mainstay_cluster_snapshot_sent_bytes_total", "Bytes of snapshots sent.");
    Total reads_confirmed = families.total(reads_name, reads_help, {{"outcome", "confirmed"}});
    Total reads_refused = families.total(reads_name, reads_help, {{"outcome", "refused"}});

    Total coordinator_ok = families.total(coordinator_reads_name, coordinator_reads_help, {{"outcome", "ok"}});
    Total coordinator_failed = families.total(coordinator_reads_name, coordinator_reads_help, {{"outcome", "failed"}});
    Gauge& coordinator_age = families.gauge("mainstay_cluster_coordinator_read_age_seconds",
                                            "Since the coordinator was last read; before the first time, since the "
                                            "start.");
    Total leases_taken = families.total("mainstay_cluster_leases_taken_total", "Leases that this process was given.");
    Total leases_lost = families.total("mainstay_cluster_leases_lost_total",
                                       "Leases of this process that expired while it wanted to keep them.");
    Total beats_failed = families.total("mainstay_cluster_lease_failures_total",
                                        "Times that the coordinator did not answer about the lease.");

    Gauge& peers = families.gauge("mainstay_link_peers_connected", "Peers that this node can send to.");
    Gauge& accepted = families.gauge("mainstay_link_connections_accepted", "Connections of peers that can be used.");
    Gauge& queue = families.gauge(pending_name, pending_help, {{"state", "queued"}});
    Gauge& window = families.gauge(pending_name, pending_help, {{"state", "window"}});
    Gauge& assembly = families.gauge(pending_name, pending_help, {{"state", "assembly"}});
    Gauge& asked = families.gauge(calls_name, calls_help, {{"side", "asked"}});
    Gauge& served = families.gauge(calls_name, calls_help, {{"side", "served"}});
    Total messages_sent = messages("sent"), messages_received = messages("received");
    Total dropped_no_link = messages("dropped_no_link"), dropped_queue_full = messages("dropped_queue_full");
    Total dropped_too_large = messages("dropped_too_large"), dropped_link_lost = messages("dropped_link_lost");
    Total frames_sent = families.total(link_frames_name, link_frames_help, {{"direction", "sent"}});
    Total frames_received = families.total(link_frames_name, link_frames_help, {{"direction", "received"}});
    Total link_sent = families.total(link_bytes_name, link_bytes_help, {{"direction", "sent"}});
    Total link_received = families.total(link_bytes_name, link_bytes_help, {{"direction", "received"}});
    Total dials = events("dialled"), dials_failed = events("dial_failed");
    Total links_lost = events("lost"), silences = events("silent");
    Total refused_connections = refusals("connections"), refused_tls = refusals("tls");
    Total refused_handshake = refusals("handshake"), refused_identity = refusals("identity");
    Total refused_cluster = refusals("cluster"), refused_incarnation = refusals("incarnation");
    Total refused_format = refusals("format"), refused_frame = refusals("frame");
    Total refused_message = refusals("message"), refused_call = refusals("call");

    std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();
    double certificate_seconds = 0;
    double uptime() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count(); }
};

ClusterMetrics::ClusterMetrics(prometheus::Registry& registry, uint32_t shards, int64_t certificate_seconds)
    : series_(std::make_unique<Series>(registry)) {
    series_->configured.Set(shards);
    series_->certificate_seconds = static_cast<double>(certificate_seconds);
    series_->certificate.Set(series_->certificate_seconds);
}

ClusterMetrics::~ClusterMetrics() = default;

void ClusterMetrics::follow(const ShardFigures& figures, const CoordinatorFigures& coordinator) {
    Series& to = *series_;
    to.led.Set(figures.shards_led);
    to.serving.Set(figures.shards_serving);
    to.under_replicated.Set(figures.shards_under_replicated);
    to.moving.Set(figures.shards_moving);
    to.halted.Set(figures.shards_halted);
    to.unled.Set(figures.shards_unled);
    to.nodes.Set(figures.nodes_live);
    to.lag.Set(static_cast<double>(figures.follower_lag_max));
    to.proposals_waiting.Set(static_cast<double>(figures.proposals_waiting));
    to.reads_waiting.Set(static_cast<double>(figures.reads_waiting));
    to.certificate.Set(to.certificate_seconds - to.uptime());
    for (size_t i = 0; i < figures.proposals.size(); ++i) to.proposals[i].follow(figures.proposals[i]);
    to.commit.follow(figures.commit);
    to.confirmation.follow(figures.confirmation);
    to.entries_sent.follow(figures.entries_sent);
    to.entries_received.follow(figures.entries_received);
    to.bytes_sent.follow(figures.entry_bytes_sent);
    to.bytes_received.follow(figures.entry_bytes_received);
    to.snapshots_sent.follow(figures.snapshots_sent);
    to.snapshots_installed.follow(figures.snapshots_installed);
    to.snapshot_bytes.follow(figures.snapshot_bytes_sent);
    to.reads_confirmed.follow(figures.reads_confirmed);
    to.reads_refused.follow(figures.reads_refused);

    to.coordinator_ok.follow(coordinator.reads);
    to.coordinator_failed.follow(coordinator.reads_failed);
    to.coordinator_age.Set(figures.view_age_ms ? static_cast<double>(*figures.view_age_ms) / 1000 : to.uptime());
    to.leases_taken.follow(coordinator.leases_taken);
    to.leases_lost.follow(coordinator.leases_lost);
    to.beats_failed.follow(coordinator.beats_failed);
    size_t at = 0;
    for (const auto& kind : coordinator.changes)
        for (const auto& outcome : kind) to.changes[at++].follow(outcome);
}

void ClusterMetrics::follow(const LinkStats& link) {
    Series& to = *series_;
    to.peers.Set(static_cast<double>(link.peers_connected));
    to.accepted.Set(static_cast<double>(link.connections_accepted));
    to.queue.Set(static_cast<double>(link.queue_bytes));
    to.window.Set(static_cast<double>(link.window_bytes));
    to.assembly.Set(static_cast<double>(link.assembly_bytes));
    to.asked.Set(static_cast<double>(link.calls_under_way));
    to.served.Set(static_cast<double>(link.calls_served));
    to.messages_sent.follow(link.messages_sent);
    to.messages_received.follow(link.messages_received);
    to.dropped_no_link.follow(link.messages_dropped_no_link);
    to.dropped_queue_full.follow(link.messages_dropped_queue_full);
    to.dropped_too_large.follow(link.messages_dropped_too_large);
    to.dropped_link_lost.follow(link.messages_dropped_link_lost);
    to.frames_sent.follow(link.frames_sent);
    to.frames_received.follow(link.frames_received);
    to.link_sent.follow(link.bytes_sent);
    to.link_received.follow(link.bytes_received);
    to.dials.follow(link.dials);
    to.dials_failed.follow(link.dials_failed);
    to.links_lost.follow(link.links_lost);
    to.silences.follow(link.silences);
    to.refused_connections.follow(link.refused_connections);
    to.refused_tls.follow(link.refused_tls);
    to.refused_handshake.follow(link.refused_handshake);
    to.refused_identity.follow(link.refused_identity);
    to.refused_cluster.follow(link.refused_cluster);
    to.refused_incarnation.follow(link.refused_incarnation);
    to.refused_format.follow(link.refused_format);
    to.refused_frame.follow(link.refused_frame);
    to.refused_message.follow(link.refused_message);
    to.refused_call.follow(link.refused_call);
}

}  // namespace mainstay
