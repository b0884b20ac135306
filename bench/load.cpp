// The load generator: closed-loop HTTP/1.1 over keep-alive connections, one thread, one epoll, so cheap that it may
// share two cores with the server and still be told apart (it reports its own CPU). Four workloads:
//   w1  N sessions, warm-up, then S seconds at C connections: rate, latency, CPU, bytes, memory
//   w2  one session, K turns on one connection: does turn 10,000 cost what turn 10 costs?
//   w3  S seconds through a kill -9 of the server: every acknowledged turn goes to a log for a checker
//   w4  N new sessions of one turn each
// Sessions are visited round-robin with at most one request per session at a time. A turn counts as acknowledged only
// where the answer is a 200 that says completed and contains a reply of the expected length. The result is one JSON
// object on stdout.

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "bench/http_text.h"
#include "bench/process_cost.h"

namespace mainstay::bench {
namespace {

namespace json = boost::json;

constexpr size_t message_bytes = 200;
constexpr size_t noise_bytes = 64 * 1024;
constexpr size_t read_bytes = 64 * 1024;
constexpr double reconnect_pause_s = 0.002;

struct Options {
    std::string endpoint;
    std::string workload = "w1";
    std::string mode = "responses";
    std::string model = "bench";
    std::string key;
    std::string session_prefix = "s";
    size_t connections = 64;
    size_t sessions = 256;
    double warmup_s = 2;
    double seconds = 5;
    size_t turns = 10'000;
    size_t reply_bytes = 400;
    bool idempotency = false;
    std::string log;
    std::string disk;
    std::string data_dir;
    int pid = 0;
    double give_up_s = 60;

