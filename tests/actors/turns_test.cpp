// Keys, the queue of inputs, admission, cancellation, deletion and drain, as callers meet them.

#include "runtime/base/limits.h"
#include "tests/support/actor_fixture.h"

using namespace mainstay;

namespace {

const std::string sleeper_model = R"(name = "sleeper-model"
device = "scripted"
[[script]]
call_tool = "builtin/clock_sleep"
call_arguments = '{"seconds":100}'
[[script]]
text = "awake"
)";
const std::string sleeper_agent = R"(name = "sleeper"
model = "sleeper-model"
[[tools]]
type = "builtin"
names = ["clock"]
)";

size_t batches_in_store(ActorFixture& node) { return node.store().stats().journal_records; }

}  // namespace

// --- idempotency keys
// -----------------------------------------------------------------------------------------------

TEST_CASE("a repeated key returns the recorded turn without a second batch") {
    ActorFixture node;
    const auto key = node.new_session();
    const auto first = node.turn(key, {"hello", "plain", "order-1"});
    const size_t before = batches_in_store(node);
    const auto again = node.turn(key, {"hello", "plain", "order-1"});
    CHECK(again->value().turn->no == first->value().turn->no);
    CHECK(said(again->value()) == "You said: hello");
    CHECK(again->value().repeated);
    CHECK_FALSE(first->value().repeated);
    CHECK(batches_in_store(node) == before);
}

TEST_CASE("a repeated key waits for the turn that runs, also for one that a dead process left") {
    ActorFixture node;
    const auto key = node.new_session();
    const AskTurn ask{"hello", "plain", "order-1"};
    node.hold_models();
    const auto first = node.submit(key, ask);
    node.settle();
    CHECK_FALSE(first->answered());
    SUBCASE("the same process") {
        const auto again = node.submit(key, ask);
        node.settle();
        CHECK_FALSE(again->answered());
        node.release_models();
        node.settle();
        CHECK(said(first->value()) == "You said: hello");
        CHECK_FALSE(first->value().repeated);
        CHECK(said(again->value()) == "You said: hello");
        CHECK(again->value().repeated);
        CHECK(again->value().turn->no == first->value().turn->no);
    }
    SUBCASE("the next process") {
        node.release_models();
        node.kill_and_restart();
        node.hold_models();
        const auto again = node.submit(key, ask);
        Reader joined = node.stream(key, ask);
        node.settle();
        node.release_models();
        node.settle();
        CHECK(said(again->value()) == "You said: hello");
        CHECK(again->value().turn->no == TurnNo{1});
        CHECK(joined.shape().ends_with("e"));
        CHECK(said(std::get<StreamEnded>(joined.events->back()).answer) == "You said: hello");
    }
    CHECK(node.read(key, 2)->code() == "response_not_found");
}

TEST_CASE("a key is remembered over sleep, application to the state and a kill") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"hello", "plain", "order-1"});
    SUBCASE("asleep") { node.advance(12'000); }
    SUBCASE("asleep and applied") {
        node.store().run();
        node.advance(12'000);
    }
    SUBCASE("killed") { node.kill_and_restart(); }
    SUBCASE("applied and killed") {
        node.store().run();
        node.kill_and_restart();
    }
    const auto again = node.turn(key, {"hello", "plain", "order-1"});
    CHECK(again->value().turn->no == TurnNo{1});
    CHECK(again->value().repeated);
    AskTurn other{"hello", "plain", "order-1"};
    other.digest = 2;
    CHECK(node.turn(key, other)->code() == "idempotency_key_reused");
    CHECK(node.info(key)->value().turns == 1);
}

TEST_CASE("a key is remembered however often it is repeated, also when memory leaves it to the state") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"hello", "plain", "order-1"});
    node.store().run();
    for (size_t i = 0; i < limits::recent_keys_max; ++i)
        REQUIRE(node.turn(key, {"hello", "plain", "order-1"})->value().turn->no == TurnNo{1});
    CHECK(node.info(key)->value().turns == 1);
}

TEST_CASE("a key repeated for a turn that runs joins it") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    const auto first = node.turn(key, {"hello", "plain", "order-1"});
    const auto again = node.turn(key, {"hello", "plain", "order-1"});
    CHECK_FALSE(first->answered());
    CHECK_FALSE(again->answered());
    node.release_models();
    node.settle();
    CHECK(first->value().turn->no == again->value().turn->no);
    CHECK_FALSE(first->value().repeated);
    CHECK(again->value().repeated);
}

TEST_CASE("a key with another body is refused, whether its turn runs or has ended") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    const auto first = node.turn(key, {"hello", "plain", "order-1"});
    AskTurn other{"goodbye", "plain", "order-1"};
    other.digest = 2;
    CHECK(node.turn(key, other)->code() == "idempotency_key_reused");
    node.release_models();
    node.settle();
    CHECK(first->ok());
    CHECK(node.turn(key, other)->code() == "idempotency_key_reused");
}

