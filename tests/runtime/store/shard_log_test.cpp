#include "runtime/store/shard_log.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <condition_variable>

#include "tests/runtime/store/store_fixture.h"

using namespace mainstay;
using namespace mainstay::store_test;

namespace {

constexpr StoreUuid cluster{1, 2, 3};

/// What the store has told, by shard.
class Told final : public ShardLogEvents {
  public:
    void groups_synced(const std::vector<std::pair<ShardId, uint64_t>>& tickets) override {
        std::lock_guard lock(mutex_);
        for (const auto& [shard, ticket] : tickets) {
            if (ticket <= synced_[shard.value]) out_of_order_ = true;
            synced_[shard.value] = ticket;
        }
    }
    void state_applied(const std::vector<std::pair<ShardId, uint64_t>>& indexes) override {
        std::lock_guard lock(mutex_);
        for (const auto& [shard, index] : indexes) applied_[shard.value] = index;
    }
    uint64_t synced(ShardId shard) {
        std::lock_guard lock(mutex_);
        return synced_[shard.value];
    }
    uint64_t applied(ShardId shard) {
        std::lock_guard lock(mutex_);
        return applied_[shard.value];
    }
    bool out_of_order() {
        std::lock_guard lock(mutex_);
        return out_of_order_;
    }

  private:
    std::mutex mutex_;
    std::map<uint16_t, uint64_t> synced_, applied_;
    bool out_of_order_ = false;
};

/// One life of a replicated store, and one shard of it as a replica would write it.
class Node {
  public:
    Node(const TempDir& dir, TestFold& fold, const std::function<void(DiskStoreConfig&)>& change = {}) {
        auto config = small_config(dir.path(), fold, ++lives);
        config.cluster = cluster;
        if (change) change(config);
        auto opened = DiskStore::open_disk(std::move(config));
        if (!opened) FAIL(opened.error().message);
        store = std::move(opened).value();
        found = store->recovered_shards();
        store->start_shards(told);
    }

    /// Follows what was found or written of the shard before.
    LogEntry entry(ShardId shard, Epoch epoch, const Append* append) {
        auto& last = last_of(shard);
        LogEntry made;
        made.epoch = epoch;
        made.index = last.index + 1;
        made.kind = append ? EntryKind::record : EntryKind::barrier;
        if (append) made.payload = std::make_shared<const std::string>(encode_entry(*append));
        made.chain = chain_of(last.chain, made);
        last = position_of(made);
        return made;
    }
    void write(ShardId shard, WriteGroup group) {
        group.ticket = ++tickets[shard.value];
        store->write_groups({{shard, std::move(group)}});
    }
    bool settled(ShardId shard) {
        return eventually([&] { return told.synced(shard) == tickets[shard.value]; });
    }
    /// Barrier of an epoch, and records of a session, in one group.
    void begin(ShardId shard, Epoch epoch) {
        WriteGroup group;
        group.promise = epoch;
        group.entries.push_back(entry(shard, epoch, nullptr));
        write(shard, std::move(group));
    }
    void add(ShardId shard, Epoch epoch, const Append& append) {
        WriteGroup group;
        group.entries.push_back(entry(shard, epoch, &append));
        write(shard, std::move(group));
    }
    LogPosition& last_of(ShardId shard) {
        const auto known = ends.find(shard.value);
        if (known != ends.end()) return known->second;
        const auto& at = found[shard.value];
        return ends[shard.value] = at.entries.empty() ? at.base : position_of(at.entries.back());
    }

    static inline uint64_t lives = 0;
    std::unique_ptr<DiskStore> store;
    std::vector<DurableShard> found;
    Told told;
    std::map<uint16_t, LogPosition> ends;
    std::map<uint16_t, uint64_t> tickets;
};

ShardId shard_of_session(const SessionKey& key) { return shard_of(key, shard_count_default); }

}  // namespace

