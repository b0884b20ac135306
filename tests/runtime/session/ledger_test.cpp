// Tool calls: receipts, losses, outcomes that nobody knows, builtin tools.

#include "runtime/session/ledger.h"

#include "runtime/base/limits.h"
#include "runtime/session/session_fixture.h"

using namespace mainstay;
using namespace mainstay::test;
using Names = std::vector<std::string>;

TEST_CASE("ledger: a tool's own error is an output that the model sees") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call()});
    CHECK(names(rig.run(ToolStepDone{TurnNo{1}, 1, 0, true, "no such file", 10})) == Names{"ToolReceipt"});
    CHECK(rig.item(1).status == ItemStatus::failed);
    CHECK(rig.item(1).text == "no such file");
    CHECK(rig.session.pending().model);
}

TEST_CASE("ledger: a result over its bound becomes a failed receipt that says so") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call()});
    CHECK(names(rig.tool_done(std::string(limits::tool_result_bytes_max + 1, 'x'))) ==
          Names{"Decision", "ToolReceipt"});
    CHECK(rig.item(1).status == ItemStatus::failed);
    CHECK(rig.item(1).error.find("tool_result_too_large") == 0);
    CHECK(rig.item(1).text.empty());
    CHECK(rig.session.pending().model);
}

TEST_CASE("ledger: a failed call asks for a verdict and keeps its key when tried again") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call(EffectClass::idempotent)});
    const std::string key = rig.session.pending().tools.at(0).idempotency_key;
    CHECK(names(rig.tool_fails(true)) == Names{"StepFailed"});
    Pending pending = rig.session.pending();
    CHECK(pending.tools.empty());
    REQUIRE(pending.retries.size() == 1);
    CHECK(pending.retries[0].error_class == ErrorClass::lost);
    CHECK(pending.retries[0].is_tool);
    rig.verdict(true, rig.now + 100);
    CHECK(rig.session.pending().tools.empty());
    rig.tick(100);
    pending = rig.session.pending();
    REQUIRE(pending.tools.size() == 1);
    CHECK(pending.tools[0].attempt == 1);
    CHECK(pending.tools[0].idempotency_key == key);
    rig.tool_done("at last");
    CHECK(rig.item(1).text == "at last");
}

TEST_CASE("ledger: a call that is given up fails, is explained and lets the model go on") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call()});
    rig.tool_fails(false);
    CHECK(names(rig.verdict(false)) == Names{"Decision", "ToolReceipt"});
    CHECK(rig.item(1).error == "tool_unavailable: the server ended");
    CHECK(rig.session.pending().model->step == 1);
}

TEST_CASE("ledger: a lost call of class once is unknown until a person closes it") {
    struct Row {
        Resolution how;
        ItemStatus status;
        const char* text;
    };
    for (const Row& row : {Row{Resolution::done, ItemStatus::completed, "it was refunded"},
                           Row{Resolution::failed, ItemStatus::failed, ""}}) {
        Rig rig;
        rig.submit("x", TurnLimits{32, 0, 1000});
        rig.model("", {run_call(EffectClass::once)});
        CHECK(names(rig.tool_fails(true)) == Names{"Decision", "ToolReceipt"});
        CHECK(rig.item(1).status == ItemStatus::unknown);
        CHECK(rig.turn()->status == TurnStatus::in_progress);
        CHECK_FALSE(rig.session.pending().model);
        CHECK(rig.session.pending().tools.empty());
        CHECK(rig.session.pending().wake_at == 0);
        CHECK_FALSE(rig.tick(3600'000).batch);

        rig.session = rig.restarted();
        CHECK_FALSE(rig.run(Recover{}).batch);
        CHECK(rig.item(1).status == ItemStatus::unknown);
        CHECK(refusal(rig.run(ResolveUnknown{TurnNo{1}, 0, row.how, ""})) == ErrorCode::call_not_found);
        CHECK(refusal(rig.run(ResolveUnknown{TurnNo{2}, 1, row.how, ""})) == ErrorCode::call_not_found);
        CHECK(names(rig.run(ResolveUnknown{TurnNo{1}, 1, row.how, row.text})) == Names{"UnknownResolved"});
        CHECK(rig.item(1).status == row.status);
        CHECK(rig.item(1).text == row.text);
        REQUIRE(rig.session.pending().model);
        CHECK(rig.session.pending().wake_at == rig.now + 1000);
        CHECK(refusal(rig.run(ResolveUnknown{TurnNo{1}, 1, row.how, ""})) == ErrorCode::call_not_found);
    }
}

TEST_CASE("ledger: an unknown outcome may be run again, with the same key") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call(EffectClass::once)});
    const std::string key = rig.session.pending().tools.at(0).idempotency_key;
    rig.tool_fails(true);
    rig.run(ResolveUnknown{TurnNo{1}, 1, Resolution::retry, ""});
    const Pending pending = rig.session.pending();
    REQUIRE(pending.tools.size() == 1);
    CHECK(pending.tools[0].attempt == 1);
    CHECK(pending.tools[0].idempotency_key == key);
    CHECK(rig.item(1).status == ItemStatus::in_progress);
    CHECK_FALSE(rig.run(ToolStepDone{TurnNo{1}, 1, 0, false, "the first came after all", 0}).batch);
    rig.tool_done("again");
    CHECK(rig.session.pending().model);
}

