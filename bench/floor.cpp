// The bound that Mainstay is measured against: the least that a program can do which makes four records durable per
// turn, shares a sync among all sessions that commit at the same moment, and answers over HTTP. One epoll thread, one
// commit thread, one preallocated file, history in memory. No recovery, no queue per session, no JSON parser, no
// policy: a bound, not a design. What Mainstay costs above it is the price of everything else.

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "bench/http_text.h"

namespace mainstay::bench {
namespace {

constexpr size_t step_bytes[] = {0, 400, 300, 400};  // what follows the user's message: model, tool, model
constexpr size_t stages = std::size(step_bytes);
constexpr size_t message_bytes_max = 64 * 1024;
constexpr size_t read_bytes = 64 * 1024;

[[noreturn]] void fail(const char* what) {
    std::perror(what);
    std::exit(1);
}

struct Connection {
    int fd = -1;
    std::string in;
    bool turn_open = false;  // a turn of it is with the commit thread
    bool gone = false;       // the peer left meanwhile; freed when the turn comes back
};

struct Turn {
    Connection* connection = nullptr;
    std::vector<std::string>* history = nullptr;
    size_t stage = 0;
    bool responses_shape = false;
    std::string record;  // what the commit thread writes for the present stage
};

// Group commit: a group is what arrived while the last one was being synced, no timer. Owns the file and its thread;
// submit() is called by the epoll thread, take_done() too, after `wake` became readable.
class CommitLog {
  public:
    CommitLog(const std::string& path, bool direct, size_t file_bytes, int wake)
        : direct_(direct), file_bytes_(file_bytes), wake_(wake) {
        preallocate(path);
        fd_ = ::open(path.c_str(), O_RDWR | (direct ? O_DIRECT : 0));
        if (fd_ < 0) fail("open");
        thread_ = std::thread([this] { run(); });
        thread_.detach();  // the process ends by signal
    }

    void submit(Turn* turn) {
        bool was_empty = false;
        {
            std::lock_guard lock(mutex_);
            was_empty = waiting_.empty();
            waiting_.push_back(turn);
        }
        if (was_empty) arrived_.notify_one();
    }

    void take_done(std::vector<Turn*>& out) {
        std::lock_guard lock(done_mutex_);
        out.swap(done_);
    }

    uint64_t syncs() const { return syncs_.load(std::memory_order_relaxed); }
    uint64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

  private:
    // Zeros are written, not only allocated: an unwritten extent would make each sync a journal commit as well.
    void preallocate(const std::string& path) {
        int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0644);
        if (fd < 0) fail("create");
        std::string zeros(1 << 20, '\0');
        for (size_t done = 0; done < file_bytes_; done += zeros.size()) {
            if (::write(fd, zeros.data(), zeros.size()) != static_cast<ssize_t>(zeros.size())) fail("preallocate");
        }
        if (::fsync(fd) != 0) fail("fsync");
        ::close(fd);
    }

    void run() {
        std::vector<Turn*> group;
        size_t capacity = 1 << 20;
        char* buffer = static_cast<char*>(std::aligned_alloc(4096, capacity));
        for (;;) {
            {
                std::unique_lock lock(mutex_);
                arrived_.wait(lock, [this] { return !waiting_.empty(); });
                group.swap(waiting_);
            }
            size_t size = 0;
            for (Turn* turn : group) {
                uint32_t length = static_cast<uint32_t>(turn->record.size());
                if (size + length + sizeof(length) + 4096 > capacity) {
                    char* larger = static_cast<char*>(std::aligned_alloc(4096, capacity * 2));
                    std::memcpy(larger, buffer, size);
                    std::free(buffer);
                    buffer = larger;
                    capacity *= 2;
                }
                std::memcpy(buffer + size, &length, sizeof(length));
                std::memcpy(buffer + size + sizeof(length), turn->record.data(), length);
                size += sizeof(length) + length;
            }
            if (direct_) {
                size_t padded = (size + 511) & ~size_t{511};
                std::memset(buffer + size, 0, padded - size);
                size = padded;
            }
            if (offset_ + size > file_bytes_) offset_ = 0;  // no recovery, so old groups may be overwritten
            if (::pwrite(fd_, buffer, size, static_cast<off_t>(offset_)) != static_cast<ssize_t>(size)) fail("pwrite");
            if (::fdatasync(fd_) != 0) fail("fdatasync");
            offset_ += size;
            syncs_.fetch_add(1, std::memory_order_relaxed);
            bytes_.fetch_add(size, std::memory_order_relaxed);
            report(group);
            group.clear();
        }
    }