TEST_CASE("shard log: an entry is seen when it is applied, not before, and survives both ways") {
    TempDir dir;
    TestFold fold;
    const SessionKey key = session_key(1);
    const ShardId shard = shard_of_session(key);
    LogPosition third;
    {
        Node node(dir, fold);
        CHECK(node.found.size() == shard_count_default);
        CHECK(node.found[shard.value].promised == Epoch{0});
        node.begin(shard, Epoch{3});
        node.add(shard, Epoch{3}, events(key, 1, "Tone"));
        node.add(shard, Epoch{3}, events(key, 2, "Ttwo"));
        third = node.last_of(shard);
        REQUIRE(node.settled(shard));
        CHECK_FALSE(node.told.out_of_order());
        CHECK(node.store->load(key)->tail.empty());
        node.store->apply_entries({{shard, 2}});
        REQUIRE(node.store->load(key)->tail.size() == 1);
        CHECK(*node.store->load(key)->tail[0].payload == "Tone");
        CHECK(node.store->read_turn(key, TurnNo{1})->value() == "one");
        CHECK_FALSE(node.store->read_turn(key, TurnNo{2})->has_value());
        node.store->flush();
        REQUIRE(eventually([&] { return node.told.applied(shard) == 2; }));
    }
    {
        Node node(dir, fold);
        const auto& found = node.found[shard.value];
        CHECK(found.promised == Epoch{3});
        CHECK(found.base.index == 2);
        CHECK(found.base.epoch == Epoch{3});
        REQUIRE(found.entries.size() == 1);
        CHECK(position_of(found.entries[0]) == third);
        CHECK(node.store->load(key)->head.has_value());
        CHECK(node.store->load(key)->tail.empty());  // the second is not committed
        node.store->apply_entries({{shard, 3}});
        node.store->flush();
        CHECK(node.store->read_row(Table::turn, turn_row_key(key, TurnNo{2}))->value() == "two");
    }
    Node node(dir, fold);
    CHECK(node.found[shard.value].entries.empty());
    CHECK(node.found[shard.value].base == third);
}

TEST_CASE("shard log: what is cut is gone, also after a restart, and its place is taken") {
    TempDir dir;
    TestFold fold;
    const SessionKey key = session_key(1);
    const ShardId shard = shard_of_session(key);
    {
        Node node(dir, fold);
        node.begin(shard, Epoch{1});
        const LogPosition kept = node.last_of(shard);
        node.add(shard, Epoch{1}, events(key, 1, "Twrong"));
        node.add(shard, Epoch{1}, events(key, 2, "Tworse"));
        WriteGroup group;
        group.promise = Epoch{2};
        group.truncate_to = 1;
        node.last_of(shard) = kept;
        group.entries.push_back(node.entry(shard, Epoch{2}, nullptr));
        const auto right = events(key, 1, "Tright");
        group.entries.push_back(node.entry(shard, Epoch{2}, &right));
        node.write(shard, std::move(group));
        REQUIRE(node.settled(shard));
        node.store->apply_entries({{shard, 3}});
        CHECK(node.store->read_turn(key, TurnNo{1})->value() == "right");
    }
    Node node(dir, fold);
    const auto& found = node.found[shard.value];
    CHECK(found.promised == Epoch{2});
    REQUIRE(found.entries.size() == 3);
    CHECK(found.entries[1].epoch == Epoch{2});
    CHECK(found.entries[1].kind == EntryKind::barrier);
    LogPosition before;
    for (const auto& entry : found.entries) {
        CHECK(entry.chain == chain_of(before.chain, entry));
        before = position_of(entry);
    }
}

