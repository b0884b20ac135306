// The contract of journal.h, run against both stores: whatever passes here may be relied upon by sessions and actors.
#include <doctest/doctest.h>

#include "runtime/store/memory_store.h"
#include "tests/runtime/store/store_fixture.h"

using namespace mainstay;
using namespace mainstay::store_test;

namespace {

class DiskHarness {
  public:
    DiskHarness() { restart(); }
    Store& store() { return *store_; }
    void settle(const std::function<bool()>& condition) { REQUIRE(eventually(condition)); }
    void restart() {
        store_.reset();
        auto config = small_config(dir_.path(), fold_, ++epoch_);
        config.apply_interval_ms = 1'000'000;  // the tail is applied when a test says so
        auto opened = DiskStore::open_disk(config);
        if (!opened) FAIL(opened.error().message);
        store_ = std::move(opened).value();
    }

  private:
    TempDir dir_;
    TestFold fold_;
    uint64_t epoch_ = 0;
    std::unique_ptr<DiskStore> store_;
};

class MemoryHarness {
  public:
    MemoryHarness() : store_(config()) {}
    Store& store() { return store_; }
    void settle(const std::function<bool()>& condition) {
        while (store_.step_journal()) {
        }
        REQUIRE(condition());
    }
    void restart() {
        while (store_.step_journal()) {
        }
        store_.crash();
        const auto reopened = store_.reopen(Epoch{++epoch_});
        if (!reopened) FAIL(reopened.error().message);
    }

  private:
    MemoryStoreConfig config() {
        MemoryStoreConfig config;
        config.epoch = Epoch{epoch_};
        config.fold = &fold_;
        config.segment_bytes = 256 * 1024;
        return config;
    }
    TestFold fold_;
    uint64_t epoch_ = 1;
    MemoryStore store_;
};

}  // namespace

TEST_CASE_TEMPLATE("store: an acknowledgement carries the highest sequence, once per target and group", H, DiskHarness,
                   MemoryHarness) {
    H h;
    const SessionKey key = session_key(1);
    auto acks = std::make_shared<Acks>();
    for (uint64_t i = 1; i <= 50; ++i) h.store().append(events(key, i, "T" + std::to_string(i), acks));
    h.settle([&] { return acks->durable() == 50; });
    CHECK(acks->committed() == 50);
    CHECK_FALSE(acks->fell());
    CHECK(acks->calls() <= h.store().stats().journal_groups);
}

TEST_CASE_TEMPLATE("store: a batch of several events is acknowledged by its last sequence", H, DiskHarness,
                   MemoryHarness) {
    H h;
    auto acks = std::make_shared<Acks>();
    Append append = events(session_key(1), 10, "O", acks);
    append.event_count = 4;
    h.store().append(std::move(append));
    h.settle([&] { return acks->durable() == 13; });
}

TEST_CASE_TEMPLATE("store: the newest record of a session says whether it is at rest, also after a restart", H,
                   DiskHarness, MemoryHarness) {
    H h;
    auto acks = std::make_shared<Acks>();
    auto append = [&](const SessionKey& key, uint64_t sequence, bool at_rest, std::shared_ptr<Acks> to) {
        Append one = events(key, sequence, "O", std::move(to));
        one.at_rest = at_rest;
        h.store().append(std::move(one));
    };
    const SessionKey rests = session_key(1), works = session_key(2), never = session_key(3);
    append(rests, 1, false, nullptr);
    append(rests, 2, true, nullptr);
    append(works, 1, true, nullptr);
    append(works, 2, false, nullptr);
    append(never, 1, false, acks);
    h.settle([&] { return acks->durable() == 1; });
    CHECK(h.store().resting_in_tail() == std::vector{rests});
    h.restart();
    CHECK(h.store().resting_in_tail() == std::vector{rests});
    CHECK(h.store().sessions_in_tail() == std::vector{rests, works, never});
    h.store().flush();
    CHECK(h.store().resting_in_tail().empty());
}

