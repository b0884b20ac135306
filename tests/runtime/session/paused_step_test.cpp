// A model step that was paused between two tokens (StepProgress): the same attempt goes on from what it said, wherever
// the session is by then.

#include "runtime/session/session_fixture.h"

using namespace mainstay;
using namespace mainstay::test;

namespace {

using Names = std::vector<std::string>;

StepTokens said(size_t count) {
    StepTokens tokens;
    tokens.tokenizer.fill(7);
    tokens.template_version = 2;
    for (size_t i = 0; i < count; ++i) tokens.ids.push_back(static_cast<uint32_t>(100 + i));
    return tokens;
}

Decided pause(Rig& rig, const StepTokens& tokens) {
    const auto step = rig.session.pending().model.value();
    return rig.run(ModelStepPaused{step.turn, step.step, step.attempt, tokens});
}

}  // namespace

TEST_CASE("session: a paused step goes on from its tokens, in a session made from its head too") {
    Rig rig;
    rig.submit();
    CHECK_FALSE(rig.session.pending().model->resume);
    CHECK(names(pause(rig, said(3))) == Names{"StepProgress"});
    const Session restarted = rig.restarted();
    for (const Session* session : {static_cast<const Session*>(&rig.session), &restarted}) {
        const auto step = session->pending().model;
        REQUIRE(step);
        CHECK(step->attempt == 0);
        CHECK(step->cause == Sequence{3});  // nothing goes on from what is not committed
        REQUIRE(step->resume);
        CHECK(*step->resume == said(3));
    }

    CHECK(names(pause(rig, said(5))) == Names{"StepProgress"});
    CHECK(*rig.session.pending().model->resume == said(5));
    rig.model("whole");
    CHECK(rig.turn()->status == TurnStatus::completed);
    CHECK(rig.item(1).text == "whole");
}

TEST_CASE("session: a pause that says nothing new leaves no event") {
    Rig rig;
    rig.submit();
    CHECK_FALSE(pause(rig, {}).batch);
    pause(rig, said(3));
    CHECK_FALSE(pause(rig, said(3)).batch);
    CHECK_FALSE(pause(rig, said(2)).batch);
    CHECK(*rig.session.pending().model->resume == said(3));
    CHECK_FALSE(pause(rig, said(limits::step_tokens_max + 1)).batch);
    // Of another step or attempt.
    CHECK_FALSE(rig.run(ModelStepPaused{TurnNo{1}, 1, 0, said(9)}).batch);
    CHECK_FALSE(rig.run(ModelStepPaused{TurnNo{1}, 0, 1, said(9)}).batch);
    CHECK_FALSE(rig.run(ModelStepPaused{TurnNo{2}, 0, 0, said(9)}).batch);
}

TEST_CASE("session: what a step said counts for this attempt and this step alone") {
    Rig rig;
    rig.submit();
    pause(rig, said(3));
    rig.model_fails();
    CHECK_FALSE(rig.run(ModelStepPaused{TurnNo{1}, 0, 0, said(9)}).batch);  // it has failed
    rig.verdict(true, rig.now);
    REQUIRE(rig.session.pending().model);
    CHECK(rig.session.pending().model->attempt == 1);
    CHECK_FALSE(rig.session.pending().model->resume);

    pause(rig, said(4));
    rig.model("", {run_call(EffectClass::read)});
    rig.tool_done();
    REQUIRE(rig.session.pending().model);
    CHECK(rig.session.pending().model->step == 1);
    CHECK_FALSE(rig.session.pending().model->resume);
}

TEST_CASE("session: progress that no step waits for is damage") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call(EffectClass::read)});
    EventBatch batch;
    batch.at = rig.now;
    batch.turn = TurnNo{1};
    batch.events = {StepProgress{1, said(1)}};
    CHECK_FALSE(Session(rig.session).try_apply(batch, Sequence{rig.session.last_sequence().value + 1}));
}