    bool floor_mode() const { return mode == "floor"; }
};

double now_s() {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

[[noreturn]] void die(const std::string& why) {
    std::fprintf(stderr, "bench_load: %s\n", why.c_str());
    std::exit(1);
}

struct Session {
    std::string id;
    uint32_t turns_sent = 0;
};

struct Request {
    size_t session = 0;
    std::string text;     // of the whole HTTP request
    std::string turn_id;  // empty for the creation of a conversation
};

// What a phase sends and what it makes of the answers.
class Source {
  public:
    virtual ~Source() = default;
    /// Fills the next request; false where there is none at this moment (or no more at all).
    virtual bool next(Request& request) = 0;
    virtual void answered(const Request& request, int status, std::string_view body, double latency_s) = 0;
    /// The connection broke between request and answer: nobody knows what became of it, and it is not sent again.
    virtual void lost(const Request& request) = 0;
    /// True when nothing more will ever be sent.
    virtual bool finished() const = 0;
};

// The connections and their one loop. Knows HTTP, not turns.
class Client {
  public:
    Client(const Options& options) : options_(options), read_buffer_(read_bytes) {
        size_t colon = options.endpoint.rfind(':');
        address_.sin_family = AF_INET;
        if (colon == std::string::npos ||
            ::inet_pton(AF_INET, options.endpoint.substr(0, colon).c_str(), &address_.sin_addr) != 1) {
            die("wants IPV4:PORT, got " + options.endpoint);
        }
        address_.sin_port = htons(static_cast<uint16_t>(std::atoi(options.endpoint.c_str() + colon + 1)));
        epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
        if (epoll_ < 0) die("epoll_create1 failed");
    }

    /// Runs the source to its end over `count` connections; connections stay open for the next phase. A server that
    /// does not answer anything for give_up_s ends the program.
    void run(Source& source, size_t count) {
        source_ = &source;
        while (connections_.size() < count) {
            connections_.emplace_back();
            connections_.back().index = connections_.size() - 1;
        }
        active_ = count;
        last_answer_ = now_s();
        for (size_t i = 0; i < active_; ++i) send_next(connections_[i]);
        while (!source.finished() || waiting_ > 0) turn_loop();
        source_ = nullptr;
    }

    uint64_t connection_failures() const { return failures_; }
    double first_failure_at() const { return first_failure_at_; }

  private:
    enum class State { closed, connecting, idle, waiting };
    struct Connection {
        size_t index = 0;
        int fd = -1;
        State state = State::closed;
        std::string in;
        size_t sent = 0;  // bytes of request.text
        Request request;
        double started = 0;
    };

    void turn_loop() {
        // While nobody listens, connect fails at once: one attempt per pause, or the generator would take the core that
        // the restarting server needs.
        bool reconnect = false;
        for (size_t i = 0; i < active_ && waiting_ < active_ && !source_->finished(); ++i) {
            Connection& connection = connections_[i];
            if (connection.state == State::closed) {
                bool may_try = retry_at_ == 0 || (!reconnect && now_s() >= retry_at_);
                reconnect = true;
                if (!may_try) continue;
            }
            send_next(connection);
        }
        std::array<epoll_event, 256> events;
        int timeout_ms = reconnect ? static_cast<int>(reconnect_pause_s * 1000) : 100;
        int ready = ::epoll_wait(epoll_, events.data(), events.size(), timeout_ms);
        for (int i = 0; i < ready; ++i) handle(connections_[events[i].data.u64], events[i].events);
        if (ready <= 0 && now_s() - last_answer_ > options_.give_up_s) {
            die("no answer for " + std::to_string(options_.give_up_s) + " s");
        }
    }

    void open(Connection& connection) {
        connection.fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (connection.fd < 0) die("socket failed");
        int on = 1;
        ::setsockopt(connection.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        int result = ::connect(connection.fd, reinterpret_cast<sockaddr*>(&address_), sizeof(address_));
        if (result != 0 && errno != EINPROGRESS) return close(connection);
        epoll_event event{};
        event.events = EPOLLIN | EPOLLOUT;
        event.data.u64 = connection.index;
        if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, connection.fd, &event) != 0) die("epoll_ctl failed");
        connection.state = State::connecting;
    }

    void close(Connection& connection) {
        ++failures_;
        if (first_failure_at_ == 0) first_failure_at_ = now_s();
        ::close(connection.fd);  // leaves the epoll set with it
        connection.fd = -1;
        bool was_waiting = connection.state == State::waiting;
        if (connection.state == State::closed || connection.state == State::connecting) {
            retry_at_ = now_s() + reconnect_pause_s;
        }
        connection.state = State::closed;
        connection.in.clear();
        if (was_waiting) {
            --waiting_;
            source_->lost(connection.request);
        }
    }

    void handle(Connection& connection, uint32_t events) {
        if (connection.state == State::connecting) {
            int error = 0;
            socklen_t length = sizeof(error);
            ::getsockopt(connection.fd, SOL_SOCKET, SO_ERROR, &error, &length);
            if (error != 0 || (events & (EPOLLERR | EPOLLHUP)) != 0) return close(connection);
            connection.state = State::idle;
            retry_at_ = 0;
            want_writable(connection, false);
            return send_next(connection);
        }
        if ((events & EPOLLOUT) != 0 && connection.state == State::waiting) continue_sending(connection);
        if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0 && connection.fd >= 0) read_answer(connection);
    }

    void want_writable(Connection& connection, bool wanted) {
        epoll_event event{};
        event.events = wanted ? EPOLLIN | EPOLLOUT : EPOLLIN;
        event.data.u64 = connection.index;
        ::epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fd, &event);
    }

    void send_next(Connection& connection) {
        if (connection.state == State::closed) return open(connection);
        if (connection.state != State::idle || !source_->next(connection.request)) return;
        connection.state = State::waiting;
        ++waiting_;
        connection.sent = 0;
        connection.started = now_s();
        continue_sending(connection);
    }

    void continue_sending(Connection& connection) {
        const std::string& text = connection.request.text;
        if (connection.sent == text.size()) return;
        ssize_t sent =
            ::send(connection.fd, text.data() + connection.sent, text.size() - connection.sent, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) return close(connection);
        bool was_short = connection.sent > 0;
        connection.sent += static_cast<size_t>(std::max<ssize_t>(sent, 0));
        bool is_short = connection.sent < text.size();
        if (is_short || was_short) want_writable(connection, is_short);
    }