TEST_CASE_TEMPLATE("store: load sees all that was acknowledged, before and after it is applied", H, DiskHarness,
                   MemoryHarness) {
    H h;
    const SessionKey key = session_key(1), other = session_key(2);
    auto acks = std::make_shared<Acks>();
    h.store().append(events(key, 1, "Tone", acks));
    h.store().append(events(other, 1, "Telse"));
    h.store().append(events(key, 2, "O", acks));
    h.settle([&] { return acks->durable() == 2; });
    auto image = h.store().load(key);
    REQUIRE(image);
    CHECK_FALSE(image->head);
    REQUIRE(image->tail.size() == 2);
    CHECK(*image->tail[0].payload == "Tone");
    CHECK(image->tail[1].first_sequence == Sequence{2});
    CHECK(image->tail[0].lsn < image->tail[1].lsn);
    CHECK(h.store().read_turn(key, TurnNo{1})->value() == "one");
    CHECK(h.store().sessions_in_tail() == std::vector{key, other});
    CHECK(h.store().resting_in_tail().empty());

    h.store().flush();
    image = h.store().load(key);
    CHECK(image->tail.empty());
    CHECK(head_last(image->head.value()) == 2);
    CHECK(h.store().read_turn(key, TurnNo{1})->value() == "one");
    CHECK(h.store().sessions_in_tail().empty());
    CHECK(h.store().stats().apply_backlog_bytes == 0);

    h.store().append(events(key, 3, "Tthree", acks));
    h.settle([&] { return acks->durable() == 3; });
    CHECK(h.store().read_turn(key, TurnNo{1})->value() == "one");
    CHECK(h.store().read_turn(key, TurnNo{3})->value() == "three");
    CHECK_FALSE(h.store().read_turn(key, TurnNo{2})->has_value());
    CHECK_FALSE(h.store().load(session_key(99))->head);
}

TEST_CASE_TEMPLATE("store: a restart keeps head and tail", H, DiskHarness, MemoryHarness) {
    H h;
    const SessionKey key = session_key(5);
    auto acks = std::make_shared<Acks>();
    h.store().append(events(key, 1, "Tone", acks));
    h.settle([&] { return acks->durable() == 1; });
    h.store().flush();
    h.store().append(events(key, 2, "Ttwo", acks));
    h.store().append(events(key, 3, "O", acks));
    h.settle([&] { return acks->durable() == 3; });
    h.restart();
    CHECK(h.store().stats().recovered_records == 2);
    const auto image = h.store().load(key);
    CHECK(head_last(image->head.value()) == 1);
    REQUIRE(image->tail.size() == 2);
    CHECK(*image->tail[1].payload == "O");
    CHECK(h.store().read_turn(key, TurnNo{2})->value() == "two");
    h.store().flush();
    CHECK(h.store().read_row(Table::open, session_row_key(key))->has_value());
    h.restart();
    CHECK(h.store().stats().recovered_records == 0);
    CHECK(head_last(h.store().load(key)->head.value()) == 3);
}

TEST_CASE_TEMPLATE("store: scan gives rows of a prefix in order, from a key, within a limit", H, DiskHarness,
                   MemoryHarness) {
    H h;
    const SessionKey a = session_key(1), b = session_key(2);
    for (uint64_t i = 1; i <= 300; ++i) {
        h.store().append(events(a, i, "T" + std::to_string(i)));
        h.store().append(events(b, i, "Tb"));
    }
    h.store().flush();
    std::vector<std::string> seen;
    const auto collect = [&](std::string_view key, std::string_view value) {
        CHECK(turn_of_row_key(key).value > 0);
        seen.emplace_back(value);
        return true;
    };
    REQUIRE(h.store().scan(Table::turn, session_row_key(a), {}, 1000, collect));
    REQUIRE(seen.size() == 300);
    CHECK(seen.front() == "1");
    CHECK(seen.back() == "300");
    seen.clear();
    REQUIRE(h.store().scan(Table::turn, session_row_key(a), turn_row_key(a, TurnNo{290}), 5, collect));
    CHECK(seen == std::vector<std::string>{"290", "291", "292", "293", "294"});
    seen.clear();
    REQUIRE(h.store().scan(Table::turn, session_row_key(a), {}, 1000, [&](auto key, auto value) {
        collect(key, value);
        return seen.size() < 140;
    }));
    CHECK(seen.size() == 140);
    seen.clear();
    REQUIRE(h.store().scan(Table::turn, session_row_key(session_key(77)), {}, 1000, collect));
    CHECK(seen.empty());
}

TEST_CASE_TEMPLATE("store: a deleted session is gone from the tail's view and from the rows", H, DiskHarness,
                   MemoryHarness) {
    H h;
    const SessionKey a = session_key(1), b = session_key(2);
    for (uint64_t i = 1; i <= 40; ++i) {
        h.store().append(events(a, i, "Tdoomed"));
        h.store().append(events(b, i, "Tkept"));
    }
    h.store().flush();
    auto acks = std::make_shared<Acks>();
    h.store().append(events(a, 41, "D", acks));
    h.settle([&] { return acks->durable() == 41; });
    CHECK_FALSE(h.store().read_turn(a, TurnNo{7})->has_value());
    h.store().flush();
    CHECK_FALSE(h.store().read_turn(a, TurnNo{7})->has_value());
    CHECK_FALSE(h.store().load(a)->head.has_value());
    size_t rows = 0;
    REQUIRE(h.store().scan(Table::turn, {}, {}, 1000, [&](auto, auto value) {
        CHECK(value == "kept");
        ++rows;
        return true;
    }));
    CHECK(rows == 40);
}

