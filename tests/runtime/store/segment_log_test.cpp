#include "runtime/store/segment_log.h"

#include <doctest/doctest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <fstream>
#include <future>
#include <sstream>

#include "tests/runtime/store/store_fixture.h"

using namespace mainstay;
using namespace mainstay::store_test;

namespace {

namespace fs = std::filesystem;
constexpr size_t segment_size = 64 * 1024;

SegmentLogConfig config_for(const fs::path& directory, uint64_t epoch = 1) {
    SegmentLogConfig config;
    config.directory = directory;
    config.uuid = {4, 5, 6};
    config.epoch = Epoch{epoch};
    config.segment_bytes = segment_size;
    config.group_bytes_max = 16 * 1024;
    config.disk_reserve_bytes = 0;
    return config;
}

struct Seen {
    uint64_t lsn;
    std::string payload;
    friend bool operator==(const Seen&, const Seen&) = default;
};

/// Appends and waits for the durability of each batch, so that each is a group of its own.
class Journal {
  public:
    explicit Journal(SegmentLogConfig config) {
        auto log = SegmentLog::open(std::move(config), SegmentLog::first_lsn(segment_size), [&](const RecordView& r) {
            recovered.push_back({r.header.lsn.value, std::string(r.payload)});
        });
        if (!log) {
            error = log.error();
            return;
        }
        log_ = std::move(log).value();
        log_->start({}, [this](DurableGroup& group) {
            std::lock_guard lock(mutex_);
            for (auto& r : group.records) written_.push_back({r.header.lsn.value, *r.payload});
        });
    }
    void group(const std::vector<std::string>& payloads) {
        auto acks = std::make_shared<Acks>();
        for (const auto& payload : payloads) log_->append(events(session_key(1), ++sequence_, payload, acks));
        REQUIRE(eventually([&] { return acks->durable() == sequence_; }));
    }
    std::vector<Seen> written() const {
        std::lock_guard lock(mutex_);
        return written_;
    }
    SegmentLog& log() { return *log_; }

    std::vector<Seen> recovered;
    std::optional<Error> error;

  private:
    mutable std::mutex mutex_;
    std::vector<Seen> written_;
    uint64_t sequence_ = 0;
    std::unique_ptr<SegmentLog> log_;
};

std::string file_bytes(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    std::stringstream out;
    out << in.rdbuf();
    return out.str();
}

std::map<uint64_t, std::string> journal_bytes(const fs::path& directory) {
    std::map<uint64_t, std::string> out;
    for (const auto& entry : fs::directory_iterator(directory))
        if (entry.path().extension() == ".seg") out[std::stoull(entry.path().stem())] = file_bytes(entry.path());
    return out;
}

class Bytes final : public SegmentSource {
  public:
    explicit Bytes(const std::map<uint64_t, std::string>& segments) : segments_(segments) {}
    std::vector<uint64_t> numbers() override {
        std::vector<uint64_t> out;
        for (const auto& [n, b] : segments_) out.push_back(n);
        return out;
    }
    Result<std::string_view> read(uint64_t number, size_t limit) override {
        return std::string_view(segments_.at(number)).substr(0, limit);
    }
    std::string name(uint64_t number) const override { return "segment " + std::to_string(number); }

