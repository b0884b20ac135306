// The daemon, and the one place where everything is wired by hand: nothing constructs itself, nothing registers itself.
// Order of life: settings, data directory (lock, epoch), store (scanned, tail in memory), catalogue, actors, door; then
// open turns are taken up. Order of death: door drains, actors end, tools stop, the store is flushed and closed.

#include <pthread.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>

#include "actors/hand_over_wait.h"
#include "actors/kv_transfer.h"
#include "actors/left_work.h"
#include "actors/model_scheduler.h"
#include "actors/node_fold.h"
#include "actors/node_supervisor.h"
#include "actors/peer_service.h"
#include "actors/remote_model.h"
#include "actors/step_service.h"
#include "cluster/cluster_node.h"
#include "cluster/local_coordinator.h"
#include "cluster/replicated_store.h"
#include "gateway/actor_bridge.h"
#include "gateway/hop.h"
#include "gateway/hop_server.h"
#include "gateway/server.h"
#include "runtime/agent/agent_file.h"
#include "runtime/agent/catalogue.h"
#include "runtime/agent/settings.h"
#include "runtime/base/crash_point.h"
#include "runtime/base/digest.h"
#include "runtime/base/log.h"
#include "runtime/base/metrics.h"
#include "runtime/base/version.h"
#include "runtime/inference/device_set.h"
#include "runtime/store/disk_store.h"
#include "runtime/tool/registry.h"

namespace mainstay {
namespace {

constexpr uint32_t drain_seconds = 25;
constexpr uint32_t notice_ms = 1000;                  // of a cluster's node: not ready, and still serving
constexpr uint32_t stop_seconds = 15;                 // for actors to end, after the drain
constexpr TenantId entity_tenant{1};                  // to whom agents and models belong
constexpr uint32_t coordinator_patience_ms = 60'000;  // at the start

int fail(const Error& error, int status = 1) {
    std::fprintf(stderr, "mainstayd: %s (%s)\n", error.message.c_str(), std::string(error_name(error.code)).c_str());
    return status;
}

/// Written whole or not at all: readers (the CLI, tests) poll for these files.
Result<void> write_file(const std::string& path, const std::string& text, mode_t mode) {
    const std::string temporary = path + ".new";
    FILE* file = std::fopen(temporary.c_str(), "w");
    if (!file) return {ErrorCode::invalid_request, "cannot write " + path};
    ::fchmod(::fileno(file), mode);
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const bool closed = std::fclose(file) == 0;
    if (!written || !closed || std::rename(temporary.c_str(), path.c_str()) != 0)
        return {ErrorCode::storage_full, "cannot write " + path};
    return {};
}

/// From the environment, else from the data directory, else made now.
Result<std::string> admin_key(const Settings& settings, Random& random) {
    if (!settings.admin_key.empty()) return settings.admin_key;
    const std::string path = settings.directory + "/admin.key";
    if (auto text = read_text_file(path, 4096); text.ok()) {
        std::string key = *text;
        while (!key.empty() && (key.back() == '\n' || key.back() == ' ')) key.pop_back();
        if (key.size() < 16) return {ErrorCode::invalid_request, path + " holds no key (at least 16 characters)"};
        return key;
    }
    std::string bytes;
    for (int i = 0; i < 4; ++i) {
        const uint64_t word = random.next();
        bytes.append(reinterpret_cast<const char*>(&word), sizeof word);
    }
    const std::string key = "msk_" + to_hex(bytes);
    if (auto written = write_file(path, key + "\n", 0600); !written.ok()) return written.error();
    return key;
}

Append entity_append(std::string payload) {
    Append append;
    append.kind = RecordKind::entity;
    append.session.tenant = entity_tenant;
    append.event_count = 1;
    append.payload = std::move(payload);
    return append;
}

/// Agents and models: what the store has (every version that turns may be bound to), then the files. A file that says
/// something new becomes an entity; the journal is ordered, so no turn can be bound to it before.
///
/// In a cluster files only say what no node has said before, so that all nodes go by the same agents: what is there is
/// changed by `mainstay agent apply`. They are journalled by the node that leads the entities' shard.
Result<void> fill_catalogue(Catalogue& catalogue, Store& store, const Settings& settings, const Clock& clock,
                            bool clustered) {
    auto entities = store.entities();
    if (!entities.ok()) return entities.error();
    for (const auto& payload : *entities)
        if (auto restored = catalogue.load_entity(payload); !restored.ok()) return restored;
    auto authored = load_directory(settings.agents_directory, settings.models_directory);
    if (!authored.ok()) return authored.error();
    for (const auto& model : authored->models)
        if (auto checked = check_model(*model, settings.models_directory); !checked.ok()) return checked;
    if (clustered) {
        const auto known = [](const auto& file, const auto& there) {
            if (there && there->version != file->version)
                spdlog::warn("{} is another one in its file: the cluster's counts; `mainstay agent apply` changes it",
                             file->name);
            return there != nullptr;
        };
        std::erase_if(authored->models, [&](const auto& file) { return known(file, catalogue.model(file->name)); });
        std::erase_if(authored->agents, [&](const auto& file) { return known(file, catalogue.agent(file->name)); });
    }
    auto changed = catalogue.apply_all(*authored);
    if (!changed.ok()) return changed.error();
    if (clustered || store.stats().read_only) return {};  // they are written at a start that finds room
    for (auto& payload : changed->changed_entities(clock.now_ms())) store.append(entity_append(std::move(payload)));
    return {};
}

/// Tells the other nodes of an entity once it is committed.
class EntityTold final : public AckTarget {
  public:
    EntityTold(const NodeContext& node, std::string entity) : node_(node), entity_(std::move(entity)) {}
    void acknowledged(Sequence, Sequence) override { node_.entity_committed(entity_); }

