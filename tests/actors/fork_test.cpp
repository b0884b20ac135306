// previous_response_id: extending an idle tip, and forks where that is not possible; history across forks of forks.

#include "actors/history_reader.h"
#include "tests/support/actor_fixture.h"

using namespace mainstay;

namespace {

/// Texts of all items of a session, oldest first, each followed by "|".
std::string texts(ActorFixture& node, const SessionKey& key) {
    std::string out;
    ItemQuery query;
    query.ascending = true;
    query.limit = 3;  // small pages: the borders are part of the test
    for (bool more = true; more;) {
        auto [got, reply] = expect_reply<ItemPage>();
        node.send(key, ListItems{query, std::move(reply)});
        node.settle();
        for (const auto& entry : got->value().items) {
            out += entry.item->text + "|";
            query.after = entry.id;
        }
        more = got->value().has_more;
    }
    return out;
}

AskTurn after(std::string text, uint32_t turn, std::string agent = "plain") {
    AskTurn ask{std::move(text), std::move(agent)};
    ask.after = TurnNo{turn};
    return ask;
}

SessionKey key_of(const ActorFixture& node, const TurnAnswer& answer) { return {node.tenant, answer.session}; }

}  // namespace

TEST_CASE("the idle tip of a chain is extended in place") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"one"});
    const auto two = node.turn(key, after("two", 1));
    CHECK(two->value().session == key.session);
    CHECK(two->value().turn->no == TurnNo{2});
    REQUIRE(two->value().previous.has_value());
    CHECK(two->value().previous->turn == TurnNo{1});
}

TEST_CASE("an older response is forked: the fork has the parent's turns up to it and not the later ones") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"one"});
    node.turn(key, {"two"});
    const auto forked = node.turn(key, after("other", 1));
    const auto fork = key_of(node, forked->value());
    CHECK(fork.session != key.session);
    CHECK(fork.session.family == key.session.family);
    CHECK(forked->value().turn->no == TurnNo{2});
    REQUIRE(forked->value().previous.has_value());
    CHECK(forked->value().previous->session == key.session);
    CHECK(texts(node, fork) == "one|You said: one|other|You said: other|");
    CHECK(texts(node, key) == "one|You said: one|two|You said: two|");
    // The prompt that the model was shown is as long as that of a session which was never anything else.
    const auto control = node.new_session();
    node.turn(control, {"one"});
    const auto same = node.turn(control, {"other"});
    CHECK(forked->value().turn->usage.input_tokens == same->value().turn->usage.input_tokens);
    CHECK(said(node.turn(fork, {"again", "first"})->value()) == "First you said: one");
    CHECK(node.read(fork, 1)->code() == "response_not_found");  // that response is the parent's
    CHECK(node.cancel(fork, 1)->code() == "response_not_found");
}

TEST_CASE("a busy parent is forked, and does not wait for what it does") {
    ActorFixture node;
    node.bank_agent("banker", "look", EffectClass::read);
    const auto key = node.new_session();
    node.turn(key, {"one"});
    const auto busy = node.turn(key, {"two", "banker"});
    REQUIRE(node.tools.open() == 1);
    const auto forked = node.turn(key, after("other", 1));
    CHECK(said(forked->value()) == "You said: other");
    CHECK(forked->value().session != key.session);
    CHECK(node.turn(key, after("more", 2))->code() == "conflict");  // turn 2 is still under way
    CHECK_FALSE(busy->answered());
    node.tools.answer(0, "much");
    node.settle();
    CHECK(busy->ok());
}

TEST_CASE("a response of a conversation is forked even from its idle tip") {
    ActorFixture node;
    const auto key = node.new_session();
    CHECK(node.open_conversation(key)->ok());
    AskTurn ask{"one"};
    ask.conversation = true;
    CHECK(node.turn(key, ask)->value().conversation);
    const auto forked = node.turn(key, after("other", 1));
    CHECK(forked->value().session != key.session);
    CHECK_FALSE(forked->value().conversation);
    CHECK(texts(node, key) == "one|You said: one|");
}

TEST_CASE("what is no response cannot be followed") {
    ActorFixture node;
    const auto key = node.new_session();
    CHECK(node.turn(key, after("two", 1))->code() != "ok");
    node.turn(key, {"one"});
    CHECK(node.turn(key, after("two", 7))->code() == "previous_response_not_found");
    CHECK(node.turn(key, after("two", 0))->code() == "previous_response_not_found");
}