  private:
    const std::map<uint64_t, std::string>& segments_;
};

struct Scanned {
    std::vector<Seen> records;
    std::optional<Error> error;
    JournalEnd end;
};

Scanned scan(const std::map<uint64_t, std::string>& segments) {
    Scanned out;
    Bytes source(segments);
    auto end =
        scan_journal(source, {4, 5, 6}, segment_size, SegmentLog::first_lsn(segment_size), [&](const RecordView& r) {
            out.records.push_back({r.header.lsn.value, std::string(r.payload)});
        });
    if (end) {
        out.end = *end;
    } else {
        out.error = end.error();
    }
    return out;
}

/// A journal over three segments, its last group of three records, and that group's start.
struct Written {
    std::map<uint64_t, std::string> segments;
    std::vector<Seen> records;
    size_t last_group_records = 3;
    uint64_t last_group_lsn = 0, last_group_end = 0;
};

Written written_journal() {
    TempDir dir;
    Written out;
    {
        Journal journal(config_for(dir.path()));
        for (int i = 0; i < 40; ++i)
            journal.group({std::string(2000 + i * 31, static_cast<char>('a' + i % 26)), "small"});
        journal.group({"first of the last", std::string(700, 'y'), "last of the last"});
        out.records = journal.written();
    }
    out.segments = journal_bytes(dir.path());
    // The writer may have split the last batch: its group begins where the record with offset 0 lies.
    for (auto at = out.records.rbegin(); at != out.records.rend(); ++at) {
        const uint64_t number = segment_of(at->lsn + 1, segment_size);
        const auto record =
            decode_record(std::string_view(out.segments.at(number)).substr(at->lsn - number * segment_size), at->lsn);
        REQUIRE(record);
        if (at == out.records.rbegin()) out.last_group_end = at->lsn + record->stored_bytes;
        if (record->header.group_offset != 0) continue;
        out.last_group_lsn = at->lsn;
        out.last_group_records = static_cast<size_t>(at - out.records.rbegin()) + 1;
        break;
    }
    return out;
}

}  // namespace

TEST_CASE("segment log: what a scan finds is what was written, over several segments") {
    const Written journal = written_journal();
    const Scanned found = scan(journal.segments);
    REQUIRE_FALSE(found.error);
    CHECK(found.records == journal.records);
    CHECK(found.end.torn_bytes == 0);
    CHECK(found.end.number >= 2);
}

TEST_CASE("segment log: a tail torn at any byte of the last group is cut, all before it is there") {
    const Written journal = written_journal();
    std::vector<Seen> before(journal.records.begin(),
                             journal.records.end() - static_cast<long>(journal.last_group_records));
    const uint64_t number = segment_of(journal.last_group_lsn + 1, segment_size);
    const size_t from = journal.last_group_lsn - number * segment_size,
                 to = journal.last_group_end - number * segment_size;
    for (size_t cut = from; cut < to; ++cut) {
        auto torn = journal.segments;
        std::fill(torn[number].begin() + static_cast<long>(cut), torn[number].end(), '\0');
        const Scanned found = scan(torn);
        REQUIRE_FALSE(found.error);
        // Zeros of the payload's own padding make no difference; then the group is whole.
        if (torn[number] == journal.segments.at(number)) continue;
        CHECK(found.records == before);
        CHECK(found.end.end_lsn == journal.last_group_lsn);
    }
    // Blocks reach the disk in any order: each subset of the group's blocks, too.
    for (size_t hole = from; hole < to; hole += 512) {
        auto torn = journal.segments;
        std::fill_n(torn[number].begin() + static_cast<long>(hole), 512, '\0');
        const Scanned found = scan(torn);
        REQUIRE_FALSE(found.error);
        CHECK(found.records == before);
    }
}

TEST_CASE("segment log: a flipped bit before the last group is reported by position, in it cut, never served") {
    const Written journal = written_journal();
    size_t damaged = 0, cut = 0, harmless = 0;
    for (const auto& [number, bytes] : journal.segments) {
        const uint64_t base = number * segment_size;
        if (base > journal.last_group_lsn) continue;
        for (size_t at = 0; at < bytes.size(); at += (at < 5000 ? 13 : 61)) {
            auto bad = journal.segments;
            bad[number][at] = static_cast<char>(bad[number][at] ^ (1 << (at % 8)));
            const Scanned found = scan(bad);
            if (found.error) {
                ++damaged;
                CHECK(found.error->code == ErrorCode::journal_damaged);
                CHECK(found.error->message.find("lsn") != std::string::npos);
                CHECK(found.error->message.find("segment ") != std::string::npos);
                continue;
            }
            // Only padding, unused space or the last group: nothing may differ but the last group's absence.
            if (found.records == journal.records) {
                ++harmless;
            } else {
                ++cut;
                CHECK(found.records.size() == journal.records.size() - journal.last_group_records);
                CHECK(std::equal(found.records.begin(), found.records.end(), journal.records.begin()));
                // A segment's header and its first group are one write.
                const bool first = journal.last_group_lsn == segment_start(number, segment_size);
                CHECK(base + at >= (first ? base : journal.last_group_lsn));
            }
        }
    }
    CHECK(damaged > 1000);
    CHECK(cut > 0);
    CHECK(harmless > 0);
}

