// Which session a request means, and what is asked of a node that does not lead its shard: the real bridge over a node
// on one thread.

#include "gateway/actor_bridge.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <future>
#include <set>
#include <thread>

#include "tests/support/actor_fixture.h"

using namespace mainstay;

namespace {

class Leads final : public ShardDirectory {
  public:
    std::function<ShardPlace::Where(ShardId)> where = [](ShardId) { return ShardPlace::Where::here; };

    std::function<NodeUuid(ShardId)> node_of = [](ShardId) { return NodeUuid{}; };
    uint16_t shard_count() const override { return shard_count_default; }
    ShardPlace find(ShardId shard) const override {
        ShardPlace place;
        place.where = where(shard);
        place.epoch = Epoch{1};
        if (place.where == ShardPlace::Where::there) place.node = node_of(shard);
        return place;
    }
    void when_changed(uint64_t, std::function<void()>) override {}
    uint64_t version() const override { return 1; }
};

/// A node of a cluster, and what a client gets of it.
struct Clustered {
    Clustered() {
        node.node().shards = &leads;
        bridge_.emplace(node.system(), node.node());
    }
    /// The bridge's inspector has a thread of its own: it is gone before the node is looked at.
    ~Clustered() {
        const size_t running = node.system().registry().running();
        bridge_.reset();
        for (int ms = 0; ms < 10'000 && node.system().registry().running() >= running; ++ms)
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    TurnRequest request(const std::string& key = {}) {
        TurnRequest out;
        out.principal = node.principal;
        out.agent = "plain";
        out.options = out.metadata = "{}";
        auto item = std::make_shared<Item>();
        item->text = "hello";
        out.items.push_back(item);
        out.idempotency_key = key;
        out.request_digest = key.empty() ? 0 : 1;
        return out;
    }
    GotPtr<TurnAnswer> ask(TurnRequest given) {
        auto got = std::make_shared<Got<TurnAnswer>>();
        bridge_->create_turn(std::move(given),
                             [got](Result<TurnAnswer> result) { got->result.emplace(std::move(result)); });
        node.settle();
        return got;
    }
    ShardId shard_of(const SessionId& session) { return node.node().shard_of({node.tenant, session}); }
    std::vector<SessionInfo> list() {
        std::promise<Result<std::vector<SessionInfo>>> promise;
        bridge_->list_sessions(node.principal, std::nullopt, 100,
                               [&](auto result) { promise.set_value(std::move(result)); });
        return promise.get_future().get().value();
    }

    Leads leads;
    ActorFixture node;
    ActorBridge& bridge() { return *bridge_; }

  private:
    std::optional<ActorBridge> bridge_;
};

}  // namespace

TEST_CASE("bridge: what another node leads is refused with its shard, what nobody leads as well") {
    Clustered clustered;
    const auto made = clustered.ask(clustered.request());
    REQUIRE(made->ok());
    const auto session = made->value().session;
    const auto refusal = [&](ShardPlace::Where where) {
        clustered.leads.where = [where](ShardId) { return where; };
        auto follow_up = clustered.request();
        follow_up.conversation = session;
        const auto got = clustered.ask(follow_up);
        REQUIRE(got->answered());
        REQUIRE_FALSE(got->ok());
        return got->result->error();
    };
    const auto there = refusal(ShardPlace::Where::there), nowhere = refusal(ShardPlace::Where::nowhere);
    CHECK(there.code == ErrorCode::misdirected);
    CHECK(there.param == std::to_string(clustered.shard_of(session).value));
    CHECK(nowhere.code == ErrorCode::shard_unavailable);
    CHECK(nowhere.param == there.param);
}

TEST_CASE("bridge: a key made here names a session of a shard that is led here, and makes that one") {
    Clustered clustered;
    clustered.leads.where = [](ShardId shard) {
        return shard.value % 3 == 0 ? ShardPlace::Where::here : ShardPlace::Where::there;
    };
    std::set<std::string> keys;
    for (int i = 0; i < 100; ++i) {
        const auto key = clustered.bridge().make_request_key(clustered.node.principal, [] { return std::string(); });
        CHECK(keys.insert(key).second);
        REQUIRE(key.starts_with(request_key_prefix));
        CHECK(key.size() <= limits::idempotency_key_bytes_max);
        const auto session = parse_session_id(std::string_view(key).substr(request_key_prefix.size()));
        REQUIRE(session);
        CHECK(clustered.shard_of(*session).value % 3 == 0);
        if (i % 10 != 0) continue;
        const auto first = clustered.ask(clustered.request(key)), again = clustered.ask(clustered.request(key));
        CHECK(first->value().session == *session);
        CHECK_FALSE(first->value().repeated);
        CHECK(again->value().session == *session);
        CHECK(again->value().turn->no == first->value().turn->no);
        CHECK(again->value().repeated);
    }
    // Leading nothing it still gives a key: the request waits or goes elsewhere under it.
    clustered.leads.where = [](ShardId) { return ShardPlace::Where::nowhere; };
    CHECK_FALSE(clustered.bridge().make_request_key(clustered.node.principal, [] { return std::string(); }).empty());
}

TEST_CASE("bridge: a new session is born where its model's steps would run, and says so there") {
    Clustered clustered;
    auto& node = clustered.node.node();
    ModelSpec own;
    own.name = "small";
    own.version = 7;
    own.device = "neuron_core_sim";
    node.catalogue.apply(std::make_shared<const ModelSpec>(own));
    AgentSpec agent;
    agent.name = "poet";
    agent.version = 8;
    agent.model = "small";
    node.catalogue.apply(std::make_shared<const AgentSpec>(agent));
    const NodeUuid here{1}, device{2};
    clustered.leads.where = [](ShardId shard) {
        return shard.value % 3 == 0 ? ShardPlace::Where::here : ShardPlace::Where::there;
    };
    clustered.leads.node_of = [&](ShardId shard) { return shard.value % 3 == 1 ? device : NodeUuid{3}; };
    StepChoice choice{device, StepWhy::least_loaded, 1, 3};
    std::optional<std::string> asked_for;
    node.step_place = [&](const SessionKey&, const std::string& model) -> std::optional<StepChoice> {
        asked_for = model;
        if (choice.serving == 0) return std::nullopt;
        return choice;
    };
    const auto born = [&](const std::string& name) {
        const auto key = clustered.bridge().make_request_key(clustered.node.principal, [&] { return name; });
        return *parse_session_id(std::string_view(key).substr(request_key_prefix.size()));
    };
    // This node computes every model: nobody is asked, and nobody reads the request twice.
    CHECK(clustered.shard_of(born("poet")).value % 3 == 0);
    CHECK_FALSE(asked_for);
    node.computes_every_model = false;
    for (int i = 0; i < 20; ++i) CHECK(clustered.shard_of(born("poet")).value % 3 == 1);
    CHECK(asked_for == "small");
    CHECK(clustered.shard_of(born("small")).value % 3 == 1);  // the model, by its own name
    asked_for.reset();
    CHECK(clustered.shard_of(born("plain")).value % 3 == 0);  // of no device of ours
    CHECK(clustered.shard_of(born("nobody")).value % 3 == 0);
    CHECK_FALSE(asked_for);
    choice.serving = 0;  // nobody computes it
    CHECK(clustered.shard_of(born("poet")).value % 3 == 0);
    choice = {NodeUuid{9}, StepWhy::least_loaded, 1, 3};  // who leads nothing
    CHECK(clustered.shard_of(born("poet")).value % 3 == 0);

    // At the owner: where not every node would have done, the journal says why the session is here.
    const auto decisions = [&](const std::string& key, const std::string& name) {
        auto request = clustered.request(key);
        request.agent = name;
        const auto session = born("plain");
        request.idempotency_key = key.empty() ? std::string(request_key_prefix) + to_text(session) : key;
        auto got = std::make_shared<Got<std::vector<EventEntry>>>();
        clustered.bridge().create_turn(std::move(request), [](const Result<TurnAnswer>&) {});
        clustered.node.settle();
        clustered.bridge().list_events(clustered.node.principal, session, 0, 100,
                                       [got](auto result) { got->result.emplace(std::move(result)); });
        clustered.node.settle();
        std::string out;
        if (got->ok())
            for (const auto& event : got->value())
                if (event.name == "Decision" && event.json.find("placed") != std::string::npos) out += event.json;
        return out;
    };
    choice = {here, StepWhy::here, 1, 3};
    const auto why = decisions({}, "poet");
    CHECK(why.find("01000000/small") != std::string::npos);
    CHECK(why.find("1 of 3 nodes compute it") != std::string::npos);
    CHECK(decisions({}, "plain").empty());
    choice.serving = 3;
    CHECK(decisions({}, "poet").empty());
    choice = {device, StepWhy::least_loaded, 1, 3};  // it is here all the same: its first step says where it runs
    CHECK(decisions({}, "poet").empty());
}

TEST_CASE("bridge: a client's key means the same shard on every node and every day") {
    Clustered clustered;
    for (const std::string key : {"a", "b", "c", "order-1"}) {
        const auto first = clustered.ask(clustered.request(key));
        REQUIRE(first->ok());
        const auto session = first->value().session;
        CHECK(clustered.ask(clustered.request(key))->value().session == session);
        // A node that does not lead it refuses it under that shard, whatever its own store holds.
        clustered.leads.where = [](ShardId) { return ShardPlace::Where::there; };
        const auto refused = clustered.ask(clustered.request(key));
        REQUIRE_FALSE(refused->ok());
        CHECK(refused->result->error().param == std::to_string(clustered.shard_of(session).value));
        clustered.leads.where = [](ShardId) { return ShardPlace::Where::here; };
        // Two days later it makes another session, of the same shard.
        clustered.node.clock.advance(2 * limits::idempotency_key_lifetime_ms);
        const auto later = clustered.ask(clustered.request(key));
        REQUIRE(later->ok());
        CHECK(later->value().session != session);
        CHECK(clustered.shard_of(later->value().session) == clustered.shard_of(session));
    }
}

TEST_CASE("bridge: sessions are listed by the node that leads them") {
    Clustered clustered;
    std::set<SessionId> all;
    for (int i = 0; i < 12; ++i) all.insert(clustered.ask(clustered.request())->value().session);
    CHECK(clustered.list().size() == all.size());
    const auto led = [&](const SessionId& id) { return clustered.shard_of(id).value % 2 == 0; };
    clustered.leads.where = [](ShardId shard) {
        return shard.value % 2 == 0 ? ShardPlace::Where::here : ShardPlace::Where::there;
    };
    const auto listed = clustered.list();
    CHECK(listed.size() == static_cast<size_t>(std::ranges::count_if(all, led)));
    CHECK(listed.size() < all.size());
    for (const auto& info : listed) CHECK(led(info.id));
}

TEST_CASE("bridge: an agent is applied where its tenant's shard is led") {
    Clustered clustered;
    const std::string toml = "name = \"fresh\"\nmodel = \"plain\"\n";
    std::optional<Result<Bridge::Applied>> got;
    const auto apply = [&](bool dry_run) {
        got.reset();
        clustered.bridge().apply_agent(clustered.node.principal, toml, true, dry_run,
                                       [&](Result<Bridge::Applied> result) { got.emplace(std::move(result)); });
        clustered.node.settle();
        REQUIRE(got);
    };
    clustered.leads.where = [](ShardId) { return ShardPlace::Where::there; };
    apply(false);
    REQUIRE_FALSE(got->ok());
    CHECK(got->error().code == ErrorCode::misdirected);
    CHECK(got->error().param == std::to_string(clustered.shard_of({}).value));
    CHECK(clustered.node.catalogue.agent("fresh") == nullptr);
    apply(true);  // what it would change is known here as well
    CHECK(got->ok());
    clustered.leads.where = [](ShardId) { return ShardPlace::Where::here; };
    apply(false);
    CHECK(got->ok());
    CHECK(clustered.node.catalogue.agent("fresh") != nullptr);
}