// --- the queue of inputs
// --------------------------------------------------------------------------------------------

TEST_CASE("inputs queue up to their bound, run in order, and beyond it are refused") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    std::vector<GotPtr<TurnAnswer>> got;
    for (size_t i = 0; i <= limits::input_queue_max; ++i)
        got.push_back(node.submit(key, {"input " + std::to_string(i)}));
    node.settle();
    const auto beyond = node.turn(key, {"one too many"});
    CHECK(beyond->code() == "input_queue_full");
    CHECK(error_info(ErrorCode::input_queue_full).http_status == 429);
    node.release_models();
    node.settle();
    TimeMs before = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        const auto& answer = got[i]->value();
        CHECK(answer.turn->no.value == i + 1);
        CHECK(said(answer) == "You said: input " + std::to_string(i));
        CHECK(answer.turn->settled_at >= before);
        before = answer.turn->settled_at;
    }
    const auto names = node.event_names(key);
    size_t settled = 0;
    for (size_t at = names.find("TurnSettled"); at != std::string::npos; at = names.find("TurnSettled", at + 1))
        ++settled;
    CHECK(settled == got.size());
    CHECK(said(node.turn(key, {"room again"})->value()) == "You said: room again");
}

TEST_CASE("a caller's own deadline passes without touching the turn") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    AskTurn ask{"hello"};
    ask.timeout_ms = 2000;
    const auto got = node.turn(key, ask);
    node.advance(1900);
    CHECK_FALSE(got->answered());
    node.advance(200);
    CHECK(got->code() == "request_timeout");
    node.release_models();
    node.settle();
    CHECK(said(node.read(key, 1)->value()) == "You said: hello");
}

TEST_CASE("a turn that outlives its duration fails, and its model step is given up") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    const auto got = node.turn(key, {"hello"});
    node.advance(599'000, 1000);
    CHECK_FALSE(got->answered());
    node.advance(2000);
    CHECK(status_of(got->value()) == "failed");
    CHECK(got->value().turn->code == "turn_deadline_exceeded");
    node.release_models();
    node.settle();
    CHECK(node.turn(key, {"next"})->ok());
}

// --- admission
// ------------------------------------------------------------------------------------------------------

TEST_CASE("a full disk refuses what brings bytes and lets the rest be read") {
    ActorFixture node;
    const auto key = node.new_session();
    node.turn(key, {"one"});
    node.store().inject(StoreFault::no_space);
    CHECK(node.turn(key, {"two"})->code() == "storage_full");
    Reader reader = node.stream(key, {"three"});
    node.settle();
    CHECK(reader.shape() == "f");
    CHECK(node.open_conversation(node.new_session(), {user_message("hi")})->code() == "storage_full");
    CHECK(said(node.read(key, 1)->value()) == "You said: one");
    node.store().space_returns();
    CHECK(node.turn(key, {"four"})->ok());
}

TEST_CASE("a journal that does not keep up refuses, and takes inputs again when it has") {
    MemoryStoreConfig config;
    config.append_queue_bytes_max = 64 * 1024;
    ActorFixture node({}, config);
    node.hold_store = true;
    std::vector<GotPtr<TurnAnswer>> got;
    const std::string text(8000, 'x');
    for (size_t i = 0; i < 20 && (got.empty() || got.back()->code().empty()); ++i)
        got.push_back(node.turn(node.new_session(), {text}));
    CHECK(got.back()->code() == "journal_backlog_full");
    node.hold_store = false;
    node.settle();
    for (size_t i = 0; i + 1 < got.size(); ++i) CHECK(got[i]->ok());
    CHECK(node.turn(node.new_session(), {text})->ok());
}

TEST_CASE("more sessions than may be in memory are refused while all of them work") {
    NodeOptions options;
    options.sessions_active_max = 4;
    ActorFixture node(options);
    node.hold_models();
    std::vector<GotPtr<TurnAnswer>> got;
    for (size_t i = 0; i < 4; ++i) got.push_back(node.turn(node.new_session(), {"hello"}));
    CHECK(node.turn(node.new_session(), {"hello"})->code() == "too_many_sessions");
    node.release_models();
    node.settle();
    for (const auto& g : got) CHECK(g->ok());
    CHECK(node.turn(node.new_session(), {"hello"})->ok());
}

