// Two nodes' links in one process, over loopback with TLS as between machines: messages a second, round trips of
// messages and calls, bytes a second, and the process's CPU for each (both ends and the sender's own thread).
//   bench_link [--seconds 2] [--runs 5]       one row a case: medians over runs
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <thread>

#include "cluster/certificates.h"
#include "cluster/link.h"

using namespace mainstay;

namespace {

using Clock = std::chrono::steady_clock;

double now() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

double cpu_seconds() {
    rusage used{};
    ::getrusage(RUSAGE_SELF, &used);
    const auto seconds = [](const timeval& t) { return double(t.tv_sec) + double(t.tv_usec) * 1e-6; };
    return seconds(used.ru_utime) + seconds(used.ru_stime);
}

[[noreturn]] void give_up(const std::string& why) {
    std::fprintf(stderr, "bench_link: %s\n", why.c_str());
    std::exit(1);
}

/// The node that answers: messages come back as they are, or are only counted; calls get their request as the answer.
struct Far : LinkHandler {
    Link* link = nullptr;
    std::atomic<bool> echo{false};
    std::atomic<uint64_t> arrived{0};
    void replication(const NodeUuid& from, std::vector<ReplicationMessage> messages) override {
        arrived += messages.size();
        if (!echo) return;
        for (ReplicationMessage& message : messages) {
            std::swap(message.from, message.to);
            message.from_incarnation = 1;
        }
        link->send(from, std::move(messages));
    }
    void call(const NodeUuid&, CallKind, std::string request, std::shared_ptr<CallReply> reply) override {
        reply->part(std::move(request));
        reply->end();
    }
};

/// The node that asks.
struct Near : LinkHandler {
    std::function<void(uint64_t round)> back;
    void replication(const NodeUuid&, std::vector<ReplicationMessage> messages) override {
        for (const ReplicationMessage& message : messages) back(std::get<AppendEntries>(message.body).round);
    }
    void call(const NodeUuid&, CallKind, std::string, std::shared_ptr<CallReply>) override {}
};

struct Row {
    double per_second = 0, p50_us = 0, p99_us = 0, cpu_us = 0;
};

class Bench {
  public:
    Bench() {
        if (!::mkdtemp(directory_.data())) give_up("no directory");
        const auto cluster = make_cluster(directory_ + "/ca");
        if (!cluster) give_up(cluster.error().message);
        cluster_ = *cluster;
        near_link_ = open(1, near_);
        far_link_ = open(2, far_);
        far_.link = far_link_.get();
        near_link_->set_peers({{node(2), 1, "127.0.0.1:" + std::to_string(far_link_->port())}});
        far_link_->set_peers({{node(1), 1, "127.0.0.1:" + std::to_string(near_link_->port())}});
        while (!near_link_->connected(node(2)) || !far_link_->connected(node(1))) pause();
    }
    ~Bench() {
        near_link_.reset();
        far_link_.reset();
        std::filesystem::remove_all(directory_);
    }

