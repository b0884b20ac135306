// Pages of a session's events: every event once, in order, whatever lies in rows, in the head or in the tail; and a
// page of a long session costs what a page of a short one does.
#include "actors/event_page.h"

#include "runtime/session/fold.h"
#include "runtime/session/random_history.h"
#include "runtime/store/memory_store.h"

using namespace mainstay;
using namespace mainstay::test;

namespace {

/// Counts the rows that reads bring.
class CountingStore final : public Store {
  public:
    explicit CountingStore(Store& store) : store_(store) {}
    Result<void> admit(size_t bytes) override { return store_.admit(bytes); }
    void append(Append append) override { store_.append(std::move(append)); }
    Result<SessionImage> load(const SessionKey& key) override { return store_.load(key); }
    Result<std::optional<std::string>> read_row(Table table, std::string_view key) override {
        ++rows;
        return store_.read_row(table, key);
    }
    Result<void> scan(Table table, std::string_view prefix, std::string_view from, size_t limit,
                      const std::function<bool(std::string_view, std::string_view)>& visit) override {
        return store_.scan(table, prefix, from, limit, [&](std::string_view key, std::string_view value) {
            ++rows;
            return visit(key, value);
        });
    }
    Result<std::optional<std::string>> read_turn(const SessionKey& key, TurnNo turn) override {
        return store_.read_turn(key, turn);
    }
    std::vector<SessionKey> sessions_in_tail() override { return store_.sessions_in_tail(); }
    std::vector<SessionKey> resting_in_tail() override { return store_.resting_in_tail(); }
    void on_applied(std::function<void()> callback) override { store_.on_applied(std::move(callback)); }
    Result<std::vector<std::string>> entities() override { return store_.entities(); }
    Result<std::optional<std::string>> read_memory(const SessionKey& key) override { return store_.read_memory(key); }
    StoreStats stats() const override { return store_.stats(); }
    void flush() override { store_.flush(); }

    size_t rows = 0;

  private:
    Store& store_;
};

struct Stored {
    Stored() : store(config()), counting(store) {}
    MemoryStoreConfig config() {
        MemoryStoreConfig made;
        made.epoch = Epoch{1};
        made.fold = &fold;
        return made;
    }
    void append(const std::pair<Sequence, std::string>& record) {
        Append append;
        append.session = test_key();
        append.first_sequence = record.first;
        append.event_count = static_cast<uint32_t>(decode_batch(record.second)->events.size());
        append.turn = decode_batch(record.second)->turn;
        append.payload = record.second;
        store.append(std::move(append));
        while (store.step_journal()) {
        }
    }
    std::vector<EventEntry> page(uint64_t after, size_t limit) {
        auto read = read_event_page(counting, test_key(), TurnNo{1}, after, limit, shard_count_default);
        if (!read.ok()) FAIL(read.error().message);
        return std::move(*read);
    }

    SessionFold fold;
    MemoryStore store;
    CountingStore counting;
};

}  // namespace

TEST_CASE("event page: pages of any size hold every event once and in order") {
    size_t pages = 0;
    for (uint64_t seed = 1; seed <= 30; ++seed) {
        INFO("seed ", seed);
        RandomHistory history(seed);
        Rig rig;
        for (int i = 0; i < 300; ++i) history.step(rig);
        if (rig.session.deleted()) continue;
        Stored stored;
        SeededRandom random(seed);
        std::vector<std::string> names;
        for (const auto& record : rig.journal) {
            const auto batch = decode_batch(record.second);
            for (const Event& event : batch->events) names.emplace_back(event_name(event));
            stored.append(record);
            if (random.below(8) == 0) stored.store.step_apply();
        }
        if (random.below(2) == 0) stored.store.flush();
        for (const size_t limit : {size_t{1}, size_t{7}, size_t{100}, names.size() + 5}) {
            uint64_t after = 0;
            while (true) {
                const auto page = stored.page(after, limit);
                ++pages;
                REQUIRE(page.size() == std::min<size_t>(limit, names.size() - after));
                for (const auto& entry : page) {
                    REQUIRE(entry.sequence == ++after);
                    REQUIRE(entry.name == names[after - 1]);
                }
                if (page.size() < limit) break;
            }
            REQUIRE(after == names.size());
        }
    }
    CHECK(pages > 1000);
}

TEST_CASE("event page: a page late in a long session reads no more rows than one early in it") {
    Stored stored;
    Rig rig;
    for (int i = 0; i < 2000; ++i) {
        rig.submit("hello");
        rig.model("answer");
    }
    for (const auto& record : rig.journal) stored.append(record);
    stored.store.flush();
    const uint64_t events = rig.session.last_sequence().value;
    const auto cost = [&](uint64_t after) {
        stored.counting.rows = 0;
        CHECK(stored.page(after, 20).size() == 20);
        return stored.counting.rows;
    };
    // 11 lookups find the place among 2,000 turns.
    for (const uint64_t after : {uint64_t{0}, events / 2, events - 20}) CHECK(cost(after) < 40);
}
