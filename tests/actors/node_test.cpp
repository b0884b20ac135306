// The tree as a whole: tenants apart, tool lists that fail, keys of forks, damaged rows, time that runs out.

#include "tests/support/actor_fixture.h"

using namespace mainstay;

namespace {

size_t count(const std::string& text, const std::string& word) {
    size_t n = 0;
    for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++n;
    return n;
}

}  // namespace

TEST_CASE("a session is found only under its own tenant") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"mine"});
    const SessionKey foreign{TenantId{2}, key.session};
    CHECK(node.read(foreign, 1)->code() == "response_not_found");
    CHECK(node.info(foreign)->code() == "session_not_found");
    CHECK(node.remove(foreign)->code() == "session_not_found");
    CHECK(node.cancel(foreign, 1)->code() == "response_not_found");
    CHECK(said(node.read(key, 1)->value()) == "You said: mine");
}

TEST_CASE("reading what does not exist leaves nothing in the store and sleeps again") {
    ActorFixture node;
    const auto key = node.new_session();
    CHECK(node.info(key)->code() == "session_not_found");
    AskTurn ask{"hello"};
    ask.conversation = true;
    CHECK(node.turn(key, ask)->code() == "session_not_found");
    CHECK(node.store().stats().journal_records == 0);
    node.advance(12'000);
    CHECK(node.active() == 0);
}

TEST_CASE("a tool server that cannot be listed fails the step, and the next attempt asks again") {
    ActorFixture node;
    node.bank_agent("banker", "look", EffectClass::read);
    node.tools.list_failure = "bank: could not be started";
    const auto key = node.new_session();
    const auto got = node.turn(key, {"look", "banker"});
    CHECK_FALSE(got->answered());
    CHECK(node.tools.calls.empty());
    const size_t lists = node.tools.lists;
    node.tools.list_failure.clear();
    node.advance(70'000, 500);
    CHECK(node.tools.lists > lists);
    REQUIRE(node.tools.calls.size() == 1);
    node.tools.answer(0, "much");
    node.settle();
    CHECK(said(got->value()) == "The bank said: much");
}

TEST_CASE("a tool server that never comes up fails the turn with its own code") {
    ActorFixture node;
    node.bank_agent("banker", "look", EffectClass::read, "[retry]\nmax_attempts = 2\nbackoff = \"1s..1s\"\n");
    node.tools.list_failure = "bank: could not be started";
    const auto key = node.new_session();
    const auto got = node.turn(key, {"look", "banker"});
    node.advance(10'000, 500);
    CHECK(status_of(got->value()) == "failed");
    CHECK(got->value().turn->code == "tool_unavailable");
    CHECK(got->value().turn->message.find("could not be started") != std::string::npos);
}

TEST_CASE("a repeated key finds the fork that it made, and makes no second one") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"one"});
    node.turn(key, {"two"});
    const SessionId child = make_fork_id(node.random, key.session.family);  // as the door makes it from the key
    auto fork = [&](const std::string& text, uint64_t digest) {
        AskTurn ask{text, "plain", "order-1"};
        ask.after = TurnNo{1};
        ask.digest = digest;
        auto submit = node.make_submit(key, ask);
        submit.fork_child = child;
        auto [got, reply] = expect_reply<TurnAnswer>();
        submit.done = std::move(reply);
        node.send(key, std::move(submit));
        return got;
    };
    node.hold_models();
    const auto first = fork("other", 1);
    node.settle();
    const auto joined = fork("other", 1);
    node.settle();
    node.release_models();
    node.settle();
    CHECK(first->value().session == child);
    CHECK(joined->value().turn->no == first->value().turn->no);
    const size_t records = node.store().stats().journal_records;
    const auto again = fork("other", 1);
    node.settle();
    CHECK(again->value().session == child);
    CHECK(again->value().repeated);
    CHECK(node.store().stats().journal_records == records);
    node.store().run();
    node.kill_and_restart();
    const auto later = fork("other", 1), changed = fork("another", 2);
    node.settle();
    CHECK(later->value().repeated);
    CHECK(changed->code() == "idempotency_key_reused");
    CHECK(count(node.event_names(key), "Forked") == 1);
}