TEST_CASE("ledger: after a crash, calls of class once become unknown and the others are tried again") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call(EffectClass::once), run_call(EffectClass::read), run_call(EffectClass::idempotent)});
    const Pending before = rig.session.pending();
    rig.session = rig.restarted();
    CHECK(names(rig.run(Recover{})) == Names{"Decision", "ToolReceipt", "RetryScheduled", "RetryScheduled"});
    const Pending after = rig.session.pending();
    REQUIRE(after.tools.size() == 2);
    CHECK(after.tools[0].call == 2);
    CHECK(after.tools[0].attempt == 1);
    CHECK(after.tools[0].idempotency_key == before.tools[1].idempotency_key);
    CHECK(rig.item(1).status == ItemStatus::unknown);
    rig.tool_done("a", 0);
    rig.tool_done("b", 0);
    CHECK_FALSE(rig.session.pending().model);
    rig.run(ResolveUnknown{TurnNo{1}, 1, Resolution::done, "c"});
    CHECK(rig.session.pending().model);
}

TEST_CASE("ledger: after a hand-over, calls that go on elsewhere are in flight as they were") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call(EffectClass::once), run_call(EffectClass::once), run_call(EffectClass::idempotent)});
    const Pending before = rig.session.pending();
    rig.session = rig.restarted();
    // Of another attempt, or another number, nobody is told: it is not what is in flight.
    Recover recover;
    recover.elsewhere = {{true, 1, 0, "node a"}, {true, 2, 1, "node a"}, {true, 3, 0, "node b"}};
    CHECK(names(rig.run(std::move(recover))) == Names{"Decision", "Decision", "ToolReceipt", "Decision"});
    const Pending after = rig.session.pending();
    REQUIRE(after.tools.size() == 2);
    CHECK(after.tools[0].call == 1);
    CHECK(after.tools[0].attempt == 0);
    CHECK(after.tools[1].call == 3);
    CHECK(after.tools[1].idempotency_key == before.tools[2].idempotency_key);
    CHECK(rig.item(2).status == ItemStatus::unknown);
    rig.tool_done("a", 0);
    rig.tool_done("b", 0);
    CHECK(rig.item(1).status == ItemStatus::completed);
}

TEST_CASE("ledger: after a crash, a call that failed or waits for its retry was not in flight") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call(EffectClass::once), run_call(EffectClass::once)});
    rig.tool_fails(false, 0);
    rig.tool_fails(false, 0);
    const auto ask = rig.session.pending().retries.at(1);
    rig.run(RetryVerdict{ask.turn, ask.step, true, ask.attempt, true, rig.now + 1000, ""});
    rig.session = rig.restarted();
    CHECK_FALSE(rig.run(Recover{}).batch);
    CHECK(rig.session.pending().retries.size() == 1);
    rig.tick(1000);
    CHECK(names(rig.run(Recover{})) == Names{"Decision", "ToolReceipt"});
    CHECK(rig.item(2).status == ItemStatus::unknown);
}

