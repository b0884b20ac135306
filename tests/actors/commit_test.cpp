// Nothing leaves a session before the store has committed what it rests on.

#include "tests/support/actor_fixture.h"

using namespace mainstay;

TEST_CASE("an answer leaves only after the commit") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_store = true;
    const auto got = node.turn(key, {"hello"});
    node.advance(5000);
    CHECK_FALSE(got->answered());
    node.hold_store = false;
    node.settle();
    CHECK(said(got->value()) == "You said: hello");
    CHECK(status_of(got->value()) == "completed");
}

TEST_CASE("a read sees nothing that is not committed") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"one"});
    node.hold_store = true;
    const auto two = node.turn(key, {"two"});
    auto read = node.read(key, 2);
    auto info = node.info(key);
    CHECK_FALSE(two->answered());
    CHECK_FALSE(read->answered());
    CHECK_FALSE(info->answered());
    node.hold_store = false;
    node.settle();
    CHECK(status_of(read->value()) == "completed");
    CHECK(info->value().turns == 2);
}

TEST_CASE("a background turn is accepted when its input is committed, and read later") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    node.hold_store = true;
    AskTurn ask{"hello"};
    ask.background = true;
    const auto got = node.turn(key, ask);
    CHECK_FALSE(got->answered());
    node.hold_store = false;
    node.settle();
    CHECK(status_of(got->value()) == "in_progress");
    node.release_models();
    node.settle();
    CHECK(said(node.read(key, 1)->value()) == "You said: hello");
}

TEST_CASE("a tool is dispatched only after its intent is committed") {
    for (const bool strict : {false, true}) {
        CAPTURE(strict);
        NodeOptions options;
        options.strict = strict;
        ActorFixture node(options);
        node.bank_agent("banker", "pay", EffectClass::once);
        const auto key = node.new_session();
        node.hold_models();
        const auto got = node.turn(key, {"pay", "banker"});  // the input is committed, the model has not answered
        node.hold_store = true;
        node.release_models();
        node.settle();
        node.advance(1000);
        CHECK(node.tools.calls.empty());
        node.hold_store = false;
        node.settle();
        REQUIRE(node.tools.calls.size() == 1);
        CHECK(node.tools.calls[0].call.name == "pay");
        CHECK_FALSE(node.tools.calls[0].call.idempotency_key.empty());
        CHECK_FALSE(got->answered());
        node.tools.answer(0, "paid");
        node.settle();
        CHECK(said(got->value()) == "The bank said: paid");
    }
}

TEST_CASE("strict mode starts the next model step only after the receipt is committed; pipelined mode overlaps it") {
    for (const bool strict : {false, true}) {
        CAPTURE(strict);
        NodeOptions options;
        options.strict = strict;
        ActorFixture node(options);
        node.bank_agent("banker", "look", EffectClass::read);
        const auto key = node.new_session();
        const auto got = node.turn(key, {"look", "banker"});
        REQUIRE(node.tools.calls.size() == 1);
        node.hold_store = true;
        node.hold_models();  // the step in flight is the held one; a second would have to wait behind it
        node.tools.answer(0, "a lot");
        node.settle();
        const uint64_t named = node.node().next_request.load();
        node.hold_store = false;
        node.store().step_journal();  // writes
        node.run();
        CHECK(node.node().next_request.load() == named);
        node.settle();
        // The number of requests named tells when the second model step was made.
        CHECK(node.node().next_request.load() == (strict ? named + 1 : named));
        CHECK_FALSE(got->answered());
        node.release_models();
        node.settle();
        CHECK(said(got->value()) == "The bank said: a lot");
    }
}

TEST_CASE("strict mode starts even the first model step only after its input is committed") {
    NodeOptions options;
    options.strict = true;
    ActorFixture node(options);
    const auto key = node.new_session();
    node.hold_store = true;
    const uint64_t named = node.node().next_request.load();
    const auto got = node.turn(key, {"hello"});
    CHECK(node.node().next_request.load() == named);
    node.hold_store = false;
    node.settle();
    CHECK(said(got->value()) == "You said: hello");
}

TEST_CASE("what was answered is there after kill -9, what was not may be gone") {
    ActorFixture node;
    const auto key = node.new_session(), lost = node.new_session();
    const auto one = node.turn(key, {"one"});
    CHECK(one->ok());
    node.hold_store = true;
    const auto two = node.turn(lost, {"two"});
    node.kill_and_restart();
    CHECK(two->code() == "internal");  // the caller was told, not left
    CHECK(said(node.read(key, 1)->value()) == "You said: one");
    CHECK(node.read(lost, 1)->code() == "response_not_found");
}

// --- two groups: what the first one commits must not show what only the second one will
// ---------------------------------------------------------------------------------------

namespace {

/// Writes what was appended so far as one group, lets `meanwhile` append to the next one, and acknowledges the first.
template <class F>
void commit_in_two_groups(ActorFixture& node, F&& meanwhile) {
    node.run();
    REQUIRE(node.store().step_journal());  // written
    meanwhile();
    node.run();
    REQUIRE(node.store().step_journal());  // synced
    REQUIRE(node.store().step_journal());  // acknowledged
    node.run();
}

}  // namespace

TEST_CASE("a stream is accepted with what is committed, though the turn may have ended in memory") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    node.hold_store = true;
    Reader reader = node.stream(key, {"hello"});
    commit_in_two_groups(node, [&] { node.release_models(); });
    REQUIRE(reader.shape() == "a");
    const auto& accepted = std::get<StreamAccepted>(reader.events->front()).answer;
    CHECK(status_of(accepted) == "in_progress");
    CHECK(accepted.turn->items.size() == 1);
    node.hold_store = false;
    node.settle();
    CHECK(reader.shape() == "aie");
}

TEST_CASE("a background turn is answered with what is committed, though the turn may have ended in memory") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    node.hold_store = true;
    AskTurn ask{"hello"};
    ask.background = true;
    const auto got = node.submit(key, ask);
    commit_in_two_groups(node, [&] { node.release_models(); });
    CHECK(status_of(got->value()) == "in_progress");
    CHECK(got->value().turn->items.size() == 1);
}

TEST_CASE("what is told of a session is what was committed when it was asked") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"one"});
    node.hold_store = true;
    auto [first, first_reply] = expect_reply<SessionInfo>();
    auto [second, second_reply] = expect_reply<SessionInfo>();
    auto [read, read_reply] = expect_reply<SessionInfo>();
    node.send(key, ChangeMetadata{node.principal, R"({"a":"1"})", std::move(first_reply)});
    node.send(key, ReadInfo{std::move(read_reply)});
    commit_in_two_groups(node, [&, reply = &second_reply] {
        node.send(key, ChangeMetadata{node.principal, R"({"a":"2"})", std::move(*reply)});
    });
    CHECK(first->value().metadata == R"({"a":"1"})");
    CHECK(read->value().metadata == R"({"a":"1"})");
    CHECK_FALSE(second->answered());
    node.hold_store = false;
    node.settle();
    CHECK(second->value().metadata == R"({"a":"2"})");
}
