#include "runtime/session/session_fixture.h"

#include "runtime/base/limits.h"

using namespace mainstay;
using namespace mainstay::test;
using Names = std::vector<std::string>;

TEST_CASE("session: an answer without calls settles the turn in one batch") {
    Rig rig;
    Decided accepted = rig.run(Rig::input("hello"));
    CHECK(names(accepted) == Names{"SessionCreated", "InputAccepted"});
    CHECK(accepted.turn == TurnNo{1});
    CHECK(accepted.first_sequence == Sequence{1});
    CHECK(rig.turn()->status == TurnStatus::in_progress);
    const Pending pending = rig.session.pending();
    REQUIRE(pending.model);
    CHECK(pending.model->step == 0);
    CHECK(pending.model->cause == Sequence{2});

    Decided done = rig.model("hi there");
    CHECK(names(done) == Names{"ModelStepSettled", "TurnSettled"});
    CHECK(done.settled == std::vector{TurnNo{1}});
    CHECK(rig.turn()->status == TurnStatus::completed);
    CHECK(rig.item(1).text == "hi there");
    CHECK(rig.item(1).role == Role::assistant);
    CHECK(rig.session.idle());
    CHECK(rig.session.tip() == TurnNo{1});
    CHECK(rig.session.usage().output_tokens == 5);
    CHECK_FALSE(rig.session.pending().model);
}

TEST_CASE("session: a call runs after its intent, and the last receipt makes the next model step due") {
    Rig rig;
    rig.submit();
    Decided step = rig.model("let me look", {run_call(), run_call(EffectClass::read)});
    CHECK(names(step) == Names{"ModelStepSettled", "ToolIntent", "ToolIntent"});
    Pending pending = rig.session.pending();
    CHECK_FALSE(pending.model);
    REQUIRE(pending.tools.size() == 2);
    CHECK(pending.tools[0].call == 2);
    CHECK(pending.tools[0].name == "read");
    CHECK(pending.tools[0].server_label == "files");
    CHECK(pending.tools[0].cause == Sequence{4});
    CHECK(pending.tools[0].idempotency_key.size() == 32);
    CHECK(pending.tools[0].idempotency_key != pending.tools[1].idempotency_key);

    CHECK(names(rig.tool_done("first", 0)) == Names{"ToolReceipt"});
    CHECK_FALSE(rig.session.pending().model);
    rig.tool_done("second", 0);
    pending = rig.session.pending();
    REQUIRE(pending.model);
    CHECK(pending.model->step == 1);
    CHECK(rig.item(2).text == "first");
    CHECK(rig.item(3).text == "second");
    rig.model("done");
    CHECK(rig.turn()->model_steps == 2);
    CHECK(rig.turn()->usage.output_tokens == 10);
    CHECK(rig.turn()->items.size() == 5);
}
