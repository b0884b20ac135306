#pragma once
// An HTTP/1.1 server on loopback for tests of clients: it answers each request with the next scripted answer, byte for
// byte, so that garbage, stalls, early closes and slow headers can be played, and records what it was asked. One thread
// accepts, one serves each connection; all end with the object.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace mainstay {

/// What is written to the socket for one request. Pieces go out in separate writes.
struct FakeAnswer {
    enum class End { keep, close, reset, stall };
    std::vector<std::string> pieces;
    End end = End::keep;  // stall: nothing more until the client or the test goes away
};

/// A whole answer with Content-Length.
inline FakeAnswer fake_answer(int status, std::string body,
                              std::string headers = "Content-Type: application/json\r\n") {
    return {{"HTTP/1.1 " + std::to_string(status) + " Scripted\r\n" + headers +
             "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body},
            FakeAnswer::End::keep};
}

/// An event stream: each piece is one chunk of a chunked body. Without `complete` the terminating chunk is missing.
inline FakeAnswer fake_stream(const std::vector<std::string>& pieces, bool complete = true,
                              FakeAnswer::End end = FakeAnswer::End::keep) {
    FakeAnswer out;
    out.end = end;
    out.pieces.push_back(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (const auto& piece : pieces) {
        char size[20];
        std::snprintf(size, sizeof size, "%zx\r\n", piece.size());
        out.pieces.push_back(size + piece + "\r\n");
    }
    if (complete) out.pieces.push_back("0\r\n\r\n");
    return out;
}

class FakeUpstream {
  public:
    struct Request {
        std::string method, target, body;
        std::map<std::string, std::string> headers;  // names in lower case
    };

    /// `greeting` is written to each connection before anything is read: no HTTP server does so, nor a TLS one.
    explicit FakeUpstream(std::string greeting = {}) : greeting_(std::move(greeting)) {
        listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t length = sizeof address;
        if (listener_ < 0 || ::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
            ::listen(listener_, 64) != 0 ||
            ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length) != 0)
            throw std::runtime_error("no loopback listener");
        port_ = ntohs(address.sin_port);
        threads_.emplace_back([this] { accept_connections(); });
    }
    ~FakeUpstream() {
        {
            std::lock_guard lock(lock_);
            stopping_ = true;
            ::shutdown(listener_, SHUT_RDWR);
            for (const int socket : sockets_) ::shutdown(socket, SHUT_RDWR);
        }
        changed_.notify_all();
        for (size_t i = 0; i < threads_.size(); ++i) threads_[i].join();
        ::close(listener_);
    }
    FakeUpstream(const FakeUpstream&) = delete;
    FakeUpstream& operator=(const FakeUpstream&) = delete;

    std::string url(const std::string& path = "") const { return "http://127.0.0.1:" + std::to_string(port_) + path; }
    uint16_t port() const { return port_; }

    void answer(FakeAnswer answer) {
        std::lock_guard lock(lock_);
        answers_.push_back(std::move(answer));
    }
    std::vector<Request> requests() const {
        std::lock_guard lock(lock_);
        return requests_;
    }
    size_t connections() const {
        std::lock_guard lock(lock_);
        return connections_;
    }
    /// False where fewer than `count` requests came within the bound.
    bool wait_requests(size_t count, std::chrono::milliseconds bound = std::chrono::seconds(20)) {
        std::unique_lock lock(lock_);
        return changed_.wait_for(lock, bound, [&] { return requests_.size() >= count; });
    }
    /// Connections that have ended, by either side.
    bool wait_closed(size_t count, std::chrono::milliseconds bound = std::chrono::seconds(20)) {
        std::unique_lock lock(lock_);
        return changed_.wait_for(lock, bound, [&] { return closed_ >= count; });
    }

  private:
    void accept_connections() {
        for (;;) {
            const int socket = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
            std::lock_guard lock(lock_);
            if (socket < 0 || stopping_) {
                if (socket >= 0) ::close(socket);
                return;
            }
            const int on = 1;
            ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            sockets_.push_back(socket);
            ++connections_;
            threads_.emplace_back([this, socket] { serve(socket); });
        }
    }

    void serve(int socket) {
        std::string input;
        Request request;
        write_all(socket, greeting_);
        while (read_request(socket, input, request)) {
            FakeAnswer answer = fake_answer(500, "{\"error\":{\"message\":\"no answer was scripted\"}}");
            {
                std::lock_guard lock(lock_);
                requests_.push_back(request);
                if (!answers_.empty()) {
                    answer = std::move(answers_.front());
                    answers_.pop_front();
                }
                changed_.notify_all();
            }
            for (const auto& piece : answer.pieces)
                if (!write_all(socket, piece)) break;
            if (answer.end == FakeAnswer::End::keep) continue;
            if (answer.end == FakeAnswer::End::stall) wait_peer(socket);
            if (answer.end == FakeAnswer::End::reset) {
                const linger at_once{1, 0};
                ::setsockopt(socket, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
            }
            break;
        }
        std::lock_guard lock(lock_);
        std::erase(sockets_, socket);
        ::close(socket);
        ++closed_;
        changed_.notify_all();
    }

    static bool write_all(int socket, std::string_view bytes) {
        while (!bytes.empty()) {
            const ssize_t sent = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (sent <= 0) return false;
            bytes.remove_prefix(static_cast<size_t>(sent));
        }
        return true;
    }
    static bool read_more(int socket, std::string& input) {
        char bytes[16 * 1024];
        const ssize_t got = ::recv(socket, bytes, sizeof bytes, 0);
        if (got <= 0) return false;
        input.append(bytes, static_cast<size_t>(got));
        return true;
    }
    static void wait_peer(int socket) {
        std::string ignored;
        while (read_more(socket, ignored)) ignored.clear();
    }
    static bool read_request(int socket, std::string& input, Request& request) {
        size_t end = 0;
        while ((end = input.find("\r\n\r\n")) == std::string::npos)
            if (!read_more(socket, input)) return false;
        request = {};
        const std::string head = input.substr(0, end + 2);
        input.erase(0, end + 4);
        size_t at = head.find("\r\n");
        const std::string line = head.substr(0, at);
        request.method = line.substr(0, line.find(' '));
        request.target = line.substr(line.find(' ') + 1, line.rfind(' ') - line.find(' ') - 1);
        for (at += 2; at < head.size();) {
            const size_t next = head.find("\r\n", at);
            const std::string field = head.substr(at, next - at);
            const size_t colon = field.find(':');
            std::string name = field.substr(0, colon);
            for (char& c : name) c = static_cast<char>(::tolower(static_cast<unsigned char>(c)));
            const size_t value = field.find_first_not_of(' ', colon + 1);
            request.headers[name] = value == std::string::npos ? "" : field.substr(value);
            at = next + 2;
        }
        const auto length = request.headers.find("content-length");
        const size_t body = length == request.headers.end() ? 0 : std::strtoul(length->second.c_str(), nullptr, 10);
        while (input.size() < body)
            if (!read_more(socket, input)) return false;
        request.body = input.substr(0, body);
        input.erase(0, body);
        return true;
    }

    const std::string greeting_;
    int listener_ = -1;
    uint16_t port_ = 0;
    mutable std::mutex lock_;
    std::condition_variable changed_;
    std::deque<FakeAnswer> answers_;
    std::vector<Request> requests_;
    std::vector<int> sockets_;
    size_t connections_ = 0, closed_ = 0;
    bool stopping_ = false;
    std::deque<std::thread> threads_;
};

/// A loopback port that refuses connections: bound, then let go.
inline uint16_t refusing_port() {
    const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    if (socket < 0 || ::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0)
        throw std::runtime_error("no loopback port");
    ::close(socket);
    return ntohs(address.sin_port);
}

}  // namespace mainstay
