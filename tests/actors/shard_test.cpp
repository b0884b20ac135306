// A node of a cluster, as far as actors see it: shards come and go, and with them what is awake.
#include <doctest/doctest.h>

#include "actors/peer_service.h"
#include "actors/user_memories.h"
#include "tests/support/clustered_node.h"

using namespace mainstay;

TEST_CASE("shard: what another node leads, or nobody, is not answered here") {
    Clustered here;
    const SessionKey key = here.node.new_session();
    here.leads.other[here.shard(key).value] = ShardPlace::Where::there;
    auto got = here.node.turn(key, {"hello"});
    REQUIRE_FALSE(got->ok());
    CHECK(got->result->error().code == ErrorCode::misdirected);
    CHECK(got->result->error().param == here.number(key));
    here.leads.other[here.shard(key).value] = ShardPlace::Where::nowhere;
    got = here.node.turn(key, {"hello"});
    REQUIRE_FALSE(got->ok());
    CHECK(got->result->error().code == ErrorCode::shard_unavailable);
    CHECK(here.node.active() == 0);
}

TEST_CASE("shard: when it is lost its sessions go, and who waits is told to ask elsewhere") {
    Clustered here;
    const SessionKey key = here.node.new_session(), other = here.node.new_session();
    REQUIRE(here.shard(key) != here.shard(other));
    REQUIRE(here.node.turn(other, {"hello"})->ok());
    here.node.hold_models();
    auto waiting = here.node.submit(key, {"hello"});
    here.node.settle();
    CHECK(here.node.active() == 2);
    here.lose(key);
    here.node.settle();
    CHECK(here.node.active() == 1);
    REQUIRE(waiting->answered());
    REQUIRE_FALSE(waiting->ok());
    CHECK(waiting->result->error().code == ErrorCode::misdirected);
    CHECK(waiting->result->error().param.empty());  // it may have taken effect
    here.node.release_models();
    CHECK(here.node.turn(other, {"again", "plain", {}, 1, {}, true})->ok());
}

TEST_CASE("shard: when it is led its open turns are taken up, once") {
    Clustered here;
    const SessionKey key = here.node.new_session();
    here.node.hold_models();
    auto waiting = here.node.submit(key, {"hello", "plain", "key-1"});
    here.node.settle();
    here.lose(key);
    here.node.settle();
    here.node.release_models();
    here.lead(key);
    here.node.settle();
    CHECK(here.node.active() == 1);
    const auto got = here.node.read(key, 1);
    REQUIRE(got->ok());
    CHECK(status_of(got->value()) == "completed");
    CHECK(said(got->value()) == "You said: hello");
    // Asked again with its key, it is the same turn.
    const auto again = here.node.turn(key, {"hello", "plain", "key-1"});
    REQUIRE(again->ok());
    CHECK(again->value().turn->no == TurnNo{1});
    CHECK(again->value().repeated);
}

TEST_CASE("shard: what an earlier leadership held does not leave under the next") {
    Clustered here;
    const SessionKey key = here.node.new_session();
    REQUIRE(here.node.turn(key, {"first"})->ok());
    here.node.hold_store = true;
    auto held = here.node.submit(key, {"second", "plain", {}, 1, {}, true});
    here.node.run();
    here.lose(key);
    here.lead(key);
    here.node.run();
    CHECK(held->answered());
    CHECK_FALSE(held->ok());
    here.node.hold_store = false;
    here.node.settle();
}

TEST_CASE("shard: who was woken in an epoch before its node was told of it stays the only one") {
    Clustered here;
    const SessionKey key = here.node.new_session();
    REQUIRE(here.node.turn(key, {"first"})->ok());
    here.lose(key);
    here.node.settle();
    // Led again: a request comes before the word of it does.
    here.leads.other.erase(here.shard(key).value);
    ++here.leads.epoch.value;
    here.node.hold_store = true;
    auto early = here.node.submit(key, {"second", "plain", {}, 1, {}, true});
    here.node.run();
    REQUIRE(here.node.active() == 1);
    caf::anon_send(here.node.supervisor(), ShardLed{here.shard(key), here.leads.epoch});
    here.node.run();
    CHECK(here.node.active() == 1);
    here.node.hold_store = false;
    here.node.settle();
    REQUIRE(early->answered());
    CHECK(early->ok());  // what it had appended and not committed is its own to answer
    const auto third = here.node.turn(key, {"third", "plain", {}, 1, {}, true});
    REQUIRE(third->ok());
    CHECK(third->value().turn->no == TurnNo{3});
}

