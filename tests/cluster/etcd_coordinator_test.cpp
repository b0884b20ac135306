// EtcdCoordinator against a real etcd (tests/support/etcd_server.h), and against one that is played where the case is
// about an answer that etcd does not give on demand.

#include "cluster/etcd_coordinator.h"

#include <doctest/doctest.h>

#include <boost/json.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "cluster/coordinator_contract.h"
#include "cluster/record_json.h"
#include "runtime/base/base64.h"
#include "support/etcd_server.h"
#include "support/fake_upstream.h"

namespace mainstay {
namespace {

namespace json = boost::json;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

/// One for all cases that leave it as it is; each has a cluster of its own in it.
EtcdServer& shared_etcd() {
    static EtcdServer server;
    return server;
}

ClusterUuid fresh_cluster() {
    static uint8_t last = 0;
    ClusterUuid out{0xc1};
    out[15] = ++last;
    return out;
}

EtcdSettings settings_of(const std::vector<std::string>& urls, const ClusterUuid& cluster, const LiveNode& self) {
    EtcdSettings out;
    out.urls = urls;
    out.cluster = cluster;
    out.self = self;
    out.details = contract_details(self.name.node[0]);
    out.request_timeout_ms = 10'000;  // of a busy machine; cases about time set their own
    return out;
}

std::unique_ptr<EtcdCoordinator> open(EtcdSettings settings) {
    auto opened = EtcdCoordinator::open(std::move(settings));
    REQUIRE(opened.ok());
    return std::move(*opened);
}

std::unique_ptr<EtcdCoordinator> open(const std::vector<std::string>& urls, const ClusterUuid& cluster,
                                      const LiveNode& self = contract_node(1, 11)) {
    return open(settings_of(urls, cluster, self));
}

struct EtcdWorld final : ContractWorld {
    const ClusterUuid id = fresh_cluster();
    std::unique_ptr<EtcdCoordinator> first, second;

    explicit EtcdWorld(uint32_t lease_ms = 5000) {
        for (auto* node : {&first, &second}) {
            const bool is_first = node == &first;
            auto settings = settings_of({shared_etcd().url()}, id, contract_node(is_first ? 1 : 2, is_first ? 11 : 22));
            settings.lease_ms = is_first ? lease_ms : 60'000;
            *node = open(settings);
            REQUIRE((*node)->join());
        }
    }
    ClusterCoordinator& one() override { return *first; }
    ClusterCoordinator& two() override { return *second; }
    ClusterUuid cluster() const override { return id; }
    void expire_one() override {
        const auto until = steady_clock::now() + seconds(30);
        while (steady_clock::now() < until) {
            const auto view = second->list();
            REQUIRE(view.ok());
            if (view->nodes.size() == 1) return;
            std::this_thread::sleep_for(milliseconds(20));  // between two looks
        }
        FAIL("the lease does not expire");
    }
};

ShardChange simple_change(const EtcdCoordinator& by, uint64_t expected, uint64_t epoch, uint16_t shard = 7) {
    ShardChange out;
    out.expected_version = expected;
    out.desired.shard = ShardId(shard);
    out.desired.epoch = Epoch(epoch);
    out.desired.primary = by.self();
    out.desired.incarnation = by.incarnation();
    out.desired.in_sync = {by.self()};
    return out;
}

std::string key_of(const ClusterUuid& cluster, const std::string& name) {
    return "/mainstay/" + to_text(cluster) + "/" + name;
}

/// What FakeUpstream recorded, given to the real etcd: the request that was under way arrives.
EtcdAnswer deliver(EtcdServer& etcd, const FakeUpstream::Request& request) {
    return etcd.post(request.target.c_str(), json::parse(request.body).get_object());
}

const FakeAnswer swallowed{{}, FakeAnswer::End::close}, stalled{{}, FakeAnswer::End::stall};

/// Hints, waited for by number. The callback may outlive the object.
class Hints {
  public:
    std::function<void()> callback() {
        return [state = state_] {
            const std::lock_guard lock(state->lock);
            ++state->count;
            state->at = steady_clock::now();
            state->changed.notify_all();
        };
    }
    size_t count() const {
        const std::lock_guard lock(state_->lock);
        return state_->count;
    }
    steady_clock::time_point at() const {
        const std::lock_guard lock(state_->lock);
        return state_->at;
    }
    bool wait_more_than(size_t count) {
        std::unique_lock lock(state_->lock);
        return state_->changed.wait_for(lock, seconds(20), [&] { return state_->count > count; });
    }

