// A session's actor over time: sleep and waking, crashes, retries, and outcomes that nobody knows.

#include "runtime/policy/retry.h"
#include "tests/support/actor_fixture.h"

using namespace mainstay;

namespace {

void add_sleeper(ActorFixture& node) {
    node.model(R"(name = "sleeper-model"
device = "scripted"
[[script]]
call_tool = "builtin/clock_sleep"
call_arguments = '{"seconds":100}'
[[script]]
text = "awake: {tool}"
)");
    node.agent(R"(name = "sleeper"
model = "sleeper-model"
[[tools]]
type = "builtin"
names = ["clock"]
)");
}

void add_rememberer(ActorFixture& node) {
    node.model(R"(name = "memory-model"
device = "scripted"
[[script]]
when = "keep"
call_tool = "builtin/memory_set"
call_arguments = '{"key":"word","value":"{input}"}'
[[script]]
when = "recall"
call_tool = "builtin/memory_get"
call_arguments = '{"key":"word"}'
[[script]]
text = "{tool}"
)");
    node.agent(R"(name = "rememberer"
model = "memory-model"
[[tools]]
type = "builtin"
names = ["memory"]
)");
}

void add_failing(ActorFixture& node, const std::string& error_class, uint32_t times, uint32_t attempts) {
    node.model("name = \"failing-model\"\ndevice = \"scripted\"\n[[script]]\ntext = \"at last\"\nfail_class = \"" +
               error_class + "\"\nfail_times = " + std::to_string(times) + "\n");
    node.agent("name = \"failing\"\nmodel = \"failing-model\"\n[retry]\nmax_attempts = " + std::to_string(attempts) +
               "\nbackoff = \"2s..1m\"\n");
}

size_t count(const std::string& text, const std::string& word) {
    size_t n = 0;
    for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++n;
    return n;
}

}  // namespace

// --- sleep
// ----------------------------------------------------------------------------------------------------------

