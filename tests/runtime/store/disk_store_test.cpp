#include "runtime/store/disk_store.h"

#include <doctest/doctest.h>

#include "tests/runtime/store/store_fixture.h"

using namespace mainstay;
using namespace mainstay::store_test;

namespace {

std::unique_ptr<DiskStore> open_or_fail(DiskStoreConfig config) {
    auto store = DiskStore::open_disk(std::move(config));
    if (!store) FAIL(store.error().message);
    return std::move(store).value();
}

}  // namespace

TEST_CASE("disk store: what was acknowledged is there after a restart, applied or not") {
    TempDir dir;
    TestFold fold;
    const SessionKey a = session_key(1), b = session_key(2);
    auto acks = std::make_shared<Acks>();
    {
        auto config = small_config(dir.path(), fold);
        config.apply_interval_ms = 1'000'000;
        auto store = open_or_fail(config);
        store->append(events(a, 1, "Tfirst", acks));
        store->append(events(b, 1, "Tother"));
        store->append(events(a, 2, "Tsecond", acks));
        REQUIRE(eventually([&] { return acks->durable() == 2; }));
        CHECK(acks->committed() == 2);
        CHECK(store->load(a)->tail.size() == 2);
        CHECK(store->read_turn(a, TurnNo{2})->value() == "second");
        CHECK(store->read_row(Table::turn, turn_row_key(a, TurnNo{2}))->has_value() == false);
    }
    {
        auto store = open_or_fail(small_config(dir.path(), fold, 2));
        CHECK(store->stats().recovered_records == 3);
        CHECK(*store->load(a)->tail[0].payload == "Tfirst");
        CHECK(store->sessions_in_tail().size() == 2);
        store->flush();
        CHECK(store->sessions_in_tail().empty());
        CHECK(store->load(a)->tail.empty());
        CHECK(head_last(*store->load(a)->head) == 2);
        CHECK(store->read_row(Table::turn, turn_row_key(a, TurnNo{1}))->value() == "first");
    }
    auto store = open_or_fail(small_config(dir.path(), fold, 3));
    CHECK(store->stats().recovered_records == 0);
    CHECK(store->read_turn(b, TurnNo{1})->value() == "other");
}

TEST_CASE("disk store: segments are recycled and nothing is lost over many of them") {
    TempDir dir;
    TestFold fold;
    constexpr uint64_t sessions = 20, turns = 120;
    {
        auto store = open_or_fail(small_config(dir.path(), fold));
        std::vector<std::shared_ptr<Acks>> acks;
        for (uint64_t s = 0; s < sessions; ++s) acks.push_back(std::make_shared<Acks>());
        for (uint64_t t = 1; t <= turns; ++t)
            for (uint64_t s = 0; s < sessions; ++s)
                store->append(events(session_key(s + 1), t,
                                     "T" + std::to_string(s) + ":" + std::to_string(t) + std::string(900, 'x'),
                                     acks[s]));
        REQUIRE(eventually(
            [&] { return std::all_of(acks.begin(), acks.end(), [&](auto& a) { return a->durable() == turns; }); }));
        for (auto& a : acks) CHECK_FALSE(a->fell());
        store->flush();
        const auto stats = store->stats();
        CHECK(stats.journal_records == sessions * turns);
        CHECK(stats.journal_syncs == stats.journal_groups);
        CHECK(stats.journal_bytes > 8 * 256 * 1024);  // so segments were used again
        CHECK(eventually([&] { return store->stats().segments <= 6; }));
    }
    auto store = open_or_fail(small_config(dir.path(), fold, 2));
    for (uint64_t s = 0; s < sessions; ++s) {
        const auto image = store->load(session_key(s + 1));
        REQUIRE(image->head.has_value());
        CHECK(head_last(*image->head) == turns);
        CHECK(store->read_turn(session_key(s + 1), TurnNo{77})->value().starts_with(std::to_string(s) + ":77x"));
    }
}