  private:
    struct State {
        std::mutex lock;
        std::condition_variable changed;
        size_t count = 0;
        steady_clock::time_point at;
    };
    const std::shared_ptr<State> state_ = std::make_shared<State>();
};

double milliseconds_of(steady_clock::duration time) { return std::chrono::duration<double, std::milli>(time).count(); }

}  // namespace

TEST_CASE("etcd coordinator: a record changes by compare-and-set, and each change has a version of its own") {
    EtcdWorld world;
    check_compare_and_set(world);
}

TEST_CASE("etcd coordinator: leases are compared with the change") {
    EtcdWorld world(2000);
    check_leases_are_compared(world);
}

TEST_CASE("etcd coordinator: a list holds every record, lease and wish") {
    EtcdWorld world;
    check_list_is_whole(world);
}

TEST_CASE("etcd coordinator: that a copy was forced to lead is kept with the record") {
    EtcdWorld world;
    check_force_is_kept(world);
}

TEST_CASE("etcd coordinator: why something was placed is kept with the change") {
    EtcdWorld world;
    check_decisions_are_kept(world);
}

TEST_CASE("etcd coordinator: what holds for a cluster is decided once") {
    EtcdWorld world;
    check_meta_is_decided_once(world);
}

TEST_CASE("etcd coordinator: of fifty who claim at once, one wins") {
    EtcdWorld world;
    const uint64_t version = world.first->change(simple_change(*world.first, 0, 1)).config_version;
    std::array<ChangeAnswer, 50> answers;
    std::vector<std::thread> claims;
    for (size_t n = 0; n < answers.size(); ++n)
        claims.emplace_back([&, n] {
            auto& by = n % 2 ? *world.first : *world.second;
            answers[n] = by.change(simple_change(by, version, 100 + n));
        });
    for (auto& claim : claims) claim.join();
    size_t winner = answers.size(), winners = 0;
    for (size_t n = 0; n < answers.size(); ++n) {
        CHECK(answers[n].outcome != ChangeOutcome::unknown);
        if (answers[n].outcome != ChangeOutcome::ok) continue;
        winner = n;
        ++winners;
    }
    REQUIRE(winners == 1);
    const auto record = world.first->ownership(ShardId(7));
    CHECK(record->epoch == Epoch(100 + winner));
    CHECK(record->config_version == answers[winner].config_version);
}

TEST_CASE("etcd coordinator: a take-over passes when the lease has expired, and not before") {
    EtcdWorld world(2000);
    auto take_over = contract_change(world, world.first->change(contract_change(world, 0, 1)).config_version, 2);
    take_over.gone = Incarnation{world.first->self().node, 11};
    const auto prolonged = steady_clock::now();
    REQUIRE(world.first->keep_alive());
    ChangeAnswer answer;
    while (steady_clock::now() < prolonged + seconds(30)) {
        answer = world.second->change(take_over);
        if (answer.outcome != ChangeOutcome::conflict) break;
        std::this_thread::sleep_for(milliseconds(10));  // between two attempts
    }
    const auto passed = steady_clock::now();
    CHECK(answer.outcome == ChangeOutcome::ok);
    CHECK(passed - prolonged >= seconds(2));
    CHECK(world.first->keep_alive().error().code == ErrorCode::conflict);
    CHECK(world.second->ownership(ShardId(7))->epoch == Epoch(2));
    MESSAGE("taken over " << milliseconds_of(passed - prolonged) << " ms after the last beat of a lease of 2 s");
}

TEST_CASE("etcd coordinator: a change is unknown while etcd stands still, and a confirmed one settles it") {
    EtcdServer etcd;
    const auto cluster = fresh_cluster();
    auto steady = open({etcd.url()}, cluster);
    auto settings = settings_of({etcd.url()}, cluster, contract_node(2, 22));
    settings.request_timeout_ms = 300;
    auto hasty = open(settings);
    uint64_t version = steady->change(simple_change(*steady, 0, 1)).config_version;
    int landed = 0;
    for (uint64_t round = 1; round <= 5; ++round) {
        const uint64_t tried = 100 * round, confirmed = tried + 1;
        etcd.pause();
        const auto answer = hasty->change(simple_change(*hasty, version, tried));
        CHECK(answer.outcome == ChangeOutcome::unknown);
        CHECK_FALSE(answer.why.empty());
        CHECK_FALSE(hasty->list());
        CHECK(hasty->ownership(ShardId(7)).error().code == ErrorCode::coordinator_unavailable);
        etcd.resume();
        const auto confirm = steady->change(simple_change(*steady, version, confirmed));
        REQUIRE(confirm.outcome != ChangeOutcome::unknown);
        // It was first, or it has no effect, and from here on never will.
        const bool was_first = confirm.outcome == ChangeOutcome::conflict;
        landed += was_first;
        for (int look = 0; look < 20; ++look)
            REQUIRE(steady->ownership(ShardId(7))->epoch == Epoch(was_first ? tried : confirmed));
        version = steady->ownership(ShardId(7))->config_version;
    }
    MESSAGE("of 5 changes that were given up, " << landed << " took effect before the confirm");
}

TEST_CASE("etcd coordinator: a change whose answer is lost may have happened, may not, or may happen late") {
    EtcdServer& etcd = shared_etcd();
    FakeUpstream way;
    const auto cluster = fresh_cluster();
    auto direct = open({etcd.url()}, cluster);
    auto lossy = open({way.url()}, cluster, contract_node(2, 22));
    const uint64_t version = direct->change(simple_change(*direct, 0, 1)).config_version;

    way.answer(swallowed);
    CHECK(lossy->change(simple_change(*lossy, version, 2)).outcome == ChangeOutcome::unknown);
    REQUIRE(way.requests().size() == 1);  // and it was not sent again
    CHECK(direct->ownership(ShardId(7))->epoch == Epoch(1));
    const auto arrived = deliver(etcd, way.requests()[0]);
    CHECK(arrived.body.contains("succeeded"));
    CHECK(direct->ownership(ShardId(7))->epoch == Epoch(2));

    const uint64_t now = direct->ownership(ShardId(7))->config_version;
    way.answer(swallowed);
    CHECK(lossy->change(simple_change(*lossy, now, 3)).outcome == ChangeOutcome::unknown);
    CHECK(direct->change(simple_change(*direct, now, 2)).outcome == ChangeOutcome::ok);  // the confirm
    const auto late = deliver(etcd, way.requests()[1]);
    CHECK(late.done());
    CHECK_FALSE(late.body.contains("succeeded"));
    CHECK(direct->ownership(ShardId(7))->epoch == Epoch(2));
}

TEST_CASE("etcd coordinator: only an answer of etcd's says ok or conflict") {
    FakeUpstream way;
    auto node = open({way.url()}, fresh_cluster());
    const auto outcome = [&](FakeAnswer answer) {
        way.answer(std::move(answer));
        return node->change(simple_change(*node, 5, 2));
    };
    CHECK(outcome(fake_answer(200, R"({"header":{"revision":"9"},"succeeded":true})")).outcome == ChangeOutcome::ok);
    CHECK(outcome(fake_answer(200, R"({"header":{"revision":"9"}})")).outcome == ChangeOutcome::conflict);
    CHECK(outcome(fake_answer(200, R"({"succeeded":true})")).outcome == ChangeOutcome::unknown);
    CHECK(outcome(fake_answer(200, "{}")).outcome == ChangeOutcome::unknown);
    CHECK(outcome(fake_answer(200, "a proxy says hello")).outcome == ChangeOutcome::unknown);
    CHECK(outcome(fake_answer(302, R"({"header":{"revision":"9"}})")).outcome == ChangeOutcome::unknown);
    const auto full = outcome(fake_answer(429, R"({"error":"x","message":"mvcc: database space exceeded","code":8})"));
    CHECK(full.outcome == ChangeOutcome::unknown);
    CHECK(full.why.find("database space exceeded") != std::string::npos);
    CHECK(outcome(fake_answer(503, R"({"message":"etcdserver: no leader","code":14})")).outcome ==
          ChangeOutcome::unknown);
    CHECK(way.requests().size() == 8);
}

TEST_CASE("etcd coordinator: the next address is asked, but for a change that may be under way") {
    EtcdServer& etcd = shared_etcd();
    const auto cluster = fresh_cluster();
    std::string nobody;
    {
        const FakeUpstream gone;
        nobody = gone.url();
    }
    SUBCASE("nobody listens: nothing was sent, so a change goes on as well") {
        auto node = open({nobody, etcd.url()}, cluster);
        CHECK(node->change(simple_change(*node, 0, 1)).outcome == ChangeOutcome::ok);
        CHECK(node->list()->shards.size() == 1);
    }
    SUBCASE("nobody listens anywhere") {
        auto node = open({nobody}, cluster);
        CHECK(node->change(simple_change(*node, 0, 1)).outcome == ChangeOutcome::unknown);
        CHECK(node->list().error().code == ErrorCode::coordinator_unavailable);
        CHECK(node->keep_alive().error().code == ErrorCode::conflict);  // it never had one
        CHECK(node->join().error().code == ErrorCode::coordinator_unavailable);
    }
    SUBCASE("the first one has the change and says nothing") {
        FakeUpstream silent;
        auto settings = settings_of({silent.url(), etcd.url()}, cluster, contract_node(1, 11));
        settings.request_timeout_ms = 300;
        auto node = open(settings);
        silent.answer(stalled);
        CHECK(node->change(simple_change(*node, 0, 1)).outcome == ChangeOutcome::unknown);
        CHECK(silent.requests().size() == 1);
        auto direct = open({etcd.url()}, cluster);
        CHECK(direct->ownership(ShardId(7)).error().code == ErrorCode::not_found);
    }
    SUBCASE("the first one has the change and hangs up") {
        FakeUpstream rude;
        auto node = open({rude.url(), etcd.url()}, cluster);
        rude.answer(swallowed);
        CHECK(node->change(simple_change(*node, 0, 1)).outcome == ChangeOutcome::unknown);
        CHECK(node->ownership(ShardId(7)).error().code == ErrorCode::not_found);
    }
    SUBCASE("a read goes on within its time") {
        FakeUpstream silent;
        auto settings = settings_of({silent.url(), etcd.url()}, cluster, contract_node(1, 11));
        settings.request_timeout_ms = 4000;
        auto node = open(settings);
        silent.answer(stalled);
        CHECK(node->list().ok());
        CHECK(silent.requests().size() == 1);
        CHECK(node->list().ok());  // and who answered is asked first from then on
        CHECK(silent.requests().size() == 1);
    }
    SUBCASE("a member without a leader does not speak for etcd") {
        FakeUpstream lonely;
        auto node = open({lonely.url(), etcd.url()}, cluster);
        lonely.answer(
            fake_answer(503, R"({"error":"etcdserver: no leader","message":"etcdserver: no leader","code":14})"));
        CHECK(node->list().ok());
    }
}

TEST_CASE("etcd coordinator: a lease is kept alive while a list is slow") {
    auto way = std::make_unique<FakeUpstream>();
    auto settings = settings_of({way->url()}, fresh_cluster(), contract_node(1, 11));
    settings.request_timeout_ms = 60'000;
    auto node = open(settings);
    way->answer(fake_answer(200, R"({"header":{"revision":"2"},"ID":"77","TTL":"5"})"));
    way->answer(fake_answer(200, R"({"header":{"revision":"3"},"succeeded":true})"));
    REQUIRE(node->join());
    way->answer(stalled);
    way->answer(fake_answer(200, R"({"result":{"header":{"revision":"3"},"ID":"77","TTL":"5"}})"));
    way->answer(fake_answer(200, R"({"result":{"header":{"revision":"3"},"ID":"77"}})"));
    way->answer(fake_answer(200, R"({"result":{"header":{"revision":"3"},"ID":"78","TTL":"5"}})"));
    std::thread slow([&] { CHECK_FALSE(node->list()); });
    CHECK(way->wait_requests(3));
    CHECK(node->keep_alive());
    CHECK(node->keep_alive().error().code == ErrorCode::conflict);                 // no TTL: there is no such lease
    CHECK(node->keep_alive().error().code == ErrorCode::coordinator_unavailable);  // another's
    CHECK(way->requests().size() == 6);                                            // all while the list waits
    way.reset();                                                                   // which ends it
    slow.join();
}

TEST_CASE("etcd coordinator: a join whose answer was lost is found again") {
    FakeUpstream way;
    const auto cluster = fresh_cluster();
    auto node = open({way.url()}, cluster);
    const auto there = [&](const std::string& lease) {
        const std::string key = key_of(cluster, "nodes/01000000-0000-0000-0000-000000000000/000000000000000b");
        return fake_answer(200, R"({"header":{"revision":"9"},"responses":[{"response_range":{"kvs":[{"key":")" +
                                    to_base64(key) + R"(","mod_revision":"9","value":"e30=","lease":")" + lease +
                                    R"("}],"count":"1"}}]})");
    };
    const auto alive = fake_answer(200, R"({"result":{"header":{"revision":"9"},"ID":"77","TTL":"5"}})");
    way.answer(fake_answer(200, R"({"header":{"revision":"2"},"ID":"77","TTL":"5"})"));
    way.answer(swallowed);
    way.answer(swallowed);
    CHECK(node->join().error().code == ErrorCode::coordinator_unavailable);
    CHECK(node->keep_alive().error().code == ErrorCode::conflict);
    way.answer(alive);
    way.answer(there("77"));
    CHECK(node->join());  // it was ours
    way.answer(alive);
    CHECK(node->keep_alive());
    way.answer(alive);
    way.answer(there("77"));
    CHECK(node->join().error().code == ErrorCode::conflict);
    way.answer(alive);
    CHECK(node->keep_alive());
}

