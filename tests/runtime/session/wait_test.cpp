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

TEST_CASE("wait: each outcome is for some kinds only, whoever gives it, and a refused one changes nothing") {
    const WaitKind kinds[] = {WaitKind::timer, WaitKind::approval, WaitKind::signal, WaitKind::child};
    const WaitOutcome outcomes[] = {WaitOutcome::fired,     WaitOutcome::approved, WaitOutcome::denied,
                                    WaitOutcome::signalled, WaitOutcome::expired,  WaitOutcome::cancelled};
    const char* allowed[] = {
        "......",  // timer: only time fires it
        ".ad...",  // approval
        "...s..",  // signal
        "...s..",  // child
    };
    for (size_t kind = 0; kind < 4; ++kind) {
        for (size_t outcome = 0; outcome < 6; ++outcome) {
            CAPTURE(kind);
            CAPTURE(outcome);
            Rig rig = waiting(kinds[kind], 1000);
            const Decided decided = rig.run(ResolveWait{4, outcomes[outcome], "payload"});
            if (allowed[kind][outcome] == '.') {
                CHECK(refusal(decided) == ErrorCode::invalid_request);
                CHECK_FALSE(decided.batch);
                CHECK(rig.session.pending().wake_at == rig.now + 1000);
                CHECK(rig.item(1).status == ItemStatus::in_progress);
            } else {
                REQUIRE(decided.batch);
                const auto& resolved = std::get<WaitResolved>(decided.batch->events[0]);
                CHECK(resolved.principal == "ann");
                CHECK(resolved.payload == "payload");
                CHECK(rig.session.pending().model);
            }
        }
    }
}

TEST_CASE("wait: every kind lives through a restart, in the due table only where it has a time") {
    for (WaitKind kind : {WaitKind::timer, WaitKind::approval, WaitKind::signal, WaitKind::child}) {
        for (TimeMs due_in : {TimeMs{0}, TimeMs{5000}}) {
            if (kind == WaitKind::timer && due_in == 0) continue;
            CAPTURE(static_cast<int>(kind));
            Rig rig = waiting(kind, due_in);
            const TimeMs due = due_in == 0 ? 0 : rig.now + due_in;
            rig.session = rig.restarted();
            CHECK_FALSE(rig.run(Recover{}).batch);  // a wait was dispatched nowhere, so nothing of it is unknown
            CHECK(rig.session.pending().wake_at == due);
            CHECK(rig.session.wake_at() == due);
            CHECK_FALSE(rig.session.idle());
            CHECK_FALSE(rig.session.pending().model);
            CHECK(rig.session.pending().tools.empty());
            if (due != 0) CHECK_FALSE(rig.tick(due_in - 1).batch);
            rig.session = rig.restarted();
            if (due == 0) {
                rig.now += 1'000'000;
                CHECK_FALSE(
                    rig.run(ResolveWait{4, kind == WaitKind::approval ? WaitOutcome::approved : WaitOutcome::signalled,
                                        "late but welcome"})
                        .refused);
                CHECK(rig.item(1).text == "late but welcome");
            } else {
                const Decided over = rig.tick(1);
                REQUIRE(names(over) == Names{"WaitResolved", "ToolReceipt"});
                CHECK(std::get<WaitResolved>(over.batch->events[0]).outcome ==
                      (kind == WaitKind::timer ? WaitOutcome::fired : WaitOutcome::expired));
                CHECK(rig.item(1).status == (kind == WaitKind::timer ? ItemStatus::completed : ItemStatus::failed));
            }
            CHECK(rig.session.pending().model->step == 1);
            CHECK(rig.session.wake_at() == 0);
        }
    }
}

TEST_CASE("wait: a second answer, or one after the expiry or the end of the turn, finds no wait") {
    auto approve = [](Rig& rig) { return rig.run(ResolveWait{4, WaitOutcome::approved, ""}); };
    Rig twice = waiting(WaitKind::approval, 1000);
    CHECK_FALSE(approve(twice).refused);
    CHECK(refusal(approve(twice)) == ErrorCode::wait_not_found);
    Rig expired = waiting(WaitKind::approval, 1000);
    expired.tick(1000);
    CHECK(refusal(approve(expired)) == ErrorCode::wait_not_found);
    Rig cancelled = waiting(WaitKind::approval, 1000);
    cancelled.run(CancelTurn{});
    CHECK(refusal(approve(cancelled)) == ErrorCode::wait_not_found);
    Rig at_the_last_moment = waiting(WaitKind::approval, 1000);  // recorded before the tick that would expire it
    at_the_last_moment.now += 1000;
    CHECK_FALSE(approve(at_the_last_moment).refused);
    CHECK_FALSE(at_the_last_moment.run(Tick{}).batch);
}