    /// As fast as the queue takes them.
    Row one_way(size_t bytes, double seconds) {
        const auto payload = std::make_shared<const std::string>(bytes, 'x');
        far_.echo = false;
        far_.arrived = 0;
        uint64_t sent = 0;
        const uint64_t window = std::clamp<uint64_t>((32u << 20) / bytes, 16, 20'000);
        const double start = now(), cpu = cpu_seconds();
        while (now() < start + seconds) {
            for (int i = 0; i < 16; ++i) near_link_->send(node(2), {message(sent++, payload)});
            while (sent - far_.arrived > window) pause();
        }
        while (far_.arrived < sent) pause();
        return row(double(sent), now() - start, cpu_seconds() - cpu, {});
    }

    Row round_trips(size_t bytes, size_t window, double seconds) {
        const auto payload = std::make_shared<const std::string>(bytes, 'x');
        far_.echo = true;
        return trips(window, seconds,
                     [&](uint64_t round, const auto&) { near_link_->send(node(2), {message(round, payload)}); });
    }

    Row calls(size_t bytes, size_t window, double seconds) {
        const std::string request(bytes, 'x');
        return trips(window, seconds, [&](uint64_t round, const auto& done) {
            near_link_->call(
                node(2), CallKind::shard, request, [](std::string) {},
                [done, round](std::optional<Error> failure) {
                    if (failure) give_up(failure->message);
                    done(round);
                },
                0);
        });
    }

  private:
    static NodeUuid node(uint8_t number) { return {number}; }
    static void pause() { std::this_thread::sleep_for(std::chrono::microseconds(50)); }

    std::unique_ptr<Link> open(uint8_t number, LinkHandler& handler) {
        const std::string at = directory_ + "/" + std::to_string(number);
        if (auto made = make_node_certificate(directory_ + "/ca", node(number), at); !made)
            give_up(made.error().message);
        auto link = Link::open(
            {cluster_, node(number), 1, "127.0.0.1", 0, at + "/ca.pem", at + "/node.pem", at + "/node.key", "0"},
            handler);
        if (!link) give_up(link.error().message);
        return std::move(link).value();
    }

    ReplicationMessage message(uint64_t round, std::shared_ptr<const std::string> payload) const {
        AppendEntries body;
        body.round = round;
        body.entries.push_back({Epoch(1), round + 1, EntryKind::record, round, std::move(payload)});
        return {cluster_, ShardId(1), {node(1), {}}, {node(2), {}}, 1, std::move(body)};
    }

    /// `begin` starts one trip; its end starts the next, on the link's thread.
    template <class Begin>
    Row trips(size_t window, double seconds, Begin begin) {
        std::mutex mutex;
        std::condition_variable all;
        std::vector<double> started(window), took;
        size_t under_way = window;
        uint64_t next = window;
        const double start = now(), cpu = cpu_seconds();
        std::function<void(uint64_t)> done = [&](uint64_t round) {
            const double at = now();
            took.push_back(at - started[round % window]);
            if (at < start + seconds) {
                started[next % window] = at;
                begin(next++, done);
                return;
            }
            const std::lock_guard lock(mutex);
            if (--under_way == 0) all.notify_all();
        };
        // Rounds end in order, so a slot is free when the round that uses it again begins.
        near_.back = done;
        for (uint64_t round = 0; round < window; ++round) started[round] = now();
        for (uint64_t round = 0; round < window; ++round) begin(round, done);
        {
            std::unique_lock lock(mutex);
            all.wait(lock, [&] { return under_way == 0; });
        }
        near_.back = [](uint64_t) {};
        return row(double(took.size()), now() - start, cpu_seconds() - cpu, took);
    }

    static Row row(double count, double seconds, double cpu, std::vector<double> took) {
        Row out{count / seconds, 0, 0, cpu / count * 1e6};
        if (took.empty()) return out;
        std::sort(took.begin(), took.end());
        out.p50_us = took[took.size() / 2] * 1e6;
        out.p99_us = took[took.size() * 99 / 100] * 1e6;
        return out;
    }

    std::string directory_ = (std::filesystem::temp_directory_path() / "bench_link_XXXXXX").string();
    ClusterUuid cluster_{};
    Near near_;
    Far far_;
    std::unique_ptr<Link> near_link_, far_link_;
};

double median(std::vector<double> all) {
    std::sort(all.begin(), all.end());
    return all[all.size() / 2];
}

void measure(const char* name, size_t bytes, int runs, const std::function<Row()>& once) {
    std::vector<double> rate, p50, p99, cpu;
    for (int i = 0; i < runs; ++i) {
        const Row row = once();
        rate.push_back(row.per_second);
        p50.push_back(row.p50_us);
        p99.push_back(row.p99_us);
        cpu.push_back(row.cpu_us);
    }
    std::printf("%-28s %10.0f /s %9.1f MB/s  p50 %8.1f us  p99 %8.1f us  cpu %8.2f us each\n", name, median(rate),
                median(rate) * double(bytes) * 1e-6, median(p50), median(p99), median(cpu));
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    double seconds = 2;
    int runs = 5;
    CLI::App app("links between nodes");
    app.add_option("--seconds", seconds);
    app.add_option("--runs", runs);
    CLI11_PARSE(app, argc, argv);
    Bench bench;
    measure("message 100 B, one way", 100, runs, [&] { return bench.one_way(100, seconds); });
    measure("message 64 KiB, one way", 65536, runs, [&] { return bench.one_way(65536, seconds); });
    measure("message 1 MiB, one way", 1 << 20, runs, [&] { return bench.one_way(1 << 20, seconds); });
    measure("message 100 B, window 1", 100, runs, [&] { return bench.round_trips(100, 1, seconds); });
    measure("message 100 B, window 64", 100, runs, [&] { return bench.round_trips(100, 64, seconds); });
    measure("message 64 KiB, window 64", 65536, runs, [&] { return bench.round_trips(65536, 64, seconds); });
    measure("call 100 B, window 1", 100, runs, [&] { return bench.calls(100, 1, seconds); });
    measure("call 100 B, window 64", 100, runs, [&] { return bench.calls(100, 64, seconds); });
    measure("call 64 KiB, window 64", 65536, runs, [&] { return bench.calls(65536, 64, seconds); });
    return 0;
}