TEST_CASE("ledger: a model step in progress survives a crash as the same attempt") {
    Rig rig;
    rig.submit();
    rig.session = rig.restarted();
    CHECK_FALSE(rig.run(Recover{}).batch);
    CHECK(rig.session.pending().model->attempt == 0);
}

TEST_CASE("ledger: builtin memory is set, read in order, listed and bounded") {
    using Kind = BuiltinAction::Kind;
    Rig rig;
    rig.submit();
    CHECK(names(rig.model("", {builtin(Kind::memory_get, "name"), builtin(Kind::memory_set, "name", "Ann"),
                               builtin(Kind::memory_get, "name"), builtin(Kind::memory_set, "town", "Ulm"),
                               builtin(Kind::memory_list), builtin(Kind::memory_delete, "name"),
                               builtin(Kind::memory_get, "name")})) ==
          Names{"ModelStepSettled", "ToolReceipt", "MemorySet", "ToolReceipt", "ToolReceipt", "MemorySet",
                "ToolReceipt", "ToolReceipt", "MemorySet", "ToolReceipt", "ToolReceipt"});
    CHECK(rig.item(1).status == ItemStatus::failed);
    CHECK(rig.item(3).text == "Ann");
    CHECK(rig.item(5).text == R"(["name","town"])");
    CHECK(rig.item(7).status == ItemStatus::failed);
    CHECK(rig.item(1).server_label == "builtin");
    CHECK(rig.session.memory().size() == 1);
    CHECK(rig.session.memory().at("town") == "Ulm");
    CHECK(rig.session.pending().model->step == 1);

    rig.model("", {builtin(Kind::memory_set, std::string(limits::memory_key_bytes_max + 1, 'k'), "v"),
                   builtin(Kind::memory_set, "k", std::string(limits::memory_value_bytes_max + 1, 'v')),
                   builtin(Kind::memory_delete, "nothing")});
    for (uint32_t i = 8; i < 11; ++i) CHECK(rig.item(i).status == ItemStatus::failed);
    CHECK(rig.session.memory().size() == 1);

    std::vector<PlannedCall> large;
    for (int i = 0; i < 9; ++i)
        large.push_back(builtin(Kind::memory_set, "large" + std::to_string(i), std::string(8000, 'x')));
    rig.model("", large);
    CHECK(rig.session.memory().size() == 9);
    CHECK(rig.item(19).status == ItemStatus::failed);
    rig.model("done");
    CHECK(rig.restarted().memory() == rig.session.memory());
}

TEST_CASE("ledger: the clock tells the recorded time, an answer is given as it is, within its bound") {
    Rig rig;
    rig.now = 1'700'000'000'123;
    rig.submit();
    PlannedCall clock = builtin(BuiltinAction::Kind::answer), text = clock, error = clock, large = clock;
    clock.action.now = true;
    text.action.text = "echo";
    error.action.text = "bad arguments";
    error.action.is_error = true;
    large.action.text = std::string(limits::tool_result_bytes_max + 1, 'x');
    rig.model("", {clock, text, error, large});
    CHECK(rig.item(1).text == "2023-11-14T22:13:20.123Z");
    CHECK(rig.item(2).text == "echo");
    CHECK(rig.item(3).status == ItemStatus::failed);
    CHECK(rig.item(3).text == "bad arguments");
    CHECK(rig.item(4).error.find("tool_result_too_large") == 0);
    std::vector<PlannedCall> many(limits::tool_calls_per_step_max, text);
    for (auto& call : many) call.action.text.assign(limits::tool_result_bytes_max, 'x');
    rig.model("", many);
    CHECK(rig.journal.back().second.size() < limits::record_bytes_max);
}