TEST_CASE("etcd coordinator: after a restart of etcd all calls go on") {
    EtcdServer etcd;
    const auto cluster = fresh_cluster();
    auto settings = settings_of({etcd.url()}, cluster, contract_node(1, 11));
    settings.lease_ms = 60'000;
    auto node = open(settings);
    Hints hints;
    node->on_hint(hints.callback());
    REQUIRE(hints.wait_more_than(0));
    REQUIRE(node->join());
    const auto made = node->change(simple_change(*node, 0, 1));
    REQUIRE(made.outcome == ChangeOutcome::ok);
    etcd.kill();
    CHECK(node->change(simple_change(*node, made.config_version, 2)).outcome == ChangeOutcome::unknown);
    CHECK_FALSE(node->list());
    CHECK(node->keep_alive().error().code == ErrorCode::coordinator_unavailable);
    const size_t before = hints.count();
    etcd.restart();
    CHECK(node->keep_alive());
    REQUIRE(node->list().ok());
    CHECK(node->list()->shards[0].epoch == Epoch(1));
    CHECK(node->list()->nodes.size() == 1);
    CHECK(hints.wait_more_than(before));  // something may have been missed
    const size_t watching = hints.count();
    CHECK(node->change(simple_change(*node, made.config_version, 2)).outcome == ChangeOutcome::ok);
    CHECK(hints.wait_more_than(watching));
}