TEST_CASE("where sessions are many, those that were used least recently sleep first, and none of their turns is lost") {
    NodeOptions options;
    options.sessions_active_max = 8;
    ActorFixture node(options);
    std::vector<SessionKey> keys;
    for (size_t i = 0; i < 40; ++i) {
        keys.push_back(node.new_session());
        CHECK(node.turn(keys.back(), {"hello"})->ok());
        CHECK(node.turn(keys.front(), {"again"})->ok());  // always in use
        CHECK(node.active() <= 8);
    }
    // A burst that finds every place taken by idle sessions: each waits for room and is served.
    std::vector<GotPtr<TurnAnswer>> burst;
    for (const auto& key : keys) burst.push_back(node.turn(key, {"all at once"}));
    node.settle();
    for (const auto& got : burst) CHECK(got->ok());
    CHECK(node.turn(keys.front(), {"and last"})->value().turn->no == TurnNo{43});
}

TEST_CASE("a session whose records cannot be read says so, and its deletion makes an end of it") {
    ActorFixture node;
    const auto damaged = node.new_session(), other = node.new_session();
    Append garbage;
    garbage.session = damaged;
    garbage.first_sequence = Sequence{1};
    garbage.event_count = 1;
    garbage.payload = "no batch of events";
    node.node().store.append(std::move(garbage));
    CHECK(node.turn(other, {"hello"})->ok());
    const auto refused = node.turn(damaged, {"hello"})->code();
    CHECK((refused == "journal_damaged" || refused == "state_damaged"));
    CHECK(node.remove(damaged)->ok());
    CHECK(node.info(damaged)->code() == "session_not_found");
    CHECK(node.turn(other, {"still here"})->ok());
}

// --- cancellation
// ---------------------------------------------------------------------------------------------------

TEST_CASE("a queued turn is cancelled without touching the one before it") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    const auto one = node.turn(key, {"one"}), two = node.turn(key, {"two"}), three = node.turn(key, {"three"});
    const auto cancelled = node.cancel(key, 2);
    CHECK(status_of(cancelled->value()) == "cancelled");
    CHECK(status_of(two->value()) == "cancelled");
    CHECK_FALSE(one->answered());
    node.release_models();
    node.settle();
    CHECK(said(one->value()) == "You said: one");
    CHECK(said(three->value()) == "You said: three");
}

TEST_CASE("a turn whose model runs is cancelled, and the model's place is free at once") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    const auto one = node.turn(key, {"one"});
    CHECK(status_of(node.cancel(key, 1)->value()) == "cancelled");
    CHECK(one->value().turn->code == "turn_cancelled");
    CHECK(status_of(node.cancel(key, 1)->value()) == "cancelled");  // again: nothing left to cancel
    node.release_models();
    node.settle();
    CHECK(node.node().models.in_flight() == 0);
    CHECK(node.turn(key, {"two"})->value().turn->no == TurnNo{2});
}

TEST_CASE("a turn whose tool runs is cancelled: the tool is told, and what it did is not known") {
    ActorFixture node;
    node.bank_agent("banker", "pay", EffectClass::once);
    const auto key = node.new_session();
    const auto one = node.turn(key, {"pay", "banker"});
    REQUIRE(node.tools.calls.size() == 1);
    CHECK(status_of(node.cancel(key, 1)->value()) == "cancelled");
    CHECK(node.tools.calls[0].cancelled);
    REQUIRE(one->value().turn->items.size() == 2);
    CHECK(one->value().turn->items[1]->status == ItemStatus::unknown);
    CHECK(node.turn(key, {"two"})->ok());
}