TEST_CASE("wait: an answer over its bound is refused and the wait stays open") {
    Rig rig = waiting(WaitKind::signal, 0);
    const std::string large(limits::tool_result_bytes_max + 1, 'x');
    CHECK(refusal(rig.run(ResolveWait{4, WaitOutcome::signalled, large})) == ErrorCode::body_too_large);
    CHECK_FALSE(rig.run(ResolveWait{4, WaitOutcome::signalled, large.substr(1)}).refused);
}

TEST_CASE("wait: a batch that opens a number twice or closes one that is not open is no batch of a session") {
    Rig rig = waiting(WaitKind::signal, 0);
    EventBatch batch;
    batch.at = rig.now;
    batch.turn = TurnNo{1};
    const Sequence next{rig.session.last_sequence().value + 1};
    batch.events = {WaitOpened{4, WaitKind::signal, 0, 1, {}}};
    CHECK_FALSE(Session(rig.session).try_apply(batch, next));
    batch.events = {WaitResolved{5, WaitOutcome::signalled, {}, {}}};
    CHECK_FALSE(Session(rig.session).try_apply(batch, next));
    batch.events = {TurnSettled{TurnStatus::completed, {}, {}}};
    CHECK_FALSE(Session(rig.session).try_apply(batch, next));  // the call that waits is not settled
}

TEST_CASE("wait: the deadline of a turn stands still while it waits, for each kind, and over restarts") {
    struct Row {
        const char* name;
        WaitKind kind;
        bool restart;
    };
    for (const Row& row :
         {Row{"approval", WaitKind::approval, false}, Row{"approval, restart", WaitKind::approval, true},
          Row{"signal", WaitKind::signal, true}, Row{"child", WaitKind::child, true}}) {
        CAPTURE(row.name);
        Rig rig;
        rig.submit("x", TurnLimits{32, 0, 10'000});
        const TimeMs accepted = rig.now;
        CHECK(rig.session.open_deadline() == accepted + 10'000);
        rig.now += 4000;
        rig.model("", {sleep_call(20'000), run_call(EffectClass::read)});
        auto again = [&] {
            if (row.restart) rig.session = rig.restarted();
        };
        again();
        CHECK(rig.session.open_deadline() == accepted + 10'000);
        // It ends, and another wait of the kind opens in its place, as one that a policy asks for would.
        rig.now += 20'000;
        rig.run(Tick{});
        again();
        CHECK(rig.session.open_deadline() == accepted + 30'000);
        EventBatch opened;
        opened.at = rig.now + 1000;
        opened.turn = TurnNo{1};
        const auto wait = static_cast<uint32_t>(rig.session.last_sequence().value + 1);
        opened.events = {WaitOpened{wait, row.kind, 0, 99, "of no call"}};
        rig.session.apply(opened, Sequence{wait});
        again();
        rig.now += 1000 + 3'600'000;
        CHECK_FALSE(rig.run(Tick{}).batch);  // an hour later nobody has answered, and nothing has expired
        const bool person = row.kind == WaitKind::approval;
        CHECK(names(rig.run(ResolveWait{wait, person ? WaitOutcome::approved : WaitOutcome::signalled, ""})) ==
              Names{"WaitResolved"});
        again();
        CHECK(rig.session.open_deadline() == accepted + 30'000 + 3'600'000);
        CHECK(rig.session.pending().wake_at == rig.session.open_deadline());
        rig.now = rig.session.open_deadline() - 1;
        CHECK_FALSE(rig.run(Tick{}).batch);
        rig.tick(1);
        CHECK(rig.turn()->code == "turn_deadline_exceeded");
        CHECK(rig.session.open_deadline() == 0);
    }
}

TEST_CASE("wait: two waits that overlap are one time that does not count, and so is an unknown outcome") {
    Rig rig;
    rig.submit("x", TurnLimits{32, 0, 1000});
    const TimeMs accepted = rig.now;
    rig.model("", {sleep_call(300), sleep_call(500), run_call(EffectClass::once)});
    rig.tick(300);
    CHECK(rig.session.open_deadline() == accepted + 1000);  // the other still waits
    rig.tick(200);
    CHECK(rig.session.open_deadline() == accepted + 1500);
    rig.now += 100;
    rig.tool_fails(true);
    rig.now += 10'000;
    CHECK_FALSE(rig.run(Tick{}).batch);
    rig.run(ResolveUnknown{TurnNo{1}, 3, Resolution::done, "it was done"});
    CHECK(rig.session.open_deadline() == accepted + 11'500);
    CHECK(rig.session.pending().model);
}