TEST_CASE("segment log: a whole group that vanished between others is damage, not an end") {
    const Written journal = written_journal();
    auto bad = journal.segments;
    std::fill_n(bad[1].begin() + segment_header_bytes, 8192, '\0');
    const Scanned found = scan(bad);
    REQUIRE(found.error);
    CHECK(found.error->message.find("offset 4096") != std::string::npos);
    // And so is a lost segment in the middle, and a lost beginning.
    bad = journal.segments;
    bad.erase(1);
    CHECK(scan(bad).error);
    bad = journal.segments;
    bad[2] = std::string(segment_size, '\0');
    CHECK(scan(bad).error);
}

TEST_CASE("segment log: records of an earlier life of a segment are not taken for new ones") {
    const Written journal = written_journal();
    for (const auto& [stale_number, stale] : journal.segments) {
        auto recycled = journal.segments;
        const uint64_t next = recycled.rbegin()->first + 1;
        recycled[next] = stale;  // as after a rename: the name is new, the bytes are old
        const Scanned found = scan(recycled);
        REQUIRE_FALSE(found.error);
        CHECK(found.records == journal.records);
    }
    // Stale bytes right behind the end of the current segment: their place is right, their position is not.
    const uint64_t number = segment_of(journal.last_group_end, segment_size);
    auto recycled = journal.segments;
    const size_t end = round_up(journal.last_group_end - number * segment_size, 4096);
    recycled[number].replace(end, segment_size - end, recycled[1].substr(end));
    CHECK(scan(recycled).records == journal.records);
}

