#pragma once
// The command line as a user runs it, against a door of the test's own: what was asked is kept, what comes back is the
// test's. One thread of its own, which ends with the door.

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <sstream>
#include <thread>

#include "tools/cli_commands.h"

namespace mainstay {

struct Seen {
    std::string line;  // "GET /v1/agents HTTP/1.1"
    std::string head, body;
};

inline std::string answer(int status, const std::string& body, const std::string& type = "application/json") {
    return "HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Type: " + type +
           "\r\nContent-Length: " + std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n" + body;
}

/// A door of our own on a free loopback port: what it is asked is kept, what it says is the test's. Ends with the test.
class StubDoor {
  public:
    using Handler = std::function<std::string(const Seen&)>;
    explicit StubDoor(Handler handler) : handler_(std::move(handler)) {
        listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        REQUIRE(listener_ >= 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        REQUIRE(::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
        REQUIRE(::listen(listener_, 16) == 0);
        socklen_t size = sizeof address;
        REQUIRE(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
        port_ = ntohs(address.sin_port);
        REQUIRE(::pipe(stop_) == 0);
        thread_ = std::thread([this] { serve(); });
    }
    ~StubDoor() {
        (void)!::write(stop_[1], "x", 1);
        thread_.join();
        for (const int fd : {listener_, stop_[0], stop_[1]}) ::close(fd);
    }
    StubDoor(const StubDoor&) = delete;
    std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
    std::string url() const { return "http://" + address(); }
    std::vector<Seen> seen() const {
        std::lock_guard lock(mutex_);
        return seen_;
    }

  private:
    void serve() {
        for (;;) {
            pollfd wait[2] = {{listener_, POLLIN, 0}, {stop_[0], POLLIN, 0}};
            if (::poll(wait, 2, -1) < 0 || wait[1].revents != 0) return;
            const int client = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
            if (client < 0) continue;
            talk(client);
            ::close(client);
        }
    }
    void talk(int client) {
        std::string text;
        size_t end, length = 0;
        char buffer[4096];
        while ((end = text.find("\r\n\r\n")) == std::string::npos || text.size() < end + 4 + length) {
            const ssize_t got = ::read(client, buffer, sizeof buffer);
            if (got <= 0) return;
            text.append(buffer, size_t(got));
            end = text.find("\r\n\r\n");
            const size_t at = text.find("Content-Length: ");
            if (end != std::string::npos && at < end) length = std::stoul(text.substr(at + 16));
        }
        Seen request{text.substr(0, text.find("\r\n")), text.substr(0, end), text.substr(end + 4)};
        const std::string reply = handler_(request);
        {
            std::lock_guard lock(mutex_);
            seen_.push_back(std::move(request));
        }
        for (size_t at = 0; at < reply.size();) {
            const ssize_t sent = ::send(client, reply.data() + at, reply.size() - at, MSG_NOSIGNAL);
            if (sent <= 0) return;
            at += size_t(sent);
        }
    }

    Handler handler_;
    int listener_ = -1, stop_[2] = {-1, -1};
    uint16_t port_ = 0;
    mutable std::mutex mutex_;
    std::vector<Seen> seen_;
    std::thread thread_;
};

struct Ran {
    int status = 0;
    std::string out, error;
};

inline Ran run(std::vector<std::string> words, const std::string& input = {}, CliEnvironment environment = {},
               bool interactive = false) {
    std::istringstream in(input);
    std::ostringstream out, error;
    const int status = run_cli(words, environment, {in, out, error, interactive});
    return {status, out.str(), error.str()};
}

inline Ran run_at(const StubDoor& door, std::vector<std::string> words, const std::string& input = {},
                  bool interactive = false) {
    words.insert(words.begin(), {"--url", door.url(), "--key", "k"});
    return run(std::move(words), input, {}, interactive);
}

class Folder {
  public:
    Folder() {
        std::string path = (std::filesystem::temp_directory_path() / "mainstay-cli-XXXXXX").string();
        REQUIRE(mkdtemp(path.data()) != nullptr);
        path_ = path;
    }
    ~Folder() { std::filesystem::remove_all(path_); }
    Folder(const Folder&) = delete;
    std::string write(const std::string& name, const std::string& text) const {
        std::ofstream(path_ + "/" + name) << text;
        return path_ + "/" + name;
    }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};

}  // namespace mainstay