TEST_CASE("etcd coordinator: hints go on when what was watched is compacted") {
    EtcdServer& etcd = shared_etcd();
    const auto cluster = fresh_cluster();
    auto node = open({etcd.url()}, cluster);
    Hints hints;
    node->on_hint(hints.callback());
    REQUIRE(hints.wait_more_than(0));
    uint64_t version = node->change(simple_change(*node, 0, 1)).config_version;
    REQUIRE(hints.wait_more_than(1));
    const size_t before = hints.count();
    version = node->change(simple_change(*node, version, 2)).config_version;
    CHECK(etcd.post("/v3/kv/compaction", {{"revision", std::to_string(version)}, {"physical", true}}).done());
    version = node->change(simple_change(*node, version, 3)).config_version;
    CHECK(hints.wait_more_than(before + 1));
    CHECK(node->list()->shards[0].epoch == Epoch(3));
}

TEST_CASE("etcd coordinator: a watch that etcd cancels is opened again") {
    FakeUpstream way;
    const auto present = fake_answer(200, R"({"header":{"revision":"41"},"count":"3"})");
    way.answer(present);
    way.answer(
        fake_stream({"{\"result\":{\"header\":{\"revision\":\"41\"},\"created\":true}}\n",
                     "{\"result\":{\"header\":{\"revision\":\"41\"},\"canceled\":true,\"compact_revision\":\"50\"}}\n"},
                    false, FakeAnswer::End::stall));
    way.answer(present);
    way.answer(fake_stream({"{\"error\":{\"grpc_code\":14,\"message\":\"etcdserver: no leader\"}}\n"}));
    way.answer(present);
    way.answer(fake_stream({"{\"result\":{\"header\":{\"revision\":\"41\"},\"created\":true}}\n{\"result\":{\"hea",
                            "der\":{\"revision\":\"42\"},\"events\":[{\"kv\":{}}]}}\n"},
                           false, FakeAnswer::End::stall));
    Hints hints;
    auto node = open({way.url()}, fresh_cluster());
    node->on_hint(hints.callback());
    CHECK(hints.wait_more_than(2));  // created, created, event
    REQUIRE(way.requests().size() == 6);
    CHECK(way.requests()[5].target == "/v3/watch");
    CHECK(json::parse(way.requests()[5].body).at("create_request").at("start_revision") == "42");
    // The object ends although its watch is open: that is all that is left of this case.
}

