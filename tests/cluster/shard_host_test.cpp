// Hosts with real threads and real stores; the network and the coordinator are in memory and can be cut.
#include "cluster/shard_host.h"

#include <doctest/doctest.h>

#include <chrono>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <thread>

#include "cluster/memory_coordinator.h"
#include "cluster/replicated_store.h"
#include "tests/cluster/cluster_fixture.h"
#include "tests/runtime/store/store_fixture.h"

using namespace mainstay;
using namespace mainstay::store_test;

namespace {

constexpr uint16_t shard_count = 4;
constexpr uint32_t lease_ms = 600;

TimeMs steady_ms() {
    using namespace std::chrono;
    return TimeMs(duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count());
}

/// The one coordinator, on real time, for any thread.
class SharedCoordinator final : public ClusterCoordinator {
  public:
    SharedCoordinator(MemoryCluster& cluster, std::mutex& mutex, const LiveNode& self)
        : cluster_(cluster), mutex_(mutex), inner_(cluster, self) {}
    ReplicaName self() const override { return inner_.self(); }
    uint64_t incarnation() const override { return inner_.incarnation(); }
    Result<ShardRecord> ownership(ShardId shard) override {
        return call<Result<ShardRecord>>([&] { return inner_.ownership(shard); });
    }
    Result<ClusterMeta> meta(const ClusterMeta& if_absent) override {
        return call<Result<ClusterMeta>>([&] { return inner_.meta(if_absent); });
    }
    Result<void> join() override {
        return call<Result<void>>([&] { return inner_.join(); });
    }
    Result<void> keep_alive() override {
        return call<Result<void>>([&] { return inner_.keep_alive(); });
    }
    Result<void> leave() override {
        return call<Result<void>>([&] { return inner_.leave(); });
    }
    Result<void> set_draining(const NodeUuid& node, bool on) override {
        return call<Result<void>>([&] { return inner_.set_draining(node, on); });
    }
    Result<ClusterView> list() override {
        return call<Result<ClusterView>>([&] { return inner_.list(); });
    }
    ChangeAnswer change(const ShardChange& change) override {
        if (away) return {};
        std::lock_guard lock(mutex_);
        cluster_.advance(steady_ms());
        return inner_.change(change);
    }
    Result<std::vector<PlacementDecision>> decisions(std::optional<ShardId> shard, size_t limit) override {
        return call<Result<std::vector<PlacementDecision>>>([&] { return inner_.decisions(shard, limit); });
    }
    void on_hint(std::function<void()> callback) override { inner_.on_hint(std::move(callback)); }

    std::atomic<bool> away{false};

  private:
    template <class R, class F>
    R call(F&& f) {
        if (away) return Error{ErrorCode::coordinator_unavailable, "away", {}};
        std::lock_guard lock(mutex_);
        cluster_.advance(steady_ms());
        return f();
    }
    MemoryCluster& cluster_;
    std::mutex& mutex_;
    MemoryCoordinator inner_;
};

class World;

/// One life of a node.
struct HostNode final : ShardHostEvents {
    HostNode(World& world, uint8_t number, const std::filesystem::path& disk, uint8_t disk_number);
    ~HostNode() override { host.reset(); }
    void led(ShardId shard, Epoch epoch) override {
        std::lock_guard lock(mutex);
        leads[shard.value] = epoch;
    }
    void lost(ShardId shard, Epoch) override {
        std::lock_guard lock(mutex);
        leads.erase(shard.value);
    }
    void figures(const ShardFigures& seen, const CoordinatorFigures& asked) override {
        std::lock_guard lock(mutex);
        counted = seen;
        take_overs = asked.changes[size_t(ChangeKind::take_over)][size_t(ChangeOutcome::ok)];
        hand_overs = asked.changes[size_t(ChangeKind::hand_over)][size_t(ChangeOutcome::ok)];
        wishes = asked.changes[size_t(ChangeKind::wish)][size_t(ChangeOutcome::ok)];
        reads_failed = asked.reads_failed;
        leases_lost = asked.leases_lost;
    }
    /// Whether what is counted, which is told once a second, comes to satisfy `wanted`.
    bool comes_to_count(const std::function<bool(const HostNode&)>& wanted) {
        return eventually([&] {
            std::lock_guard lock(mutex);
            return wanted(*this);
        });
    }
    std::optional<Epoch> epoch_of(ShardId shard) {
        std::lock_guard lock(mutex);
        const auto found = leads.find(shard.value);
        return found == leads.end() ? std::nullopt : std::optional(found->second);
    }

