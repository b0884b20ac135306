#include "runtime/store/memory_store.h"

#include <doctest/doctest.h>

#include "tests/runtime/store/store_fixture.h"

using namespace mainstay;
using namespace mainstay::store_test;

namespace {

MemoryStoreConfig config_for(Fold& fold) {
    MemoryStoreConfig config;
    config.epoch = Epoch{1};
    config.fold = &fold;
    config.segment_bytes = 32 * 1024;
    config.group_bytes_max = 8 * 1024;
    return config;
}

}  // namespace

TEST_CASE("memory store: nothing is acknowledged before its sync, and a crash before it may lose it") {
    TestFold fold;
    MemoryStore store(config_for(fold));
    auto acks = std::make_shared<Acks>();
    store.append(events(session_key(1), 1, "Tone", acks));
    REQUIRE(store.step());  // written
    CHECK(acks->durable() == 0);
    store.inject(StoreFault::lost_unsynced);
    store.crash();
    REQUIRE(store.reopen(Epoch{2}));
    CHECK(store.struck(StoreFault::lost_unsynced) == 1);
    CHECK(store.load(session_key(1))->tail.empty());

    store.append(events(session_key(1), 1, "Tagain", acks));
    REQUIRE(store.step());
    CHECK(acks->durable() == 0);
    REQUIRE(store.step());  // synced
    CHECK(acks->durable() == 0);
    CHECK(store.load(session_key(1))->tail.size() == 1);  // visible before it is acknowledged, never after
    REQUIRE(store.step());
    CHECK(acks->durable() == 1);
    store.inject(StoreFault::lost_unsynced);
    store.crash();
    REQUIRE(store.reopen(Epoch{3}));
    CHECK(store.struck(StoreFault::lost_unsynced) == 1);  // nothing unsynced was there to lose
    CHECK(*store.load(session_key(1))->tail.at(0).payload == "Tagain");
}

TEST_CASE("memory store: a group torn at any byte is cut as a whole and what came before it stays") {
    TestFold fold;
    size_t length = 1;
    for (size_t keep = 0; keep < length; ++keep) {
        MemoryStore store(config_for(fold));
        store.append(events(session_key(1), 1, "Tkept"));
        store.run();
        store.append(events(session_key(1), 2, "Tlost"));
        store.append(events(session_key(2), 1, "Tlost too"));
        const uint64_t before = store.stats().journal_bytes;
        store.inject(StoreFault::torn, keep);
        store.crash();
        REQUIRE(store.struck(StoreFault::torn) == 1);
        const auto reopened = store.reopen(Epoch{2});
        if (!reopened) FAIL(reopened.error().message);
        CHECK(head_last(store.load(session_key(1))->head.value()) == 1);
        // A cut within the padding leaves the group complete; then both records are back, never one.
        const bool one = !store.load(session_key(1))->tail.empty(), two = !store.load(session_key(2))->tail.empty();
        CHECK(one == two);
        CHECK(one == (keep >= record_stored_bytes(0, 5) + record_header_bytes + 9));
        return trace;
    };
    std::string all;
    for (uint64_t seed = 1; seed <= 60; ++seed) all += run(seed) + "\n";
    CHECK(run(3) == run(3));
    for (uint64_t seed = 1; seed <= 3; ++seed) CHECK(all.find(run(seed)) != std::string::npos);
}