TEST_CASE("etcd coordinator: a watch that says nothing for long is opened again") {
    FakeUpstream way;
    const auto present = fake_answer(200, R"({"header":{"revision":"41"}})");
    const auto silent = fake_stream({"{\"result\":{\"created\":true}}\n"}, false, FakeAnswer::End::stall);
    for (int n = 0; n < 3; ++n) {
        way.answer(present);
        way.answer(silent);
    }
    auto settings = settings_of({way.url()}, fresh_cluster(), contract_node(1, 11));
    settings.watch_silence_ms = 50;
    Hints hints;
    auto node = open(settings);
    node->on_hint(hints.callback());
    CHECK(hints.wait_more_than(2));  // each time that it comes up
}

TEST_CASE("etcd coordinator: two clusters in one etcd do not see each other") {
    const auto here = fresh_cluster(), there = fresh_cluster();
    auto one = open({shared_etcd().url()}, here);
    auto other = open({shared_etcd().url()}, there);
    Hints hints;
    other->on_hint(hints.callback());
    REQUIRE(hints.wait_more_than(0));
    REQUIRE(one->join());
    REQUIRE(one->change(simple_change(*one, 0, 1)).outcome == ChangeOutcome::ok);
    REQUIRE(one->set_draining(one->self().node, true));
    ClusterMeta meta;
    meta.cluster = here;
    meta.shards = 16;
    REQUIRE(one->meta(meta));
    CHECK(other->list()->shards.empty());
    CHECK(other->list()->nodes.empty());
    CHECK(other->list()->draining.empty());
    CHECK(other->ownership(ShardId(7)).error().code == ErrorCode::not_found);
    meta.cluster = there;
    meta.shards = 32;
    CHECK(other->meta(meta)->shards == 32);
    CHECK(other->join());  // the same node and incarnation
    // Its watch has seen its own, and of the five changes over there none.
    CHECK(hints.wait_more_than(1));
    CHECK(other->change(simple_change(*other, 0, 1)).outcome == ChangeOutcome::ok);
    CHECK(hints.wait_more_than(3));
    CHECK(hints.count() == 4);  // created, meta, lease, record
}