    void read_answer(Connection& connection) {
        ssize_t got = ::recv(connection.fd, read_buffer_.data(), read_buffer_.size(), 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) return close(connection);
        std::string_view bytes(read_buffer_.data(), static_cast<size_t>(got));
        if (!connection.in.empty()) {
            connection.in += bytes;
            bytes = connection.in;
        }
        auto message = first_message(bytes);
        if (!message) {
            if (connection.in.empty()) connection.in = bytes;
            return;
        }
        if (connection.state != State::waiting || message->head.size() < 12) return close(connection);
        int status = std::atoi(std::string(message->head.substr(9, 3)).c_str());
        double now = now_s();
        last_answer_ = now;
        connection.state = State::idle;
        --waiting_;
        source_->answered(connection.request, status, message->body, now - connection.started);
        bool closing = header_field(message->head, "connection").starts_with("close");
        connection.in.clear();
        if (closing) {
            ::close(connection.fd);
            connection.fd = -1;
            connection.state = State::closed;
        }
        send_next(connection);
    }

    const Options& options_;
    sockaddr_in address_{};
    int epoll_ = -1;
    std::vector<Connection> connections_;
    std::vector<char> read_buffer_;
    Source* source_ = nullptr;
    size_t active_ = 0;
    size_t waiting_ = 0;  // requests without an answer
    double last_answer_ = 0;
    uint64_t failures_ = 0;
    double retry_at_ = 0;  // after a refused attempt to connect
    double first_failure_at_ = 0;
};

// Writes requests. The message of a turn begins with its id, so that a checker finds it in the history, and goes on
// with text that does not compress to nothing.
class RequestWriter {
  public:
    explicit RequestWriter(const Options& options) : options_(options) {
        uint64_t state = 88172645463325252ull;
        for (size_t i = 0; i < noise_bytes; ++i) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            noise_ += state % 6 == 0 ? ' ' : static_cast<char>('a' + state % 26);
        }
    }

    std::string create() const { return post("/v1/conversations", "{}", {}); }

    void turn(const Session& session, size_t index, uint32_t turn, Request& out) const {
        out.turn_id = options_.session_prefix + std::to_string(index) + "-" + std::to_string(turn);
        std::string message = out.turn_id + " ";
        if (message.size() < message_bytes) {
            size_t from = (index * 7919 + size_t{turn} * 211) % (noise_bytes - message_bytes);
            message.append(noise_, from, message_bytes - message.size());
        }
        if (options_.floor_mode()) {
            out.text =
                post("/turn/" + session.id, "{\"id\":\"" + out.turn_id + "\",\"message\":\"" + message + "\"}", {});
            return;
        }
        std::string body = "{\"model\":\"" + options_.model + "\",\"conversation\":\"" + session.id +
                           "\",\"input\":\"" + message + "\"}";
        out.text = post("/v1/responses", body, options_.idempotency ? "bench-" + out.turn_id : std::string{});
    }

  private:
    std::string post(const std::string& path, const std::string& body, const std::string& idempotency_key) const {
        std::string text;
        text.reserve(256 + body.size());
        text += "POST ";
        text += path;
        text += " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
        if (!options_.key.empty()) text += "Authorization: Bearer " + options_.key + "\r\n";
        if (!idempotency_key.empty()) text += "Idempotency-Key: " + idempotency_key + "\r\n";
        text += "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n";
        text += body;
        return text;
    }

    const Options& options_;
    std::string noise_;
};

// Creates the conversations of a run.
class Creation : public Source {
  public:
    Creation(const RequestWriter& writer, std::vector<Session>& sessions, size_t count)
        : text_(writer.create()), sessions_(sessions), count_(count) {
        sessions_.reserve(count);
    }
    bool next(Request& request) override {
        if (asked_ == count_) return false;
        ++asked_;
        request.text = text_;
        return true;
    }
    void answered(const Request&, int status, std::string_view body, double) override {
        std::string_view id = string_field(body, "\"id\":");
        if ((status != 200 && status != 201) || id.empty()) {
            die("creating a conversation answered " + std::to_string(status) + ": " + std::string(body.substr(0, 300)));
        }
        sessions_.push_back({.id = std::string(id)});
    }
    void lost(const Request&) override { --asked_; }
    bool finished() const override { return sessions_.size() == count_; }

