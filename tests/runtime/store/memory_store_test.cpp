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
        length = 512;
        store.append(events(session_key(1), one ? 3 : 2, "Tnew"));
        store.run();
        store.crash();
        REQUIRE(store.reopen(Epoch{3}));
        CHECK(head_last(store.load(session_key(1))->head.value()) == (one ? 3 : 2));
    }
}

TEST_CASE("memory store: a failed write or sync asks for an abort and acknowledges nothing more") {
    for (const StoreFault fault : {StoreFault::write_error, StoreFault::sync_error}) {
        TestFold fold;
        MemoryStore store(config_for(fold));
        auto acks = std::make_shared<Acks>();
        store.append(events(session_key(1), 1, "Tone", acks));
        store.run();
        store.inject(fault, 50);  // bytes that survive, fewer than the record has
        store.append(events(session_key(1), 2, "Ttwo", acks));
        store.run();
        CHECK(store.must_abort());
        CHECK(store.abort_reason().find("EIO") != std::string::npos);
        CHECK(store.struck(fault) == 1);
        store.append(events(session_key(1), 3, "Tthree", acks));
        CHECK_FALSE(store.step());
        CHECK(acks->durable() == 1);
        store.crash();
        REQUIRE(store.reopen(Epoch{2}));
        store.run();
        CHECK(head_last(store.load(session_key(1))->head.value()) == 1);
    }
}

TEST_CASE("memory store: without space admission refuses and the tail stays, and both resume") {
    TestFold fold;
    MemoryStore store(config_for(fold));
    store.inject(StoreFault::no_space);
    CHECK(store.admit(100).error().code == ErrorCode::storage_full);
    CHECK(store.stats().read_only);
    store.append(events(session_key(1), 1, "Treceipt"));  // results are never refused
    store.run();
    CHECK(store.load(session_key(1))->tail.size() == 1);
    store.space_returns();
    CHECK(store.admit(100).ok());
    store.run();
    CHECK(store.load(session_key(1))->tail.empty());
}

TEST_CASE("memory store: a slow sync holds acknowledgements back for its steps") {
    TestFold fold;
    MemoryStore store(config_for(fold));
    auto acks = std::make_shared<Acks>();
    store.inject(StoreFault::slow, 5);
    store.append(events(session_key(1), 1, "Tone", acks));
    for (int i = 0; i < 7; ++i) {
        REQUIRE(store.step());
        CHECK(acks->durable() == 0);
    }
    REQUIRE(store.step());
    CHECK(acks->durable() == 1);
}

TEST_CASE("memory store: acknowledged records survive seeded faults, and the same seed gives the same run") {
    std::array<uint64_t, store_fault_count> struck{};
    const auto run = [&](uint64_t seed) {
        TestFold fold;
        MemoryStore store(config_for(fold));
        StoreFaultRates rates;
        rates.per_thousand = {400, 400, 5, 5, 20, 50};
        store.inject_randomly(seed, rates);
        SeededRandom random(seed + 1);
        constexpr uint64_t sessions = 5;
        uint64_t next[sessions], epoch = 1;
        std::shared_ptr<Acks> acks[sessions];
        std::fill(next, next + sessions, 1);
        for (auto& a : acks) a = std::make_shared<Acks>();
        std::string trace;
        for (int i = 0; i < 2000; ++i) {
            const uint64_t s = random.below(sessions);
            const uint64_t what = random.below(100);
            if (what < 60) {
                if (store.admit(600)) {
                    store.append(
                        events(session_key(s + 1), next[s], "T" + std::string(random.below(900), 'x'), acks[s]));
                    if (!store.must_abort()) ++next[s];
                }
            } else if (what < 97) {
                store.step();
            }
            if (what >= 97 || store.must_abort()) {
                store.crash();
                const auto reopened = store.reopen(Epoch{++epoch});
                if (!reopened) FAIL("seed " << seed << ": " << reopened.error().message);
                for (uint64_t k = 0; k < sessions; ++k) {
                    const auto image = store.load(session_key(k + 1));
                    uint64_t last = image->head ? head_last(*image->head) : 0;
                    for (const auto& record : image->tail) {
                        REQUIRE_MESSAGE(record.first_sequence.value <= last + 1, "seed " << seed);
                        last = std::max(last, record.first_sequence.value);
                    }
                    REQUIRE_MESSAGE(last >= acks[k]->durable(), "seed " << seed << ": an acknowledged record is lost");
                    REQUIRE_MESSAGE(last < next[k], "seed " << seed << ": a record came from nowhere");
                    next[k] = last + 1;
                    acks[k] = std::make_shared<Acks>();
                    trace += std::to_string(last) + ",";
                }
            }
        }
        for (size_t f = 0; f < store_fault_count; ++f) {
            struck[f] += store.struck(static_cast<StoreFault>(f));
            trace += "|" + std::to_string(store.struck(static_cast<StoreFault>(f)));
        }
        return trace;
    };
    for (uint64_t seed = 1; seed <= 60; ++seed) run(seed);
    for (const uint64_t count : struck) CHECK(count >= 40);  // each fault really struck
    CHECK(run(3) == run(3));
    CHECK(run(3) != run(4));
}
