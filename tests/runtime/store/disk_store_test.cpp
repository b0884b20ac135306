#include "runtime/store/disk_store.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

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

namespace {

size_t files_with(const std::filesystem::path& directory, const std::string& marker) {
    size_t found = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
        if (!entry.is_regular_file()) continue;
        std::ifstream in(entry.path(), std::ios::binary);
        std::stringstream bytes;
        bytes << in.rdbuf();
        if (bytes.str().find(marker) != std::string::npos) ++found;
    }
    return found;
}

/// Text that no compressor hides: the marker must be findable wherever it lies.
std::string marked(SeededRandom& random, const std::string& marker, size_t bytes) {
    std::string out = "T";
    for (size_t i = 0; i < bytes / 2; ++i) out.push_back(static_cast<char>(random.below(256)));
    out += marker;
    for (size_t i = 0; i < bytes / 2; ++i) out.push_back(static_cast<char>(random.below(256)));
    return out;
}

}  // namespace

TEST_CASE("disk store: a deleted session's text is in no file after its lifetime, and the others are untouched") {
    const std::string marker = "TOP-SECRET-MARKER-5309";
    TempDir dir;
    TestFold fold;
    SeededRandom random(8);
    auto config = small_config(dir.path(), fold);
    config.deleted_text_lifetime_ms = 2'000'000'000;  // not by itself, at first
    std::map<std::pair<uint64_t, uint64_t>, std::string> kept;
    {
        auto store = open_or_fail(config);
        std::map<uint64_t, uint64_t> sequence;
        const auto turn = [&](uint64_t session, size_t bytes, bool secret) {
            const std::string text = marked(random, secret ? marker : "harmless", bytes);
            store->append(events(session_key(session), ++sequence[session], text));
            if (!secret) kept[{session, sequence[session]}] = text.substr(1);
        };
        // Values of every size: small ones in shared leaf pages, large ones on overflow pages; rows come and go between
        // transactions, so that stale copies lie in free pages and gaps.
        for (int round = 0; round < 12; ++round) {
            for (uint64_t s = 1; s <= 30; ++s) turn(s, 40 + random.below(s % 3 == 0 ? 6000 : 900), s % 5 == 0);
            store->flush();
        }
        REQUIRE(files_with(dir.path(), marker) >= 2);  // journal and state
        for (uint64_t s = 5; s <= 30; s += 5) store->append(events(session_key(s), ++sequence[s], "D"));
        store->flush();
        CHECK_FALSE(store->deletions_erased());
        CHECK(files_with(dir.path(), marker) >= 1);  // so the check below can fail
    }
    // The obligation survives a restart.
    config.epoch = Epoch{2};
    config.deleted_text_lifetime_ms = 100;
    auto store = open_or_fail(config);
    REQUIRE(eventually([&] { return store->deletions_erased(); }));
    CHECK(files_with(dir.path(), marker) == 0);
    for (const auto& [where, text] : kept) {
        const auto row = store->read_turn(session_key(where.first), TurnNo{static_cast<uint32_t>(where.second)});
        REQUIRE(row);
        CHECK(row->value() == text);
    }
    CHECK_FALSE(store->read_turn(session_key(5), TurnNo{1})->has_value());
    // And the store goes on writing, reading and erasing.
    store->append(events(session_key(100), 1, marked(random, marker, 3000)));
    store->flush();
    CHECK(files_with(dir.path(), marker) >= 1);
    store->append(events(session_key(100), 2, "D"));
    store->flush();
    REQUIRE(eventually([&] { return store->deletions_erased(); }));
    CHECK(files_with(dir.path(), marker) == 0);
    store.reset();
    config.epoch = Epoch{3};
    store = open_or_fail(config);
    for (const auto& [where, text] : kept)
        CHECK(store->read_turn(session_key(where.first), TurnNo{static_cast<uint32_t>(where.second)})->value() == text);
}