  private:
    std::string text_;
    std::vector<Session>& sessions_;
    size_t count_;
    size_t asked_ = 0;
};

// Turns, round-robin, until a time or a number of turns is reached.
class Turns : public Source {
  public:
    struct Limits {
        double until_s = 0;  // monotonic; 0: no limit
        uint64_t turns = 0;  // 0: no limit
        bool once = false;   // each session gets one turn
    };
    struct Outcome {
        uint64_t acknowledged = 0;
        uint64_t lost = 0;
        std::map<std::string, uint64_t> errors;  // by status; "200" is an answer that is no acknowledgement
        std::vector<uint32_t> latencies_us;
        std::string first_error;  // body of the first answer that is no acknowledgement
    };

    Turns(const Options& options, const RequestWriter& writer, std::vector<Session>& sessions, Limits limits)
        : options_(options), writer_(writer), sessions_(sessions), limits_(limits) {
        for (size_t i = 0; i < sessions.size(); ++i) free_.push_back(i);
    }

    /// Each line: SENT|ACK|LOST session turn [response id].
    void log_to(FILE* log) { log_ = log; }
    /// Called at each acknowledgement with the times of request and answer.
    std::function<void(double, double)> on_acknowledged;

    bool next(Request& request) override {
        if (finished() || free_.empty()) return false;
        size_t index = free_.front();
        free_.pop_front();
        ++sent_;
        Session& session = sessions_[index];
        request.session = index;
        writer_.turn(session, index, ++session.turns_sent, request);
        if (log_ != nullptr) std::fprintf(log_, "SENT %s %s\n", session.id.c_str(), request.turn_id.c_str());
        return true;
    }

    void answered(const Request& request, int status, std::string_view body, double latency_s) override {
        bool acknowledged = status == 200 && is_acknowledgement(body);
        double now = now_s();
        if (acknowledged) {
            ++outcome_.acknowledged;
            outcome_.latencies_us.push_back(static_cast<uint32_t>(latency_s * 1e6));
            if (on_acknowledged) on_acknowledged(now - latency_s, now);
        } else {
            ++outcome_.errors[std::to_string(status)];
            if (outcome_.first_error.empty()) outcome_.first_error = body.substr(0, 400);
            if (limits_.turns != 0) --sent_;  // a refused turn is not one of the wanted number
        }
        if (log_ != nullptr) {
            std::string_view response = string_field(body, "\"id\":");
            std::fprintf(log_, "%s %s %s %.*s\n", acknowledged ? "ACK" : "REFUSED",
                         sessions_[request.session].id.c_str(), request.turn_id.c_str(),
                         static_cast<int>(response.size()), response.data());
        }
        if (!limits_.once || !acknowledged) free_.push_back(request.session);
    }

    void lost(const Request& request) override {
        ++outcome_.lost;
        if (log_ != nullptr) {
            std::fprintf(log_, "LOST %s %s\n", sessions_[request.session].id.c_str(), request.turn_id.c_str());
        }
        if (limits_.turns != 0) --sent_;
        free_.push_back(request.session);
    }

    bool finished() const override {
        if (limits_.turns != 0 && sent_ >= limits_.turns) return true;
        return limits_.until_s != 0 && now_s() >= limits_.until_s;
    }

    Outcome& outcome() { return outcome_; }

  private:
    bool is_acknowledgement(std::string_view body) const {
        if (options_.floor_mode()) return string_field(body, "\"reply\":").size() >= options_.reply_bytes;
        // Items carry a status too, so any other status than completed disqualifies.
        for (size_t at = body.find("\"status\":"); at != std::string_view::npos;
             at = body.find("\"status\":", at + 1)) {
            if (string_field(body.substr(at), "\"status\":") != "completed") return false;
        }
        if (body.find("\"status\":") == std::string_view::npos) return false;
        for (size_t at = body.find("\"text\":\""); at != std::string_view::npos;
             at = body.find("\"text\":\"", at + 1)) {
            if (string_field(body.substr(at), "\"text\":").size() >= options_.reply_bytes) return true;
        }
        return false;
    }