TEST_CASE("an idle session sleeps after passivate_after, and wakes with its history and memory") {
    ActorFixture node;
    add_rememberer(node);
    const auto key = node.new_session();
    CHECK(node.turn(key, {"one"})->ok());
    CHECK(said(node.turn(key, {"keep this", "rememberer"})->value()) == "remembered");
    CHECK(node.active() == 1);
    node.advance(9900);
    CHECK(node.active() == 1);
    SUBCASE("from the journal's tail") {}
    SUBCASE("from the state") { node.store().run(); }
    node.advance(300);
    CHECK(node.active() == 0);
    node.advance(100'000, 1000);
    CHECK(node.active() == 0);  // nothing wakes it for nothing
    CHECK(said(node.turn(key, {"again", "first"})->value()) == "First you said: one");
    CHECK(said(node.turn(key, {"recall", "rememberer"})->value()) == "keep this");
    CHECK(node.info(key)->value().turns == 4);
    CHECK(node.active() == 1);
}

TEST_CASE("a session that answers nobody but works stays awake") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    AskTurn ask{"hello"};
    ask.background = true;
    node.turn(key, ask);
    node.advance(30'000, 1000);
    CHECK(node.active() == 1);
    node.release_models();
    node.settle();
    CHECK(said(node.read(key, 1)->value()) == "You said: hello");
    node.advance(12'000);
    CHECK(node.active() == 0);
}

TEST_CASE("whatever the moment, a message that meets a session on its way to sleep is answered") {
    // One run for each number of messages handled between the due idle check and the message that comes.
    bool slept_before = false, met_on_the_way = false, awake_after = false;
    for (size_t handled = 0; handled < 12; ++handled) {
        CAPTURE(handled);
        ActorFixture node;
        const auto key = node.new_session();
        node.turn(key, {"one"});
        node.advance(9900);
        REQUIRE(node.active() == 1);
        node.clock.advance(200);
        node.scheduler().advance_time(std::chrono::milliseconds(200));
        size_t done = 0;
        while (done < handled && node.scheduler().try_run_once()) ++done;
        const bool still_there = node.active() == 1;
        const auto two = node.submit(key, {"two", "first"});
        size_t most = 0;
        while (node.scheduler().try_run_once()) most = std::max(most, node.active());
        node.settle();
        CHECK(most <= 1);  // never two actors of one session
        CHECK(said(two->value()) == "First you said: one");
        CHECK(two->value().turn->no == TurnNo{2});
        CHECK(node.active() == 1);
        slept_before |= !still_there;
        met_on_the_way |= still_there && done == handled && handled > 0;
        awake_after |= still_there;
        node.advance(12'000);
        CHECK(node.active() == 0);
    }
    CHECK(slept_before);
    CHECK(met_on_the_way);
    CHECK(awake_after);
}

TEST_CASE("a sleeping session with a durable timer is woken by it, and its turn finishes") {
    ActorFixture node;
    add_sleeper(node);
    const auto key = node.new_session();
    AskTurn ask{"sleep", "sleeper"};
    ask.background = true;
    CHECK(node.turn(key, ask)->ok());
    SUBCASE("near") {}
    SUBCASE("and its rows are applied") { node.store().run(); }
    SUBCASE("and the node is killed in between") {
        node.advance(12'000);
        node.kill_and_restart();
    }
    SUBCASE("and the node is killed when all is applied") {
        node.store().run();
        node.advance(12'000);
        node.kill_and_restart();
    }
    node.advance(50'000, 1000);
    CHECK(node.active() == 0);
    node.advance(60'000, 1000);
    const auto read = node.read(key, 1);
    CHECK(status_of(read->value()) == "completed");
    CHECK(said(read->value()).starts_with("awake: "));
    const TimeMs took = read->value().turn->settled_at - read->value().turn->created_at;
    CHECK(took >= 100'000);
    CHECK(took <= 101'000);
}

TEST_CASE("a timer that came due while the node was down fires at the start") {
    ActorFixture node;
    add_sleeper(node);
    const auto key = node.new_session();
    AskTurn ask{"sleep", "sleeper"};
    ask.background = true;
    node.turn(key, ask);
    SUBCASE("from the tail") {}
    SUBCASE("from the state") { node.store().run(); }
    node.store().crash();
    node.stop();
    node.clock.advance(3600'000);
    REQUIRE(node.store().reopen(Epoch{2}).ok());
    node.start();
    node.advance(1000);
    CHECK(status_of(node.read(key, 1)->value()) == "completed");
}

// --- crashes
// --------------------------------------------------------------------------------------------------------

TEST_CASE("a session whose actor crashes is started again; callers are told, the turn goes on") {
    ActorFixture node;
    const auto key = node.new_session(), other = node.new_session();
    node.turn(key, {"one"});
    node.hold_models();
    const auto two = node.turn(key, {"two"});
    Reader reader = node.stream(key, {"three"});
    const auto elsewhere = node.turn(other, {"elsewhere"});
    node.crash_session(key);
    node.settle();
    CHECK(two->code() == "internal");
    CHECK(reader.shape() == "af");
    CHECK_FALSE(elsewhere->answered());
    node.release_models();
    node.settle();
    CHECK(said(node.read(key, 2)->value()) == "You said: two");
    CHECK(said(node.read(key, 3)->value()) == "You said: three");
    CHECK(elsewhere->ok());
}

TEST_CASE("a session that crashes again and again is quarantined, and only it") {
    ActorFixture node;
    const auto key = node.new_session(), other = node.new_session();
    node.turn(key, {"one"});
    node.turn(other, {"one"});
    for (uint32_t i = 0; i < limits::restarts_max; ++i) {
        node.crash_session(key);
        node.settle();
        CHECK(node.info(key)->ok());
    }
    node.crash_session(key);
    node.settle();
    CHECK(node.info(key)->code() == "session_quarantined");
    CHECK(node.turn(key, {"two"})->code() == "session_quarantined");
    Reader reader = node.stream(key, {"three"});
    node.settle();
    CHECK(reader.shape() == "f");
    CHECK(node.turn(other, {"two"})->ok());
    node.kill_and_restart();
    CHECK(said(node.read(key, 1)->value()) == "You said: one");
}

TEST_CASE("crashes that lie far apart do not add up") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"one"});
    for (uint32_t i = 0; i < 3 * limits::restarts_max; ++i) {
        node.crash_session(key);
        node.settle();
        node.advance(limits::restart_window_ms, 1000);
    }
    CHECK(node.info(key)->ok());
}

TEST_CASE("a message behind the one that crashes the actor is answered, not lost") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"one"});
    node.crash_session(key);
    const auto two = node.submit(key, {"two"});
    node.settle();
    CHECK(two->code() == "internal");
    CHECK(node.turn(key, {"three"})->ok());
}

// --- retry
// ----------------------------------------------------------------------------------------------------------

TEST_CASE("a step that fails for a while is tried again after the back-off that the supervisor chose") {
    ActorFixture node;
    add_failing(node, "transient", 2, 5);
    const auto key = node.new_session();
    const auto got = node.turn(key, {"hello", "failing"});
    CHECK_FALSE(got->answered());
    CHECK(count(node.event_names(key), "RetryScheduled") == 1);
    node.advance(1900);
    CHECK(count(node.event_names(key), "StepFailed") == 1);  // the back-off is at least two seconds
    node.advance(120'000, 500);
    CHECK(said(got->value()) == "at last");
    const auto names = node.event_names(key);
    CHECK(count(names, "StepFailed") == 2);
    CHECK(count(names, "RetryScheduled") == 2);
    CHECK(count(names, "ModelStepSettled") == 1);
}

TEST_CASE("a scheduled retry survives a kill") {
    ActorFixture node;
    add_failing(node, "overloaded", 1, 5);
    const auto key = node.new_session();
    const auto got = node.turn(key, {"hello", "failing"});
    node.kill_and_restart();
    CHECK(got->code() == "internal");
    node.advance(120'000, 500);
    CHECK(said(node.read(key, 1)->value()) == "at last");
    CHECK(count(node.event_names(key), "StepFailed") == 1);
}

TEST_CASE("a step that keeps failing gives up with its own code") {
    ActorFixture node;
    add_failing(node, "transient", 100, 3);
    const auto key = node.new_session();
    const auto got = node.turn(key, {"hello", "failing"});
    node.advance(300'000, 1000);
    CHECK(status_of(got->value()) == "failed");
    CHECK(got->value().turn->code == "model_unavailable");
    CHECK(count(node.event_names(key), "StepFailed") == 3);
    CHECK(node.turn(key, {"next"})->ok());
}

TEST_CASE("what no repetition can mend fails at once") {
    ActorFixture node;
    add_failing(node, "invalid", 100, 5);
    const auto key = node.new_session();
    const auto got = node.turn(key, {"hello", "failing"});
    CHECK(status_of(got->value()) == "failed");
    CHECK(got->value().turn->code == "model_rejected_request");
    CHECK(count(node.event_names(key), "RetryScheduled") == 0);
}

TEST_CASE("when the tenant's retry budget is used up, steps fail without another attempt") {
    ActorFixture node;
    add_failing(node, "transient", 1, 5);
    const RetryBudget full;
    std::vector<GotPtr<TurnAnswer>> got;
    for (uint64_t i = 0; i <= full.left(); ++i) got.push_back(node.turn(node.new_session(), {"hello", "failing"}));
    for (size_t i = 0; i + 1 < got.size(); ++i) CHECK_FALSE(got[i]->answered());
    CHECK(status_of(got.back()->value()) == "failed");
    CHECK(got.back()->value().turn->code == "model_unavailable");
    node.advance(10'000, 500);
    for (size_t i = 0; i + 1 < got.size(); ++i) CHECK(said(got[i]->value()) == "at last");
}

TEST_CASE("a tool that did not run is tried again with the same key") {
    ActorFixture node;
    node.bank_agent("banker", "pay", EffectClass::once);
    const auto key = node.new_session();
    const auto got = node.turn(key, {"pay", "banker"});
    node.tools.fail(0);
    node.settle();
    CHECK(node.tools.calls.size() == 1);
    node.advance(70'000, 500);
    REQUIRE(node.tools.calls.size() == 2);
    CHECK(node.tools.calls[1].call.idempotency_key == node.tools.calls[0].call.idempotency_key);
    node.tools.answer(1, "paid");
    node.settle();
    CHECK(said(got->value()) == "The bank said: paid");
}

TEST_CASE("a lost call that only reads is tried again, one that acts once is not") {
    for (const auto effect : {EffectClass::read, EffectClass::idempotent, EffectClass::once}) {
        CAPTURE(to_word(effect));
        ActorFixture node;
        node.bank_agent("banker", "act", effect);
        const auto key = node.new_session();
        const auto got = node.turn(key, {"act", "banker"});
        node.tools.lose(0);
        node.advance(70'000, 500);
        CHECK(node.tools.calls.size() == (effect == EffectClass::once ? 1 : 2));
        CHECK(node.info(key)->value().state == (effect == EffectClass::once ? "unknown_outcome" : "running"));
        CHECK_FALSE(got->answered());
    }
}

// --- outcomes that nobody knows
// -------------------------------------------------------------------------------------

TEST_CASE("a call of class once that a kill interrupts is unknown, and a person closes it") {
    ActorFixture node;
    node.bank_agent("banker", "pay", EffectClass::once);
    const auto key = node.new_session();
    node.turn(key, {"pay", "banker"});
    REQUIRE(node.tools.calls.size() == 1);
    const auto idempotency_key = node.tools.calls[0].call.idempotency_key;
    node.kill_and_restart();
    node.advance(100'000, 1000);
    CHECK(node.tools.calls.size() == 1);  // never silently again
    CHECK(node.info(key)->value().state == "unknown_outcome");
    CHECK(node.resolve(key, 1, 0, Resolution::done, "paid")->code() == "call_not_found");
    SUBCASE("it was done") {
        CHECK(node.resolve(key, 1, 1, Resolution::done, "paid")->ok());
        CHECK(said(node.read(key, 1)->value()) == "The bank said: paid");
        CHECK(node.tools.calls.size() == 1);
    }
    SUBCASE("it was not done") {
        CHECK(node.resolve(key, 1, 1, Resolution::failed, "no money")->ok());
        CHECK(status_of(node.read(key, 1)->value()) == "completed");
        CHECK(node.tools.calls.size() == 1);
    }
    SUBCASE("run it again") {
        CHECK(node.resolve(key, 1, 1, Resolution::retry, "")->ok());
        REQUIRE(node.tools.calls.size() == 2);
        CHECK(node.tools.calls[1].call.idempotency_key == idempotency_key);
        node.tools.answer(1, "paid now");
        node.settle();
        CHECK(said(node.read(key, 1)->value()) == "The bank said: paid now");
    }
    CHECK(node.resolve(key, 1, 1, Resolution::done, "paid")->code() == "call_not_found");
    CHECK(node.turn(key, {"next"})->ok());
}

TEST_CASE("a call that may be repeated is dispatched again after a kill, with the same key") {
    ActorFixture node;
    node.bank_agent("banker", "look", EffectClass::idempotent);
    const auto key = node.new_session();
    node.turn(key, {"look", "banker"});
    REQUIRE(node.tools.calls.size() == 1);
    node.kill_and_restart();
    node.advance(1000);
    REQUIRE(node.tools.calls.size() == 2);
    CHECK(node.tools.calls[1].call.idempotency_key == node.tools.calls[0].call.idempotency_key);
    node.tools.answer(1, "a lot");
    node.settle();
    CHECK(said(node.read(key, 1)->value()) == "The bank said: a lot");
}

TEST_CASE("a crash of the actor alone makes an open call of class once unknown as well") {
    ActorFixture node;
    node.bank_agent("banker", "pay", EffectClass::once);
    const auto key = node.new_session();
    node.turn(key, {"pay", "banker"});
    node.crash_session(key);
    node.settle();
    CHECK(node.info(key)->value().state == "unknown_outcome");
    node.tools.answer(0, "paid");  // the old incarnation's answer meets nobody
    node.settle();
    CHECK(node.info(key)->value().state == "unknown_outcome");
    CHECK(node.tools.calls.size() == 1);
}

TEST_CASE("an intent that was never committed is not unknown: the model is asked again") {
    ActorFixture node;
    node.bank_agent("banker", "pay", EffectClass::once);
    const auto key = node.new_session();
    node.hold_models();
    node.turn(key, {"pay", "banker"});
    node.hold_store = true;
    node.release_models();
    node.settle();
    CHECK(node.tools.calls.empty());
    node.kill_and_restart();
    REQUIRE(node.tools.calls.size() == 1);
    node.tools.answer(0, "paid");
    node.settle();
    CHECK(said(node.read(key, 1)->value()) == "The bank said: paid");
}
