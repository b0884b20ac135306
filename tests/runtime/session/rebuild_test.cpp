#include "runtime/session/rebuild.h"

#include "runtime/session/random_history.h"

using namespace mainstay;
using namespace mainstay::test;

namespace {

std::vector<TailBatch> tail_of(const Rig& rig, size_t from) {
    std::vector<TailBatch> tail;
    for (size_t i = from; i < rig.journal.size(); ++i) tail.push_back({rig.journal[i].first, rig.journal[i].second});
    return tail;
}

}  // namespace

TEST_CASE("rebuild: any head and a tail that reaches from before it to now make the session") {
    for (uint64_t seed = 1; seed <= 40; ++seed) {
        INFO("seed ", seed);
        RandomHistory history(seed);
        Rig rig;
        std::optional<std::string> head;
        size_t overlap = 0;
        for (int i = 0; i < 100; ++i) {
            history.step(rig);
            if (history.random().below(25) == 0) {
                head = rig.session.encode_head();
                overlap = rig.journal.size() - history.random().below(std::min<size_t>(rig.journal.size(), 5) + 1);
            }
        }
        auto rebuilt =
            rebuild(test_key(), head ? std::optional<std::string_view>(*head) : std::nullopt, tail_of(rig, overlap));
        REQUIRE_MESSAGE(rebuilt.ok(), (rebuilt.ok() ? "" : rebuilt.error().message));
        CHECK(rebuilt->encode_head() == rig.session.encode_head());
        CHECK(describe(*rebuilt) == describe(rig.session));
    }
}

TEST_CASE("rebuild: nothing is no session, and an image of a store is taken as it is") {
    struct Record {
        Sequence first_sequence;
        std::shared_ptr<const std::string> payload;
    };
    struct {
        std::optional<std::string> head;
        std::vector<Record> tail;
    } image;
    auto none = rebuild(test_key(), image);
    REQUIRE(none.ok());
    CHECK_FALSE(none->exists());
    CHECK_FALSE(none->deleted());

    Rig rig;
    rig.submit();
    image.head = rig.session.encode_head();
    rig.model("answer");
    for (const auto& [first, bytes] : rig.journal)
        image.tail.push_back({first, std::make_shared<const std::string>(bytes)});
    auto session = rebuild(test_key(), image);
    REQUIRE(session.ok());
    CHECK(session->encode_head() == rig.session.encode_head());
}

TEST_CASE("rebuild: a gap, a damaged record and a damaged head are errors, not the end of the process") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call()});
    rig.tool_done();
    auto gap = tail_of(rig, 0);
    gap.erase(gap.begin() + 1);
    auto refused = rebuild(test_key(), std::nullopt, gap);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::journal_damaged);

    auto damaged = tail_of(rig, 0);
    damaged[1].payload = "no batch";
    REQUIRE_FALSE(rebuild(test_key(), std::nullopt, damaged).ok());
    CHECK(rebuild(test_key(), "no head", tail_of(rig, 0)).error().code == ErrorCode::state_damaged);

    // Records behind a deletion were never acknowledged by anybody who follows the rules.
    auto behind = tail_of(rig, 0);
    const Sequence next{rig.session.last_sequence().value + 1};
    rig.run(DeleteSession{});
    behind = tail_of(rig, 0);
    behind.push_back({Sequence{next.value + 1}, rig.journal[0].second});
    CHECK(rebuild(test_key(), std::nullopt, behind).error().code == ErrorCode::journal_damaged);
}