    const Options& options_;
    const RequestWriter& writer_;
    std::vector<Session>& sessions_;
    Limits limits_;
    std::deque<size_t> free_;
    uint64_t sent_ = 0;
    Outcome outcome_;
    FILE* log_ = nullptr;
};

// Everything that is read before and after a window.
class Window {
  public:
    explicit Window(const Options& options) : options_(options) {
        if (!options.disk.empty()) device_ = device_bytes_written(options.disk);
        if (options.pid != 0) server_cpu_ms_ = tree_cpu_ms(options.pid);
        own_cpu_ms_ = own_cpu_ms();
        begin_ = now_s();
        std::fprintf(stderr, "window begin\n");  // for whoever reads the server's counters at the same moments
    }

    /// Ends the window; the times are taken before the flush, which belongs to the bytes only.
    json::object end(Turns::Outcome& outcome) {
        double seconds = now_s() - begin_;
        std::fprintf(stderr, "window end\n");
        double own = own_cpu_ms() - own_cpu_ms_;
        double server = options_.pid != 0 ? tree_cpu_ms(options_.pid) - server_cpu_ms_ : 0;
        double turns = static_cast<double>(std::max<uint64_t>(outcome.acknowledged, 1));
        json::object out;
        out["turns"] = outcome.acknowledged;
        out["seconds"] = seconds;
        out["turns_per_s"] = static_cast<double>(outcome.acknowledged) / seconds;
        latencies(outcome.latencies_us, out);
        json::object errors;
        for (const auto& [status, count] : outcome.errors) errors[status] = count;
        out["errors"] = errors;
        if (!outcome.first_error.empty()) out["first_error"] = outcome.first_error;
        out["lost"] = outcome.lost;
        out["own_cpu_ms"] = own;
        out["own_cpu_ms_per_turn"] = own / turns;
        if (options_.pid != 0) {
            out["server_cpu_ms"] = server;
            out["server_cpu_ms_per_turn"] = server / turns;
            MemoryKilobytes memory = tree_memory(options_.pid);
            out["pss_kb"] = memory.pss;
            out["anonymous_kb"] = memory.anonymous;
        }
        if (!options_.disk.empty()) {
            auto device = device_bytes_written(options_.disk);
            if (device && device_) {
                out["device_bytes"] = *device - *device_;
                out["device_bytes_per_turn"] = static_cast<double>(*device - *device_) / turns;
            } else {
                out["device_bytes"] = nullptr;
            }
        }
        if (!options_.data_dir.empty()) out["data_dir_bytes"] = data_dir();
        return out;
    }

  private:
    json::object data_dir() const {
        json::object out;
        for (const auto& [entry, bytes] : allocated_bytes(options_.data_dir)) out[entry] = bytes;
        return out;
    }

    static void latencies(std::vector<uint32_t>& us, json::object& out) {
        if (us.empty()) return;
        std::sort(us.begin(), us.end());
        auto at = [&us](double q) {
            return us[std::min(us.size() - 1, static_cast<size_t>(q * static_cast<double>(us.size())))] / 1000.0;
        };
        out["p50_ms"] = at(0.50);
        out["p90_ms"] = at(0.90);
        out["p99_ms"] = at(0.99);
        out["max_ms"] = us.back() / 1000.0;
    }

    const Options& options_;
    std::optional<uint64_t> device_;
    double server_cpu_ms_ = 0;
    double own_cpu_ms_ = 0;
    double begin_ = 0;
};

std::vector<Session> make_sessions(const Options& options, Client& client, const RequestWriter& writer, size_t count) {
    std::vector<Session> sessions;
    if (options.floor_mode()) {
        for (size_t i = 0; i < count; ++i) sessions.push_back({.id = options.session_prefix + std::to_string(i)});
        return sessions;
    }
    Creation creation(writer, sessions, count);
    client.run(creation, std::min<size_t>(count, options.connections));
    return sessions;
}

