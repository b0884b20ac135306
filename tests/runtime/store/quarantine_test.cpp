// One session's records that cannot be folded cost that session alone, and nothing of them is lost.
#include "runtime/store/quarantine.h"

#include <doctest/doctest.h>

#include "runtime/store/memory_store.h"
#include "tests/runtime/store/store_fixture.h"

using namespace mainstay;
using namespace mainstay::store_test;

namespace {

/// TestFold, for which a payload that begins with X cannot be read unless it is told to.
class MoodyFold final : public Fold {
  public:
    Result<void> fold(const SessionKey& key, std::optional<std::string_view> head,
                      const std::vector<FoldRecord>& records, std::vector<RowOp>& rows) override {
        for (const auto& record : records)
            if (record.payload[0] == 'X' && !reads_x) {
                rows.push_back({Table::open, "half done", std::string("x"), false});
                return {ErrorCode::journal_damaged, "an X", ""};
            }
        return fold_.fold(key, head, records, rows);
    }
    std::atomic<bool> reads_x{false};

  private:
    TestFold fold_;
};

class DiskHarness {
  public:
    DiskHarness() { restart(); }
    Store& store() { return *store_; }
    MoodyFold& fold() { return fold_; }
    void restart() {
        store_.reset();
        auto config = small_config(dir_.path(), fold_, ++epoch_);
        config.apply_interval_ms = 1'000'000;  // the tail is applied when a test says so
        config.abort = [](const std::string& what) { FAIL(what); };
        auto opened = DiskStore::open_disk(config);
        if (!opened) FAIL(opened.error().message);
        store_ = std::move(opened).value();
    }

  private:
    TempDir dir_;
    MoodyFold fold_;
    uint64_t epoch_ = 0;
    std::unique_ptr<DiskStore> store_;
};

class MemoryHarness {
  public:
    MemoryHarness() : store_(config()) {}
    Store& store() { return store_; }
    MoodyFold& fold() { return fold_; }
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
    MoodyFold fold_;
    uint64_t epoch_ = 1;
    MemoryStore store_;
};

std::vector<std::string> set_aside(Store& store) {
    std::vector<std::string> payloads;
    const auto scanned =
        store.scan(Table::meta, "setaside", {}, SIZE_MAX, [&](std::string_view, std::string_view value) {
            payloads.emplace_back(value.substr(16));
            return true;
        });
    REQUIRE(scanned);
    return payloads;
}

void check_damaged(Store& store, const SessionKey& key) {
    const auto image = store.load(key);
    REQUIRE_FALSE(image);
    CHECK(image.error().code == ErrorCode::state_damaged);
    CHECK(image.error().message.find("lsn ") != std::string::npos);
}

}  // namespace

TEST_CASE_TEMPLATE("quarantine: a record that cannot be folded costs its session alone, over restarts", H, DiskHarness,
                   MemoryHarness) {
    H h;
    const SessionKey bad = session_key(1), good = session_key(2);
    h.store().append(events(bad, 1, "Tone"));
    h.store().append(events(bad, 2, "Ttwo"));
    h.store().append(events(good, 1, "Tfine"));
    h.store().append(events(bad, 3, "Xthree"));
    h.store().append(events(bad, 4, "Tfour"));
    h.store().flush();

    check_damaged(h.store(), bad);
    CHECK(h.store().stats().damaged_sessions == 1);
    CHECK(h.store().read_turn(bad, TurnNo{2})->value() == "two");  // what came before is applied
    CHECK_FALSE(h.store().read_row(Table::open, "half done")->has_value());
    CHECK(set_aside(h.store()) == std::vector<std::string>{"Xthree", "Tfour"});
    CHECK(h.store().load(good)->head.has_value());
    CHECK(h.store().sessions_in_tail().empty());
    CHECK(h.store().stats().apply_backlog_bytes == 0);

    h.restart();
    check_damaged(h.store(), bad);
    h.store().append(events(bad, 5, "Tfive"));
    h.store().append(events(good, 2, "Tgoes on"));
    h.store().flush();
    CHECK(set_aside(h.store()) == std::vector<std::string>{"Xthree", "Tfour", "Tfive"});
    CHECK(h.store().read_turn(good, TurnNo{2})->value() == "goes on");
    CHECK(h.store().stats().damaged_sessions == 1);

    // A program that reads it takes the session up where it was, with nothing missing.
    h.fold().reads_x = true;
    h.restart();
    CHECK(h.store().stats().damaged_sessions == 0);
    CHECK(set_aside(h.store()).empty());
    CHECK(head_last(h.store().load(bad)->head.value()) == 5);
    CHECK(h.store().read_turn(bad, TurnNo{5})->value() == "five");
}

TEST_CASE_TEMPLATE("quarantine: a damaged session can be deleted, and only that ends what is set aside", H, DiskHarness,
                   MemoryHarness) {
    H h;
    const SessionKey bad = session_key(1), other = session_key(3);
    h.store().append(events(bad, 1, "Tone"));
    h.store().append(events(bad, 3, "Tthree"));  // the second is missing
    h.store().append(events(other, 1, "Xother"));
    h.store().flush();
    check_damaged(h.store(), bad);
    check_damaged(h.store(), other);
    CHECK(h.store().stats().damaged_sessions == 2);

    h.store().append(events(bad, 1, "D"));
    h.store().flush();
    const auto image = h.store().load(bad);
    REQUIRE(image);
    CHECK_FALSE(image->head);
    CHECK_FALSE(h.store().read_turn(bad, TurnNo{1})->has_value());
    CHECK(set_aside(h.store()) == std::vector<std::string>{"Xother"});
    CHECK(h.store().stats().damaged_sessions == 1);
    h.restart();
    CHECK(h.store().load(bad).ok());
    check_damaged(h.store(), other);
}

TEST_CASE_TEMPLATE("quarantine: a damage and its deletion in one transaction leave nothing, and what follows is new", H,
                   DiskHarness, MemoryHarness) {
    H h;
    const SessionKey bad = session_key(1);
    h.store().append(events(bad, 1, "Told"));
    h.store().append(events(bad, 2, "Xtwo"));
    h.store().append(events(bad, 1, "D"));
    h.store().append(events(bad, 1, "Tnew"));
    h.store().flush();
    CHECK(h.store().stats().damaged_sessions == 0);
    CHECK(set_aside(h.store()).empty());
    CHECK(h.store().read_turn(bad, TurnNo{1})->value() == "new");
}

TEST_CASE_TEMPLATE("quarantine: an entity that cannot be folded is set aside alone", H, DiskHarness, MemoryHarness) {
    H h;
    const SessionKey tenant{TenantId{7}, SessionId{}};
    const auto entity = [&](std::string payload) {
        Append append = events(tenant, 1, std::move(payload));
        append.kind = RecordKind::entity;
        return append;
    };
    h.store().append(entity("Eagent__1one"));
    h.store().append(entity("Xagent__2two"));
    h.store().append(entity("Eagent__3three"));
    const std::vector<std::string> whole{"one", "three"};
    if (auto before = h.store().entities(); before.ok()) CHECK(before->size() <= 2);
    h.store().flush();
    CHECK(*h.store().entities() == whole);
    CHECK(set_aside(h.store()) == std::vector<std::string>{"Xagent__2two"});
    h.restart();
    CHECK(*h.store().entities() == whole);
}
