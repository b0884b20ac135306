#include "runtime/tool/child_process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace mainstay {

namespace {

void shut(int& fd) {
    if (fd >= 0) ::close(fd);
    fd = -1;
}

struct Pipe {
    int read = -1, write = -1;
    Pipe() = default;
    Pipe(const Pipe&) = delete;
    Pipe& operator=(const Pipe&) = delete;
    ~Pipe() {
        shut(read);
        shut(write);
    }
    bool open() {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0) return false;
        read = ends[0];
        write = ends[1];
        return true;
    }
};

std::map<std::string, std::string> environment(const std::map<std::string, std::string>& extra) {
    std::map<std::string, std::string> env = extra;
    for (const char* name : {"PATH", "HOME", "LANG"}) {
        if (const char* value = std::getenv(name)) env.emplace(name, value);
    }
    env.emplace("PATH", "/usr/local/bin:/usr/bin:/bin");
    return env;
}

/// Empty where there is no such program.
std::string find_program(const std::string& name, const std::string& path) {
    if (name.find('/') != std::string::npos) return name;
    size_t begin = 0;
    while (begin <= path.size()) {
        const size_t end = std::min(path.find(':', begin), path.size());
        if (end > begin) {  // an empty entry would mean the working directory
            std::string candidate = path.substr(begin, end - begin) + "/" + name;
            if (::access(candidate.c_str(), X_OK) == 0) return candidate;
        }
        begin = end + 1;
    }
    return {};
}

struct Images {
    std::vector<std::string> texts;
    std::vector<char*> pointers;
    void close() {
        for (auto& text : texts) pointers.push_back(text.data());
        pointers.push_back(nullptr);
    }
};

/// Runs in the child between fork and exec: system calls only, for another thread may have held any lock.
[[noreturn]] void become(const char* program, char* const* argv, char* const* env, int in, int out, int err, int status,
                         pid_t parent) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);  // the daemon died before the line above
    for (int number = 1; number < NSIG; ++number) ::signal(number, SIG_DFL);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    const bool ready = ::dup2(in, 0) == 0 && ::dup2(out, 1) == 1 && ::dup2(err, 2) == 2 &&
                       ::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) == 0;
    if (ready) ::execve(program, argv, env);
    const int problem = errno;
    // If even this fails the parent reads nothing and meets the end of the child instead.
    [[maybe_unused]] const auto said = ::write(status, &problem, sizeof problem);
    ::_exit(127);
}

}  // namespace

Result<std::unique_ptr<ChildProcess>> ChildProcess::start(const std::vector<std::string>& command,
                                                          const std::map<std::string, std::string>& env) {
    if (command.empty()) return {ErrorCode::tool_unavailable, "The tool server has no command."};
    const auto variables = environment(env);
    const std::string program = find_program(command[0], variables.at("PATH"));
    if (program.empty()) return {ErrorCode::tool_unavailable, "There is no program \"" + command[0] + "\" in PATH."};
    Images argv, envp;
    argv.texts = command;
    argv.close();
    for (const auto& [name, value] : variables) envp.texts.push_back(name + "=" + value);
    envp.close();

    Pipe in, out, err, status;
    auto failed = [&](const char* what) {
        return Error{
            ErrorCode::tool_unavailable,
            "The tool server \"" + command[0] + "\" could not be started: " + what + ": " + std::strerror(errno) + ".",
            {}};
    };
    if (!in.open() || !out.open() || !err.open() || !status.open()) return failed("pipe");
    for (const int fd : {in.write, out.read, err.read}) ::fcntl(fd, F_SETFL, O_NONBLOCK);

    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid < 0) return failed("fork");
    if (pid == 0) {
        become(program.c_str(), argv.pointers.data(), envp.pointers.data(), in.read, out.write, err.write, status.write,
               parent);
    }
    ::setpgid(pid, pid);  // both sides, so that neither can be early; fails harmlessly after the exec
    std::unique_ptr<ChildProcess> child(new ChildProcess);
    child->pid_ = pid;
    // By number: the wrapper of glibc 2.36 is declared without C linkage.
    child->pidfd_ = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
    std::swap(child->in_, in.write);
    std::swap(child->out_, out.read);
    std::swap(child->err_, err.read);
    if (child->pidfd_ < 0) return failed("pidfd_open");
    ::fcntl(child->pidfd_, F_SETFD, FD_CLOEXEC);
    shut(status.write);
    int problem = 0;
    ssize_t got;
    do {
        got = ::read(status.read, &problem, sizeof problem);
    } while (got < 0 && errno == EINTR);
    if (got == static_cast<ssize_t>(sizeof problem)) {
        errno = problem;
        return failed("exec");
    }
    return child;
}

ChildProcess::~ChildProcess() {
    if (pid_ > 0 && !reaped_) {
        signal_group(SIGKILL);
        ::kill(pid_, SIGKILL);  // a child that failed before its setpgid has no group yet
        siginfo_t info;
        while (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED) != 0 && errno == EINTR) {
        }
    }
    shut(in_);
    shut(out_);
    shut(err_);
    shut(pidfd_);
}

void ChildProcess::close_in() { shut(in_); }
void ChildProcess::close_out() { shut(out_); }
void ChildProcess::close_err() { shut(err_); }

void ChildProcess::signal_group(int signal) {
    // The leader is not reaped yet, so its id cannot have been given to another group.
    if (!reaped_) ::kill(-pid_, signal);
}

bool ChildProcess::reap() {
    if (reaped_) return true;
    siginfo_t info{};
    // First look without taking: while the leader is a zombie its group id is still ours to signal.
    if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) {
        return false;
    }
    ::kill(-pid_, SIGKILL);
    ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED);
    reaped_ = true;
    end_ = info.si_code == CLD_EXITED ? "exited with status " + std::to_string(info.si_status)
                                      : "was killed by signal " + std::to_string(info.si_status);
    return true;
}

size_t ChildProcess::unread() const {
    if (in_ < 0) return 0;
    // POLLERR on the writing end of a pipe: no reading end is open anywhere, so what is in the pipe stays there.
    pollfd ask{in_, POLLOUT, 0};
    int bytes = 0;
    if (::poll(&ask, 1, 0) < 1 || (ask.revents & POLLERR) == 0 || ::ioctl(in_, FIONREAD, &bytes) != 0) return 0;
    return static_cast<size_t>(bytes);
}

}  // namespace mainstay
