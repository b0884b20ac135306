// Where a session was born and where its steps ran is in the journal, for people: with the batch that it belongs to,
// and nothing follows from it.

#include "runtime/session/session_fixture.h"

using namespace mainstay;
using namespace mainstay::test;

namespace {

using Names = std::vector<std::string>;
const Decision born{"placed", "b2cd0000/small", "born there"}, moved{"placed", "c3de0000/small", "after node b2cd0000"};

}  // namespace

TEST_CASE("session: where it was born is told once, with its first input") {
    Rig rig;
    const auto submit = [&] {
        SubmitInput input = Rig::input("hello");
        input.placed = born;
        return rig.run(std::move(input));
    };
    const auto first = submit();
    CHECK(names(first) == Names{"SessionCreated", "InputAccepted", "Decision"});
    const auto& told = std::get<Decision>(first.batch->events.back());
    CHECK(told.code == "placed");
    CHECK(told.subject == "b2cd0000/small");
    CHECK(told.reason == "born there");
    CHECK(names(submit()) == Names{"InputAccepted"});
    const Session restarted = rig.restarted();
    CHECK(restarted.pending().model.has_value());
}

TEST_CASE("session: where a step ran is told with the step") {
    Rig rig;
    rig.submit();
    auto done = rig.answer("yes");
    done.placed = moved;
    CHECK(names(rig.run(done)) == Names{"Decision", "ModelStepSettled", "TurnSettled"});
    CHECK(rig.turn()->status == TurnStatus::completed);
    rig.submit();
    CHECK(names(rig.model("no")) == Names{"ModelStepSettled", "TurnSettled"});
}
