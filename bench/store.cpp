// What durability costs: rates and latency of appended records by group size, bytes and CPU per record, LMDB bytes per
// turn, and the time to recover a journal tail. Prints a table and one line of JSON. Device bytes are the sectors that
// the kernel counts for the disk in the same window, so other work on the machine is in them.
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/base/random.h"
#include "runtime/store/disk_store.h"

using namespace mainstay;

namespace {

using SteadyClock = std::chrono::steady_clock;

double seconds_since(SteadyClock::time_point start) {
    return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

double cpu_seconds() {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    const auto of = [](const timeval& t) {
        return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
    };
    return of(usage.ru_utime) + of(usage.ru_stime);
}

/// Bytes written to the device that holds `path`; 0 where the kernel does not tell.
uint64_t device_bytes(const std::string& path) {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return 0;
    std::ifstream in("/sys/dev/block/" + std::to_string(major(info.st_dev)) + ":" + std::to_string(minor(info.st_dev)) +
                     "/stat");
    uint64_t field = 0, sectors = 0;
    for (int i = 0; i < 7 && in >> field; ++i) sectors = field;
    return sectors * 512;
}

/// One row per settled turn and a head of 200 bytes, as sessions have: a turn is `records_per_turn` records.
class BenchFold final : public Fold {
  public:
    explicit BenchFold(uint64_t records_per_turn) : records_per_turn_(records_per_turn) {}
    Result<void> fold(const SessionKey& key, std::optional<std::string_view> head,
                      const std::vector<FoldRecord>& records, std::vector<RowOp>& rows) override {
        std::string pending;
        uint64_t last = 0, in_turn = 0;
        if (head) {
            std::memcpy(&last, head->data(), 8);
            std::memcpy(&in_turn, head->data() + 8, 8);
            pending = head->substr(200);
        }
        for (const auto& record : records) {
            if (record.first_sequence.value <= last) continue;
            last = record.first_sequence.value;
            pending.append(record.payload);
            if (++in_turn < records_per_turn_) continue;
            in_turn = 0;
            rows.push_back({Table::turn, turn_row_key(key, TurnNo{static_cast<uint32_t>(last / records_per_turn_)}),
                            std::move(pending), false});
            pending.clear();
        }
        std::string next(200, 'h');
        std::memcpy(next.data(), &last, 8);
        std::memcpy(next.data() + 8, &in_turn, 8);
        rows.push_back({Table::head, session_row_key(key), next + pending, false});
        return {};
    }

  private:
    const uint64_t records_per_turn_;
};

/// A closed loop of `window` clients, each with one record in flight.
class Load {
  public:
    class Client final : public AckTarget {
      public:
        Client(Load& load, size_t at) : load_(load), at_(at) {}
        void acknowledged(Sequence, Sequence) override { load_.answered(at_); }

      private:
        Load& load_;
        const size_t at_;
    };

    Load(Store& store, size_t window, size_t sessions, std::string payload, uint64_t first_sequence)
        : store_(store), payload_(std::move(payload)), window_(window), next_(sessions, first_sequence) {
        for (size_t i = 0; i < window; ++i) clients_.push_back(std::make_shared<Client>(*this, i));
        started_.resize(window);
    }

    /// Latencies in microseconds.
    std::vector<double> run(double seconds) {
        const auto start = SteadyClock::now();
        for (size_t i = 0; i < window_; ++i) send(i);
        std::unique_lock lock(mutex_);
        while (true) {
            ready_.wait(lock, [&] { return !answers_.empty(); });
            std::vector<size_t> answers = std::move(answers_);
            answers_.clear();
            lock.unlock();
            const bool over = seconds_since(start) > seconds;
            const auto now = SteadyClock::now();
            for (size_t client : answers) {
                latencies_.push_back(std::chrono::duration<double, std::micro>(now - started_[client]).count());
                --in_flight_;
                if (!over) send(client);
            }
            lock.lock();
            if (over && in_flight_ == 0) return std::move(latencies_);
        }
    }
    uint64_t refused() const { return refused_; }

  private:
    void send(size_t client) {
        const size_t session = cursor_++ % next_.size();
        while (!store_.admit(payload_.size())) {
            ++refused_;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        Append append;
        append.session = {TenantId{1},
                          SessionId{FamilyId{((session + 1) << 22) | 5}, session * 0x9e3779b97f4a7c15ull, session}};
        append.first_sequence = Sequence{next_[session]++};
        append.event_count = 1;
        append.payload = payload_;
        append.target = clients_[client];
        started_[client] = SteadyClock::now();
        ++in_flight_;
        store_.append(std::move(append));
    }
    void answered(size_t client) {
        std::lock_guard lock(mutex_);
        answers_.push_back(client);
        ready_.notify_one();
    }

    Store& store_;
    const std::string payload_;
    const size_t window_;
    std::vector<uint64_t> next_;
    size_t cursor_ = 0;
    uint64_t in_flight_ = 0, refused_ = 0;
    std::vector<std::shared_ptr<Client>> clients_;
    std::vector<SteadyClock::time_point> started_;
    std::vector<double> latencies_;
    std::mutex mutex_;
    std::condition_variable ready_;
    std::vector<size_t> answers_;
};

std::unique_ptr<DiskStore> open_store(const std::string& directory, Fold& fold, uint64_t epoch,
                                      uint32_t interval_ms = 0) {
    DiskStoreConfig config;
    config.directory = directory;
    config.uuid = {1};
    config.epoch = Epoch{epoch};
    config.fold = &fold;
    if (interval_ms > 0) {  // keep everything in the tail
        config.apply_interval_ms = interval_ms;
        config.apply_batch_bytes = config.apply_backlog_bytes_max;
    }
    auto store = DiskStore::open_disk(config);
    if (!store) {
        std::fprintf(stderr, "%s\n", store.error().message.c_str());
        std::exit(1);
    }
    return std::move(store).value();
}

std::string random_text(size_t bytes) {
    SeededRandom random(1);
    std::string out;
    while (out.size() < bytes) out.push_back(static_cast<char>('a' + random.below(26)));
    return out;
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"rates, latency and bytes of the store"};
    std::string directory;
    double seconds = 5;
    size_t payload_bytes = 450, sessions = 256, tail_mb = 64, idle_sessions = 0;
    app.add_option("--dir", directory, "an empty or new directory on the disk to measure")->required();
    app.add_option("--seconds", seconds, "per window");
    app.add_option("--payload", payload_bytes, "bytes of one record's payload");
    app.add_option("--sessions", sessions, "that the records go to in turn");
    app.add_option("--tail-mb", tail_mb, "journal tail to recover");
    app.add_option("--idle-sessions", idle_sessions, "one-turn sessions for the page fill");
    CLI11_PARSE(app, argc, argv);

    constexpr uint64_t records_per_turn = 4;
    BenchFold fold(records_per_turn);
    const std::string payload = random_text(payload_bytes);
    uint64_t epoch = 0, sequence = 1;
    std::string json = "{\"simulated\":false,\"append\":[";
    std::printf("%8s %10s %9s %9s %9s %9s %10s %10s %10s %8s\n", "window", "records/s", "p50 us", "p99 us", "rec/group",
                "us CPU/r", "jrnl B/r", "dev B/r", "B/turn", "commits");
    {
        auto store = open_store(directory + "/append", fold, ++epoch);
        for (const size_t window : {1, 16, 64, 256}) {
            const auto before = store->stats();
            const uint64_t device = device_bytes(directory);
            const double cpu = cpu_seconds();
            const auto start = SteadyClock::now();
            Load load(*store, window, sessions, payload, sequence);
            auto latencies = load.run(seconds);
            const double took = seconds_since(start);
            store->flush();
            ::sync();
            const auto after = store->stats();
            const double records = static_cast<double>(latencies.size());
            sequence += latencies.size() / sessions + 2;
            std::sort(latencies.begin(), latencies.end());
            const auto at = [&](double q) { return latencies[static_cast<size_t>(q * (records - 1))]; };
            const double dev = static_cast<double>(device_bytes(directory) - device) / records;
            const double journal = static_cast<double>(after.journal_bytes - before.journal_bytes) / records;
            const double group = records / static_cast<double>(after.journal_groups - before.journal_groups);
            const double cpu_us = (cpu_seconds() - cpu) * 1e6 / records;
            char line[400];
            std::printf("%8zu %10.0f %9.0f %9.0f %9.1f %9.2f %10.0f %10.0f %10.0f %8llu%s\n", window, records / took,
                        at(0.5), at(0.99), group, cpu_us, journal, dev, dev * records_per_turn,
                        static_cast<unsigned long long>(after.state_commits - before.state_commits),
                        load.refused() ? "  (admission refused)" : "");
            std::snprintf(
                line, sizeof line,
                "%s{\"window\":%zu,\"records_per_s\":%.0f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"records_per_group\":%.2f,"
                "\"cpu_us_per_record\":%.3f,\"journal_bytes_per_record\":%.1f,\"device_bytes_per_record\":%.1f}",
                window == 1 ? "" : ",", window, records / took, at(0.5), at(0.99), group, cpu_us, journal, dev);
            json += line;
        }
    }
    json += "]";
    {
        const std::string tail_directory = directory + "/tail";
        {
            auto store = open_store(tail_directory, fold, ++epoch, 3'600'000);
            Load load(*store, 256, sessions, payload, 1);
            while (store->stats().apply_backlog_bytes < tail_mb * 1024 * 1024) load.run(0.2);
            // The store goes without applying, as if it had been killed.
        }
        for (const char* cache : {"cold", "warm"}) {
            if (std::string(cache) == "cold") std::ofstream("/proc/sys/vm/drop_caches") << "3\n";
            const auto start = SteadyClock::now();
            const double cpu = cpu_seconds();
            auto store = open_store(tail_directory, fold, ++epoch, 3'600'000);
            const double took = seconds_since(start);
            const auto stats = store->stats();
            std::printf("recovery (%s): %.1f MB, %llu records in %.3f s, %.3f s CPU\n", cache,
                        static_cast<double>(stats.recovered_bytes) / 1e6,
                        static_cast<unsigned long long>(stats.recovered_records), took, cpu_seconds() - cpu);
            char line[160];
            std::snprintf(line, sizeof line, ",\"recovery_%s_s\":%.4f,\"recovery_bytes\":%llu", cache, took,
                          static_cast<unsigned long long>(stats.recovered_bytes));
            json += line;
        }
    }
    if (idle_sessions > 0) {
        auto store = open_store(directory + "/idle", fold, ++epoch);
        SeededRandom random(2);
        const uint64_t begun = 1'700'000'000'000;
        for (size_t i = 0; i < idle_sessions; ++i) {
            const SessionKey key{TenantId{1}, make_session_id(random, begun + i / 20)};
            for (uint64_t r = 1; r <= records_per_turn; ++r) {
                Append append;
                append.session = key;
                append.first_sequence = Sequence{r};
                append.event_count = 1;
                append.payload = payload.substr(0, 375);
                while (!store->admit(append.payload.size())) std::this_thread::sleep_for(std::chrono::milliseconds(1));
                store->append(std::move(append));
            }
        }
        store->flush();
        const auto turns = store->state().stat(Table::turn), heads = store->state().stat(Table::head);
        const double used = static_cast<double>(store->state().used_bytes()) / static_cast<double>(idle_sessions);
        std::printf(
            "idle: %zu sessions of one turn of 1500 B: %.2f turns per leaf page, %.1f heads per leaf page, %.0f B of "
            "state file each\n",
            idle_sessions, static_cast<double>(turns.entries) / static_cast<double>(turns.leaf_pages),
            static_cast<double>(heads.entries) / static_cast<double>(heads.leaf_pages), used);
        char line[100];
        std::snprintf(line, sizeof line, ",\"state_bytes_per_idle_session\":%.0f", used);
        json += line;
    }
    std::printf("%s}\n", json.c_str());
    return 0;
}
