#include "cluster/cluster_node.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include "cluster/certificates.h"
#include "runtime/base/clock.h"

namespace mainstay {
namespace {

constexpr uint32_t coordinator_retry_ms = 250;
constexpr size_t problems_shown = 16;

std::string name_of(const ShardId& shard) { return std::to_string(shard.value); }

/// Fewer entries are kept in memory for each shard the more shards there are: together they are about what one shard
/// alone may keep four times.
ReplicationSettings settings_for(uint16_t shards) {
    ReplicationSettings settings;
    settings.log_bytes_kept = std::max<size_t>(256 * 1024, 4 * limits::replication_log_bytes_max / shards);
    settings.log_records_kept = std::max<size_t>(1024, 4 * limits::replication_log_records_max / shards);
    return settings;
}

/// Of the certificate that this process will use: another one is read with the next start.
int64_t certificate_seconds(const ClusterSettings& settings) {
    const auto facts = read_certificate(settings.directory + "/node.pem");
    return facts ? facts->days_left * 86400 : 0;
}

Error unavailable(const std::string& why) { return {ErrorCode::coordinator_unavailable, why, {}}; }

void log_decision(const PlacementDecision& decision) {
    spdlog::info("shard {}: {}: {}", decision.shard.value, decision.what, decision.why);
}

PlacementDecision decision_of(const ForcedLead& forced) {
    std::string in_sync;
    for (const auto& name : forced.in_sync) in_sync += (in_sync.empty() ? "" : ", ") + short_text(name.node);
    return {
        static_cast<TimeMs>(forced.at_ms), forced.shard,
        "forced to lead on node " + short_text(forced.copy.node) + " in epoch " + std::to_string(forced.epoch.value),
        forced.who + " accepted the loss of everything that was acknowledged after index " +
            std::to_string(forced.last_index) + "; in sync until then: " + in_sync};
}

}  // namespace

Result<ClusterIdentity> find_cluster(const ClusterSettings& settings, const NodeUuid& disk, uint64_t incarnation,
                                     uint32_t patience_ms) {
    const auto cluster = read_cluster_uuid(settings.directory);
    if (!cluster) return cluster.error();
    const std::string certificate = settings.directory + "/node.pem";
    const auto facts = read_certificate(certificate);
    if (!facts) return facts.error();
    if (!facts->node) return {ErrorCode::invalid_request, certificate + " names no node", {}};
    if (auto checked = check_certificate(settings.directory + "/ca.pem", certificate, settings.directory + "/node.key",
                                         *facts->node);
        !checked)
        return checked.error();

    ClusterIdentity identity;
    identity.self.name = {*facts->node, disk};
    identity.self.incarnation = incarnation;
    EtcdSettings etcd = settings.etcd;
    etcd.cluster = *cluster;
    etcd.self = identity.self;
    auto coordinator = EtcdCoordinator::open(std::move(etcd));
    if (!coordinator) return coordinator.error();
    ClusterMeta wanted = settings.wanted;
    wanted.cluster = *cluster;
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(patience_ms);
    while (true) {
        auto meta = (*coordinator)->meta(wanted);
        if (meta) {
            identity.meta = *meta;
            break;
        }
        if (meta.error().code != ErrorCode::coordinator_unavailable || std::chrono::steady_clock::now() >= until)
            return meta.error();
        std::this_thread::sleep_for(std::chrono::milliseconds(coordinator_retry_ms));
    }
    const ClusterMeta& meta = identity.meta;
    if (meta.format != wanted.format)
        return {ErrorCode::conflict,
                "the cluster has format " + std::to_string(meta.format) + ", this release reads " +
                    std::to_string(wanted.format),
                {}};
    if (meta.shards == 0 || meta.shards > limits::cluster_shards_max || meta.replicas > limits::replicas_max)
        return {ErrorCode::conflict, "the cluster was made with other bounds than this release has", {}};
    return identity;
}

ClusterNode::ClusterNode(ClusterSettings settings, ClusterIdentity identity, ShardLog& log, ClusterCallbacks callbacks,
                         std::optional<Epoch> first_copy, prometheus::Registry& registry)
    : settings_(std::move(settings)),
      identity_(std::move(identity)),
      callbacks_(std::move(callbacks)),
      host_(
          [this] {
              ShardHostConfig config;
              config.meta = identity_.meta;
              config.self = identity_.self;
              config.replication = settings_for(identity_.meta.shards);
              config.lease_ms = settings_.lease_ms;
              config.busy = callbacks_.busy;
              config.hand_over_hold_ms = settings_.hand_over_hold_ms;
              config.send = [this](const NodeUuid& to, std::vector<ReplicationMessage> messages) {
                  link_->send(to, std::move(messages));
              };
              return config;
          }(),
          log, *this),
      metrics_(registry, identity_.meta.shards, certificate_seconds(settings_)) {
    self_.node = identity_.self;
    self_.first_copy = first_copy;
}

ClusterNode::~ClusterNode() { stop(); }

Result<void> ClusterNode::start(const std::string& client_address) {
    LinkConfig link;
    link.cluster = identity_.meta.cluster;
    link.self = identity_.self.name.node;
    link.incarnation = identity_.self.incarnation;
    const auto colon = settings_.link_address.rfind(':');
    link.host = settings_.link_address.substr(0, colon);
    link.port = static_cast<uint16_t>(std::stoi(settings_.link_address.substr(colon + 1)));
    link.ca_file = settings_.directory + "/ca.pem";
    link.certificate_file = settings_.directory + "/node.pem";
    link.key_file = settings_.directory + "/node.key";
    link.version = settings_.version;
    const std::string host = link.host;
    auto opened = Link::open(std::move(link), *this);
    if (!opened) return opened.error();
    {
        const std::lock_guard lock(link_mutex_);
        link_ = std::move(*opened);
    }

    EtcdSettings etcd = settings_.etcd;
    etcd.cluster = identity_.meta.cluster;
    etcd.self = identity_.self;
    etcd.lease_ms = settings_.lease_ms;
    etcd.details.link_address =
        settings_.link_advertise.empty() ? host + ":" + std::to_string(link_->port()) : settings_.link_advertise;
    etcd.details.client_address = client_address;
    etcd.details.zone = settings_.zone;
    etcd.details.version = settings_.version;
    etcd.details.models = settings_.models;
    etcd.details.events = events_format;
    etcd.details.calls = uint64_t(CallKind::left_work);
    auto coordinator = EtcdCoordinator::open(std::move(etcd));
    if (!coordinator) return coordinator.error();
    coordinator_ = std::move(*coordinator);
    spdlog::info("node {} of cluster {}, links at {}", to_text(identity_.self.name.node),
                 to_text(identity_.meta.cluster), link_->port());
    host_.start(*coordinator_);
    return {};
}

void ClusterNode::leave(uint32_t patience_ms) {
    if (!coordinator_) return;
    if (!host_.hand_over_all(patience_ms)) return spdlog::warn("not every shard was handed over in time");
    host_.give_lease_back();
}

void ClusterNode::stop() {
    host_.stop();
    // After the last word of the shards, so that nobody waits for the lease.
    if (coordinator_)
        if (auto left = coordinator_->leave(); !left)
            spdlog::warn("the lease stays until it expires: {}", left.error().message);
    std::unique_ptr<Link> ending;
    {
        const std::lock_guard lock(link_mutex_);
        ending = std::move(link_);
    }
    ending.reset();  // not under the lock: whoever is told that a call ended may make another
    coordinator_.reset();
}

std::shared_ptr<LinkCall> ClusterNode::call_node(const NodeUuid& to, CallKind kind, std::string request,
                                                 std::function<void(std::string part)> on_part,
                                                 std::function<void(std::optional<Error>)> on_end,
                                                 uint32_t timeout_ms) {
    {
        const std::lock_guard lock(link_mutex_);
        if (link_) return link_->call(to, kind, std::move(request), std::move(on_part), std::move(on_end), timeout_ms);
    }
    on_end(Error{ErrorCode::misdirected, "this node has no links now", {}});
    return nullptr;
}

void ClusterNode::ask_node(const NodeUuid& to, CallKind kind, std::string request, uint32_t timeout_ms,
                           std::function<void(Result<std::string>)> done) {
    auto answer = std::make_shared<std::string>();
    call_node(
        to, kind, std::move(request), [answer](std::string part) { *answer += part; },
        [answer, done = std::move(done)](std::optional<Error> failure) {
            if (failure) return done(std::move(*failure));
            done(std::move(*answer));
        },
        timeout_ms);
}

bool ClusterNode::linked(const NodeUuid& node) const {
    const std::lock_guard lock(link_mutex_);
    return link_ && link_->connected(node);
}

// --- from shards and links ------------------------------------------------------------------------------------------

void ClusterNode::led(ShardId shard, Epoch epoch) {
    spdlog::info("shard {}: led here, epoch {}", shard.value, epoch.value);
    callbacks_.led(shard, epoch);
}

void ClusterNode::lost(ShardId shard, Epoch epoch) {
    spdlog::info("shard {}: no longer led here, epoch {}", shard.value, epoch.value);
    callbacks_.lost(shard);
}

void ClusterNode::replication(const NodeUuid&, std::vector<ReplicationMessage> messages) {
    host_.receive(std::move(messages));
}

void ClusterNode::call(const NodeUuid& from, CallKind kind, std::string request, std::shared_ptr<CallReply> reply) {
    const auto& served = kind == CallKind::hop          ? callbacks_.hop
                         : kind == CallKind::kv         ? callbacks_.kv_call
                         : kind == CallKind::model_step ? callbacks_.model_step
                         : kind == CallKind::left_work  ? callbacks_.left_work
                                                        : callbacks_.shard_call;
    if (!served) return reply->end(Error{ErrorCode::peer_refused, "this node does not serve that", {}});
    served(from, std::move(request), std::move(reply));
}

void ClusterNode::viewed(const ClusterView& view) {
    // Of two leases of a node the newer process is the one that listens: it is the one that could bind the port, but
    // which that is no lease says. Both are named, the link takes who answers.
    std::vector<LinkPeer> peers;
    for (size_t i = 0; i < view.nodes.size(); ++i)
        if (view.nodes[i].name.node != identity_.self.name.node)
            peers.push_back({view.nodes[i].name.node, view.nodes[i].incarnation, view.details[i].link_address});
    link_->set_peers(std::move(peers));
    plan(view);
}

void ClusterNode::figures(const ShardFigures& figures, const CoordinatorFigures& coordinator) {
    metrics_.follow(figures, coordinator);
    metrics_.follow(link_->stats());
}

/// Nothing is planned while changes of the plan before are on their way: they would be planned again.
void ClusterNode::plan(const ClusterView& view) {
    watch_.observe(identity_.meta, view, SystemClock().monotonic_ns() / 1'000'000);
    if (placing_.load() > 0) return;
    auto made = plan_placement(identity_.meta, view, self_, watch_, PlacementSettings{}, SystemClock().now_ms());
    for (auto* steps : {&made.births, &made.steps})
        for (auto& step : *steps) {
            ++placing_;
            step.change.decision = step.decision;
            host_.change(std::move(step.change),
                         [this, decision = std::move(step.decision)](const ChangeAnswer& answer) {
                             if (answer.outcome == ChangeOutcome::ok) log_decision(decision);
                             if (--placing_ == 0) host_.look();
                         });
        }
}

// --- what people ask ------------------------------------------------------------------------------------------------

std::vector<ClusterNodeInfo> ClusterNode::node_infos() const {
    const auto view = host_.view();
    std::map<NodeUuid, ClusterNodeInfo> found;
    if (!view) return {};
    for (size_t i = 0; i < view->nodes.size(); ++i) {
        auto& info = found[view->nodes[i].name.node];
        info.node = view->nodes[i];
        info.details = view->details[i];
        info.live = true;
    }
    const auto of = [&](const ReplicaName& name) -> ClusterNodeInfo& {
        auto& info = found[name.node];
        if (!info.live) info.node.name = name;
        return info;
    };
    for (const auto& record : view->shards) {
        ++of(record.primary).primaries;
        for (const auto& name : record.in_sync) ++of(name).in_sync;
        for (const auto& node : record.replicas) {
            auto& info = found[node];
            info.node.name.node = node;
            ++info.copies;
        }
    }
    std::vector<ClusterNodeInfo> out;
    for (auto& [node, info] : found) {
        info.self = node == identity_.self.name.node;
        info.draining = std::find(view->draining.begin(), view->draining.end(), node) != view->draining.end();
        info.linked = info.self || linked(node);
        out.push_back(std::move(info));
    }
    return out;
}

std::vector<ClusterShardInfo> ClusterNode::shard_infos() const {
    const auto view = host_.view();
    if (!view) return {};
    const auto sights = host_.sights();
    std::vector<ClusterShardInfo> out;
    for (const auto& record : view->shards) {
        ClusterShardInfo info;
        info.record = record;
        const auto& sight = sights[record.shard.value];
        // This node may know a newer record, its own change's.
        if (sight.record.config_version > record.config_version) info.record = sight.record;
        info.led_here = sight.leads;
        info.serving = sight.serving;
        info.last_index = sight.last_index;
        info.commit_index = sight.commit_index;
        const auto live = [&](const ReplicaName& name) {
            return std::any_of(view->nodes.begin(), view->nodes.end(),
                               [&](const LiveNode& node) { return node.name == name; });
        };
        const ShardRecord& now = info.record;
        const bool led = std::any_of(view->nodes.begin(), view->nodes.end(), [&](const LiveNode& node) {
            return node.name == now.primary && node.incarnation == now.incarnation;
        });
        if (led) info.primary = now.primary.node;
        std::vector<std::string> away;  // sorted, so that status counts shards with the same problem together
        for (const auto& node : now.replicas) {
            const auto held = std::find_if(now.in_sync.begin(), now.in_sync.end(),
                                           [&](const ReplicaName& name) { return name.node == node; });
            if (held != now.in_sync.end() && live(*held)) continue;
            away.push_back(short_text(node) + (held != now.in_sync.end() ? " has no lease" : " is not in sync"));
        }
        std::sort(away.begin(), away.end());
        std::string missing;
        for (const auto& one : away) missing += (missing.empty() ? "" : ", ") + one;
        if (sight.halted)
            info.problem = "this node's copy differs from the primary's in what is committed; it is left alone";
        else if (!led)
            info.problem = "nobody leads it: " + (missing.empty() ? "a take-over is due" : missing);
        else if (!missing.empty() || now.in_sync.size() < identity_.meta.replicas)
            info.problem = std::to_string(now.in_sync.size()) + " of " + std::to_string(identity_.meta.replicas) +
                           " copies in sync" + (missing.empty() ? "" : ": " + missing);
        out.push_back(std::move(info));
    }
    return out;
}

void ClusterNode::status(Answer<ClusterStatus> done) {
    ClusterStatus out;
    out.meta = identity_.meta;
    out.self = identity_.self.name.node;
    const auto age = host_.view_age_ms();
    out.coordinator_age_ms = age.value_or(0);
    out.coordinator_reached = age && *age < 3 * limits::coordinator_list_interval_ms;
    if (!out.coordinator_reached) out.problems.push_back("the coordinator does not answer: nothing changes hands");
    for (const auto& node : node_infos()) {
        out.nodes_live += node.live;
        if (!node.live)
            out.problems.push_back("node " + short_text(node.node.name.node) + " has no lease; it is to hold " +
                                   std::to_string(node.copies) + " copies");
    }
    std::map<std::string, size_t> shard_problems;
    const auto shards = shard_infos();
    for (const auto& shard : shards) {
        const ShardRecord& record = shard.record;
        out.shards_serving += shard.primary.has_value();
        out.shards_unavailable += !shard.primary.has_value();
        out.shards_under_replicated += record.in_sync.size() < identity_.meta.replicas;
        out.shards_moving += record.target && *record.target != record.primary.node;
        if (!shard.problem.empty()) ++shard_problems[shard.problem];
    }
    if (shards.size() < identity_.meta.shards)
        out.problems.push_back(std::to_string(identity_.meta.shards - shards.size()) +
                               " shards are not made yet: fewer nodes than copies");
    for (const auto& [problem, count] : shard_problems) {
        if (out.problems.size() == problems_shown) break;
        out.problems.push_back(std::to_string(count) + (count == 1 ? " shard: " : " shards: ") + problem);
    }
    done(std::move(out));
}

void ClusterNode::nodes(Answer<std::vector<ClusterNodeInfo>> done) { done(node_infos()); }
void ClusterNode::shards(Answer<std::vector<ClusterShardInfo>> done) { done(shard_infos()); }

void ClusterNode::decisions(std::optional<ShardId> shard, size_t limit, Answer<std::vector<PlacementDecision>> done) {
    host_.ask([this, shard, limit, done = std::move(done)](ClusterCoordinator& coordinator) {
        auto out = coordinator.decisions(shard, limit);
        if (!out) return done(unavailable(out.error().message));
        if (const auto view = host_.view())
            for (const auto& forced : view->forced)
                if (!shard || forced.shard == *shard) out->push_back(decision_of(forced));
        std::stable_sort(out->begin(), out->end(),
                         [](const PlacementDecision& a, const PlacementDecision& b) { return a.at > b.at; });
        out->resize(std::min(out->size(), limit));
        done(std::move(*out));
    });
}

void ClusterNode::drain(const NodeUuid& node, bool on, Answer<ClusterNodeInfo> done) {
    const auto find = [this, node]() -> std::optional<ClusterNodeInfo> {
        for (auto& info : node_infos())
            if (info.node.name.node == node) return info;
        return std::nullopt;
    };
    if (!find()) return done(Error{ErrorCode::node_not_found, "the cluster has no such node", "node"});
    host_.ask([this, node, on, find, done = std::move(done)](ClusterCoordinator& coordinator) {
        if (auto set = coordinator.set_draining(node, on); !set) return done(set.error());
        host_.look();
        auto info = find();
        if (!info) return done(Error{ErrorCode::node_not_found, "the node has gone", "node"});
        info->draining = on;
        done(std::move(*info));
    });
}

void ClusterNode::change_record(ShardChange change, ShardId shard, std::string what, std::string why,
                                Answer<ClusterShardInfo> done) {
    const ShardRecord desired = change.desired;
    if (!what.empty()) change.decision = {SystemClock().now_ms(), shard, std::move(what), std::move(why)};
    const auto decision = change.decision;
    host_.change(std::move(change), [this, shard, desired, decision,
                                     done = std::move(done)](const ChangeAnswer& answer) {
        host_.look();
        if (answer.outcome == ChangeOutcome::unknown)
            return done(unavailable("it is not known whether the coordinator took it: look, then ask again"));
        if (answer.outcome == ChangeOutcome::conflict)
            return done(Error{ErrorCode::conflict, "the shard's record changed meanwhile: look, then ask again", {}});
        if (decision) log_decision(*decision);
        ClusterShardInfo info;
        info.record = desired;
        info.record.config_version = answer.config_version;
        for (auto& known : shard_infos())
            if (known.record.shard == shard && known.record.config_version >= answer.config_version)
                info = std::move(known);
        done(std::move(info));
    });
}

void ClusterNode::move(ShardId shard, const NodeUuid& to, Answer<ClusterShardInfo> done) {
    const auto view = host_.view();
    if (!view) return done(unavailable("the coordinator was never read"));
    const auto record = std::find_if(view->shards.begin(), view->shards.end(),
                                     [&](const ShardRecord& one) { return one.shard == shard; });
    if (record == view->shards.end())
        return done(Error{ErrorCode::shard_not_found, "there is no shard " + name_of(shard), "shard"});
    const bool live =
        std::any_of(view->nodes.begin(), view->nodes.end(), [&](const LiveNode& node) { return node.name.node == to; });
    if (!live) return done(Error{ErrorCode::node_not_found, "no node of that name has a lease", "to"});
    change_record(wish(*record, to), shard, "target " + short_text(to), "asked for by an operator", std::move(done));
}

void ClusterNode::force_lead(ShardId shard, uint64_t last_index, const std::string& who,
                             Answer<ClusterShardInfo> done) {
    const auto view = host_.view();
    if (!view) return done(unavailable("the coordinator was never read"));
    for (const auto& known : shard_infos()) {
        if (known.record.shard != shard) continue;
        if (known.primary)
            return done(Error{ErrorCode::conflict,
                              "shard " + name_of(shard) + " is led by " + short_text(*known.primary) +
                                  ", which has a lease: there is nothing to force",
                              {}});
        if (known.last_index != last_index)
            return done(Error{ErrorCode::conflict,
                              "this node's copy ends at index " + std::to_string(known.last_index) +
                                  ": everything after it would be lost. Say that index to accept it",
                              {}});
        ShardChange change;
        change.expected_version = known.record.config_version;
        change.desired = known.record;
        change.desired.epoch = Epoch{known.record.epoch.value + 1};
        change.desired.primary = identity_.self.name;
        change.desired.incarnation = identity_.self.incarnation;
        change.desired.in_sync = {identity_.self.name};
        change.desired.target.reset();
        auto& replicas = change.desired.replicas;
        if (std::find(replicas.begin(), replicas.end(), identity_.self.name.node) == replicas.end())
            replicas.push_back(identity_.self.name.node);
        change.gone = Incarnation{known.record.primary.node, known.record.incarnation};
        ForcedLead forced;
        forced.shard = shard;
        forced.epoch = change.desired.epoch;
        forced.at_ms = SystemClock().now_ms();
        forced.copy = identity_.self.name;
        forced.last_index = last_index;
        forced.in_sync = known.record.in_sync;
        forced.who = who;
        change.forced = forced;
        // The coordinator keeps it, for all nodes; the log tells of it too, once it is done.
        return change_record(std::move(change), shard, {}, {},
                             [forced = std::move(forced), done = std::move(done)](Result<ClusterShardInfo> info) {
                                 const auto told = decision_of(forced);
                                 if (info)
                                     spdlog::critical("shard {}: {}: {}", told.shard.value, told.what, told.why);
                                 else
                                     spdlog::critical("shard {}: asked for by {}, {}: {}", told.shard.value, forced.who,
                                                      told.what, info.error().message);
                                 done(std::move(info));
                             });
    }
    done(Error{ErrorCode::shard_not_found, "there is no shard " + name_of(shard), "shard"});
}

}  // namespace mainstay
