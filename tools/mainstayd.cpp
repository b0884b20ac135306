// The daemon, and the one place where everything is wired by hand: nothing constructs itself, nothing registers itself.
// Order of life: settings, data directory (lock, epoch), store (scanned, tail in memory), catalogue, actors, door; then
// open turns are taken up. Order of death: door drains, actors end, tools stop, the store is flushed and closed.

#include <pthread.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>

#include "actors/model_scheduler.h"
#include "actors/node_fold.h"
#include "actors/node_supervisor.h"
#include "cluster/local_coordinator.h"
#include "gateway/actor_bridge.h"
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
constexpr uint32_t stop_seconds = 15;  // for actors to end, after the drain

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

/// Agents and models: what the store has (every version that turns may be bound to), then the files. A file that says
/// something new becomes an entity; the journal is ordered, so no turn can be bound to it before.
Result<void> fill_catalogue(Catalogue& catalogue, Store& store, const Settings& settings, const Clock& clock) {
    auto entities = store.entities();
    if (!entities.ok()) return entities.error();
    for (const auto& payload : *entities) {
        auto entity = decode_entity(payload);
        if (!entity.ok()) return entity.error();
        if (auto restored = catalogue.restore(*entity); !restored.ok()) return restored;
    }
    auto authored = load_directory(settings.agents_directory, settings.models_directory);
    if (!authored.ok()) return authored.error();
    for (const auto& model : authored->models)
        if (auto checked = check_model(*model, settings.models_directory); !checked.ok()) return checked;
    auto changed = catalogue.apply_all(*authored);
    if (!changed.ok()) return changed.error();
    if (store.stats().read_only) return {};  // they are written at a start that finds room
    auto journal = [&](std::string payload) {
        Append append;
        append.kind = RecordKind::entity;
        append.session.tenant = TenantId{1};
        append.event_count = 1;
        append.payload = std::move(payload);
        store.append(std::move(append));
    };
    for (const auto& model : changed->models) journal(encode_model_entity(*model, clock.now_ms(), "config"));
    for (const auto& agent : changed->agents) journal(encode_agent_entity(*agent, clock.now_ms(), "config"));
    return {};
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

void drain(NodeContext& node, Door& door) {
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
    NodeFold fold;
    DiskStoreConfig config;
    config.directory = settings.directory;
    config.uuid = (*coordinator)->node_uuid();
    config.epoch = (*coordinator)->epoch();
    config.fold = &fold;
    config.segment_bytes = settings.segment_bytes;
    config.disk_reserve_bytes = settings.disk_reserve_bytes;
    config.deleted_text_lifetime_ms = static_cast<uint32_t>(settings.deleted_text_lifetime_ms);
    auto store = DiskStore::open(config);
    if (!store.ok()) return fail(store.error());
    const auto recovered = (*store)->stats();
    spdlog::info("store open: epoch {}, {} records of {} bytes not yet applied, {} bytes of torn tail cut{}",
                 config.epoch.value, recovered.recovered_records, recovered.recovered_bytes, recovered.torn_bytes,
                 recovered.read_only ? ", read-only: the disk is full" : "");

    Catalogue catalogue;
    if (auto filled = fill_catalogue(catalogue, **store, settings, clock); !filled.ok()) return fail(filled.error());
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
    NodeContext node{**store, catalogue, models, tools, clock, random, metrics, options};
    models.attach(system, {settings.models_directory, settings.directory + "/kv", &clock});
    for (const auto& model : catalogue.models()) models.load(model);
    const auto supervisor = start_node(system, node);

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
        Door door(door_config, bridge, metrics.registry());
        auto started = door.start();
        if (started.ok()) {
            const std::string address = door_config.host + ":" + std::to_string(door.port());
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
                drain(node, door);
            });
            door.run();
            signals.join();
            ::unlink((settings.directory + "/listen").c_str());
        } else {
            status = fail(started.error());
        }
    }
    {
        EndWithin patience(**store, stop_seconds);
        stop_node(system, node, supervisor);
    }
    (*store)->flush();
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
    if (settings->coordinator != CoordinatorKind::local)
        return fail({ErrorCode::not_yet, "cluster.coordinator: this release runs on one node", "cluster.coordinator"},
                    2);
    if (check) {
        std::fputs(print_effective(*settings).c_str(), stdout);
        return 0;
    }
    init_log(settings->log_level, settings->log_format == LogFormat::json);
    arm_crash_point();
    block_signals();
    return serve(*settings);
}
