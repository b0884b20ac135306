#pragma once
// A running door on a free loopback port, and a client that sends raw bytes, so that tests see what a peer would see.
// Every wait has a bound; the door ends with the fixture.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <chrono>
#include <string>
#include <thread>

#include "gateway/fake_bridge.h"
#include "gateway/server.h"

namespace mainstay {

class Client {
  public:
    explicit Client(uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    }
    ~Client() { close(fd_); }
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    bool connected() const { return connected_; }
    bool send(std::string_view bytes) {
        while (!bytes.empty()) {
            const auto n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (n <= 0) return false;
            bytes.remove_prefix(static_cast<size_t>(n));
        }
        return true;
    }
    void finish_sending() { shutdown(fd_, SHUT_WR); }

    struct Answer {
        int status = 0;  // 0: the connection ended first
        std::string head, body;
        bool has(std::string_view line) const { return head.find(line) != std::string::npos; }
        boost::json::value json() const { return boost::json::parse(body); }
        std::string code() const {
            const auto value = json();
            return std::string(value.at("error").at("code").as_string());
        }
    };
    /// One answer, by its Content-Length or its chunks.
    Answer read(bool head_only = false) {
        Answer answer;
        size_t end;
        while ((end = in_.find("\r\n\r\n")) == std::string::npos)
            if (!more()) return answer;
        answer.head = in_.substr(0, end + 4);
        in_.erase(0, end + 4);
        answer.status = std::stoi(answer.head.substr(9, 3));
        if (answer.status == 100 || head_only) return answer;
        if (answer.has("Transfer-Encoding: chunked")) {
            while (true) {
                size_t line;
                while ((line = in_.find("\r\n")) == std::string::npos)
                    if (!more()) return answer;
                const size_t size = std::stoul(in_.substr(0, line), nullptr, 16);
                while (in_.size() < line + 2 + size + 2)
                    if (!more()) return answer;
                answer.body += in_.substr(line + 2, size);
                in_.erase(0, line + 2 + size + 2);
                if (size == 0) return answer;
            }
        }
        const auto at = answer.head.find("Content-Length: ");
        const size_t size = at == std::string::npos ? 0 : std::stoul(answer.head.substr(at + 16));
        while (in_.size() < size)
            if (!more()) return answer;
        answer.body = in_.substr(0, size);
        in_.erase(0, size);
        return answer;
    }
    /// True if the door closes the connection, nothing more coming, within the bound.
    bool ended() {
        while (more()) {
        }
        return eof_ && in_.empty();
    }
    /// Waits until what was received and not yet read contains `text`.
    bool received(std::string_view text) {
        while (in_.find(text) == std::string::npos)
            if (!more()) return false;
        return true;
    }

  private:
    bool more() {
        pollfd entry{fd_, POLLIN, 0};
        if (eof_ || poll(&entry, 1, 10'000) <= 0) return false;
        char bytes[16384];
        const auto n = recv(fd_, bytes, sizeof bytes, 0);
        if (n <= 0) {
            eof_ = true;
            return false;
        }
        in_.append(bytes, static_cast<size_t>(n));
        return true;
    }
    int fd_;
    bool connected_ = false, eof_ = false;
    std::string in_;
};

class RunningDoor {
  public:
    static DoorConfig quick() {
        DoorConfig config;
        config.admin_key = "secret";
        config.tick_ms = 10;
        config.drain_ms = 5'000;
        return config;
    }
    explicit RunningDoor(DoorConfig config = quick()) : door(std::move(config), bridge, registry) {
        const auto started = door.start();
        if (!started) throw std::runtime_error(started.error().message);
        thread_ = std::thread([this] { door.run(); });
    }
    ~RunningDoor() {
        door.stop();
        door.stop();  // tests leave connections open
        if (thread_.joinable()) thread_.join();
    }
    void join() { thread_.join(); }

    static std::string request(std::string_view method, std::string_view target, std::string_view body = {},
                               std::string_view headers = {}) {
        std::string out;
        out.append(method).append(" ").append(target).append(" HTTP/1.1\r\nHost: localhost\r\n");
        out.append("Authorization: Bearer secret\r\nContent-Type: application/json\r\n").append(headers);
        if (!body.empty()) out.append("Content-Length: ").append(std::to_string(body.size())).append("\r\n");
        return out.append("\r\n").append(body);
    }
    Client::Answer ask(std::string_view method, std::string_view target, std::string_view body = {},
                       std::string_view headers = {}) {
        Client client(door.port());
        client.send(request(method, target, body, headers));
        return client.read(method == "HEAD");
    }

    FakeBridge bridge;
    prometheus::Registry registry;
    Door door;

  private:
    std::thread thread_;
};

/// Polls until `condition` holds; false after ten seconds.
template <class Condition>
bool eventually(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
}

}  // namespace mainstay