TEST_CASE("disk store: what was removed from a user's memory is in no file after its lifetime") {
    const std::string marker = "TOP-SECRET-MARKER-5310";
    TempDir dir;
    TestFold fold;
    SeededRandom random(9);
    auto config = small_config(dir.path(), fold);
    config.deleted_text_lifetime_ms = 100;
    auto store = open_or_fail(config);
    const auto keep = [&](uint64_t user, const std::string& what) {
        Append append;
        append.kind = RecordKind::entity;
        append.session = {TenantId{7}, SessionId{FamilyId{}, user, 1}};
        append.event_count = 1;
        append.payload = "M" + marked(random, what, 400).substr(1);
        store->append(std::move(append));
    };
    for (uint64_t user = 1; user <= 40; ++user) keep(user, user == 20 ? marker : "harmless");
    store->flush();
    REQUIRE(files_with(dir.path(), marker) >= 1);
    keep(20, "harmless");  // the test's fold removes the old row by prefix
    store->flush();
    REQUIRE(eventually([&] { return store->deletions_erased(); }));
    CHECK(files_with(dir.path(), marker) == 0);
    for (uint64_t user = 1; user <= 40; ++user) {
        const auto row = store->read_memory({TenantId{7}, SessionId{FamilyId{}, user, 1}});
        REQUIRE((row.ok() && row->has_value()));
        CHECK((**row).find("harmless") != std::string::npos);
    }
}