json::object run_w1(const Options& options, Client& client, const RequestWriter& writer) {
    auto sessions = make_sessions(options, client, writer, options.sessions);
    if (options.warmup_s > 0) {
        Turns warmup(options, writer, sessions, {.until_s = now_s() + options.warmup_s});
        client.run(warmup, options.connections);
    }
    Window window(options);
    Turns turns(options, writer, sessions, {.until_s = now_s() + options.seconds});
    client.run(turns, options.connections);
    return window.end(turns.outcome());
}

std::vector<uint32_t> turn_latencies(const Options& options, Client& client, const RequestWriter& writer,
                                     std::vector<Session>& sessions, uint64_t count) {
    Turns turns(options, writer, sessions, {.turns = count});
    client.run(turns, 1);
    return std::move(turns.outcome().latencies_us);
}

double median_ms(std::vector<uint32_t> us) {
    if (us.empty()) return 0;
    auto middle = us.begin() + static_cast<std::ptrdiff_t>(us.size() / 2);
    std::nth_element(us.begin(), middle, us.end());
    return *middle / 1000.0;
}

// The disk's mood drifts over the seconds between turn 10 and turn 10,000, by more than the 5 % that are asked about.
// So the old session takes turns with young ones, one turn each, and the medians of the same seconds are compared.
json::object compare_ages(const Options& options, Client& client, const RequestWriter& writer,
                          std::vector<Session>& old) {
    constexpr size_t youngsters = 20;
    constexpr size_t turns_each = 20;  // turns 11 to 30
    std::vector<uint32_t> old_us, young_us;
    for (size_t i = 0; i < youngsters; ++i) {
        auto young = make_sessions(options, client, writer, 1);
        if (options.floor_mode()) young[0].id += "-young-" + std::to_string(old[0].turns_sent);
        turn_latencies(options, client, writer, young, 10);
        for (size_t turn = 0; turn < turns_each; ++turn) {
            for (auto [sessions, us] : {std::pair{&young, &young_us}, std::pair{&old, &old_us}}) {
                auto one = turn_latencies(options, client, writer, *sessions, 1);
                us->insert(us->end(), one.begin(), one.end());
            }
        }
    }
    json::object out;
    out["old_turn"] = old[0].turns_sent;
    out["pairs"] = old_us.size();
    out["old_p50_ms"] = median_ms(old_us);
    out["young_p50_ms"] = median_ms(young_us);
    out["ratio"] = median_ms(old_us) / std::max(median_ms(young_us), 1e-6);
    return out;
}

json::object run_w2(const Options& options, Client& client, const RequestWriter& writer) {
    auto sessions = make_sessions(options, client, writer, 1);
    json::array ranges, ages;
    uint64_t done = 0;
    for (uint64_t end : {10, 90, 110, 900, 980, 1000, 9900, 9980, 10'000, 99'900, 99'980, 100'000}) {
        end = std::min<uint64_t>(end, options.turns);
        if (end == done) break;
        Window window(options);
        Turns turns(options, writer, sessions, {.turns = end - done});
        client.run(turns, 1);
        json::object range = window.end(turns.outcome());
        range["first_turn"] = done + 1;
        range["last_turn"] = end;
        ranges.push_back(std::move(range));
        done = end;
        if (end == 1000 || end == options.turns) ages.push_back(compare_ages(options, client, writer, sessions));
    }
    json::object out;
    out["session"] = sessions.front().id;
    out["ranges"] = std::move(ranges);
    out["ages"] = std::move(ages);
    return out;
}