  private:
    const NodeContext& node_;
    const std::string entity_;
};

/// What this node's files say and nobody has said before, once this node leads the shard that it belongs to.
void journal_catalogue(NodeContext& node, Epoch led_in) {
    std::set<std::pair<std::string, std::string>> there;
    const auto entities = node.store.entities();
    if (!entities) return spdlog::error("the entities cannot be read: {}", entities.error().message);
    for (const auto& payload : *entities)
        if (const auto entity = decode_entity(payload)) there.insert({entity->kind, entity->name});
    Authored authored{node.catalogue.agents(), node.catalogue.models()};
    std::erase_if(authored.models, [&](const auto& model) { return there.contains({"model", model->name}); });
    std::erase_if(authored.agents, [&](const auto& agent) { return there.contains({"agent", agent->name}); });
    for (auto& payload : authored.changed_entities(node.clock.now_ms())) {
        auto target = std::make_shared<EntityTold>(node, payload);
        Append append = entity_append(std::move(payload));
        append.led_in = led_in;
        append.target = std::move(target);
        node.store.append(std::move(append));
    }
}

ClusterSettings cluster_settings(const Settings& settings) {
    ClusterSettings out;
    out.directory = settings.cluster_directory;
    out.etcd.urls = settings.coordinator_urls;
    out.etcd.user = settings.coordinator_user;
    out.etcd.password = settings.coordinator_password;
    out.etcd.ca_file = settings.coordinator_ca;
    out.etcd.certificate_file = settings.coordinator_certificate;
    out.etcd.key_file = settings.coordinator_key;
    out.link_address = settings.link_address;
    out.link_advertise = settings.link_advertise;
    out.zone = settings.zone;
    out.models = settings.computed_models;
    out.version = build_version();
    out.wanted.shards = static_cast<uint16_t>(settings.shards);
    out.wanted.replicas = static_cast<uint32_t>(settings.replicas);
    out.wanted.min_in_sync = static_cast<uint32_t>(settings.min_in_sync);
    out.lease_ms = static_cast<uint32_t>(settings.node_lease_ms);
    out.hand_over_hold_ms = hand_over_hold_ms(settings.hand_over_wait_ms);
    return out;
}

class ClusterHops final : public HopCaller {
  public:
    explicit ClusterHops(ClusterNode& cluster) : cluster_(cluster) {}
    std::shared_ptr<LinkCall> call(const NodeUuid& to, std::string request, std::function<void(std::string)> on_part,
                                   std::function<void(std::optional<Error>)> on_end) override {
        return cluster_.call_node(to, CallKind::hop, std::move(request), std::move(on_part), std::move(on_end), 0);
    }