TEST_CASE("a turn that waits is cancelled, and its timer wakes nobody") {
    ActorFixture node;
    node.model(sleeper_model);
    node.agent(sleeper_agent);
    const auto key = node.new_session();
    const auto one = node.turn(key, {"sleep", "sleeper"});
    CHECK_FALSE(one->answered());
    CHECK(node.info(key)->value().state == "waiting");
    CHECK(status_of(node.cancel(key, 1)->value()) == "cancelled");
    CHECK(status_of(one->value()) == "cancelled");
    node.advance(200'000, 1000);
    CHECK(status_of(node.read(key, 1)->value()) == "cancelled");
    CHECK(node.turn(key, {"two"})->ok());
}

TEST_CASE("a turn with an unknown outcome is cancelled and keeps saying that it is not known") {
    ActorFixture node;
    node.bank_agent("banker", "pay", EffectClass::once);
    const auto key = node.new_session();
    const auto one = node.turn(key, {"pay", "banker"});
    node.tools.lose(0);
    node.settle();
    CHECK(node.info(key)->value().state == "unknown_outcome");
    CHECK(status_of(node.cancel(key, 1)->value()) == "cancelled");
    CHECK(one->value().turn->items.at(1)->status == ItemStatus::unknown);
    CHECK(node.tools.calls.size() == 1);
    CHECK(node.turn(key, {"two"})->ok());
}

TEST_CASE("cancelling what is not there says so") {
    ActorFixture node;
    const auto key = node.new_session();
    CHECK(node.cancel(key, 1)->code() == "response_not_found");
    node.turn(key, {"one"});
    CHECK(node.cancel(key, 2)->code() == "response_not_found");
    CHECK(status_of(node.cancel(key, 1)->value()) == "completed");
}

// --- the end of a session
// -------------------------------------------------------------------------------------------

TEST_CASE("a session that is not to be stored is gone when its answer has left") {
    ActorFixture node;
    const auto key = node.new_session();
    AskTurn ask{"hello"};
    ask.store = false;
    node.hold_store = true;
    const auto got = node.turn(key, ask);
    CHECK_FALSE(got->answered());
    node.hold_store = false;
    node.settle();
    CHECK(said(got->value()) == "You said: hello");
    CHECK(node.read(key, 1)->code() == "response_not_found");
    CHECK(node.info(key)->code() == "session_not_found");
    node.store().run();
    node.advance(12'000);
    CHECK(node.active() == 0);
    CHECK(node.read(key, 1)->code() == "response_not_found");
}

TEST_CASE("a session that is not to be stored answers its key for a day, over a restart, and is then gone") {
    ActorFixture node;
    node.bank_agent("banker", "pay", EffectClass::once);
    const auto key = node.new_session();
    AskTurn ask{"pay", "banker"};
    ask.store = false;
    ask.idempotency_key = "once";
    const auto got = node.turn(key, ask);
    REQUIRE(node.tools.calls.size() == 1);
    node.tools.answer(0, "paid");
    node.settle();
    REQUIRE(got->answered());
    for (const bool restart : {false, true}) {
        if (restart) node.kill_and_restart();
        const auto again = node.turn(key, ask);
        node.settle();
        REQUIRE(again->answered());
        CHECK(again->value().repeated);
        CHECK(said(again->value()) == said(got->value()));
        CHECK(node.tools.calls.size() == 1);
        CHECK(node.read(key, 1)->code() == "response_not_found");
    }
}

TEST_CASE("a session is deleted while its turn runs: who waits is told, its tool is stopped") {
    ActorFixture node;
    node.bank_agent("banker", "pay", EffectClass::once);
    const auto key = node.new_session();
    const auto one = node.turn(key, {"pay", "banker"});
    Reader reader = node.stream(key, {"two"});
    node.settle();
    REQUIRE(node.tools.calls.size() == 1);
    CHECK(node.remove(key)->ok());
    CHECK(one->code() == "session_not_found");
    CHECK(reader.shape() == "af");
    CHECK(node.tools.calls[0].cancelled);
    CHECK(node.read(key, 1)->code() == "response_not_found");
    CHECK(node.remove(key)->code() == "session_not_found");
    node.store().run();
    node.kill_and_restart();
    CHECK(node.info(key)->code() == "session_not_found");
    CHECK(node.tools.calls.size() == 1);
}

TEST_CASE("a session is deleted while its model runs, and the model's answer meets nobody") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    const auto one = node.turn(key, {"one"});
    CHECK(node.remove(key)->ok());
    CHECK(one->code() == "session_not_found");
    node.release_models();
    node.settle();
    CHECK(node.info(key)->code() == "session_not_found");
    CHECK(node.node().models.in_flight() == 0);
}

TEST_CASE("a drain ends every actor, tells who waits, and the next start finishes the turn") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    const auto one = node.turn(key, {"one"});
    Reader reader = node.stream(key, {"two"});
    node.settle();
    CHECK(node.node().sessions_busy.load() == 1);
    node.stop();
    CHECK(one->code() == "internal");
    CHECK(reader.shape() == "af");
    node.start();
    CHECK(node.node().resumed.load());
    CHECK(said(node.read(key, 1)->value()) == "You said: one");
    CHECK(said(node.read(key, 2)->value()) == "You said: two");
    CHECK(node.node().sessions_busy.load() == 0);
}
TEST_CASE("a session that never sleeps takes more keyed turns than it may remember itself") {
    ActorFixture node;
    const auto key = node.new_session();
    for (size_t i = 0; i < limits::recent_keys_max + 200; ++i) {
        AskTurn ask{"again"};
        ask.idempotency_key = "key " + std::to_string(i);
        REQUIRE(node.turn(key, ask)->ok());
        node.store().step_apply();
    }
    // The first key is a row by now, and still means its turn.
    AskTurn first{"again"};
    first.idempotency_key = "key 0";
    const auto answer = node.turn(key, first);
    REQUIRE(answer->ok());
    CHECK(answer->value().repeated);
    CHECK(answer->value().turn->no == TurnNo{1});
}