TEST_CASE("shard: a call under way keeps its shard busy until its receipt is committed") {
    Clustered here;
    here.node.node().activity = ShardActivity(shard_count_default);
    here.node.bank_agent("teller", "pay", EffectClass::once);
    const SessionKey key = here.node.new_session();
    const auto busy = [&] { return here.node.node().activity.busy(here.shard(key)); };
    auto got = here.node.submit(key, {"pay", "teller"});
    here.node.settle();
    REQUIRE(here.node.tools.open() == 1);
    CHECK(busy());
    here.node.hold_store = true;
    here.node.tools.answer(0, "paid");
    here.node.run();
    CHECK(busy());  // the receipt is not committed
    here.node.hold_store = false;
    here.node.settle();
    CHECK_FALSE(busy());
    CHECK(got->ok());
}

TEST_CASE("shard: a memory whose shard another node leads is asked for there, and served to others") {
    Clustered here;
    here.node.model(R"(name = "keeper-model"
device = "scripted"
[[script]]
call_tool = "builtin/memory_set"
call_arguments = '{"key":"code","value":"kato"}'
[[script]]
text = "{tool}"
)");
    here.node.agent(
        "name = \"keeper\"\nmodel = \"keeper-model\"\n[[tools]]\ntype = \"builtin\"\nnames = "
        "[\"memory\"]\n[[memory]]\nname = \"customer\"\nscope = \"user\"\n");
    const SessionKey key = here.node.new_session();
    const SessionKey memory = memory_key(here.node.tenant, here.node.principal.name, "customer");
    REQUIRE(here.shard(memory) != here.shard(key));

    // The other node is this one as well: what is asked of it is served by the same actors.
    PeerService peers(here.node.node(), [](const NodeUuid&, const std::string&, uint32_t, const auto& done) {
        done(Error{ErrorCode::misdirected, "no link", {}});
    });
    std::vector<ToolCall> asked;
    here.node.node().memory_elsewhere = [&](const ShardPlace& place, const ToolCall& call,
                                            std::function<void(ToolOutcome)> done) {
        CHECK(place.where == ShardPlace::Where::there);
        asked.push_back(call);
        ToolOutcome outcome;
        outcome.output = "remembered elsewhere";
        done(std::move(outcome));
    };
    here.leads.other[here.shard(memory).value] = ShardPlace::Where::there;
    const auto got = here.node.turn(key, {"keep", "keeper"});
    REQUIRE(got->ok());
    CHECK(said(got->value()) == "remembered elsewhere");
    REQUIRE(asked.size() == 1);

    // By way of a link that is not there: refused as surely not done.
    ToolOutcome outcome;
    peers.call_memory(here.leads.find(here.shard(memory)), asked[0], [&](ToolOutcome told) { outcome = told; });
    CHECK(outcome.kind == ToolOutcome::Kind::failed);

    here.leads.other.clear();
    auto reply = std::make_shared<Answered>();
    peers.serve(PeerService::memory_request(asked[0]), reply);
    here.node.settle();
    REQUIRE(reply->ended == 1);
    CHECK_FALSE(reply->error);
    REQUIRE(reply->parts.size() == 1);
    const auto row = here.node.store().read_memory(memory);
    REQUIRE(row.ok());
    CHECK(row->has_value());
    // Repeated under its key: told the same, and nothing is journalled anew.
    const auto before = here.node.store().stats().journal_records;
    auto again = std::make_shared<Answered>();
    peers.serve(PeerService::memory_request(asked[0]), again);
    here.node.settle();
    CHECK(again->parts == reply->parts);
    CHECK(here.node.store().stats().journal_records == before);
}

TEST_CASE("shard: a peer's entities come into the catalogue, and what is no request changes nothing") {
    Clustered here;
    PeerService peers(here.node.node(), {});
    AgentSpec spec;
    const auto parsed = parse_agent("name = \"new\"\nmodel = \"plain\"\n", Syntax::toml);
    REQUIRE(parsed.ok());
    auto reply = std::make_shared<Answered>();
    peers.serve(PeerService::entities_request({encode_agent_entity(**parsed, 5, "ann")}), reply);
    CHECK(reply->ended == 1);
    CHECK_FALSE(reply->error);
    REQUIRE(here.node.catalogue.agent("new"));
    CHECK(here.node.catalogue.agent("new")->version == (*parsed)->version);
    const std::string whole = PeerService::entities_request({"x"});
    for (const std::string& bytes :
         {std::string(), std::string("x"), std::string(64, '\xff'), whole.substr(0, whole.size() - 8)}) {
        auto refused = std::make_shared<Answered>();
        peers.serve(bytes, refused);
        REQUIRE(refused->ended == 1);
        REQUIRE(refused->error);
        CHECK(refused->error->code == ErrorCode::peer_refused);
    }
}