  private:
    ClusterNode& cluster_;
};

/// For rooms that are made before the cluster's node, which is there before anybody asks.
AskNode asking(std::optional<ClusterNode>& cluster, CallKind kind) {
    return [&cluster, kind](const NodeUuid& to, std::string request, uint32_t timeout_ms,
                            std::function<void(Result<std::string>)> done) {
        cluster->ask_node(to, kind, std::move(request), timeout_ms, std::move(done));
    };
}

/// The same for an answer that is used as it comes.
auto calling(std::optional<ClusterNode>& cluster, CallKind kind) {
    return [&cluster, kind](const NodeUuid& to, std::string request, std::function<void(std::string)> on_part,
                            std::function<void(std::optional<Error>)> on_end, uint32_t timeout_ms) {
        return cluster->call_node(to, kind, std::move(request), std::move(on_part), std::move(on_end), timeout_ms);
    };
}

/// That live.
std::vector<NodeUuid> other_nodes(const ClusterNode& cluster) {
    std::vector<NodeUuid> nodes;
    if (const auto view = cluster.view())
        for (const LiveNode& node : view->nodes)
            if (node.name.node != cluster.identity().self.name.node) nodes.push_back(node.name.node);
    return nodes;
}

KvTransferConfig kv_transfer_config(ModelScheduler& models, const Catalogue& catalogue, const Clock& clock,
                                    uint16_t shards, std::optional<ClusterNode>& cluster) {
    KvTransferConfig out;
    out.models = &models;
    out.any_model = [&catalogue] {
        const auto all = catalogue.models();
        return std::any_of(all.begin(), all.end(), [](const ModelPtr& model) { return runs_on_own_device(*model); });
    };
    out.clock = &clock;
    out.shards = shards;
    out.ask = asking(cluster, CallKind::kv);
    out.others = [&cluster] { return other_nodes(*cluster); };
    out.moved = [&cluster] { cluster->host().look(); };
    return out;
}

/// What only newer releases know is done where every node says that it does.
template <class Does>
bool every_node(const ClusterNode& cluster, Does does) {
    const auto view = cluster.view();
    return view && std::all_of(view->details.begin(), view->details.end(), does);
}

/// The nodes that live, as the newest view of the cluster has them.
StepNodes nodes_for_steps(const ClusterNode& cluster) {
    const auto view = cluster.view();
    const NodeUuid& self = cluster.identity().self.name.node;
    auto out = std::make_shared<std::vector<StepNode>>();
    for (size_t i = 0; view && i < view->nodes.size(); ++i) {
        const NodeUuid& node = view->nodes[i].name.node;
        const auto& draining = view->draining;
        // Two leases of a node are two lives of its process: the newer one counts.
        if (!out->empty() && out->back().node == node) out->pop_back();
        out->push_back({node, view->details[i].models,
                        std::find(draining.begin(), draining.end(), node) != draining.end(),
                        node == self || cluster.linked(node)});
    }
    return out;
}

RemoteModelConfig remote_model_config(ModelScheduler& models, const Clock& clock, Metrics& metrics,
                                      std::optional<ClusterNode>& cluster, const NodeUuid& self) {
    RemoteModelConfig out;
    out.self = self;
    out.clock = &clock;
    out.here = &models.own_devices();
    out.nodes = [&cluster] { return nodes_for_steps(*cluster); };
    out.call = calling(cluster, CallKind::model_step);
    out.registry = &metrics.registry();
    return out;
}

LeftWorkConfig left_work_config(Metrics& metrics, std::optional<ClusterNode>& cluster, const NodeUuid& self,
                                const caf::actor& supervisor) {
    LeftWorkConfig out;
    out.self = self;
    out.others = [&cluster] { return other_nodes(*cluster); };
    out.call = calling(cluster, CallKind::left_work);
    out.supervisor = [&supervisor] { return supervisor; };
    out.registry = &metrics.registry();
    return out;
}

StepServiceConfig step_service_config(NodeContext& node, const Settings& settings) {
    StepServiceConfig out;
    out.devices = &node.models.own_devices();
    out.clock = &node.clock;
    out.model = [&node, computed = settings.computed_models](const std::string& name, uint64_t version) {
        auto model = names_model(computed, name) ? node.catalogue.model(name, version) : nullptr;
        return model && runs_on_own_device(*model) ? model : nullptr;
    };
    out.load = [&node](const std::string& name) {
        const auto model = node.catalogue.model(name);
        return HostLoad{node.models.steps_here(name), model ? std::max(1u, model->own.devices) : 1};
    };
    out.next_request = [&node] { return node.next_request.fetch_add(1, std::memory_order_relaxed); };
    out.registry = &node.metrics.registry();
    return out;
}

/// SIGTERM and SIGINT arrive here and nowhere else.
int wait_for_signal() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    int got = 0;
    sigwait(&set, &got);
    return got;
}

void block_signals() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
}