TEST_CASE("disk store: killed at any instant, it has every acknowledged record and only what was appended") {
    struct Shared {
        std::atomic<uint64_t> acked[8];
        std::atomic<uint64_t> appended[8];
    };
    class SharedAck final : public AckTarget {
      public:
        explicit SharedAck(std::atomic<uint64_t>& at) : at_(at) {}
        void acknowledged(Sequence durable, Sequence) override { at_ = durable.value; }

      private:
        std::atomic<uint64_t>& at_;
    };
    TempDir dir;
    TestFold fold;
    auto* shared = static_cast<Shared*>(
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    REQUIRE(shared != MAP_FAILED);
    new (shared) Shared{};
    SeededRandom random(11);
    uint64_t last[8] = {};
    uint64_t epoch = 0, total = 0;
    const auto text = [](uint64_t s, uint64_t n) {
        return "T" + std::to_string(s) + ":" + std::to_string(n) + std::string((s * 131 + n * 37) % 1500, 'k');
    };
    for (int round = 0; round < 12; ++round) {
        ++epoch;
        const pid_t child = ::fork();
        if (child == 0) {
            auto store = DiskStore::open_disk(small_config(dir.path(), fold, epoch));
            if (!store) ::_exit(3);
            std::shared_ptr<AckTarget> targets[8];
            for (uint64_t s = 0; s < 8; ++s) targets[s] = std::make_shared<SharedAck>(shared->acked[s]);
            for (uint64_t n = 1;; ++n) {
                for (uint64_t s = 0; s < 8; ++s) {
                    while (!(*store)->admit(2000)) ::usleep(200);
                    shared->appended[s] = last[s] + n;
                    (*store)->append(events(session_key(s + 1), last[s] + n, text(s, last[s] + n), targets[s]));
                }
                while (shared->acked[0] + 20 < last[0] + n) ::usleep(50);
            }
        }
        const uint64_t before = shared->acked[7];
        REQUIRE(eventually([&] { return shared->acked[7] > before || ::waitpid(child, nullptr, WNOHANG) != 0; }));
        ::usleep(static_cast<useconds_t>(1000 + random.below(40'000)));
        ::kill(child, SIGKILL);
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status));

        auto store = open_or_fail(small_config(dir.path(), fold, ++epoch));
        for (uint64_t s = 0; s < 8; ++s) {
            const auto image = store->load(session_key(s + 1));
            REQUIRE(image);
            uint64_t found = image->head ? head_last(*image->head) : 0;
            for (const auto& record : image->tail) {
                CHECK(*record.payload == text(s, record.first_sequence.value));
                REQUIRE(record.first_sequence.value <= found + 1);
                found = std::max(found, record.first_sequence.value);
            }
            CHECK(found >= shared->acked[s]);
            CHECK(found <= shared->appended[s]);
            for (uint64_t n = last[s] + 1; n <= found; n += 5)
                CHECK(store->read_turn(session_key(s + 1), TurnNo{static_cast<uint32_t>(n)})->value() ==
                      text(s, n).substr(1));
            total += found - last[s];
            last[s] = found;
        }
        if (round % 3 == 0) store->flush();
    }
    MESSAGE("records over 12 kills: " << total);
    CHECK(total > 100);
    ::munmap(shared, sizeof(Shared));
}

TEST_CASE("disk store: a really full disk makes it read-only, it opens there, and space heals it") {
    TempDir dir;
    if (::geteuid() != 0) FAIL("this test mounts a small tmpfs and needs root");
    REQUIRE(::mount("tmpfs", dir.path().c_str(), "tmpfs", 0, "size=6m") == 0);
    TestFold fold;
    auto config = small_config(dir.path() / "store", fold);
    config.disk_reserve_bytes = 512 * 1024;
    uint64_t written = 0;
    {
        auto store = open_or_fail(config);
        auto acks = std::make_shared<Acks>();
        SeededRandom random(4);
        Result<void> admitted;
        // What is refused for another reason (the backlog of a slow disk) is asked again: it fills up all the same.
        const auto refused_for_now = [&] {
            admitted = store->admit(3000);
            return !admitted && admitted.error().code != ErrorCode::storage_full;
        };
        while (written < 5000) {
            REQUIRE(eventually([&] { return !refused_for_now(); }));
            if (!admitted) break;
            store->append(events(session_key(1), ++written, marked(random, "row", 2500), acks));
            REQUIRE(eventually([&] { return acks->durable() == written; }));
        }
        REQUIRE(eventually([&] {
            admitted = store->admit(3000);
            return !admitted && admitted.error().code == ErrorCode::storage_full;
        }));
        CHECK(store->stats().read_only);
        CHECK(written > 100);
        store->append(events(session_key(1), ++written, "Ta result", acks));
        REQUIRE(eventually([&] { return acks->durable() == written; }));
        CHECK(store->read_turn(session_key(1), TurnNo{1})->has_value());
    }
    std::ofstream filler(dir.path() / "filler", std::ios::binary);
    while (filler << std::string(4096, 'f') && filler.flush()) {
    }
    config.epoch = Epoch{2};
    {
        auto store = open_or_fail(config);
        for (uint32_t t = 1; t <= written; t += 7) CHECK(store->read_turn(session_key(1), TurnNo{t})->has_value());
        CHECK(store->read_turn(session_key(1), TurnNo{static_cast<uint32_t>(written)})->value() == "a result");
        REQUIRE(eventually([&] { return store->stats().read_only && !store->admit(1000); }));
        filler.close();
        std::filesystem::remove(dir.path() / "filler");
        REQUIRE(::mount("tmpfs", dir.path().c_str(), "tmpfs", MS_REMOUNT, "size=64m") == 0);
        REQUIRE(eventually([&] { return store->admit(1000).ok(); }));
        auto acks = std::make_shared<Acks>();
        store->append(events(session_key(1), ++written, "Tafterwards", acks));
        REQUIRE(eventually([&] { return acks->durable() == written; }));
        store->flush();
        CHECK(head_last(store->load(session_key(1))->head.value()) == written);
        CHECK_FALSE(store->stats().read_only);
    }
    CHECK(::umount(dir.path().c_str()) == 0);
}

TEST_CASE("disk store: another node's directory, other shards and a lower epoch are refused") {
    TempDir dir;
    TestFold fold;
    {
        auto store = open_or_fail(small_config(dir.path(), fold, 5));
        store->append(events(session_key(1), 1, "Tx"));
        Append promise;
        promise.kind = RecordKind::promise;
        store->append(std::move(promise));
        store->flush();
    }
    CHECK(DiskStore::open(small_config(dir.path(), fold, 4)).error().code == ErrorCode::conflict);
    auto other = small_config(dir.path(), fold, 6);
    other.uuid = {9, 9};
    CHECK(DiskStore::open(other).error().code == ErrorCode::conflict);
    other = small_config(dir.path(), fold, 6);
    other.shard_count = 64;
    CHECK(DiskStore::open(other).error().code == ErrorCode::conflict);
    CHECK(DiskStore::open(small_config(dir.path(), fold, 6)).ok());
}

TEST_CASE("disk store: the apply backlog is bounded by name") {
    TempDir dir;
    TestFold fold;
    auto config = small_config(dir.path(), fold);
    config.apply_interval_ms = 1'000'000;
    config.apply_batch_bytes = 1 << 30;
    config.apply_backlog_bytes_max = 10'000;
    config.fault = nullptr;
    auto store = open_or_fail(config);
    auto acks = std::make_shared<Acks>();
    store->append(events(session_key(1), 1, "T" + std::string(4000, 'x'), acks));
    REQUIRE(eventually([&] { return acks->durable() == 1; }));
    const auto refused = store->admit(9000);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ErrorCode::apply_backlog_full);
    CHECK(refused.error().message.find("apply_backlog_bytes_max") != std::string::npos);
    CHECK(store->admit(1000).ok());
}