TEST_CASE_TEMPLATE("store: entities are found in the tail and in the state, the latest version of each", H, DiskHarness,
                   MemoryHarness) {
    H h;
    auto acks = std::make_shared<Acks>();
    const auto entity = [&](std::string payload, uint64_t n) {
        Append append;
        append.kind = RecordKind::entity;
        append.session.tenant = TenantId{7};
        append.first_sequence = Sequence{n};
        append.event_count = 1;
        append.payload = std::move(payload);
        append.target = acks;
        h.store().append(std::move(append));
    };
    entity("EassistanV1", 1);
    entity("Eothers  V1", 2);
    h.store().flush();
    entity("EassistanV2", 3);
    h.settle([&] { return acks->durable() == 3; });
    CHECK(h.store().entities().value() == std::vector<std::string>{"V2", "V1"});
    CHECK(h.store().sessions_in_tail().empty());
    h.store().flush();
    h.restart();
    CHECK(h.store().entities().value() == std::vector<std::string>{"V2", "V1"});
}

TEST_CASE_TEMPLATE("store: a user's memory is read by its key, from tail and state, and is no entity of the node", H,
                   DiskHarness, MemoryHarness) {
    H h;
    auto acks = std::make_shared<Acks>();
    uint64_t last = 0;
    const auto keep = [&](uint64_t user, std::string payload) {
        Append append;
        append.kind = RecordKind::entity;
        append.session = {TenantId{7}, SessionId{FamilyId{}, user, 1}};
        append.first_sequence = Sequence{++last};
        append.event_count = 1;
        append.payload = std::move(payload);
        append.target = acks;
        h.store().append(std::move(append));
        h.settle([&] { return acks->durable() == last; });
    };
    const auto read = [&](uint64_t user, uint32_t tenant = 7) {
        const auto row = h.store().read_memory({TenantId{tenant}, SessionId{FamilyId{}, user, 1}});
        REQUIRE(row.ok());
        return row->value_or("(none)");
    };
    CHECK(read(1) == "(none)");
    keep(1, "Mone");
    keep(2, "Mtwo");
    CHECK(read(1) == "one");  // from the tail
    CHECK(read(2) == "two");
    CHECK(read(1, 8) == "(none)");
    h.store().flush();
    CHECK(read(1) == "one");  // from the state
    keep(1, "Mnewer");
    CHECK(read(1) == "newer");  // the tail counts
    CHECK(read(2) == "two");
    keep(2, "D");
    CHECK(read(2) == "(none)");
    CHECK(h.store().entities().value().empty());
    CHECK(h.store().sessions_in_tail().empty());
    CHECK(h.store().resting_in_tail().empty());
    SUBCASE("applied before the restart") { h.store().flush(); }
    SUBCASE("not applied before the restart") {}
    h.restart();
    CHECK(read(1) == "newer");
    CHECK(read(2) == "(none)");
    h.store().flush();
    CHECK(read(1) == "newer");
    CHECK(read(2) == "(none)");
    CHECK(h.store().entities().value().empty());
}

TEST_CASE_TEMPLATE("store: on_applied is called after each applied transaction", H, DiskHarness, MemoryHarness) {
    H h;
    std::atomic<int> calls{0};
    h.store().on_applied([&] { ++calls; });
    h.store().append(events(session_key(1), 1, "Tx"));
    h.store().flush();
    CHECK(eventually([&] { return calls.load() == 1; }));
}

TEST_CASE_TEMPLATE("store: shard indexes go on after a restart, from the tail and from the state", H, DiskHarness,
                   MemoryHarness) {
    // Observable as records that recovery accepts; the index itself is for replicas, so the promise of the epoch stands
    // in: a lower epoch than one promised is refused.
    H h;
    Append promise;
    promise.kind = RecordKind::promise;
    h.store().append(std::move(promise));
    h.store().append(events(session_key(1), 1, "Tx"));
    h.store().flush();
    h.restart();
    h.store().append(events(session_key(1), 2, "Ty"));
    h.store().flush();
    h.restart();
    CHECK(head_last(h.store().load(session_key(1))->head.value()) == 2);
}