void drain(NodeContext& node, Door& door, ClusterNode* cluster) {
    if (cluster) {
        // Others lead what this node led; until then, and after, it is asked and answers.
        node.leaving = true;
        const auto noticed = std::chrono::steady_clock::now() + std::chrono::milliseconds(notice_ms);
        cluster->leave(drain_seconds * 1000);
        // Who asks /readyz now and then sends nothing more by the time the door closes.
        std::this_thread::sleep_until(noticed);
        return door.stop();
    }
    // New turns are refused and /readyz says so, at an open door; what is in flight finishes and is answered. What
    // takes longer stays open in the journal: the next start takes it up.
    node.draining = true;
    const uint64_t until = node.clock.monotonic_ns() + uint64_t(drain_seconds) * 1'000'000'000;
    while (node.sessions_busy.load() > 0 && node.clock.monotonic_ns() < until)
        std::this_thread::sleep_for(std::chrono::milliseconds(5));  // a poll with a bound, not a hope
    door.stop();
}

/// A thread that hangs in a device cannot be stopped from outside; it must not keep the process from ending. What is in
/// the store is kept all the same.
class EndWithin {
  public:
    EndWithin(Store& store, uint32_t seconds)
        : thread_([this, &store, seconds] {
              std::unique_lock lock(mutex_);
              if (ended_.wait_for(lock, std::chrono::seconds(seconds), [this] { return done_; })) return;
              spdlog::error("an actor did not end within {} s: the process ends without it", seconds);
              store.flush();
              ::_exit(0);
          }) {}
    ~EndWithin() {
        {
            std::lock_guard lock(mutex_);
            done_ = true;
        }
        ended_.notify_all();
        thread_.join();
    }

  private:
    std::mutex mutex_;
    std::condition_variable ended_;
    bool done_ = false;
    std::thread thread_;
};