TEST_CASE("shard log: a promise alone outlives the segment that held it") {
    TempDir dir;
    TestFold fold;
    const SessionKey busy = session_key(1);
    const ShardId shard = shard_of_session(busy);
    const ShardId quiet{static_cast<uint16_t>((shard.value + 1) % shard_count_default)};
    const std::string text(60'000, 'x');
    {
        Node node(dir, fold);
        WriteGroup group;
        group.promise = Epoch{41};
        node.write(quiet, std::move(group));
        REQUIRE(node.settled(quiet));
        node.begin(shard, Epoch{1});
        const uint64_t before = node.store->stats().durable_lsn;
        for (uint64_t n = 1; n <= 60; ++n) {
            node.add(shard, Epoch{1}, events(busy, n, "T" + text));
            if (n % 10 == 0) {
                REQUIRE(node.settled(shard));
                node.store->apply_entries({{shard, node.last_of(shard).index}});
                node.store->flush();
            }
        }
        CHECK(node.store->stats().applied_lsn > before);
    }
    Node node(dir, fold);
    CHECK(node.found[quiet.value].promised == Epoch{41});
    CHECK(node.found[shard.value].base.index == 61);
    CHECK(node.store->stats().recovered_records < 20);
}

TEST_CASE("shard log: the journal keeps what is not committed, whatever else is applied") {
    TempDir dir;
    TestFold fold;
    const SessionKey stuck = session_key(1), busy = session_key(2);
    const ShardId held = shard_of_session(stuck), moving = shard_of_session(busy);
    REQUIRE(held != moving);
    const std::string text(60'000, 'x');
    {
        Node node(dir, fold);
        node.begin(held, Epoch{1});
        node.add(held, Epoch{1}, events(stuck, 1, "Twaits"));
        node.begin(moving, Epoch{1});
        for (uint64_t n = 1; n <= 60; ++n) {
            node.add(moving, Epoch{1}, events(busy, n, "T" + text));
            if (n % 10 == 0) {
                REQUIRE(node.settled(moving));
                node.store->apply_entries({{moving, node.last_of(moving).index}});
                node.store->flush();
            }
        }
    }
    Node node(dir, fold);
    REQUIRE(node.found[held.value].entries.size() == 2);
    CHECK(node.found[moving.value].base.index == 61);
    node.store->apply_entries({{held, 2}});
    CHECK(node.store->read_turn(stuck, TurnNo{1})->value() == "waits");
}

TEST_CASE("shard log: a snapshot takes the place of a copy that is behind or astray") {
    TempDir from_dir, to_dir;
    TestFold fold, other_fold;
    const SessionKey key = session_key(1), gone = session_key(3);
    const ShardId shard = shard_of_session(key);
    Node from(from_dir, fold);
    from.begin(shard, Epoch{5});
    for (uint64_t n = 1; n <= 40; ++n) from.add(shard, Epoch{5}, events(key, n, "T" + std::string(100'000, 'a')));
    REQUIRE(from.settled(shard));
    from.store->apply_entries({{shard, 41}});
    from.store->flush();
    auto snapshot = from.store->snapshot(shard);
    REQUIRE_MESSAGE(snapshot.ok(), snapshot.error().message);
    CHECK((*snapshot)->position() == from.last_of(shard));
    CHECK((*snapshot)->parts() > 3);

    const auto stage = [&](Node& node, size_t damaged_part) {
        for (uint32_t part = 0; part < (*snapshot)->parts(); ++part) {
            auto bytes = (*snapshot)->read(part);
            REQUIRE(bytes.ok());
            CHECK(bytes->size() <= limits::replication_snapshot_part_bytes_max);
            if (part == damaged_part) bytes->at(bytes->size() / 2) ^= 1;
            node.store->stage(shard, {1, part, std::make_shared<const std::string>(std::move(*bytes))});
        }
        WriteGroup install;
        install.promise = Epoch{5};
        install.install = (*snapshot)->position();
        node.write(shard, std::move(install));
        node.last_of(shard) = (*snapshot)->position();
    };
    {
        Node to(to_dir, other_fold);
        // Another history of the same shard: part of it applied, part of it never committed.
        REQUIRE(shard_of_session(gone) != shard);
        to.begin(shard, Epoch{2});
        to.add(shard, Epoch{2}, events(key, 1, "Tastray"));
        to.add(shard, Epoch{2}, events(key, 2, "Tfurther astray"));
        REQUIRE(to.settled(shard));
        to.store->apply_entries({{shard, 2}});
        stage(to, SIZE_MAX);
        // What follows waits its turn.
        to.add(shard, Epoch{5}, events(key, 41, "Tafter"));
        REQUIRE(to.settled(shard));
        CHECK_FALSE(to.told.out_of_order());
        CHECK(to.told.applied(shard) == 41);
        to.store->apply_entries({{shard, 42}});
        CHECK(to.store->read_turn(key, TurnNo{1})->value() == std::string(100'000, 'a'));
        CHECK(to.store->read_turn(key, TurnNo{41})->value() == "after");
        CHECK(head_last(*to.store->load(key)->head) == 40);
    }
    {
        Node to(to_dir, other_fold);
        CHECK(to.found[shard.value].base == (*snapshot)->position());
        REQUIRE(to.found[shard.value].entries.size() == 1);
        CHECK(to.found[shard.value].promised == Epoch{5});
    }
    // A damaged one ends the process instead of becoming the state.
    TempDir third_dir;
    std::atomic<bool> died{false};
    Node third(third_dir, other_fold,
               [&](DiskStoreConfig& config) { config.abort = [&](const std::string&) { died = true; }; });
    stage(third, 1);
    CHECK(eventually([&] { return died.load(); }));
    CHECK_FALSE(third.store->load(key)->head.has_value());
}

TEST_CASE("shard log: a directory is a cluster's or a node's alone, and one becomes the other by being adopted") {
    TempDir dir;
    TestFold fold;
    const SessionKey key = session_key(1);
    const ShardId shard = shard_of_session(key);
    {
        auto store = DiskStore::open_disk(small_config(dir.path(), fold, 7));
        REQUIRE(store.ok());
        (*store)->append(events(key, 1, "Talone"));
        (*store)->append(events(key, 2, "Tagain"));
        (*store)->flush();
        auto config = small_config(dir.path(), fold, 8);
        CHECK((*store)->adopt(cluster, Epoch{7}).ok());
    }
    {
        const auto refused = DiskStore::open_disk(small_config(dir.path(), fold, 8));
        REQUIRE_FALSE(refused.ok());
        CHECK(refused.error().code == ErrorCode::conflict);
    }
    {
        Node node(dir, fold);
        CHECK(node.found[shard.value].base == LogPosition{2, Epoch{7}, 0});
        CHECK(node.found[shard.value].promised == Epoch{7});
        // What had nothing is an empty log like any other: a copy on an empty disk is equal to it.
        const size_t none = (shard.value + 1u) % node.found.size();
        CHECK(node.found[none].base == LogPosition{});
        CHECK(node.found[none].promised == Epoch{7});
        CHECK(node.store->adopted_in() == Epoch{7});
        CHECK(node.store->read_turn(key, TurnNo{2})->value() == "again");
        node.begin(shard, Epoch{8});
        node.add(shard, Epoch{8}, events(key, 3, "Tin a cluster"));
        REQUIRE(node.settled(shard));
        node.store->apply_entries({{shard, 4}});
        CHECK(node.store->read_turn(key, TurnNo{3})->value() == "in a cluster");
    }
    TempDir alone;
    { REQUIRE(DiskStore::open_disk(small_config(alone.path(), fold, 1)).ok()); }
    auto config = small_config(alone.path(), fold, 2);
    config.cluster = cluster;
    CHECK(DiskStore::open_disk(config).error().code == ErrorCode::conflict);
    auto other = small_config(dir.path(), fold, 9);
    other.cluster = StoreUuid{9};
    CHECK(DiskStore::open_disk(other).error().code == ErrorCode::conflict);
}

TEST_CASE("shard log: an entry's bytes carry everything that a record's header says") {
    Append append = events(session_key(5), 12, "Tpayload");
    append.event_count = 3;
    append.at_rest = true;
    append.deletes = true;
    const std::string bytes = encode_entry(append);
    const auto view = decode_entry(bytes);
    REQUIRE(view);
    const RecordHeader expected = header_of(append, Epoch{}, shard_count_default);
    CHECK(view->header.kind == expected.kind);
    CHECK(view->header.flags == expected.flags);
    CHECK(view->header.event_count == 3);
    CHECK(view->header.turn == expected.turn);
    CHECK(view->header.session == expected.session);
    CHECK(view->header.first_sequence == expected.first_sequence);
    CHECK(view->payload == "Tpayload");
    for (size_t size = 0; size < 48; ++size) CHECK_FALSE(decode_entry(bytes.substr(0, size)));
    std::string wrong = bytes;
    wrong[0] = 5;
    CHECK_FALSE(decode_entry(wrong));
}
