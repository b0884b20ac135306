#pragma once
// A real etcd of one member on loopback, for tests: a process in a directory of its own, ended by its pid with the
// object (and with the test, should that die first). tools/deps installs etcd; where it is absent a test fails.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fcntl.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cluster/etcd_client.h"

namespace mainstay {

/// Runs a program and waits; throws where it fails.
inline void run_program(std::vector<std::string> words) {
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
        const int null = ::open("/dev/null", O_RDWR);
        for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, fd);
        ::execvp(argv[0], argv.data());
        ::_exit(127);
    }
    int status = 0;
    if (child < 0 || ::waitpid(child, &status, 0) != child || status != 0)
        throw std::runtime_error(words[0] + " " + words[1] + " failed");
}

/// A certificate authority, and what it signed for a server on loopback and for a client; gone with the object.
class TestCertificates {
  public:
    TestCertificates() {
        directory_ = (std::filesystem::temp_directory_path() / "mainstay_ca_XXXXXX").string();
        if (!::mkdtemp(directory_.data())) throw std::runtime_error("no temporary directory");
        run_program({"openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                     "-days", "2", "-subj", "/CN=test authority", "-keyout", file("ca.key"), "-out", ca()});
        // etcd's gateway calls etcd itself with the server's certificate, so that is a client's too.
        sign("server", "extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=IP:127.0.0.1,DNS:localhost\n");
        sign("client", "extendedKeyUsage=clientAuth\n");
    }
    ~TestCertificates() {
        std::error_code ignored;
        std::filesystem::remove_all(directory_, ignored);
    }
    TestCertificates(const TestCertificates&) = delete;
    TestCertificates& operator=(const TestCertificates&) = delete;

    std::string ca() const { return file("ca.pem"); }
    std::string certificate(const std::string& who) const { return file(who + ".pem"); }
    std::string key(const std::string& who) const { return file(who + ".key"); }
    HttpCall::Options client() const { return {ca(), certificate("client"), key("client")}; }

  private:
    std::string file(const std::string& name) const { return directory_ + "/" + name; }
    void sign(const std::string& who, const std::string& extensions) {
        std::ofstream(file(who + ".ext")) << extensions;
        run_program({"openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
                     "/O=mainstay test", "-keyout", key(who), "-out", file(who + ".csr")});
        run_program({"openssl", "x509", "-req", "-in", file(who + ".csr"), "-CA", ca(), "-CAkey", file("ca.key"),
                     "-CAcreateserial", "-days", "2", "-extfile", file(who + ".ext"), "-out", certificate(who)});
    }
    std::string directory_;
};

class EtcdServer {
  public:
    /// With certificates it speaks TLS and wants one of its clients.
    explicit EtcdServer(const TestCertificates* certificates = nullptr) : certificates_(certificates) {
        directory_ = (std::filesystem::temp_directory_path() / "mainstay_etcd_XXXXXX").string();
        if (!::mkdtemp(directory_.data())) throw std::runtime_error("no temporary directory");
        // A free port may be taken by somebody else before etcd has it.
        for (int attempt = 0; attempt < 5; ++attempt) {
            port_ = free_port();
            peer_port_ = free_port();
            std::filesystem::remove_all(directory_ + "/data");
            if (start()) return;
        }
        const std::string log = last_log();
        remove_files();
        throw std::runtime_error("etcd does not start (tools/deps installs it): " + log);
    }
    ~EtcdServer() {
        kill();
        remove_files();
    }
    EtcdServer(const EtcdServer&) = delete;
    EtcdServer& operator=(const EtcdServer&) = delete;

    std::string url() const {
        return std::string(certificates_ ? "https" : "http") + "://127.0.0.1:" + std::to_string(port_);
    }
    void kill() {
        if (process_ <= 0) return;
        ::kill(process_, SIGKILL);
        ::waitpid(process_, nullptr, 0);
        process_ = -1;
    }
    /// What was answered is on disk. Returns when it answers again.
    void restart() {
        kill();
        if (!start()) throw std::runtime_error("etcd does not start again: " + last_log());
    }
    /// Stands still: nothing is lost and nothing is answered.
    void pause() {
        ::kill(process_, SIGSTOP);
        int status = 0;
        if (::waitpid(process_, &status, WUNTRACED) != process_ || !WIFSTOPPED(status))
            throw std::runtime_error("etcd does not stand still");
    }
    void resume() { ::kill(process_, SIGCONT); }

    /// A request of the test's own, past the coordinator.
    EtcdAnswer post(const char* path, const boost::json::object& body, const std::string& user = {},
                    const std::string& password = {}) const {
        EtcdClient client({{url()}, user, password, certificates_ ? certificates_->client() : HttpCall::Options{}});
        return client.post(path, body, EtcdClient::Repeat::never,
                           std::chrono::steady_clock::now() + std::chrono::seconds(10));
    }

  private:
    static uint16_t free_port() {
        const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t length = sizeof address;
        const bool bound = ::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
                           ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length) == 0;
        ::close(socket);
        if (!bound) throw std::runtime_error("no loopback port");
        return ntohs(address.sin_port);
    }

    bool start() {
        const std::string peer = "http://127.0.0.1:" + std::to_string(peer_port_);
        std::vector<std::string> words = {"etcd",
                                          "--name",
                                          "test",
                                          "--data-dir",
                                          directory_ + "/data",
                                          "--listen-client-urls",
                                          url(),
                                          "--advertise-client-urls",
                                          url(),
                                          "--listen-peer-urls",
                                          peer,
                                          "--initial-advertise-peer-urls",
                                          peer,
                                          "--initial-cluster",
                                          "test=" + peer,
                                          "--heartbeat-interval",
                                          "20",
                                          "--election-timeout",
                                          "200",
                                          "--logger",
                                          "zap",
                                          "--log-level",
                                          "warn"};
        if (certificates_)
            for (const auto& word :
                 {std::string("--cert-file"), certificates_->certificate("server"), std::string("--key-file"),
                  certificates_->key("server"), std::string("--trusted-ca-file"), certificates_->ca(),
                  std::string("--client-cert-auth")})
                words.push_back(word);
        std::vector<char*> argv;
        for (auto& word : words) argv.push_back(word.data());
        argv.push_back(nullptr);
        const pid_t parent = ::getpid();
        process_ = ::fork();
        if (process_ < 0) throw std::runtime_error("no process");
        if (process_ == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (::getppid() != parent) ::_exit(126);
            const int null = ::open("/dev/null", O_RDONLY);
            const int log = ::open(log_file().c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
            ::dup2(null, STDIN_FILENO);
            ::dup2(log, STDOUT_FILENO);
            ::dup2(log, STDERR_FILENO);
            ::execvp(argv[0], argv.data());
            ::_exit(127);
        }
        const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(30);
        while (std::chrono::steady_clock::now() < until) {
            if (::waitpid(process_, nullptr, WNOHANG) == process_) {
                process_ = -1;
                return false;
            }
            // Any refusal is an answer of the server as well: authentication may be on.
            EtcdClient client({{url()}, {}, {}, certificates_ ? certificates_->client() : HttpCall::Options{}});
            const auto answer = client.post("/v3/kv/range", {{"key", "AA=="}}, EtcdClient::Repeat::allowed,
                                            std::chrono::steady_clock::now() + std::chrono::seconds(2));
            if (answer.kind != EtcdAnswer::Kind::unanswered) return true;
            std::this_thread::sleep_for(std::chrono::milliseconds(10));  // between two looks
        }
        kill();
        return false;
    }
    std::string log_file() const { return directory_ + "/log"; }
    std::string last_log() const {
        std::ifstream in(log_file());
        std::string all{std::istreambuf_iterator<char>(in), {}};
        return all.size() > 2000 ? all.substr(all.size() - 2000) : all;
    }
    void remove_files() const {
        std::error_code ignored;
        std::filesystem::remove_all(directory_, ignored);
    }

    const TestCertificates* certificates_;
    std::string directory_;
    uint16_t port_ = 0, peer_port_ = 0;
    pid_t process_ = -1;
};

}  // namespace mainstay