TEST_CASE("segment log: after a torn tail new groups take its place and it never comes back") {
    TempDir dir;
    uint64_t torn_at = 0;
    {
        // While the first group is being synced, three records gather to one.
        std::promise<void> syncing, go_on;
        std::atomic<int> syncs{0};
        auto config = config_for(dir.path());
        config.fault = [&](std::string_view operation, uint64_t) {
            if (operation == "sync" && ++syncs == 1) {
                syncing.set_value();
                go_on.get_future().wait();
            }
            return 0;
        };
        Journal journal(config);
        auto acks = std::make_shared<Acks>();
        journal.log().append(events(session_key(1), 1, "kept", acks));
        syncing.get_future().wait();
        journal.log().append(events(session_key(1), 2, std::string(400, 'a'), acks));
        journal.log().append(events(session_key(1), 3, std::string(424, 'b'), acks));
        journal.log().append(events(session_key(1), 4, std::string(424, 'c'), acks));
        go_on.set_value();
        REQUIRE(eventually([&] { return acks->durable() == 4; }));
        REQUIRE(journal.written().size() == 4);
        torn_at = journal.written()[1].lsn;
    }
    // The group's first block is lost, the others reached the disk.
    {
        std::fstream file(dir.path() / "0000000001.seg", std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(static_cast<long>(torn_at - segment_size));
        file << std::string(512, '\0');
    }
    {
        Journal journal(config_for(dir.path(), 2));
        REQUIRE_FALSE(journal.error);
        REQUIRE(journal.recovered.size() == 1);
        CHECK(journal.recovered[0].payload == "kept");
        CHECK(journal.log().recovered().torn_bytes > 0);
        // Records of the same sizes, so that leftovers would fit exactly behind a torn new group.
        journal.group({std::string(424, 'A')});
    }
    Journal journal(config_for(dir.path(), 3));
    REQUIRE_FALSE(journal.error);
    REQUIRE(journal.recovered.size() == 2);
    CHECK(journal.recovered[1].payload == std::string(424, 'A'));
    CHECK(file_bytes(dir.path() / "0000000001.seg").find(std::string(400, 'b')) == std::string::npos);
}

TEST_CASE("segment log: no acknowledgement before the sync returns") {
    TempDir dir;
    auto acks = std::make_shared<Acks>();
    std::promise<void> syncing, go_on;
    std::atomic<int> syncs{0};
    auto config = config_for(dir.path());
    config.fault = [&](std::string_view operation, uint64_t) {
        if (operation == "sync" && ++syncs == 1) {
            syncing.set_value();
            go_on.get_future().wait();
        }
        return 0;
    };
    Journal journal(config);
    journal.log().append(events(session_key(1), 1, "x", acks));
    syncing.get_future().wait();  // written, the sync is under way
    CHECK(acks->calls() == 0);
    CHECK(journal.written().empty());
    CHECK(journal.log().durable_lsn() == SegmentLog::first_lsn(segment_size));
    go_on.set_value();
    CHECK(eventually([&] { return acks->durable() == 1; }));
}

TEST_CASE("segment log: what arrives during a sync is one group, with one acknowledgement per target") {
    TempDir dir;
    auto first = std::make_shared<Acks>(), second = std::make_shared<Acks>();
    std::promise<void> syncing, go_on;
    std::atomic<int> syncs{0};
    auto config = config_for(dir.path());
    config.fault = [&](std::string_view operation, uint64_t) {
        if (operation == "sync" && ++syncs == 1) {
            syncing.set_value();
            go_on.get_future().wait();
        }
        return 0;
    };
    Journal journal(config);
    journal.log().append(events(session_key(1), 1, "x", first));
    syncing.get_future().wait();
    for (uint64_t i = 1; i <= 20; ++i) journal.log().append(events(session_key(2), i, "y", second));
    go_on.set_value();
    CHECK(eventually([&] { return second->durable() == 20; }));
    CHECK(second->calls() == 1);
    StoreStats stats;
    journal.log().fill(stats);
    CHECK(stats.journal_groups == 2);
    CHECK(stats.journal_syncs == 2);
    CHECK(stats.journal_records == 21);
}

TEST_CASE("segment log: under load a group waits for a part of the sessions at work, a lone session never waits") {
    TempDir directory;
    auto config = config_for(directory.path());
    config.group_gather_us = 500'000;
    auto log = std::move(SegmentLog::open(config, SegmentLog::first_lsn(segment_size), {})).value();
    log->start({}, [](DurableGroup&) {});
    auto acks = std::make_shared<Acks>();
    uint64_t sequence = 0;
    auto append = [&](uint32_t companions) {
        auto one = events(session_key(1), ++sequence, "x", acks);
        one.companions = companions;
        log->append(std::move(one));
    };
    auto durable = [&] { return eventually([&] { return acks->durable() == sequence; }); };
    auto groups = [&] {
        StoreStats stats;
        log->fill(stats);
        return stats.journal_groups;
    };
    // One session alone: each append is a group of its own, and none waits out the window.
    const auto begun = std::chrono::steady_clock::now();
    for (int i = 0; i < 20; ++i) {
        append(1);
        REQUIRE(durable());
    }
    CHECK(groups() == 20);
    CHECK(std::chrono::steady_clock::now() - begun < 20 * std::chrono::microseconds(config.group_gather_us) / 2);

    // Sixty at work, and many arrive: the groups are few. The last one, short of its goal, goes when the window ends.
    const uint64_t before = groups();
    constexpr uint32_t at_work = 60;
    for (size_t i = 0; i < 10 * at_work / limits::group_gather_share; ++i) append(at_work);
    append(at_work);
    REQUIRE(durable());
    CHECK(groups() - before <= 20);

    // Sixty at work that wait for something else: after a window without arrivals what comes is written at once.
    std::this_thread::sleep_for(std::chrono::microseconds(config.group_gather_us) * 5 / 4);
    append(at_work);
    REQUIRE(durable());
    const auto lonely = std::chrono::steady_clock::now();
    append(at_work);
    REQUIRE(durable());
    CHECK(std::chrono::steady_clock::now() - lonely < std::chrono::microseconds(config.group_gather_us) * 4 / 5);
}

TEST_CASE("segment log: a failed write or sync ends the process, is not retried, and acknowledges nothing") {
    for (const std::string_view failing : {"write", "sync"}) {
        TempDir dir;
        std::atomic<int> aborts{0}, calls{0};
        std::string why;
        auto acks = std::make_shared<Acks>();
        auto config = config_for(dir.path());
        config.abort = [&](const std::string& what) {
            why = what;
            ++aborts;
        };
        config.fault = [&](std::string_view operation, uint64_t) {
            if (operation != failing) return 0;
            return ++calls == 2 ? EIO : 0;
        };
        {
            Journal journal(config);
            journal.group({"good"});
            journal.log().append(events(session_key(1), 2, "bad", acks));
            REQUIRE(eventually([&] { return aborts.load() == 1; }));
            journal.log().append(events(session_key(1), 3, "later", acks));
            CHECK(journal.log().dead());
        }
        CHECK(aborts == 1);
        CHECK(calls == 2);
        CHECK(acks->calls() == 0);
        CHECK(why.find("errno 5") != std::string::npos);
        CHECK(why.find("0000000001.seg at offset 4608") != std::string::npos);
        CHECK(why.find("lsn") != std::string::npos);
    }
}

TEST_CASE("segment log: without direct I/O the same journal is written through the cache") {
    TempDir dir;
    auto config = config_for(dir.path());
    config.direct = false;
    std::vector<Seen> written;
    {
        Journal journal(config);
        for (int i = 0; i < 60; ++i) journal.group({std::string(1500, 'q')});
        written = journal.written();
    }
    // And read again where direct I/O is there: blocks of 4 KiB satisfy those of 512.
    Journal journal(config_for(dir.path(), 2));
    REQUIRE_FALSE(journal.error);
    CHECK(journal.recovered == written);
    journal.group({"more"});
    CHECK(scan(journal_bytes(dir.path())).records.size() == written.size() + 1);
}

TEST_CASE("segment log: a file system that refuses direct I/O is no obstacle") {
    TempDir dir("/dev/shm");
    {
        Journal journal(config_for(dir.path()));
        REQUIRE_FALSE(journal.error);
        journal.group({"on tmpfs"});
    }
    Journal journal(config_for(dir.path(), 2));
    REQUIRE(journal.recovered.size() == 1);
    CHECK(journal.recovered[0].payload == "on tmpfs");
}

TEST_CASE("segment log: rolling leaves the segment durably and the journal goes on in the next") {
    TempDir dir;
    {
        Journal journal(config_for(dir.path()));
        journal.group({"one"});
        REQUIRE(journal.log().roll());
        CHECK(journal.log().durable_lsn() == segment_start(2, segment_size));
        REQUIRE(journal.log().roll());
        journal.group({"two"});
    }
    Journal journal(config_for(dir.path(), 2));
    REQUIRE_FALSE(journal.error);
    REQUIRE(journal.recovered.size() == 2);
    CHECK(journal.recovered[1].payload == "two");
    CHECK(journal.recovered[1].lsn == segment_start(3, segment_size));
}

TEST_CASE("segment log: with the disk full admission refuses, one segment is kept for results, and space heals it") {
    TempDir dir;
    std::atomic<bool> full{false};
    auto config = config_for(dir.path());
    config.fault = [&](std::string_view operation, uint64_t) { return operation == "zero" && full ? ENOSPC : 0; };
    Journal journal(config);
    const auto ready = [&] {
        StoreStats stats;
        journal.log().fill(stats);
        return stats.segments_ready;
    };
    REQUIRE(eventually([&] { return ready() == 2; }));
    full = true;
    // Two segments more than the current one: fill until admission says no.
    int accepted = 0;
    while (journal.log().admit(2100) && accepted < 1000) {
        journal.group({std::string(2000, 'f')});
        ++accepted;
    }
    CHECK(accepted > 40);
    CHECK(accepted < 90);
    REQUIRE(eventually([&] {
        return !journal.log().admit(2100) && journal.log().admit(2100).error().code == ErrorCode::storage_full;
    }));
    journal.group({"a result is still taken", std::string(3000, 'r')});
    StoreStats stats;
    journal.log().fill(stats);
    CHECK(stats.read_only);
    full = false;
    CHECK(eventually([&] { return journal.log().admit(2100).ok(); }));
    journal.group({"writing goes on"});
}