TEST_CASE("etcd coordinator: a damaged value is an error that names its key") {
    EtcdServer& etcd = shared_etcd();
    const auto cluster = fresh_cluster();
    auto node = open({etcd.url()}, cluster);
    REQUIRE(node->change(simple_change(*node, 0, 1)).outcome == ChangeOutcome::ok);
    const auto write = [&](const std::string& key, const std::string& value) {
        REQUIRE(etcd.post("/v3/kv/put", {{"key", to_base64(key)}, {"value", to_base64(value)}}).done());
    };
    const auto erase = [&](const std::string& key) {
        REQUIRE(etcd.post("/v3/kv/deleterange", {{"key", to_base64(key)}}).done());
    };
    const std::string seven = key_of(cluster, "shards/7");
    for (const std::string& value : {std::string(), std::string("{}"), std::string("null"), std::string(100'000, '['),
                                     to_json(simple_change(*node, 0, 1, 8).desired)}) {
        write(seven, value);
        for (const Error& error : {node->ownership(ShardId(7)).error(), node->list().error()}) {
            CHECK(error.code == ErrorCode::state_damaged);
            CHECK(error.message.find(seven + ": ") != std::string::npos);
        }
    }
    write(seven, to_json(simple_change(*node, 0, 1).desired));
    CHECK(node->list().ok());
    for (const char* name : {"shards/07", "shards/65536", "shards/", "shards/x", "nodes/x", "drain/x",
                             "nodes/01000000-0000-0000-0000-000000000000/b"}) {
        CAPTURE(name);
        write(key_of(cluster, name), to_json(simple_change(*node, 0, 1).desired));
        CHECK(node->list().error().message.find(key_of(cluster, name)) != std::string::npos);
        erase(key_of(cluster, name));
    }
    write(key_of(cluster, "controller"), "what a later release keeps here");
    CHECK(node->list().ok());
    write(key_of(cluster, "meta"), "{\"format\":1}");
    ClusterMeta meta;
    meta.cluster = cluster;
    CHECK(node->meta(meta).error().code == ErrorCode::state_damaged);
    write(key_of(cluster, "meta"), "{\"format\":2}");
    CHECK(node->meta(meta).error().code == ErrorCode::unsupported_value);
}

TEST_CASE("etcd coordinator: what cannot be written is refused before it is") {
    const auto cluster = fresh_cluster();
    auto settings = settings_of({shared_etcd().url()}, cluster, contract_node(1, 11));
    const auto refused = [](const EtcdSettings& given) {
        const auto opened = EtcdCoordinator::open(given);
        return !opened && opened.error().code == ErrorCode::unsupported_value;
    };
    auto bad = settings;
    bad.details.zone = "\xff";
    CHECK(refused(bad));
    bad = settings;
    bad.details.link_address = std::string(513, 'a');
    CHECK(refused(bad));
    bad = settings;
    bad.urls = {};
    CHECK(refused(bad));
    bad.urls = {"ftp://127.0.0.1"};
    CHECK(refused(bad));
    bad = settings;
    bad.certificate_file = "client.pem";
    CHECK(refused(bad));
}

TEST_CASE("etcd coordinator: TLS with client certificates") {
    const TestCertificates certificates, strangers;
    EtcdServer etcd(&certificates);
    const auto cluster = fresh_cluster();
    auto settings = settings_of({etcd.url()}, cluster, contract_node(1, 11));
    settings.ca_file = certificates.ca();
    settings.certificate_file = certificates.certificate("client");
    settings.key_file = certificates.key("client");
    auto node = open(settings);
    Hints hints;
    node->on_hint(hints.callback());
    REQUIRE(hints.wait_more_than(0));
    CHECK(node->join());
    CHECK(node->keep_alive());
    CHECK(node->change(simple_change(*node, 0, 1)).outcome == ChangeOutcome::ok);
    CHECK(node->list()->shards.size() == 1);
    CHECK(hints.wait_more_than(2));
    auto nameless = settings;
    nameless.certificate_file.clear();
    nameless.key_file.clear();
    CHECK_FALSE(open(nameless)->list());
    auto stranger = settings;
    stranger.certificate_file = strangers.certificate("client");
    stranger.key_file = strangers.key("client");
    CHECK_FALSE(open(stranger)->list());
    auto deceived = settings;  // by a server that its own authority did not sign
    deceived.ca_file = strangers.ca();
    CHECK_FALSE(open(deceived)->list());
    CHECK(open(deceived)->change(simple_change(*node, 0, 2)).outcome == ChangeOutcome::unknown);
}

TEST_CASE("etcd coordinator: user and password, and a token that is renewed") {
    EtcdServer etcd;
    REQUIRE(etcd.post("/v3/auth/user/add", {{"name", "root"}, {"password", "key of the house"}}).done());
    REQUIRE(etcd.post("/v3/auth/user/grant", {{"user", "root"}, {"role", "root"}}).done());
    REQUIRE(etcd.post("/v3/auth/enable", {}).done());
    const auto cluster = fresh_cluster();
    auto settings = settings_of({etcd.url()}, cluster, contract_node(1, 11));
    CHECK_FALSE(open(settings)->list());
    settings.user = "root";
    settings.password = "secret-of-nobody";
    const auto wrong = open(settings)->list();
    REQUIRE_FALSE(wrong.ok());
    CHECK(wrong.error().message.find("root") != std::string::npos);
    CHECK(wrong.error().message.find("secret-of-nobody") == std::string::npos);
    settings.password = "key of the house";
    settings.lease_ms = 60'000;
    auto node = open(settings);
    Hints hints;
    node->on_hint(hints.callback());
    REQUIRE(hints.wait_more_than(0));
    REQUIRE(node->join());
    uint64_t version = node->change(simple_change(*node, 0, 1)).config_version;
    CHECK(version > 0);
    const size_t before = hints.count();
    etcd.restart();
    const auto changed = node->change(simple_change(*node, version, 2));
    CHECK(changed.outcome == ChangeOutcome::ok);
    CHECK(changed.why == "");
    CHECK(node->keep_alive());
    CHECK(node->list()->shards.size() == 1);
    CHECK(hints.wait_more_than(before));
    // A new password, though it is the same, takes all tokens of the user back.
    uint64_t last = changed.config_version;
    const auto renew = [&] {
        return etcd.post("/v3/auth/user/changepw", {{"name", "root"}, {"password", settings.password}}, "root",
                         settings.password);
    };
    REQUIRE(renew().done());
    last = node->change(simple_change(*node, last, 3)).config_version;
    CHECK(last > 0);
    REQUIRE(renew().done());
    CHECK(node->keep_alive());
    REQUIRE(renew().done());
    CHECK(node->list()->shards[0].epoch == Epoch(3));
}

TEST_CASE("etcd coordinator: a token is renewed once for a call, and for nothing but itself") {
    FakeUpstream way;
    auto settings = settings_of({way.url()}, fresh_cluster(), contract_node(1, 11));
    settings.user = "node";
    settings.password = "secret";
    auto node = open(settings);
    const auto token = [](const std::string& text) { return fake_answer(200, R"({"token":")" + text + R"("})"); };
    const auto refused = [](int code, const std::string& text) {
        return fake_answer(400, R"({"message":")" + text + R"(","code":)" + std::to_string(code) + "}");
    };
    const auto made = fake_answer(200, R"({"header":{"revision":"9"},"succeeded":true})");
    way.answer(token("one"));
    size_t asked = 1;
    char serial = 'a';
    for (const auto& [code, text] :
         {std::pair{16, "etcdserver: invalid auth token"}, std::pair{3, "etcdserver: revision of auth store is old"},
          std::pair{2, "auth: revision in header is old"}}) {
        way.answer(refused(code, text));
        way.answer(token(std::string("next ") + serial));
        way.answer(made);
        CHECK(node->change(simple_change(*node, 5, 2)).outcome == ChangeOutcome::ok);
        asked += 3;
        REQUIRE(way.requests().size() == asked);
        CHECK(way.requests().back().headers.at("authorization") == std::string("next ") + serial++);
    }
    // Twice refused is refused, and a right that the user lacks is not a matter of tokens.
    way.answer(refused(16, "etcdserver: invalid auth token"));
    way.answer(token("last"));
    way.answer(refused(16, "etcdserver: invalid auth token"));
    CHECK(node->change(simple_change(*node, 5, 2)).outcome == ChangeOutcome::unknown);
    way.answer(refused(7, "etcdserver: permission denied"));
    const auto denied = node->change(simple_change(*node, 5, 2));
    CHECK(denied.outcome == ChangeOutcome::unknown);
    CHECK(denied.why.find("permission denied") != std::string::npos);
    CHECK(way.requests().size() == asked + 4);
}

TEST_CASE("etcd coordinator: a large cluster in one answer or in pages of one moment") {
    const auto cluster = fresh_cluster();
    auto settings = settings_of({shared_etcd().url()}, cluster, contract_node(1, 11));
    auto node = open(settings);
    settings.page_keys = 100;
    auto paged = open(settings);
    REQUIRE(node->join());
    constexpr uint16_t shards = 1024;
    std::vector<double> changes;
    size_t value_bytes = 0;
    for (uint16_t shard = 0; shard < shards; ++shard) {
        auto change = simple_change(*node, 0, 1, shard);
        for (uint8_t n = 2; n <= 3; ++n) change.desired.in_sync.push_back(contract_node(n, 0).name);
        for (uint8_t n = 1; n <= 3; ++n) change.desired.replicas.push_back(contract_node(n, 0).name.node);
        value_bytes = to_json(change.desired).size();
        const auto began = steady_clock::now();
        REQUIRE(node->change(change).outcome == ChangeOutcome::ok);
        changes.push_back(milliseconds_of(steady_clock::now() - began));
    }
    const std::string prefix = key_of(cluster, "");
    const json::object all{{"key", to_base64(prefix)},
                           {"range_end", to_base64(prefix.substr(0, prefix.size() - 1) + "0")}};
    const size_t answer_bytes = json::serialize(shared_etcd().post("/v3/kv/range", all).body).size();
    std::vector<double> lists;
    for (int i = 0; i < 9; ++i) {
        const auto began = steady_clock::now();
        const auto view = node->list();
        lists.push_back(milliseconds_of(steady_clock::now() - began));
        REQUIRE(view.ok());
        REQUIRE(view->shards.size() == shards);
        for (uint16_t shard = 0; shard < shards; ++shard) REQUIRE(view->shards[shard].shard == ShardId(shard));
    }
    const auto whole = node->list(), pages = paged->list();
    REQUIRE(pages.ok());
    CHECK(pages->shards == whole->shards);
    CHECK(pages->nodes == whole->nodes);

    Hints hints;
    node->on_hint(hints.callback());
    REQUIRE(hints.wait_more_than(0));
    std::vector<double> told;
    uint64_t version = whole->shards[7].config_version;
    for (int i = 0; i < 100; ++i) {
        const size_t before = hints.count();
        const auto began = steady_clock::now();
        version = node->change(simple_change(*node, version, 2)).config_version;
        REQUIRE(hints.wait_more_than(before));
        told.push_back(milliseconds_of(hints.at() - began));
    }
    const auto at = [](std::vector<double>& of, double rank) {
        std::sort(of.begin(), of.end());
        return of[static_cast<size_t>(rank * static_cast<double>(of.size() - 1))];
    };
    MESSAGE("change p50 " << at(changes, 0.5) << " ms, p99 " << at(changes, 0.99) << " ms; list of " << shards
                          << " records of " << value_bytes << " bytes, " << answer_bytes << " in all, p50 "
                          << at(lists, 0.5) << " ms; hint p50 " << at(told, 0.5) << " ms, p99 " << at(told, 0.99)
                          << " ms after the change was sent");
}

TEST_CASE("etcd coordinator: the pages of a list are of one moment") {
    FakeUpstream way;
    const auto cluster = fresh_cluster();
    auto node = open({way.url()}, cluster);
    const auto page = [&](uint16_t shard, int revision, bool more) {
        const auto record = simple_change(*node, 0, 1, shard).desired;
        return fake_answer(200, R"({"header":{"revision":")" + std::to_string(revision) + R"("},"kvs":[{"key":")" +
                                    to_base64(key_of(cluster, "shards/" + std::to_string(shard))) +
                                    R"(","mod_revision":"3","value":")" + to_base64(to_json(record)) + R"("}])" +
                                    (more ? R"(,"more":true})" : "}"));
    };
    way.answer(page(0, 40, true));
    // What the first page was of is compacted before the second: all begins again.
    way.answer(fake_answer(400, R"({"message":"etcdserver: mvcc: required revision has been compacted","code":11})"));
    way.answer(page(0, 50, true));
    way.answer(page(1, 51, false));
    const auto view = node->list();
    REQUIRE(view.ok());
    CHECK(view->shards.size() == 2);
    const auto asked = way.requests();
    REQUIRE(asked.size() == 4);
    const auto body = [&](size_t n) { return json::parse(asked[n].body).get_object(); };
    CHECK_FALSE(body(0).contains("revision"));
    CHECK(body(1).at("revision") == "40");
    CHECK_FALSE(body(2).contains("revision"));
    CHECK(body(3).at("revision") == "50");
    CHECK(std::string(body(3).at("key").get_string()) == to_base64(key_of(cluster, "shards/0") + '\0'));
}

}  // namespace mainstay