    const uint8_t number;
    LiveNode self;
    std::unique_ptr<DiskStore> disk;
    std::unique_ptr<SharedCoordinator> coordinator;
    std::unique_ptr<ReplicatedStore> store;
    std::mutex mutex;
    std::map<uint16_t, Epoch> leads;
    ShardFigures counted;
    uint64_t take_overs = 0, hand_overs = 0, wishes = 0, reads_failed = 0, leases_lost = 0;
    std::unique_ptr<ShardHost> host;
};

class World {
  public:
    explicit World(size_t log_records_kept = limits::replication_log_records_max) {
        fold.shard_count = shard_count;
        settings.log_records_kept = log_records_kept;
        settings.heartbeat_ms = 20;
        settings.resend_ms = 40;
        settings.replica_timeout_ms = 200;
        settings.probation_ms = 300;
        settings.list_interval_ms = 100;
        settings.stagger_ms = 10;
        for (uint8_t number = 1; number <= 3; ++number) start(number, dirs[number].path(), 1);
        std::lock_guard lock(cluster_mutex);
        cluster.advance(steady_ms());
        for (uint16_t shard = 0; shard < shard_count; ++shard) {
            ShardRecord record;
            record.shard = ShardId{shard};
            record.epoch = Epoch{1};
            record.min_in_sync = 2;
            for (const auto& [number, node] : nodes) {
                record.replicas.push_back(node->self.name.node);
                record.in_sync.push_back(node->self.name);
            }
            const auto& primary = *nodes.at(static_cast<uint8_t>(1 + shard % 3));
            record.primary = primary.self.name;
            record.incarnation = primary.self.incarnation;
            REQUIRE(cluster.change({0, record, {}, {}}).outcome == ChangeOutcome::ok);
        }
    }
    ~World() {
        for (auto& [number, node] : nodes) node->host->stop();
    }

    void start(uint8_t number, const std::filesystem::path& disk, uint8_t disk_number) {
        auto node = std::make_unique<HostNode>(*this, number, disk, disk_number);
        HostNode& started = *node;
        {
            std::lock_guard lock(nodes_mutex);
            nodes[number] = std::move(node);
        }
        started.host->start(*started.coordinator);
    }
    /// As SIGKILL would: no hand-over, no last word to the coordinator.
    void kill(uint8_t number) {
        std::unique_ptr<HostNode> killed;
        {
            std::lock_guard lock(nodes_mutex);
            killed = std::move(nodes.at(number));
            nodes.erase(number);
        }
        killed->host->stop();
    }
    void send(uint8_t from, const NodeUuid& to, std::vector<ReplicationMessage> messages) {
        std::lock_guard lock(nodes_mutex);
        const auto found = nodes.find(to[0]);
        if (found == nodes.end() || cut.contains({from, to[0]})) return;
        found->second->host->receive(std::move(messages));
    }
    void isolate(uint8_t number, bool on) {
        {
            std::lock_guard lock(nodes_mutex);
            for (uint8_t other = 1; other <= 3; ++other) {
                if (other == number) continue;
                for (const auto& pair : {std::pair(number, other), std::pair(other, number)})
                    on ? (void)cut.insert(pair) : (void)cut.erase(pair);
            }
        }
        nodes.at(number)->coordinator->away = on;
    }

    HostNode* leader_of(ShardId shard) {
        for (auto& [number, node] : nodes)
            if (node->epoch_of(shard)) return node.get();
        return nullptr;
    }
    HostNode& wait_for_leader(ShardId shard, uint8_t not_this = 0) {
        HostNode* found = nullptr;
        REQUIRE(eventually([&] {
            for (auto& [number, node] : nodes)
                if (number != not_this && node->host->find(shard).where == ShardPlace::Where::here) found = node.get();
            return found != nullptr;
        }));
        return *found;
    }

