// Where a step runs, by tables: what is known in, the chosen node and the reason out.
#include "actors/step_placement.h"

#include <doctest/doctest.h>

#include <set>

using namespace mainstay;

namespace {

const NodeUuid self{1}, second{2}, third{3};
const std::string small = "small";

SessionKey session_of(uint64_t n) { return {TenantId{1}, SessionId{FamilyId{n + 1}, n * 7919, n * 104729}}; }

std::vector<StepNode> nodes(std::vector<std::string> one, std::vector<std::string> two,
                            std::vector<std::string> three) {
    return {{self, std::move(one)}, {second, std::move(two)}, {third, std::move(three)}};
}

}  // namespace

TEST_CASE("step placement: the node of the session's KV, else this one, else one that computes the model") {
    struct Row {
        const char* what;
        std::vector<StepNode> nodes;
        std::optional<NodeUuid> ran;  // the session's last step
        std::vector<NodeUuid> left_out;
        std::optional<NodeUuid> wanted;
        StepWhy why;
    };
    auto cut_off = nodes({}, {small}, {small});
    cut_off[1].reachable = false;
    auto drains = nodes({}, {small}, {small});
    drains[1].draining = true;
    auto all_drain = nodes({}, {small}, {});
    all_drain[1].draining = true;
    auto this_drains = nodes({small}, {small}, {});
    this_drains[0].draining = true;
    const Row rows[] = {
        {"this node computes it", nodes({"*"}, {"*"}, {"*"}), {}, {}, self, StepWhy::here},
        {"by its name", nodes({"other", small}, {}, {}), {}, {}, self, StepWhy::here},
        {"one other does", nodes({"other"}, {}, {small}), {}, {}, third, StepWhy::least_loaded},
        {"nobody does", nodes({"other"}, {}, {}), {}, {}, std::nullopt, {}},
        {"its KV is elsewhere", nodes({"*"}, {"*"}, {"*"}), third, {}, third, StepWhy::kv},
        {"its KV is where nobody computes it any more", nodes({"*"}, {"*"}, {}), third, {}, self, StepWhy::here},
        {"its KV is cut off", cut_off, second, {}, third, StepWhy::least_loaded},
        {"its KV's host was tried", nodes({"*"}, {"*"}, {"*"}), third, {third}, self, StepWhy::here},
        {"this node was tried", nodes({"*"}, {}, {"*"}), {}, {self}, third, StepWhy::least_loaded},
        {"all were tried", nodes({"*"}, {}, {"*"}), {}, {self, third}, std::nullopt, {}},
        {"one drains", drains, {}, {}, third, StepWhy::least_loaded},
        {"one with its KV drains", drains, second, {}, third, StepWhy::least_loaded},
        {"all drain", all_drain, {}, {}, second, StepWhy::least_loaded},
        {"this node drains", this_drains, {}, {}, self, StepWhy::here},
    };
    for (const Row& row : rows) {
        CAPTURE(row.what);
        StepPlacement placement(self);
        if (row.ran) CHECK(placement.ran(session_of(1), small, *row.ran));
        const auto choice = placement.choose(session_of(1), small, row.nodes, row.left_out, 0);
        REQUIRE(choice.has_value() == row.wanted.has_value());
        if (!choice) continue;
        CHECK(choice->node == *row.wanted);
        CHECK(choice->why == row.why);
        CHECK(choice->nodes == 3);
    }
}

TEST_CASE("step placement: the least loaded is the one with the fewest steps for each device") {
    const auto all = nodes({}, {small}, {small});
    StepPlacement placement(self);
    const auto chosen = [&](uint64_t n, TimeMs now = 0) {
        return placement.choose(session_of(n), small, all, {}, now)->node;
    };
    // Nothing is known: each session has its own order, and the nodes share them.
    std::set<NodeUuid> seen;
    for (uint64_t n = 0; n < 64; ++n) {
        seen.insert(chosen(n));
        CHECK(chosen(n) == chosen(n));
    }
    CHECK(seen.size() == 2);

    placement.began(second, small);
    for (uint64_t n = 0; n < 16; ++n) CHECK(chosen(n) == third);
    placement.began(second, "other");  // of another model
    placement.ended(second, small);
    seen.clear();
    for (uint64_t n = 0; n < 64; ++n) seen.insert(chosen(n));
    CHECK(seen.size() == 2);

    // What others have there counts as well, for a while.
    placement.told(third, small, {3, 1}, 1000);
    for (uint64_t n = 0; n < 16; ++n) CHECK(chosen(n, 1500) == second);
    placement.began(second, small);
    for (uint64_t n = 0; n < 16; ++n) CHECK(chosen(n, 1500) == second);
    for (uint64_t n = 0; n < 16; ++n) CHECK(chosen(n, 60'000) == third);
    // Six on four devices are fewer than two on one.
    placement.began(second, small);
    placement.told(third, small, {6, 4}, 70'000);
    for (uint64_t n = 0; n < 16; ++n) CHECK(chosen(n, 70'000) == third);
    placement.told(third, small, {9, 4}, 70'000);
    for (uint64_t n = 0; n < 16; ++n) CHECK(chosen(n, 70'000) == second);
}

TEST_CASE("step placement: where a session ran is news once, and forgotten with it or beyond the bound") {
    StepPlacement placement(self, 3);
    const auto all = nodes({"*"}, {"*"}, {"*"});
    const auto why = [&](uint64_t n, const std::string& model = small) {
        return placement.choose(session_of(n), model, all, {}, 0)->why;
    };
    CHECK_FALSE(placement.ran(session_of(1), small, self));  // as expected
    CHECK(placement.sessions() == 0);
    CHECK(placement.ran(session_of(1), small, second));
    CHECK_FALSE(placement.ran(session_of(1), small, second));
    CHECK(placement.ran(session_of(1), small, third));
    CHECK(placement.ran(session_of(1), "other", second));
    CHECK(placement.elsewhere(session_of(1)) == std::vector{third, second});
    CHECK(why(1) == StepWhy::kv);
    CHECK(why(1, "other") == StepWhy::kv);
    CHECK(why(1, "a third") == StepWhy::here);
    CHECK(placement.ran(session_of(1), small, self));  // back
    CHECK(why(1) == StepWhy::here);
    CHECK(placement.elsewhere(session_of(1)) == std::vector{second});
    placement.forget(session_of(1));
    CHECK(placement.elsewhere(session_of(1)).empty());

    for (uint64_t n = 1; n <= 3; ++n) placement.ran(session_of(n), small, second);
    placement.ran(session_of(1), small, second);  // served last
    placement.ran(session_of(4), small, second);
    CHECK(placement.sessions() == 3);
    CHECK(why(1) == StepWhy::kv);
    CHECK(why(2) == StepWhy::here);
    CHECK(why(4) == StepWhy::kv);
}
