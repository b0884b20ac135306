// The door alone: HTTP in, parse, render, HTTP out, with a bridge that answers at once from memory. Tells how much of a
// turn's CPU the door may claim. Loopback, one client thread with many connections and one request each in flight; CPU
// is the door thread's own, so the client's does not count.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <thread>

#include "gateway/server.h"
#include "tests/gateway/fake_bridge.h"

namespace {

using namespace mainstay;

/// User and system time of the calling thread.
struct ThreadTime {
    double user = 0, system = 0;
    static ThreadTime now() {
        rusage usage;
        getrusage(RUSAGE_THREAD, &usage);
        const auto of = [](const timeval& t) {
            return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
        };
        return {of(usage.ru_utime), of(usage.ru_stime)};
    }
};

double seconds_of(clockid_t clock) {
    timespec at;
    clock_gettime(clock, &at);
    return static_cast<double>(at.tv_sec) + static_cast<double>(at.tv_nsec) / 1e9;
}

/// The turn of the benchmark agent: 400 B of text, a tool call of 300 B, 400 B of text.
TurnAnswer bench_turn(const TurnRequest& request) {
    static const AgentPtr agent = std::make_shared<AgentSpec>();
    auto turn = std::make_shared<Turn>();
    turn->no = TurnNo{1};
    turn->status = TurnStatus::completed;
    turn->created_at = turn->settled_at = 1'700'000'000'000;
    turn->agent = request.agent;
    turn->options = request.options;
    turn->items = request.items;
    turn->input_count = static_cast<uint32_t>(request.items.size());
    turn->items.push_back(make_message(Role::assistant, std::string(400, 'a')));
    auto call = std::make_shared<Item>();
    call->kind = ItemKind::tool_call;
    call->call_id = "call_1";
    call->name = "echo";
    call->server_label = "builtin";
    call->arguments = "{\"text\":\"" + std::string(100, 'b') + "\"}";
    call->text = std::string(300, 'c');
    turn->items.push_back(call);
    turn->items.push_back(make_message(Role::assistant, std::string(400, 'd')));
    TurnAnswer answer;
    answer.session = {FamilyId{1}, 2, 3};
    answer.turn = turn;
    answer.agent = agent;
    return answer;
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"the door alone, with a bridge that answers at once"};
    int connections = 64;
    double seconds = 2;
    bool cross_thread = false;
    std::string json_file;
    app.add_option("--connections", connections);
    app.add_option("--seconds", seconds);
    app.add_flag("--cross-thread", cross_thread, "answer from another thread, as actors do");
    app.add_option("--json", json_file);
    CLI11_PARSE(app, argc, argv);

    FakeBridge bridge;
    bridge.inline_answers = !cross_thread;
    bridge.on_create = [](TurnRequest request, Callback<TurnAnswer> done) { done(bench_turn(request)); };
    prometheus::Registry registry;
    DoorConfig config;
    config.admin_key = "k";
    Door door(config, bridge, registry);
    if (const auto started = door.start(); !started) {
        std::fprintf(stderr, "%s\n", started.error().message.c_str());
        return 1;
    }
    ThreadTime spent;
    std::thread server([&] {
        door.run();
        spent = ThreadTime::now();
    });

    const std::string body = R"({"model":"bench","input":")" + std::string(200, 'i') + "\"}";
    const std::string request =
        "POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer k\r\nContent-Type: "
        "application/json\r\n"
        "Content-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body;
    const int poller = epoll_create1(0);
    std::vector<int> sockets;
    std::vector<size_t> received(static_cast<size_t>(connections), 0);
    for (int i = 0; i < connections; ++i) {
        const int fd = socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(door.port());
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return 1;
        const int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.u32 = static_cast<uint32_t>(i);
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        sockets.push_back(fd);
    }
    // Every answer is as long as the first (Date and x-request-id have fixed widths).
    char buffer[65536];
    const auto send_one = [&](size_t i) { return write(sockets[i], request.data(), request.size()) > 0; };
    if (!send_one(0)) return 1;
    size_t answer_bytes = 0;
    {
        std::string first;
        size_t head = std::string::npos;
        while (answer_bytes == 0 || first.size() < answer_bytes) {
            const auto n = read(sockets[0], buffer, sizeof buffer);
            if (n <= 0) return 1;
            first.append(buffer, static_cast<size_t>(n));
            head = first.find("\r\n\r\n");
            if (head == std::string::npos) continue;
            const auto at = first.find("Content-Length: ");
            answer_bytes = head + 4 + std::stoul(first.substr(at + 16));
        }
        if (!first.starts_with("HTTP/1.1 200")) return 1;
    }
    for (size_t i = 0; i < sockets.size(); ++i)
        if (!send_one(i)) return 1;
    size_t answered = 0;
    const double begin = seconds_of(CLOCK_MONOTONIC);
    double now = begin;
    while (now - begin < seconds) {
        epoll_event events[256];
        const int count = epoll_wait(poller, events, 256, 1000);
        for (int e = 0; e < count; ++e) {
            const size_t i = events[e].data.u32;
            const auto n = read(sockets[i], buffer, sizeof buffer);
            if (n <= 0) return 1;
            received[i] += static_cast<size_t>(n);
            if (received[i] < answer_bytes) continue;
            received[i] = 0;
            ++answered;
            if (!send_one(i)) return 1;
        }
        now = seconds_of(CLOCK_MONOTONIC);
    }
    for (const int fd : sockets) close(fd);
    door.stop();
    server.join();
    const double rate = static_cast<double>(answered) / (now - begin);
    const double each = 1e6 / static_cast<double>(answered);
    std::printf("%-12s %12s %14s %14s %14s\n", "connections", "requests/s", "user us/req", "system us/req",
                "answer bytes");
    std::printf("%-12d %12.0f %14.2f %14.2f %14zu\n", connections, rate, spent.user * each, spent.system * each,
                answer_bytes);
    if (!json_file.empty()) {
        std::FILE* file = std::fopen(json_file.c_str(), "w");
        if (file == nullptr) return 1;
        std::fprintf(file,
                     "{\"connections\":%d,\"requests_per_second\":%.0f,\"user_us\":%.2f,\"system_us\":%.2f,"
                     "\"answer_bytes\":%zu}\n",
                     connections, rate, spent.user * each, spent.system * each, answer_bytes);
        std::fclose(file);
    }
    return 0;
}