    /// The next turn of a session, through whoever leads it, until it is acknowledged.
    void turn(const SessionKey& key) {
        const ShardId shard = shard_of(key, shard_count);
        const uint64_t sequence = acknowledged[key] + 1;
        for (int attempt = 0; attempt < 50; ++attempt) {
            HostNode& leader = wait_for_leader(shard);
            if (told(leader, key, sequence)) {
                acknowledged[key] = sequence;
                return;
            }
        }
        FAIL("never acknowledged");
    }
    struct Answer final : AckTarget {
        void acknowledged(Sequence, Sequence committed) override { done = committed.value; }
        void refused() override { no = true; }
        std::atomic<uint64_t> done{0};
        std::atomic<bool> no{false};
    };
    bool told(HostNode& leader, const SessionKey& key, uint64_t sequence) {
        const ShardId shard = shard_of(key, shard_count);
        auto answer = std::make_shared<Answer>();
        auto append = events(key, sequence, "T" + std::to_string(sequence), answer);
        append.led_in = leader.host->find(shard).epoch;
        leader.store->append(std::move(append));
        REQUIRE(eventually([&] { return answer->done >= sequence || answer->no; }));
        return answer->done >= sequence;
    }
    /// What one node's store says of a session: its highest sequence.
    static uint64_t seen(DiskStore& store, const SessionKey& key) {
        const auto image = store.load(key);
        REQUIRE(image.ok());
        uint64_t last = image->head ? head_last(*image->head) : 0;
        for (const auto& record : image->tail) last = std::max(last, record.first_sequence.value);
        return last;
    }
    void check_all_copies() {
        for (auto& [number, node] : nodes)
            for (const auto& [key, sequence] : acknowledged) {
                CAPTURE(int(number));
                CHECK(eventually([&, wanted = sequence] { return seen(*node->disk, key) >= wanted; }));
            }
    }

    /// Whether the coordinator tells people so of the shard, with a time of day.
    bool is_told(ShardId shard, const std::string& what, const std::string& why) {
        std::lock_guard lock(cluster_mutex);
        for (const auto& decision : cluster.decisions(shard, 100))
            if (decision.what.starts_with(what) && decision.why == why && decision.at > 1'700'000'000'000) return true;
        return false;
    }

    ReplicationSettings settings;
    TestFold fold;
    MemoryCluster cluster{lease_ms};
    std::mutex cluster_mutex;
    std::map<uint8_t, TempDir> dirs;
    std::mutex nodes_mutex;
    std::map<uint8_t, std::unique_ptr<HostNode>> nodes;
    std::set<std::pair<uint8_t, uint8_t>> cut;
    std::map<SessionKey, uint64_t> acknowledged;
    uint64_t lives = 0;
    std::atomic<bool> busy{false};  // with something that had better end before a hand-over
    std::atomic<uint64_t> asked_busy{0}, asked_wrong{0};
};

HostNode::HostNode(World& world, uint8_t number_, const std::filesystem::path& path, uint8_t disk_number)
    : number(number_) {
    self.name = replica_name(number, disk_number);
    self.incarnation = ++world.lives;
    auto config = small_config(path, world.fold, world.lives);
    config.cluster = StoreUuid{5};
    config.shard_count = shard_count;
    auto opened = DiskStore::open_disk(std::move(config));
    if (!opened) FAIL(opened.error().message);
    disk = std::move(opened).value();
    coordinator = std::make_unique<SharedCoordinator>(world.cluster, world.cluster_mutex, self);
    ShardHostConfig host_config;
    host_config.meta = {ClusterUuid{5}, shard_count, 3, 2, 1};
    host_config.self = self;
    host_config.replication = world.settings;
    host_config.lease_ms = lease_ms;
    host_config.list_spacing_ms = 5;
    host_config.hand_over_hold_ms = 60'000;  // tests let go themselves
    host_config.busy = [&world, me = self.name.node](ShardId, const NodeUuid& to, TimeMs) {
        ++world.asked_busy;
        world.asked_wrong += to == me || to == NodeUuid{};
        return world.busy.load();
    };
    host_config.send = [&world, me = number](const NodeUuid& to, std::vector<ReplicationMessage> messages) {
        world.send(me, to, std::move(messages));
    };
    store = std::make_unique<ReplicatedStore>(*disk, shard_count);
    host = std::make_unique<ShardHost>(std::move(host_config), *disk, *this);
    store->attach(*host);
}

std::vector<SessionKey> some_sessions(size_t count) {
    std::vector<SessionKey> keys;
    for (uint64_t n = 1; n <= count; ++n) keys.push_back(session_key(n));
    return keys;
}

}  // namespace

TEST_CASE("shard host: what is acknowledged is on every copy") {
    World world;
    const auto keys = some_sessions(12);
    for (int round = 0; round < 10; ++round)
        for (const auto& key : keys) world.turn(key);
    world.check_all_copies();
    for (auto& [number, node] : world.nodes) CHECK(node->disk->stats().damaged_sessions == 0);
}

TEST_CASE("shard host: a killed primary is taken over from, nothing acknowledged is lost, and it comes back") {
    World world;
    const auto keys = some_sessions(12);
    for (const auto& key : keys) world.turn(key);
    world.kill(1);
    for (int round = 0; round < 3; ++round)
        for (const auto& key : keys) world.turn(key);
    world.check_all_copies();
    CHECK(world.is_told(ShardId{0}, "primary node 0", "node 01000000 has no lease"));
    CHECK(world.is_told(ShardId{0}, "in sync: nodes 0", "node 01000000 has no lease"));
    world.start(1, world.dirs[1].path(), 1);
    for (const auto& key : keys) world.turn(key);
    world.check_all_copies();
    // In step again, after its probation.
    CHECK(eventually([&] {
        std::lock_guard lock(world.cluster_mutex);
        for (uint16_t shard = 0; shard < shard_count; ++shard)
            if (world.cluster.record(ShardId{shard})->in_sync.size() != 3) return false;
        return true;
    }));
}