    void report(const std::vector<Turn*>& group) {
        bool was_empty = false;
        {
            std::lock_guard lock(done_mutex_);
            was_empty = done_.empty();
            done_.insert(done_.end(), group.begin(), group.end());
        }
        uint64_t one = 1;
        if (was_empty && ::write(wake_, &one, sizeof(one)) != sizeof(one)) fail("eventfd");
    }

    const bool direct_;
    const size_t file_bytes_;
    const int wake_;
    int fd_ = -1;
    size_t offset_ = 0;
    std::mutex mutex_;
    std::condition_variable arrived_;
    std::vector<Turn*> waiting_;
    std::mutex done_mutex_;
    std::vector<Turn*> done_;
    std::atomic<uint64_t> syncs_{0};
    std::atomic<uint64_t> bytes_{0};
    std::thread thread_;
};

// The epoll thread: reads requests, moves turns from stage to stage, answers.
class Server {
  public:
    Server(int listener, int wake, CommitLog& log) : listener_(listener), wake_(wake), log_(log) {
        epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
        if (epoll_ < 0) fail("epoll_create1");
        watch(listener_, &listener_);
        watch(wake_, &wake_);
    }

    [[noreturn]] void run() {
        epoll_event events[256];
        for (;;) {
            int ready = ::epoll_wait(epoll_, events, std::size(events), -1);
            if (ready < 0 && errno != EINTR) fail("epoll_wait");
            for (int i = 0; i < ready; ++i) {
                void* what = events[i].data.ptr;
                if (what == &listener_) {
                    accept_one();
                } else if (what == &wake_) {
                    advance_turns();
                } else {
                    read_from(static_cast<Connection*>(what));
                }
            }
            for (Connection* connection : closed_) delete connection;  // not earlier: events of this round may name it
            closed_.clear();
        }
    }

  private:
    void watch(int fd, void* what) {
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.ptr = what;
        if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll_ctl");
    }

    void accept_one() {
        int fd = ::accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        int on = 1;
        ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        auto* connection = new Connection;  // freed by drop(), or when its open turn comes back
        connection->fd = fd;
        watch(fd, connection);
    }

    void drop(Connection* connection) {
        if (connection->fd < 0) return;
        ::close(connection->fd);
        connection->fd = -1;
        connection->gone = true;
        if (!connection->turn_open) closed_.push_back(connection);
    }

    void read_from(Connection* connection) {
        if (connection->fd < 0) return;
        char buffer[read_bytes];
        ssize_t got = ::recv(connection->fd, buffer, sizeof(buffer), 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) return drop(connection);
        connection->in.append(buffer, static_cast<size_t>(got));
        serve(connection);
    }

    void serve(Connection* connection) {
        while (!connection->gone && !connection->turn_open) {
            auto message = first_message(connection->in);
            if (!message) {
                if (connection->in.size() > message_bytes_max) drop(connection);
                return;
            }
            size_t bytes = message->bytes;
            answer(connection, *message);
            connection->in.erase(0, bytes);
        }
    }

    void answer(Connection* connection, const HttpMessage& message) {
        std::string_view head = message.head;
        if (head.starts_with("POST /turn/")) {
            std::string_view rest = head.substr(11);
            return begin_turn(connection, rest.substr(0, rest.find(' ')), string_field(message.body, "\"message\":"),
                              false);
        }
        if (head.starts_with("POST /v1/responses ")) {
            return begin_turn(connection, string_field(message.body, "\"conversation\":"),
                              string_field(message.body, "\"input\":"), true);
        }
        if (head.starts_with("POST /v1/conversations ")) {
            char text[96];
            std::snprintf(text, sizeof(text), R"({"id":"conv_%016zx","object":"conversation"})", ++conversations_);
            return reply(connection, text);
        }
        if (head.starts_with("GET /stats ")) {
            return reply(connection, "{\"turns\":" + std::to_string(turns_) +
                                         ",\"syncs\":" + std::to_string(log_.syncs()) +
                                         ",\"bytes\":" + std::to_string(log_.bytes()) + "}");
        }
        if (head.starts_with("GET /readyz ")) return reply(connection, "{}");
        send_all(connection, "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}");
    }

