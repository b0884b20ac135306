#include "runtime/session/prompt.h"

#include <doctest/doctest.h>

#include <random>

using namespace mainstay;

namespace {

TurnPtr turn_of(uint32_t no, size_t bytes) {
    auto item = std::make_shared<Item>();
    item->text = std::string(bytes, 'x');
    auto turn = std::make_shared<Turn>();
    turn->no = TurnNo{no};
    turn->items.push_back(std::move(item));
    return turn;
}

/// What a run shows, by the addresses of its items.
std::vector<const Item*> shown(const TurnRun& run) {
    std::vector<const Item*> out;
    for (const auto& items : run)
        for (const auto& item : *items) out.push_back(item.get());
    return out;
}

}  // namespace

TEST_CASE("window: what was handed out stays as it was, and each run shows the newest turns within the bound") {
    constexpr size_t bound = 10'000;
    std::mt19937 random(7);
    Window window;
    window.set_bytes(bound);
    std::vector<TurnPtr> turns;
    std::vector<std::pair<TurnRun, std::vector<const Item*>>> kept;
    for (uint32_t no = 1; no <= 2000; ++no) {
        turns.push_back(turn_of(no, no % 97 == 0 ? 2 * bound : random() % 800));
        window.push(turns.back());
        if (no % 131 == 0) window.drop_up_to(TurnNo{no - 2});

        std::vector<const Item*> expected;
        size_t bytes = 0;
        for (auto at = turns.rbegin(); at != turns.rend(); ++at) {
            const auto& item = (*at)->items.front();
            bytes += sizeof(Item) + item->bytes();
            if (!expected.empty() && bytes > bound) break;
            if (window.find((*at)->no) == nullptr) break;
            expected.insert(expected.begin(), item.get());
        }
        const TurnRun run = window.run();
        REQUIRE(shown(run) == expected);
        REQUIRE(run[run.size() - 1]->front() == turns.back()->items.front());
        if (no % 10 == 0) kept.emplace_back(run, expected);
    }
    for (const auto& [run, expected] : kept) CHECK(shown(run) == expected);
}

TEST_CASE("window: what left is not kept alive for long") {
    Window window;
    window.set_bytes(1000);
    std::weak_ptr<const Turn> large;
    {
        auto turn = turn_of(1, 1'000'000);
        large = turn;
        window.push(std::move(turn));
    }
    CHECK(!large.expired());
    window.push(turn_of(2, 10));
    CHECK(large.expired());
    CHECK(window.find(TurnNo{1}) == nullptr);
}

TEST_CASE("window: a copy goes its own way") {
    Window window;
    window.push(turn_of(1, 10));
    Window copy = window;
    window.push(turn_of(2, 10));
    const auto third = turn_of(3, 10);
    copy.push(third);
    CHECK(window.run().size() == 2);
    REQUIRE(copy.run().size() == 2);
    CHECK(copy.run()[1]->front() == third->items.front());
    CHECK(window.run()[1]->front() != third->items.front());
}