int serve(const Settings& settings) {
    SystemClock clock;
    SecureRandom random;
    ::umask(077);

    auto coordinator = LocalCoordinator::open(settings.directory, random);
    if (!coordinator.ok()) return fail(coordinator.error());
    std::optional<ClusterIdentity> identity;
    if (settings.coordinator == CoordinatorKind::etcd) {
        auto found = find_cluster(cluster_settings(settings), (*coordinator)->self().disk,
                                  (*coordinator)->incarnation(), coordinator_patience_ms);
        if (!found) return fail(found.error());
        identity = *found;
    }
    const uint16_t shard_count = identity ? identity->meta.shards : shard_count_default;
    NodeFold fold(shard_count);
    DiskStoreConfig config;
    config.shard_count = shard_count;
    if (identity) config.cluster = identity->meta.cluster;
    config.directory = settings.directory;
    config.uuid = (*coordinator)->node_uuid();
    config.epoch = (*coordinator)->epoch();
    config.fold = &fold;
    config.segment_bytes = settings.segment_bytes;
    config.disk_reserve_bytes = settings.disk_reserve_bytes;
    config.deleted_text_lifetime_ms = static_cast<uint32_t>(settings.deleted_text_lifetime_ms);
    auto disk = DiskStore::open_disk(config);
    if (!disk.ok()) return fail(disk.error());
    ReplicatedStore replicated(**disk, shard_count);
    Store& store = identity ? static_cast<Store&>(replicated) : **disk;
    const auto recovered = store.stats();
    spdlog::info("store open: epoch {}, {} records of {} bytes not yet applied, {} bytes of torn tail cut{}",
                 config.epoch.value, recovered.recovered_records, recovered.recovered_bytes, recovered.torn_bytes,
                 recovered.read_only ? ", read-only: the disk is full" : "");

    Catalogue catalogue;
    if (auto filled = fill_catalogue(catalogue, store, settings, clock, identity.has_value()); !filled.ok())
        return fail(filled.error());
    auto key = admin_key(settings, random);
    if (!key.ok()) return fail(key.error());

    Metrics metrics;
    ModelScheduler models(metrics, limits::model_requests_in_flight_max, std::make_shared<HttpClient>(),
                          static_cast<uint32_t>(settings.upstream_stall_ms));
    McpStdio::Options tool_options;
    tool_options.log = [](std::string_view server, std::string_view line) {
        spdlog::info("tool server {}: {}", server, line);
    };
    ToolRegistry tools(std::move(tool_options));
    NodeOptions options;
    options.shard_count = shard_count;
    options.strict = settings.commit == CommitMode::strict;
    options.window_bytes = settings.window_bytes;
    options.sessions_active_max = settings.active_max;
    options.passivate_after_ms = static_cast<uint32_t>(settings.passivate_after_ms);
    options.turn_duration_ms = settings.turn_duration_ms;
    options.default_agent = settings.default_agent;
    options.steps_per_turn = static_cast<uint32_t>(settings.steps_per_turn);
    options.tool_call_timeout_ms = static_cast<uint32_t>(settings.tool_call_timeout_ms);

    caf::actor_system_config caf_config;
    // Work comes from foreign threads (door, store, devices): `sharing` wakes workers eight times faster than
    // `stealing`.
    caf_config.set("scheduler.policy", caf::atom("sharing"));
    // Half of the cores: door, journal, applier and devices have threads of their own, and on two cores a second worker
    // only moves sessions between caches (a tenth less CPU a turn with one).
    caf_config.set("scheduler.max-threads", uint64_t{std::max(1u, std::thread::hardware_concurrency() / 2)});
    caf::actor_system system{caf_config};
    NodeContext node{store, catalogue, models, tools, clock, random, metrics, options};
    node.computes_every_model = names_model(settings.computed_models, "*");
    caf::actor supervisor;
    std::shared_ptr<HopServer> hop_server;
    std::optional<ClusterNode> cluster;
    std::optional<ClusterHops> hops;
    std::optional<PeerService> peers;
    std::optional<KvTransfer> kv_transfer;
    std::optional<RemoteModel> remote_model;
    std::optional<StepService> step_service;
    std::optional<LeftWork> left_work;
    const ShardId entity_shard = shard_of(SessionKey{entity_tenant, {}}, shard_count);
    // A scan of the store does not belong on the link's thread.
    const auto entities_wanted = [&](const NodeUuid& peer) { caf::anon_send(supervisor, EntitiesWanted{peer}); };
    if (identity) {
        ClusterCallbacks callbacks;
        callbacks.led = [&](ShardId shard, Epoch epoch) {
            node.pauses.resume(shard);
            caf::anon_send(supervisor, ShardLed{shard, epoch});
        };
        callbacks.lost = [&](ShardId shard) { caf::anon_send(supervisor, ShardLost{shard}); };
        node.activity = ShardActivity(shard_count);
        kv_transfer.emplace(system, kv_transfer_config(models, catalogue, clock, identity->meta.shards, cluster));
        models.on_deleted([&](const SessionKey& session) { kv_transfer->session_deleted(session); });
        callbacks.busy = [&, activity = node.activity](ShardId shard, const NodeUuid& to, TimeMs held_ms) {
            // Blocks go ahead once for a hand-over, beside tool calls: neither waits for the other.
            HandOverAsk ask;
            ask.blocks = kv_transfer->busy(shard, to);
            ask.calls = activity.busy(shard);
            ask.leaving = node.leaving;
            ask.followed = every_node(
                *cluster, [](const NodeDetails& details) { return details.calls >= uint64_t(CallKind::left_work); });
            ask.held_ms = held_ms;
            ask.calls_wait_ms = settings.hand_over_wait_ms;
            if (hand_over_waits(ask)) return true;
            // A node of an older release could not read what a pause leaves: there the step runs again, as after a
            // crash.
            const bool recorded =
                every_node(*cluster, [](const NodeDetails& details) { return details.events >= events_format; });
            return recorded && node.pauses.pause(shard);
        };
        left_work.emplace(left_work_config(metrics, cluster, identity->self.name.node, supervisor));
        node.left_work = &*left_work;
        callbacks.left_work = [&](const NodeUuid&, std::string request, std::shared_ptr<CallReply> reply) {
            left_work->serve(request, std::move(reply));
        };
        callbacks.kv_call = [&](const NodeUuid&, std::string request, std::shared_ptr<CallReply> reply) {
            kv_transfer->serve(std::move(request), std::move(reply));
        };
        peers.emplace(node, asking(cluster, CallKind::shard));
        callbacks.shard_call = [&](const NodeUuid&, std::string request, std::shared_ptr<CallReply> reply) {
            peers->serve(request, std::move(reply));
        };
        callbacks.peer_up = [&](const NodeUuid& peer) {
            if (node.place_of(entity_shard).where == ShardPlace::Where::here) entities_wanted(peer);
        };
        remote_model.emplace(remote_model_config(models, clock, metrics, cluster, identity->self.name.node));
        models.place_steps(*remote_model);
        node.step_place = [&](const SessionKey& session, const std::string& model) {
            return remote_model->place(session, model);
        };
        step_service.emplace(system, step_service_config(node, settings));
        callbacks.model_step = [&](const NodeUuid& from, std::string request, std::shared_ptr<CallReply> reply) {
            step_service->serve(from, std::move(request), std::move(reply));
        };
        callbacks.hop = [&](const NodeUuid& from, std::string request, std::shared_ptr<CallReply> reply) {
            hop_server->call(from, std::move(request), std::move(reply));
        };
        cluster.emplace(cluster_settings(settings), *identity, **disk, std::move(callbacks), (*disk)->adopted_in(),
                        metrics.registry());
        hops.emplace(*cluster);
        replicated.attach(cluster->host());
        node.shards = &cluster->host();
        node.confirm_read = [&](ShardId shard, std::function<void(bool)> done) {
            cluster->host().confirm_read(shard, std::move(done));
        };
        node.memory_elsewhere = [&](const ShardPlace& place, const ToolCall& call,
                                    std::function<void(ToolOutcome)> done) {
            peers->call_memory(place, call, std::move(done));
        };
        node.give_entities = [&](const NodeUuid& to, const std::vector<std::string>& entities) {
            peers->give_entities(to, entities);
        };
        node.entity_committed = [&](const std::string& entity) {
            if (const auto view = cluster->host().view())
                for (const auto& other : view->nodes)
                    if (other.name.node != identity->self.name.node) peers->give_entities(other.name.node, {entity});
        };
        node.shard_led = [&](ShardId shard) {
            if (shard == entity_shard) journal_catalogue(node, node.place_of(shard).epoch);
        };
    }
    OwnModelsConfig own_models{settings.models_directory, settings.directory + "/kv", &clock};
    own_models.computed = settings.computed_models;
    models.attach(system, std::move(own_models));
    for (const auto& model : catalogue.models()) models.load(model);
    supervisor = start_node(system, node);

    int status = 0;
    {
        ActorBridge bridge(system, node);
        DoorConfig door_config;
        const auto colon = settings.listen_address.rfind(':');
        door_config.host = settings.listen_address.substr(0, colon);
        door_config.port = static_cast<uint16_t>(std::stoi(settings.listen_address.substr(colon + 1)));
        door_config.allowed_hosts = settings.allowed_hosts;
        door_config.admin_key = *key;
        door_config.public_health = settings.metrics_without_key;
        door_config.body_bytes_max = settings.body_bytes;
        door_config.connections_max = settings.connections;
        if (cluster) {
            door_config.shards = &cluster->host();
            door_config.hop_caller = &*hops;
            door_config.cluster = &*cluster;
        }
        Door door(door_config, bridge, metrics.registry());
        hop_server = door.hop_server();
        auto started = door.start();
        const std::string address = door_config.host + ":" + std::to_string(door.port());
        if (started.ok() && cluster) started = cluster->start("http://" + address);
        if (started.ok()) {
            if (auto written = write_file(settings.directory + "/listen", address + "\n", 0644); !written.ok())
                spdlog::warn("{}", written.error().message);  // a full disk must not keep reads from being served
            spdlog::info("listening on http://{}", address);
            std::thread signals([&] {
                spdlog::info("signal {}: draining", wait_for_signal());
                std::thread second([] {
                    wait_for_signal();
                    ::_exit(1);
                });
                second.detach();
                drain(node, door, cluster ? &*cluster : nullptr);
            });
            door.run();
            signals.join();
            ::unlink((settings.directory + "/listen").c_str());
        } else {
            status = fail(started.error());
        }
    }
    if (kv_transfer) kv_transfer->stop();
    if (step_service) step_service->stop();
    if (cluster) cluster->stop();
    {
        EndWithin patience(store, stop_seconds);
        stop_node(system, node, supervisor);
    }
    supervisor = {};
    store.flush();
    spdlog::info("stopped");
    return status;
}

}  // namespace
}  // namespace mainstay

int main(int argc, char** argv) {
    using namespace mainstay;
    CLI::App app{"Mainstay: a stateful runtime for AI agents"};
    std::string config, data, listen;
    bool check = false;
    app.add_option("--config", config, "settings file (TOML)");
    app.add_option("--data", data, "data directory; overrides store.directory");
    app.add_option("--listen", listen, "HOST:PORT; overrides listen.address; port 0 takes any free one");
    app.add_flag("--check-config", check, "print the effective settings and exit");
    app.set_version_flag("--version", std::string(build_version()));
    CLI11_PARSE(app, argc, argv);

    std::vector<SettingOverride> flags;
    if (!data.empty()) flags.emplace_back("store.directory", data);
    if (!listen.empty()) flags.emplace_back("listen.address", listen);
    auto settings = load_settings(config, read_environment(), flags);
    if (!settings.ok()) return fail(settings.error(), 2);
    if (check) {
        std::fputs(print_effective(*settings).c_str(), stdout);
        return 0;
    }
    init_log(settings->log_level, settings->log_format == LogFormat::json);
    arm_crash_point();
    block_signals();
    return serve(*settings);
}