TEST_CASE("shard host: a node that lost its disk is sent a snapshot, and what came meanwhile") {
    World world(64);
    const auto keys = some_sessions(6);
    for (int round = 0; round < 40; ++round)
        for (const auto& key : keys) world.turn(key);
    world.kill(2);
    for (const auto& key : keys) world.turn(key);
    TempDir fresh;
    world.start(2, fresh.path(), 2);
    for (int round = 0; round < 5; ++round)
        for (const auto& key : keys) world.turn(key);
    world.check_all_copies();
    for (const auto& key : keys) CHECK(world.nodes.at(2)->disk->read_turn(key, TurnNo{1})->value() == "1");
    world.nodes.at(2)->host->stop();  // before its directory goes
    world.kill(2);
}

TEST_CASE("shard host: a primary that is cut off acknowledges nothing and confirms no read") {
    World world;
    const SessionKey key = session_key(1);
    const ShardId shard = shard_of(key, shard_count);
    world.turn(key);
    HostNode& old = world.wait_for_leader(shard);
    const uint8_t number = old.number;
    const Epoch epoch = old.host->find(shard).epoch;
    world.isolate(number, true);
    auto answer = std::make_shared<World::Answer>();
    auto append = events(key, 2, "Tnever told", answer);
    append.led_in = epoch;
    old.store->append(std::move(append));
    std::atomic<int> read{0};
    old.host->confirm_read(shard, [&](bool ok) { read = ok ? 1 : 2; });
    HostNode& next = world.wait_for_leader(shard, number);
    CHECK(next.host->find(shard).epoch > epoch);
    CHECK(World::seen(*next.disk, key) >= 1);
    CHECK(answer->done == 0);
    CHECK(read != 1);
    world.isolate(number, false);
    CHECK(eventually([&] { return answer->no.load(); }));
    CHECK(eventually([&] { return read == 2; }));
    CHECK(answer->done == 0);
    // The next primary may have it or not; both nodes agree.
    world.acknowledged[key] = World::seen(*next.disk, key);
    world.turn(key);
    world.check_all_copies();
    std::atomic<bool> fresh{false};
    next.host->confirm_read(shard, [&](bool ok) { fresh = ok; });
    CHECK(eventually([&] { return fresh.load(); }));
}

TEST_CASE("shard host: an actor of an earlier leadership is refused") {
    World world;
    const SessionKey key = session_key(1);
    const ShardId shard = shard_of(key, shard_count);
    world.turn(key);
    HostNode& leader = world.wait_for_leader(shard);
    auto answer = std::make_shared<World::Answer>();
    auto append = events(key, 2, "Tlate", answer);
    append.led_in = Epoch{leader.host->find(shard).epoch.value - 1};
    leader.store->append(std::move(append));
    CHECK(eventually([&] { return answer->no.load(); }));
    CHECK(World::seen(*leader.disk, key) == 1);
}