json::object run_w3(const Options& options, Client& client, const RequestWriter& writer) {
    auto sessions = make_sessions(options, client, writer, options.sessions);
    FILE* log = options.log.empty() ? nullptr : std::fopen(options.log.c_str(), "w");
    if (!options.log.empty() && log == nullptr) die("cannot write " + options.log);
    Window window(options);
    Turns turns(options, writer, sessions, {.until_s = now_s() + options.seconds});
    turns.log_to(log);
    double recovered_at = 0;
    // The request must be younger than the failure: answers of the dead server may still lie in socket buffers.
    turns.on_acknowledged = [&](double asked_at, double answered_at) {
        double failed_at = client.first_failure_at();
        if (recovered_at == 0 && failed_at != 0 && asked_at > failed_at) recovered_at = answered_at;
    };
    client.run(turns, options.connections);
    if (log != nullptr && std::fclose(log) != 0) die("cannot write " + options.log);
    json::object out = window.end(turns.outcome());
    out["connection_failures"] = client.connection_failures();
    out["first_failure_at_s"] = client.first_failure_at();  // CLOCK_MONOTONIC, comparable with the killer's clock
    out["first_reply_after_at_s"] = recovered_at;
    if (recovered_at != 0) out["recovery_s"] = recovered_at - client.first_failure_at();
    return out;
}

json::object run_w4(const Options& options, Client& client, const RequestWriter& writer) {
    double begin = now_s();
    auto sessions = make_sessions(options, client, writer, options.sessions);
    double creation_s = now_s() - begin;
    Window window(options);
    Turns turns(options, writer, sessions, {.turns = options.sessions, .once = true});
    client.run(turns, options.connections);
    json::object out = window.end(turns.outcome());
    out["creation_s"] = creation_s;
    return out;
}

json::object run(const Options& options) {
    Client client(options);
    RequestWriter writer(options);
    json::object out;
    if (options.workload == "w1") out = run_w1(options, client, writer);
    if (options.workload == "w2") out = run_w2(options, client, writer);
    if (options.workload == "w3") out = run_w3(options, client, writer);
    if (options.workload == "w4") out = run_w4(options, client, writer);
    out["workload"] = options.workload;
    out["mode"] = options.mode;
    out["connections"] = options.connections;
    out["sessions"] = options.sessions;
    return out;
}

}  // namespace
}  // namespace mainstay::bench

int main(int argc, char** argv) {
    mainstay::bench::Options options;
    std::string key_file;
    CLI::App app{"Closed-loop load for Mainstay's door, and for the floor program beside it"};
    app.add_option("endpoint", options.endpoint, "IPV4:PORT")->required();
    app.add_option("--workload", options.workload)->check(CLI::IsMember({"w1", "w2", "w3", "w4"}));
    app.add_option("--mode", options.mode, "responses (POST /v1/responses) | floor (POST /turn/{session})")
        ->check(CLI::IsMember({"responses", "floor"}));
    app.add_option("--model", options.model, "agent or model of each request");
    app.add_option("--key", options.key, "bearer key");
    app.add_option("--key-file", key_file, "file with the bearer key");
    app.add_option("--session-prefix", options.session_prefix, "begins session names (floor) and turn ids");
    app.add_option("--connections", options.connections)->check(CLI::Range(1, 4096));
    app.add_option("--sessions", options.sessions)->check(CLI::Range(1, 10'000'000));
    app.add_option("--warmup", options.warmup_s, "seconds, discarded (w1)");
    app.add_option("--seconds", options.seconds, "length of the window (w1, w3)");
    app.add_option("--turns", options.turns, "turns of the one session (w2)");
    app.add_option("--reply-bytes", options.reply_bytes, "an acknowledgement contains a reply of at least this length");
    app.add_flag("--idempotency", options.idempotency, "send an Idempotency-Key with each turn");
    app.add_option("--log", options.log, "file for SENT, ACK, REFUSED and LOST lines (w3)");
    app.add_option("--pid", options.pid, "server whose CPU and memory are read, with its children");
    app.add_option("--disk", options.disk, "any path on the disk whose written bytes are counted");
    app.add_option("--data-dir", options.data_dir, "directory whose allocated bytes are reported, by entry");
    app.add_option("--give-up", options.give_up_s, "seconds without any answer after which the run fails");
    CLI11_PARSE(app, argc, argv);
    if (!key_file.empty()) {
        options.key = mainstay::bench::file_text(key_file);
        while (!options.key.empty() && std::isspace(static_cast<unsigned char>(options.key.back())))
            options.key.pop_back();
    }
    std::printf("%s\n", boost::json::serialize(mainstay::bench::run(options)).c_str());
}
