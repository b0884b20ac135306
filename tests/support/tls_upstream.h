#pragma once
// An HTTPS server on loopback with a certificate of its own for "localhost", for tests of who is trusted: openssl's
// s_server as a child process, ended by its pid with the object. Its files live in a directory that goes with it.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

namespace mainstay {

class TlsUpstream {
  public:
    TlsUpstream() {
        directory_ = (std::filesystem::temp_directory_path() / "mainstay_tls_XXXXXX").string();
        if (!::mkdtemp(directory_.data())) throw std::runtime_error("no temporary directory");
        int status = 0;
        const pid_t maker = start({"openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key_file(),
                                   "-out", certificate_file(), "-days", "2", "-subj", "/CN=localhost", "-addext",
                                   "subjectAltName=DNS:localhost"});
        if (::waitpid(maker, &status, 0) != maker || status != 0) throw std::runtime_error("openssl req failed");
        ::close(output_);
        server_ = start(
            {"openssl", "s_server", "-accept", "127.0.0.1:0", "-key", key_file(), "-cert", certificate_file(), "-www"});
        read_port();
    }
    ~TlsUpstream() {
        if (server_ > 0) {
            ::kill(server_, SIGKILL);
            ::waitpid(server_, nullptr, 0);
        }
        ::close(output_);
        std::error_code ignored;
        std::filesystem::remove_all(directory_, ignored);
    }
    TlsUpstream(const TlsUpstream&) = delete;
    TlsUpstream& operator=(const TlsUpstream&) = delete;

    std::string certificate_file() const { return directory_ + "/certificate.pem"; }
    std::string url(const std::string& host) const { return "https://" + host + ":" + port_ + "/"; }

  private:
    std::string key_file() const { return directory_ + "/key.pem"; }

    /// Starts a child whose standard output is output_.
    pid_t start(std::vector<std::string> words) {
        std::vector<char*> argv;
        for (auto& word : words) argv.push_back(word.data());
        argv.push_back(nullptr);
        int pipe_ends[2];
        if (::pipe2(pipe_ends, O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
        const pid_t child = ::fork();
        if (child < 0) throw std::runtime_error("no process");
        if (child == 0) {
            ::dup2(pipe_ends[1], STDOUT_FILENO);
            const int null = ::open("/dev/null", O_RDWR);
            ::dup2(null, STDIN_FILENO);
            ::dup2(null, STDERR_FILENO);
            ::execvp(argv[0], argv.data());
            ::_exit(127);
        }
        ::close(pipe_ends[1]);
        output_ = pipe_ends[0];
        return child;
    }

    void read_port() {
        std::string said;
        const std::string mark = "ACCEPT 127.0.0.1:";
        for (;;) {
            const size_t at = said.find(mark);
            if (const size_t end = said.find('\n', at); at != std::string::npos && end != std::string::npos) {
                port_ = said.substr(at + mark.size(), end - at - mark.size());
                return;
            }
            char bytes[512];
            pollfd waiting{output_, POLLIN, 0};
            const ssize_t got = ::poll(&waiting, 1, 20'000) > 0 ? ::read(output_, bytes, sizeof bytes) : 0;
            if (got <= 0) throw std::runtime_error("openssl s_server does not listen");
            said.append(bytes, static_cast<size_t>(got));
        }
    }

    std::string directory_, port_;
    int output_ = -1;
    pid_t server_ = -1;
};

}  // namespace mainstay