    void begin_turn(Connection* connection, std::string_view session, std::string_view text, bool responses_shape) {
        if (session.empty() || text.empty()) {
            return send_all(connection, "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}");
        }
        auto* turn = new Turn;  // freed in finish()
        turn->connection = connection;
        turn->history = &sessions_[std::string(session)];
        turn->responses_shape = responses_shape;
        connection->turn_open = true;
        commit(turn, std::string(text));
    }

    void commit(Turn* turn, std::string text) {
        turn->record = text;
        turn->history->push_back(std::move(text));
        log_.submit(turn);
    }

    void advance_turns() {
        uint64_t count = 0;
        if (::read(wake_, &count, sizeof(count)) != sizeof(count)) return;
        done_.clear();
        log_.take_done(done_);
        for (Turn* turn : done_) {
            if (++turn->stage < stages) {
                commit(turn, std::string(step_bytes[turn->stage], static_cast<char>('a' + turn->stage)));
            } else {
                finish(turn);
            }
        }
    }

    void finish(Turn* turn) {
        std::unique_ptr<Turn> owned(turn);
        Connection* connection = turn->connection;
        connection->turn_open = false;
        ++turns_;
        if (connection->gone) {
            closed_.push_back(connection);
            return;
        }
        const std::string& text = turn->history->back();
        if (turn->responses_shape) {
            reply(connection, R"({"id":"resp_)" + std::to_string(turns_) +
                                  R"(","object":"response","status":"completed","output":[{"type":"message","role":)"
                                  R"("assistant","content":[{"type":"output_text","text":")" +
                                  text + R"("}]}]})");
        } else {
            reply(connection, "{\"n\":" + std::to_string(turn->history->size()) + ",\"reply\":\"" + text + "\"}");
        }
        serve(connection);
    }

    void reply(Connection* connection, std::string_view body) {
        std::string out = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ";
        out += std::to_string(body.size());
        out += "\r\n\r\n";
        out += body;
        send_all(connection, out);
    }

    // An answer is smaller than a socket buffer and the client waits for it, so a short write means a broken client.
    void send_all(Connection* connection, std::string_view text) {
        if (::send(connection->fd, text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size())) {
            drop(connection);
        }
    }

    int listener_;
    int wake_;
    CommitLog& log_;
    int epoll_ = -1;
    uint64_t turns_ = 0;
    size_t conversations_ = 0;
    std::unordered_map<std::string, std::vector<std::string>> sessions_;
    std::vector<Turn*> done_;
    std::vector<Connection*> closed_;
};

/// A listening socket on HOST:PORT (IPv4); prints the port that it really got.
int listen_on(const std::string& endpoint) {
    size_t colon = endpoint.rfind(':');
    sockaddr_in address{};
    address.sin_family = AF_INET;
    if (colon == std::string::npos || ::inet_pton(AF_INET, endpoint.substr(0, colon).c_str(), &address.sin_addr) != 1) {
        std::fprintf(stderr, "bench_floor: --listen wants IPV4:PORT\n");
        std::exit(2);
    }
    address.sin_port = htons(static_cast<uint16_t>(std::atoi(endpoint.c_str() + colon + 1)));
    int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    socklen_t length = sizeof(address);
    if (fd < 0 || ::bind(fd, reinterpret_cast<sockaddr*>(&address), length) != 0 || ::listen(fd, 1024) != 0 ||
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
        fail("listen");
    }
    std::printf("%u\n", ntohs(address.sin_port));
    std::fflush(stdout);
    return fd;
}

}  // namespace
}  // namespace mainstay::bench

int main(int argc, char** argv) {
    CLI::App app{"The bound: four durable records per turn, and nothing else"};
    std::string endpoint = "127.0.0.1:0";
    std::string file;
    std::string sync = "buffered";
    size_t file_megabytes = 256;
    app.add_option("--listen", endpoint, "IPV4:PORT; port 0 takes a free one, printed on stdout");
    app.add_option("--file", file, "the log, preallocated at start")->required();
    app.add_option("--sync", sync, "buffered | direct (O_DIRECT, groups padded to 512 bytes)")
        ->check(CLI::IsMember({"buffered", "direct"}));
    app.add_option("--file-megabytes", file_megabytes, "size of the log; it is overwritten from the start when full")
        ->check(CLI::Range(16, 16384));
    CLI11_PARSE(app, argc, argv);

    int wake = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    mainstay::bench::CommitLog log(file, sync == "direct", file_megabytes << 20, wake);
    int listener = mainstay::bench::listen_on(endpoint);  // after the preallocation: who reads the port may connect
    mainstay::bench::Server(listener, wake, log).run();
}