TEST_CASE("a session whose journal is damaged says so to everybody and harms no other") {
    ActorFixture node;
    const auto key = node.new_session(), other = node.new_session();
    node.turn(key, {"one"});
    node.turn(other, {"one"});
    Append bad;
    bad.session = key;
    bad.first_sequence = Sequence{1000};
    bad.event_count = 1;
    bad.payload = "this is no batch";
    node.advance(12'000);
    REQUIRE(node.active() == 0);
    node.store().append(std::move(bad));
    node.settle();
    const auto code = node.info(key)->code();
    CHECK((code == "journal_damaged" || code == "state_damaged"));
    CHECK(node.turn(key, {"two"})->code() == code);
    Reader reader = node.stream(key, {"three"});
    node.settle();
    CHECK(reader.shape() == "f");
    CHECK(node.turn(other, {"two"})->ok());
    node.advance(25'000);
    CHECK(node.active() == 0);
}

TEST_CASE("several timers, and a deadline behind them, are each looked at without another wake-up from outside") {
    // A wait that ends moves the deadline: after the tick that ends it, the deadline may be due at once.
    NodeOptions options;
    options.turn_duration_ms = 5000;
    ActorFixture node(options);
    node.model(R"(name = "m"
device = "scripted"
[[script]]
call_tool = "builtin/clock_sleep"
call_arguments = '{"seconds":100}'
[[script]]
call_tool = "builtin/clock_sleep"
call_arguments = '{"seconds":100}'
[[script]]
text = "awake"
)");
    node.agent("name = \"sleeper\"\nmodel = \"m\"\n[[tools]]\ntype = \"builtin\"\nnames = [\"clock\"]\n");
    const auto key = node.new_session();
    AskTurn ask{"sleep", "sleeper"};
    ask.background = true;
    node.turn(key, ask);
    node.advance(101'000, 1000);
    CHECK(status_of(node.read(key, 1)->value()) == "in_progress");
    node.hold_models();  // the third step does not end: only the deadline can
    node.advance(99'500, 500);
    CHECK(status_of(node.read(key, 1)->value()) == "in_progress");  // time in waits does not count
    node.advance(6000, 500);
    const auto read = node.read(key, 1);
    CHECK(status_of(read->value()) == "failed");
    CHECK(read->value().turn->code == "turn_deadline_exceeded");
}

TEST_CASE("a clock that jumps far ahead fires what is due, all of it, once") {
    ActorFixture node;
    node.model(
        "name = \"failing-model\"\ndevice = \"scripted\"\n[[script]]\ntext = \"at last\"\nfail_class = "
        "\"transient\"\nfail_times = 1\n");
    node.agent("name = \"failing\"\nmodel = \"failing-model\"\n[retry]\nbackoff = \"5s..5s\"\n");
    const auto key = node.new_session();
    AskTurn ask{"hello", "failing"};
    ask.timeout_ms = 1000;
    const auto got = node.turn(key, ask);
    node.clock.advance(400'000);
    node.advance(10'000, 500);
    CHECK(got->code() == "request_timeout");
    CHECK(said(node.read(key, 1)->value()) == "at last");
    CHECK(count(node.event_names(key), "StepFailed") == 1);
}

TEST_CASE("items that are added to an idle conversation are in its history and its prompts") {
    ActorFixture node;
    const auto key = node.new_session();
    CHECK(node.open_conversation(key, {user_message("before all")})->ok());
    auto [added, reply] = expect_reply<ItemPage>();
    node.send(key, AppendItems{node.principal, {user_message("in between")}, std::move(reply)});
    node.settle();
    REQUIRE(added->value().items.size() == 1);
    CHECK(added->value().items[0].item->text == "in between");
    AskTurn ask{"hello", "first"};
    ask.conversation = true;
    CHECK(said(node.turn(key, ask)->value()) == "First you said: before all");
    auto [item, item_reply] = expect_reply<ItemEntry>();
    node.send(key, ReadItem{added->value().items[0].id, std::move(item_reply)});
    auto [missing, missing_reply] = expect_reply<ItemEntry>();
    node.send(key, ReadItem{{key.session, TurnNo{2}, 7}, std::move(missing_reply)});
    node.settle();
    CHECK(item->value().item->text == "in between");
    CHECK(missing->code() == "item_not_found");
    CHECK(node.read(key, 1)->code() == "response_not_found");  // items are no response
    node.hold_models();
    node.turn(key, ask);
    auto [busy, busy_reply] = expect_reply<ItemPage>();
    node.send(key, AppendItems{node.principal, {user_message("too soon")}, std::move(busy_reply)});
    node.settle();
    CHECK(busy->code() == "session_busy");
    node.release_models();
    node.settle();
}