TEST_CASE("a fork is answered only when both it and its parent's record are committed") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"one"});
    node.turn(key, {"two"});
    node.hold_store = true;
    const auto forked = node.turn(key, after("other", 1));
    CHECK_FALSE(forked->answered());
    node.hold_store = false;
    node.settle();
    CHECK(forked->ok());
    CHECK(node.event_names(key).ends_with("Forked "));
}

TEST_CASE("forks of forks read their history after sleep, a kill and the parent's deletion") {
    ActorFixture node;
    const auto root = node.new_session();
    node.turn(root, {"one"});
    node.turn(root, {"two"});
    const auto child = key_of(node, node.turn(root, after("child two", 1))->value());
    node.turn(child, {"child three"});
    node.turn(child, {"child four"});
    const auto grandchild = key_of(node, node.turn(child, after("grandchild four", 3))->value());
    const std::string expected =
        "one|You said: one|child two|You said: child two|child three|You said: child three|grandchild four|You said: "
        "grandchild four|";
    CHECK(texts(node, grandchild) == expected);
    SUBCASE("asleep") { node.advance(12'000); }
    SUBCASE("applied and killed") {
        node.store().run();
        node.kill_and_restart();
    }
    SUBCASE("killed") { node.kill_and_restart(); }
    SUBCASE("the root is deleted") { CHECK(node.remove(root)->ok()); }
    SUBCASE("all above are deleted, and it sleeps in between") {
        CHECK(node.remove(root)->ok());
        CHECK(node.remove(child)->ok());
        node.advance(12'000);
        CHECK(node.active() == 0);
    }
    SUBCASE("all above are deleted, applied and killed") {
        CHECK(node.remove(root)->ok());
        CHECK(node.remove(child)->ok());
        node.store().run();
        node.kill_and_restart();
    }
    CHECK(texts(node, grandchild) == expected);
    CHECK(said(node.turn(grandchild, {"again", "first"})->value()) == "First you said: one");
    // And it can be forked itself, from its parent's turn's successor.
    const auto deeper = node.turn(grandchild, after("deeper", 4, "first"));
    CHECK(said(deeper->value()) == "First you said: one");
    CHECK(texts(node, key_of(node, deeper->value())) == expected + "deeper|First you said: one|");
}

TEST_CASE("the history reader knows whose row a turn is") {
    ActorFixture node;
    const auto root = node.new_session();
    for (const char* text : {"one", "two", "three", "four"}) node.turn(root, {text});
    const auto child = key_of(node, node.turn(root, after("child four", 3))->value());
    node.turn(child, {"child five"});
    // Forked at a turn that lies within what the child shares with the root.
    SessionCreated created;
    created.tenant = node.tenant;
    created.parent = child.session;
    created.parent_turn = TurnNo{4};
    const SessionKey grandchild{node.tenant, make_fork_id(node.random, root.session.family)};
    for (const bool applied : {false, true}) {
        CAPTURE(applied);
        if (applied) node.store().run();
        HistoryReader reader(node.store(), grandchild);
        CHECK(reader.first_own() == TurnNo{1});
        REQUIRE(reader.follow_parents(created).ok());
        CHECK(reader.first_own() == TurnNo{5});
        CHECK(reader.owner_of(TurnNo{1}) == root);
        CHECK(reader.owner_of(TurnNo{3}) == root);
        CHECK(reader.owner_of(TurnNo{4}) == child);
        CHECK(reader.owner_of(TurnNo{5}) == grandchild);
        CHECK(reader.read(TurnNo{3}).value()->items.front()->text == "three");
        CHECK(reader.read(TurnNo{4}).value()->items.front()->text == "child four");
        CHECK(reader.read(TurnNo{5}).value() == nullptr);
        CHECK(reader.read_batches(TurnNo{4}).value().size() >= 1);
        CHECK(reader.read_batches(TurnNo{6}).value().empty());

        // Below its parent's own fork point, the parent provides nothing.
        created.parent_turn = TurnNo{2};
        HistoryReader lower(node.store(), grandchild);
        REQUIRE(lower.follow_parents(created).ok());
        CHECK(lower.first_own() == TurnNo{3});
        CHECK(lower.owner_of(TurnNo{2}) == root);
        created.parent_turn = TurnNo{4};
    }
    SessionCreated orphan = created;
    orphan.parent = node.new_session().session;
    HistoryReader lost(node.store(), grandchild);
    CHECK(lost.follow_parents(orphan).error().code == ErrorCode::session_not_found);
}
