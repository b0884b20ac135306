// Waits: timers end to end, and the one mechanism for the other three kinds.

#include "runtime/session/wait.h"

#include "runtime/base/limits.h"
#include "runtime/session/session_fixture.h"

using namespace mainstay;
using namespace mainstay::test;
using Names = std::vector<std::string>;

TEST_CASE("wait: a sleeping call ends when its time has come, over a restart as well") {
    Rig rig;
    rig.submit();
    CHECK(names(rig.model("", {sleep_call(60'000)})) == Names{"ModelStepSettled", "WaitOpened"});
    CHECK(rig.item(1).status == ItemStatus::in_progress);
    CHECK(rig.session.pending().wake_at == rig.now + 60'000);
    CHECK_FALSE(rig.session.pending().model);
    rig.session = rig.restarted();
    CHECK_FALSE(rig.run(Recover{}).batch);
    CHECK(rig.session.pending().wake_at == rig.now + 60'000);
    CHECK_FALSE(rig.tick(59'999).batch);
    CHECK(names(rig.tick(1)) == Names{"WaitResolved", "ToolReceipt"});
    CHECK(rig.item(1).status == ItemStatus::completed);
    CHECK(rig.item(1).text == "slept 60000 ms");
    CHECK(rig.session.pending().model->step == 1);
}

TEST_CASE("wait: several timers fire in the order of their times, those due together in one batch") {
    Rig rig;
    rig.submit();
    rig.model("", {sleep_call(300), sleep_call(100), sleep_call(200)});
    CHECK(rig.session.pending().wake_at == rig.now + 100);
    CHECK(names(rig.tick(250)) == Names{"WaitResolved", "ToolReceipt", "WaitResolved", "ToolReceipt"});
    CHECK(rig.item(1).status == ItemStatus::in_progress);
    CHECK(rig.session.pending().wake_at == rig.now + 50);
    rig.tick(50);
    CHECK(rig.session.pending().model);
}

TEST_CASE("wait: a sleep over its bound fails at once") {
    Rig rig;
    rig.submit();
    rig.model("", {sleep_call(limits::wait_duration_ms_max + 1)});
    CHECK(rig.item(1).status == ItemStatus::failed);
    CHECK(rig.session.pending().model);
}

TEST_CASE("wait: a timer is not answered by anybody, and what is not open is not found") {
    Rig rig;
    rig.submit();
    const Decided step = rig.model("", {sleep_call(10)});
    const uint32_t wait = std::get<WaitOpened>(step.batch->events.at(1)).wait;
    CHECK(wait == 4);
    CHECK(refusal(rig.run(ResolveWait{wait, WaitOutcome::signalled, ""})) == ErrorCode::invalid_request);
    CHECK(refusal(rig.run(ResolveWait{wait + 1, WaitOutcome::signalled, ""})) == ErrorCode::wait_not_found);
    rig.tick(10);
    CHECK(refusal(rig.run(ResolveWait{wait, WaitOutcome::signalled, ""})) == ErrorCode::wait_not_found);
}

namespace {

// A turn whose only call waits for something other than time: the journal has such a batch, however it came about.
Rig waiting(WaitKind kind, TimeMs due_in) {
    Rig rig;
    rig.submit();
    auto item = std::make_shared<Item>();
    item->kind = ItemKind::tool_call;
    item->status = ItemStatus::in_progress;
    EventBatch batch;
    batch.at = rig.now;
    batch.turn = TurnNo{1};
    ModelStepSettled settled;
    settled.items = {item};
    batch.events.emplace_back(settled);
    batch.events.emplace_back(WaitOpened{4, kind, due_in == 0 ? 0 : rig.now + due_in, 1, "refund 100"});
    rig.session.apply(batch, Sequence{3});
    return rig;
}

}  // namespace

TEST_CASE("wait: approvals, signals and children end by an answer, which becomes the call's output") {
    struct Row {
        WaitKind kind;
        WaitOutcome outcome;
        ItemStatus status;
        const char* text;
        const char* error;
    };
    for (const Row& row : {Row{WaitKind::approval, WaitOutcome::approved, ItemStatus::completed, "p", ""},
                           Row{WaitKind::approval, WaitOutcome::denied, ItemStatus::failed, "", "denied: p"},
                           Row{WaitKind::signal, WaitOutcome::signalled, ItemStatus::completed, "p", ""},
                           Row{WaitKind::child, WaitOutcome::signalled, ItemStatus::completed, "p", ""}}) {
        Rig rig = waiting(row.kind, 1000);
        CHECK(rig.session.pending().wake_at == rig.now + 1000);
        CHECK(refusal(rig.run(ResolveWait{4, WaitOutcome::fired, "p"})) == ErrorCode::invalid_request);
        CHECK(names(rig.run(ResolveWait{4, row.outcome, "p"})) == Names{"WaitResolved", "ToolReceipt"});
        CHECK(rig.item(1).status == row.status);
        CHECK(rig.item(1).text == row.text);
        CHECK(rig.item(1).error == row.error);
        CHECK(rig.session.pending().model);
    }
}

TEST_CASE("wait: what nobody answers expires, what has no time waits, and a cancelled turn closes both") {
    Rig expiring = waiting(WaitKind::approval, 1000);
    CHECK(names(expiring.tick(1000)) == Names{"WaitResolved", "ToolReceipt"});
    CHECK(expiring.item(1).error == "nobody answered in time");
    CHECK(expiring.session.pending().model);

    Rig patient = waiting(WaitKind::signal, 0);
    CHECK(patient.session.pending().wake_at == 0);
    CHECK_FALSE(patient.tick(1'000'000'000).batch);
    CHECK(names(patient.run(CancelTurn{})) == Names{"CancelRequested", "WaitResolved", "ToolReceipt", "TurnSettled"});
    CHECK(patient.item(1).error == "turn_cancelled: the turn ended before the call did");
}