TEST_CASE("shard host: a node that leaves hands over what it leads, under writes") {
    World world;
    const auto keys = some_sessions(8);
    for (const auto& key : keys) world.turn(key);
    std::atomic<bool> handed{false};
    std::thread leaving([&] { handed = world.nodes.at(1)->host->hand_over_all(10'000); });
    for (int round = 0; round < 10; ++round)
        for (const auto& key : keys) world.turn(key);
    leaving.join();
    CHECK(handed);
    for (uint16_t shard = 0; shard < shard_count; ++shard) CHECK_FALSE(world.nodes.at(1)->epoch_of(ShardId{shard}));
    CHECK(world.is_told(ShardId{0}, "target node 0", "node 01000000 stops"));
    world.check_all_copies();
}

TEST_CASE("shard host: a hand-over waits for what is under way from the moment of the wish, and the shard is served") {
    World world;
    const auto keys = some_sessions(8);
    for (const auto& key : keys) world.turn(key);
    HostNode& leader = *world.nodes.at(1);
    std::vector<ShardId> led;
    for (uint16_t shard = 0; shard < shard_count; ++shard)
        if (leader.epoch_of(ShardId{shard})) led.push_back(ShardId{shard});
    REQUIRE_FALSE(led.empty());
    world.busy = true;
    std::atomic<bool> handed{false};
    std::thread leaving([&] { handed = leader.host->hand_over_all(20'000); });
    CHECK(eventually([&] { return world.asked_busy >= 4 * led.size(); }));
    for (const auto& key : keys) world.turn(key);
    for (const ShardId shard : led) CHECK(leader.epoch_of(shard));
    world.busy = false;
    leaving.join();
    CHECK(handed);
    CHECK(world.asked_wrong == 0);
    for (const ShardId shard : led) CHECK_FALSE(leader.epoch_of(shard));
    world.check_all_copies();
}

TEST_CASE("shard host: who waits for a place is told when it changes") {
    World world;
    const SessionKey key = session_key(1);
    const ShardId shard = shard_of(key, shard_count);
    world.turn(key);
    const uint8_t led_by = world.wait_for_leader(shard).number;
    auto& watching = *world.nodes.at(static_cast<uint8_t>(led_by % 3 + 1));
    REQUIRE(eventually([&] { return watching.host->find(shard).where == ShardPlace::Where::there; }));
    CHECK(watching.host->find(shard).node[0] == led_by);
    std::atomic<int> told{0};
    watching.host->when_changed(watching.host->version(), [&] { ++told; });
    CHECK(told == 0);
    world.kill(led_by);
    CHECK(eventually([&] { return told == 1; }));
    watching.host->when_changed(0, [&] { ++told; });
    CHECK(told == 2);
}

TEST_CASE("shard host: what it counts is what happened") {
    World world;
    const auto keys = some_sessions(12);
    for (const auto& key : keys) world.turn(key);
    auto& first = *world.nodes.at(1);
    auto& second = *world.nodes.at(2);
    const auto accepted = [](const HostNode& node) {
        return node.counted.proposals[size_t(ProposalOutcome::accepted)];
    };
    // Shards 0 and 3 are the first node's.
    uint64_t of_first = 0;
    for (const auto& key : keys) of_first += shard_of(key, shard_count).value % 3 == 0;
    REQUIRE(of_first > 0);
    CHECK(first.comes_to_count([&](const HostNode& node) { return accepted(node) == of_first; }));
    CHECK(first.comes_to_count([](const HostNode& node) { return node.counted.shards_serving == 2; }));
    {
        std::lock_guard lock(first.mutex);
        const auto& seen = first.counted;
        CHECK(seen.shards_led == 2);
        CHECK(seen.shards_under_replicated == 0);
        CHECK(seen.shards_unled == 0);
        CHECK(seen.nodes_live == 3);
        // A barrier for each shard is an entry too, but nothing that was proposed. Both others are sent everything.
        CHECK(seen.entries_sent >= 2 * (of_first + 2));
        CHECK(seen.entry_bytes_sent > 0);
        CHECK(std::accumulate(seen.commit.counts.begin(), seen.commit.counts.end(), uint64_t{0}) == of_first);
        CHECK(first.take_overs == 0);
    }

    std::atomic<int> confirmed{0};
    for (int i = 0; i < 3; ++i) first.host->confirm_read(ShardId{0}, [&](bool yes) { confirmed += yes; });
    CHECK(eventually([&] { return confirmed == 3; }));
    CHECK(first.comes_to_count([](const HostNode& node) { return node.counted.reads_confirmed == 3; }));

    CHECK(first.host->hand_over_all(20'000));
    CHECK(first.comes_to_count(
        [](const HostNode& node) { return node.counted.shards_led == 0 && node.hand_overs == 2 && node.wishes == 2; }));

    // Cut off from the coordinator its reads fail and, after a while, its lease is gone.
    world.isolate(1, true);
    CHECK(first.comes_to_count([](const HostNode& node) { return node.reads_failed > 0; }));
    world.isolate(1, false);
    CHECK(first.comes_to_count([](const HostNode& node) { return node.leases_lost > 0; }));

    const uint16_t led = [&] {
        std::lock_guard lock(second.mutex);
        return static_cast<uint16_t>(second.leads.size());
    }();
    REQUIRE(led > 0);
    world.kill(2);
    CHECK(eventually([&] {
        uint64_t taken = 0;
        for (uint8_t number : {1, 3}) {
            std::lock_guard lock(world.nodes.at(number)->mutex);
            taken += world.nodes.at(number)->take_overs;
        }
        return taken >= led;
    }));
    CHECK(world.nodes.at(3)->comes_to_count([](const HostNode& node) {
        return node.counted.shards_under_replicated == node.counted.shards_led && node.counted.shards_led > 0 &&
               node.counted.nodes_live == 2;
    }));
}
