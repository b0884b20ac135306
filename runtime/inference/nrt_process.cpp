#include "runtime/inference/nrt_process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>

#include "runtime/base/utf8.h"
#include "runtime/base/version.h"
#include "runtime/inference/nrt_protocol.h"
#include "runtime/inference/nrt_worker.h"
#include "runtime/inference/step_check.h"

extern char** environ;

namespace mainstay {

namespace {

using Clock = std::chrono::steady_clock;

void shut(int& fd) {
    if (fd >= 0) ::close(fd);
    fd = -1;
}

/// -1 where the time is up.
int remaining_ms(Clock::time_point deadline) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    return left <= 0 ? -1 : int(std::min<int64_t>(left, 1'000'000));
}

Error absent(std::string message, std::string param) {
    return {ErrorCode::device_absent, std::move(message), std::move(param)};
}

// --- the process ------------------------------------------------------------------------------------------------

/// Both ends above what the child gets, so that nothing is overwritten while descriptors are put in their places.
struct Pair {
    int ours = -1, theirs = -1;
    Pair() = default;
    Pair(const Pair&) = delete;
    Pair& operator=(const Pair&) = delete;
    ~Pair() {
        shut(ours);
        shut(theirs);
    }
    bool raise() {
        for (int* end : {&ours, &theirs}) {
            const int high = ::fcntl(*end, F_DUPFD_CLOEXEC, nrt_worker_channel + 1);
            ::close(std::exchange(*end, high));
            if (high < 0) return false;
        }
        return true;
    }
    bool open_socket() {
        int ends[2];
        if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return false;
        ours = ends[0];
        theirs = ends[1];
        return raise();
    }
    bool open_pipe() {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0) return false;
        ours = ends[0];
        theirs = ends[1];
        return raise();
    }
};

/// argv or environment as execve wants it.
class Words {
  public:
    explicit Words(std::vector<std::string> texts) : texts_(std::move(texts)) {
        for (std::string& text : texts_) pointers_.push_back(text.data());
        pointers_.push_back(nullptr);
    }
    char* const* data() const { return pointers_.data(); }

  private:
    std::vector<std::string> texts_;
    std::vector<char*> pointers_;
};

std::vector<std::string> environment_of(const NrtOptions& options) {
    std::map<std::string, std::string> env = options.environment;
    for (char** entry = environ; *entry; ++entry) {
        const std::string_view line = *entry;
        const std::string name(line.substr(0, line.find('=')));
        const bool passed = name == "PATH" || name == "HOME" || name == "LANG" || name == "LD_LIBRARY_PATH" ||
                            name.rfind("NEURON_", 0) == 0;
        if (passed && name.size() < line.size()) env.emplace(name, line.substr(name.size() + 1));
    }
    if (!options.visible_cores.empty()) env["NEURON_RT_VISIBLE_CORES"] = options.visible_cores;
    // The runtime's own timeout comes first where it can: it knows more about what hung than our clock does.
    env.emplace("NEURON_RT_EXEC_TIMEOUT", std::to_string(std::max(options.step_timeout_ms / 1000, 2u) - 1));
    std::vector<std::string> out;
    for (const auto& [name, value] : env) out.push_back(name + "=" + value);
    return out;
}

/// Runs between fork and exec: system calls only, for another thread may have held any lock.
[[noreturn]] void become(const char* program, char* const* argv, char* const* env, int channel, int err, int problem_to,
                         pid_t parent) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);  // the daemon died before the line above
    for (int number = 1; number < NSIG; ++number) ::signal(number, SIG_DFL);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    // Printing to stdout is talking to stderr: libraries do both.
    const bool ready = null >= 0 && ::dup2(null, 0) == 0 && ::dup2(err, 1) == 1 && ::dup2(err, 2) == 2 &&
                       ::dup2(channel, nrt_worker_channel) == nrt_worker_channel &&
                       ::close_range(nrt_worker_channel + 1, ~0U, CLOSE_RANGE_CLOEXEC) == 0;
    if (ready) ::execve(program, argv, env);
    const int problem = errno;
    [[maybe_unused]] const auto said = ::write(problem_to, &problem, sizeof problem);
    ::_exit(127);
}

/// Another program's words, fit for a message.
std::string printable(std::string line) {
    const bool valid = is_valid_utf8(line);
    for (char& c : line)
        if (uint8_t(c) < 0x20 || c == 0x7f || (!valid && uint8_t(c) >= 0x80)) c = '?';
    return line;
}

class Worker {
  public:
    static Result<std::unique_ptr<Worker>> start(const std::string& program, const NrtOptions& options);
    ~Worker() {
        shut(channel_);  // its request to end, with the cores given back in order
        wait_for_end(Clock::now() + std::chrono::milliseconds(limits::nrt_stop_ms));
        end();
        shut(err_);
        shut(pidfd_);
    }
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    int channel() const { return channel_; }
    int err() const { return err_; }
    pid_t pid() const { return pid_; }
    const std::string& last_line() const { return line_.empty() ? last_line_ : line_; }

    /// Takes what it has written to stderr, so that it never waits for us; keeps the last line.
    void read_err() {
        char buffer[4096];
        while (err_ >= 0) {
            const ssize_t got = ::read(err_, buffer, sizeof buffer);
            if (got < 0 && errno == EINTR) continue;
            if (got < 0 && errno == EAGAIN) return;
            if (got <= 0) return shut(err_);
            for (const char c : std::string_view(buffer, size_t(got))) {
                if (c != '\n' && line_.size() < limits::nrt_stderr_line_bytes_max) line_.push_back(c);
                if (c == '\n' && !line_.empty()) last_line_ = std::exchange(line_, {});
            }
        }
    }

    /// True where it ended by itself in time.
    bool wait_for_end(Clock::time_point deadline) {
        if (pid_ < 0) return true;
        for (;;) {
            pollfd watched[2] = {{pidfd_, POLLIN, 0}, {err_, POLLIN, 0}};
            const int left = remaining_ms(deadline);
            if (left < 0) return false;
            if (::poll(watched, 2, left) < 0 && errno != EINTR) return false;
            if (watched[1].revents) read_err();
            if (watched[0].revents) return true;
        }
    }

    /// Kills what is left of it and reaps it: "exited with status 3", "was ended by signal 6", or that we killed it.
    std::string end() {
        if (pid_ < 0) return end_;
        siginfo_t info{};
        // Looked at before it is killed, and only then taken: its end by itself tells more, and while it is not reaped
        // its number is nobody else's.
        const bool by_itself = ::waitid(P_PID, id_t(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
        ::kill(-pid_, SIGKILL);
        ::kill(pid_, SIGKILL);  // before its setpgid it has no group
        while (::waitid(P_PID, id_t(pid_), &info, WEXITED) != 0 && errno == EINTR) {
        }
        const std::string number = std::to_string(info.si_status);
        end_ = !by_itself                   ? "was killed for it"
               : info.si_code == CLD_EXITED ? "exited with status " + number
                                            : "was ended by signal " + number;
        pid_ = -1;
        read_err();
        return end_;
    }

  private:
    Worker() = default;

    pid_t pid_ = -1;
    int channel_ = -1, err_ = -1, pidfd_ = -1;
    std::string line_, last_line_, end_;
};

Result<std::unique_ptr<Worker>> Worker::start(const std::string& program, const NrtOptions& options) {
    const auto failed = [&](const char* what) {
        return absent("the worker \"" + program + "\" could not be started: " + what + ": " + std::strerror(errno),
                      "worker_program");
    };
    const Words argv({program, "--model", options.directory, "--library", options.library});
    const Words env(environment_of(options));
    Pair channel, err, problem;
    if (!channel.open_socket() || !err.open_pipe() || !problem.open_pipe()) return failed("pipe");
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid < 0) return failed("fork");
    if (pid == 0) become(program.c_str(), argv.data(), env.data(), channel.theirs, err.theirs, problem.theirs, parent);
    ::setpgid(pid, pid);  // both sides, so that neither can be early; fails harmlessly after the exec
    std::unique_ptr<Worker> worker(new Worker);
    worker->pid_ = pid;
    worker->pidfd_ = int(::syscall(SYS_pidfd_open, pid, 0));  // close-on-exec by itself
    std::swap(worker->channel_, channel.ours);
    std::swap(worker->err_, err.ours);
    ::fcntl(worker->err_, F_SETFL, O_NONBLOCK);
    if (worker->pidfd_ < 0) return failed("pidfd_open");
    shut(problem.theirs);
    shut(err.theirs);
    shut(channel.theirs);
    int number = 0;
    ssize_t got;
    do {
        got = ::read(problem.ours, &number, sizeof number);
    } while (got < 0 && errno == EINTR);
    if (got == ssize_t(sizeof number)) {
        errno = number;
        return failed("exec");
    }
    return worker;
}

// --- the device -------------------------------------------------------------------------------------------------

/// Why no answer came, for whoever explains it.
struct NoAnswer {
    DeviceFault fault = DeviceFault::hardware;
    std::string what;
};

class NrtProcessDevice final : public Device {
  public:
    NrtProcessDevice(std::unique_ptr<Worker> worker, const NrtOptions& options)
        : worker_(std::move(worker)), step_timeout_ms_(options.step_timeout_ms), cores_(options.visible_cores) {}

    /// Waits for the worker's first word.
    Result<void> open(uint32_t timeout_ms) {
        NrtReply reply;
        waiting_ms_ = timeout_ms;
        if (auto none = receive(reply, Clock::now() + std::chrono::milliseconds(timeout_ms)))
            return loading_failed(lose(none->fault, none->what).message);
        if (const auto* refused = std::get_if<Error>(&reply.what)) return *refused;
        auto* ready = std::get_if<NrtReady>(&reply.what);
        if (!ready || reply.call != 0)
            return loading_failed(lose(DeviceFault::hardware, "began with another message").message);
        if (ready->version != build_version()) {
            worker_->end();
            return absent("the worker is of version " + ready->version + ", not " + std::string(build_version()),
                          "worker_program");
        }
        caps_ = std::move(ready->caps);
        if (const char* wrong = implausible(caps_))
            return loading_failed(lose(DeviceFault::hardware, std::string("told impossible ") + wrong).message);
        check_.emplace(caps_);
        return {};
    }

    const DeviceCaps& caps() const override { return caps_; }

    DeviceResult<StepResult> run(const Step& step) override {
        const auto start = Clock::now();
        if (lost_) return *lost_;
        if (auto checked = check_->check(step); !checked) return checked.error();
        size_t logits = 0;
        for (const StepRow& row : step.rows) logits += row.want_logits ? caps_.vocabulary : 0;
        if (logits > nrt_logits_max)
            return refused_step(DeviceFault::unsupported, "logits of so many rows do not fit one message");
        auto reply = ask(step);
        if (!reply) return reply.error();
        auto* stepped = std::get_if<NrtStepped>(&reply->what);
        if (!stepped || !fits(step, stepped->result)) return lose(DeviceFault::hardware, "answered another question");
        stepped_ = std::move(*stepped);
        StepResult result = stepped_.result;
        result.step = step.id;
        for (size_t r = 0; r < result.rows.size(); ++r) {
            result.rows[r].sequence = step.rows[r].sequence;
            result.rows[r].epoch = step.rows[r].epoch;
        }
        result.cost.wall_s = std::chrono::duration<double>(Clock::now() - start).count();
        return result;
    }

    DeviceResult<> copy_blocks(std::span<const BlockCopy> copies) override {
        if (lost_) return *lost_;
        if (auto checked = check_->check_copies(copies); !checked) return checked;
        if (copies.size() > limits::device_blocks_max)
            return refused_step(DeviceFault::bad_shape, "more copies than a device has blocks");
        auto reply = ask(std::vector<BlockCopy>(copies.begin(), copies.end()));
        if (!reply) return reply.error();
        if (!std::holds_alternative<NrtDone>(reply->what))
            return lose(DeviceFault::hardware, "answered another question");
        return {};
    }

    DeviceResult<std::string> export_block(BlockId block, uint32_t tokens) const override {
        if (lost_) return *lost_;
        if (auto checked = check_->check_export(block, tokens); !checked) return checked.error();
        auto reply = ask(NrtExportBlock{block, tokens});
        if (!reply) return reply.error();
        auto* exported = std::get_if<NrtExported>(&reply->what);
        if (!exported || exported->bytes.size() != caps_.block_bytes)
            return lose(DeviceFault::hardware, "answered another question");
        return std::move(exported->bytes);
    }

    DeviceResult<uint32_t> import_block(BlockId block, std::string_view bytes) override {
        if (lost_) return *lost_;
        if (auto checked = check_->check_block(block); !checked) return checked.error();
        auto reply = ask(NrtImportBlock{block, std::string(bytes)});
        if (!reply) return reply.error();
        const auto* imported = std::get_if<NrtImported>(&reply->what);
        if (!imported || imported->tokens < 1 || imported->tokens > caps_.block_tokens)
            return lose(DeviceFault::hardware, "answered another question");
        return imported->tokens;
    }

  private:
    static Error loading_failed(std::string why) {
        return {ErrorCode::model_not_loadable, std::move(why), "worker_program"};
    }

    /// What a scheduler would allocate or divide by.
    static const char* implausible(const DeviceCaps& caps) {
        const auto within = [](uint64_t value, uint64_t most) { return value >= 1 && value <= most; };
        if (!within(caps.vocabulary, limits::model_vocabulary_max)) return "vocabulary";
        if (!within(caps.block_tokens, limits::device_block_tokens_max)) return "block_tokens";
        if (!within(caps.block_count, limits::device_blocks_max)) return "block_count";
        if (!within(caps.block_bytes, limits::kv_disk_value_bytes_max)) return "block_bytes";
        if (!within(caps.context_max, limits::model_context_max)) return "context_max";
        if (!within(caps.rows_max, limits::device_rows_max)) return "rows_max";
        if (!within(caps.tokens_max, limits::device_tokens_max)) return "tokens_max";
        if (caps.strict &&
            (caps.prefill_buckets.empty() || caps.decode_buckets.empty() || caps.context_buckets.empty()))
            return "buckets";
        return nullptr;
    }

    bool fits(const Step& step, const StepResult& result) const {
        if (result.rows.size() != step.rows.size()) return false;
        for (size_t r = 0; r < step.rows.size(); ++r) {
            const StepRow& asked = step.rows[r];
            const RowResult& got = result.rows[r];
            if (got.token.has_value() != asked.want_token) return false;
            if (got.token && (*got.token >= caps_.vocabulary || !mask_allows(asked.allowed, *got.token))) return false;
            if (got.logits.size() != (asked.want_logits ? caps_.vocabulary : 0)) return false;
        }
        return true;
    }

    /// One question and its answer. Errors of the worker's device are passed on; after those that it cannot recover
    /// from, it is killed.
    template <class Question>
    DeviceResult<NrtReply> ask(Question question) const {
        INVARIANT(!lost_, "a worker to ask");
        const uint64_t call = ++calls_;
        const std::string frame = encode_nrt_request({call, std::move(question)});
        if (frame.empty()) return refused_step(DeviceFault::unsupported, "the request is too large for one message");
        waiting_ms_ = step_timeout_ms_;
        const auto deadline = Clock::now() + std::chrono::milliseconds(step_timeout_ms_);
        NrtReply reply;
        auto none = send(frame, deadline);
        if (!none) none = receive(reply, deadline);
        if (none) return lose(none->fault, none->what);
        if (reply.call != call) return lose(DeviceFault::hardware, "answered another question");
        if (const auto* error = std::get_if<DeviceError>(&reply.what)) {
            if (error->action != DeviceAction::restart_worker) return *error;
            DeviceError fatal = lose(error->fault, "reported " + error->message);
            lost_->status = fatal.status = error->status;
            return fatal;
        }
        return reply;
    }

    /// Waits for the channel; takes what comes on stderr meanwhile.
    std::optional<NoAnswer> wait(short events, Clock::time_point deadline) const {
        for (;;) {
            const int left = remaining_ms(deadline);
            if (left < 0)
                return NoAnswer{DeviceFault::timeout, "did not answer within " + std::to_string(waiting_ms_) + " ms"};
            pollfd watched[2] = {{worker_->channel(), events, 0}, {worker_->err(), POLLIN, 0}};
            if (::poll(watched, 2, left) < 0 && errno != EINTR)
                return NoAnswer{DeviceFault::hardware, std::string("cannot be waited for: ") + std::strerror(errno)};
            if (watched[1].revents) worker_->read_err();
            if (watched[0].revents) return std::nullopt;
        }
    }

    std::optional<NoAnswer> send(std::string_view frame, Clock::time_point deadline) const {
        while (!frame.empty()) {
            const ssize_t sent = ::send(worker_->channel(), frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
            if (sent > 0) {
                frame.remove_prefix(size_t(sent));
                continue;
            }
            if (errno == EINTR) continue;
            if (errno != EAGAIN) return died();
            if (auto none = wait(POLLOUT, deadline)) return none;
        }
        return std::nullopt;
    }

    std::optional<NoAnswer> receive(NrtReply& reply, Clock::time_point deadline) const {
        std::string header, body;
        if (auto none = receive_bytes(header, nrt_frame_header_bytes, deadline)) return none;
        const auto size = nrt_frame_bytes(header);
        if (!size) return NoAnswer{DeviceFault::hardware, "sent what makes no sense: " + size.error().message};
        if (auto none = receive_bytes(body, *size, deadline)) return none;
        auto decoded = decode_nrt_reply(body);
        if (!decoded) return NoAnswer{DeviceFault::hardware, "sent what makes no sense: " + decoded.error().message};
        reply = std::move(*decoded);
        return std::nullopt;
    }

    /// Grows with what really comes: a length that is a lie costs nothing.
    std::optional<NoAnswer> receive_bytes(std::string& to, size_t bytes, Clock::time_point deadline) const {
        constexpr size_t piece = size_t(1) << 20;
        while (to.size() < bytes) {
            const size_t had = to.size();
            to.resize(std::min(bytes, had + piece));
            const ssize_t got = ::recv(worker_->channel(), to.data() + had, to.size() - had, MSG_DONTWAIT);
            const int problem = errno;
            to.resize(had + size_t(std::max<ssize_t>(got, 0)));
            if (got > 0) continue;
            if (got < 0 && problem == EINTR) continue;
            if (got == 0 || problem != EAGAIN) return died();
            if (auto none = wait(POLLIN, deadline)) return none;
        }
        return std::nullopt;
    }

    /// The channel ended: given the time, the process shows how.
    NoAnswer died() const {
        worker_->wait_for_end(Clock::now() + std::chrono::milliseconds(limits::nrt_stop_ms));
        return {DeviceFault::hardware, "ended its channel"};
    }

    /// Ends the worker and tells the whole story, now and to every later call.
    DeviceError lose(DeviceFault fault, const std::string& what) const {
        std::string message = "the worker of the Neuron runtime" +
                              (cores_.empty() ? std::string() : " (cores " + cores_ + ")") + ", process " +
                              std::to_string(worker_->pid()) + ", " + what;
        message += "; it " + worker_->end();
        const std::string line = printable(worker_->last_line());
        message += line.empty() ? "; it wrote nothing to stderr" : "; last line on stderr: " + line;
        lost_ = DeviceError{DeviceAction::restart_worker, fault, std::move(message), std::nullopt, 0};
        return *lost_;
    }

    std::unique_ptr<Worker> worker_;
    const uint32_t step_timeout_ms_;
    const std::string cores_;
    DeviceCaps caps_;
    std::optional<StepCheck> check_;  // the worker checks too: it believes nobody either
    NrtStepped stepped_;              // the logits of the last step
    // Asking does not change the device, but may find that it is lost.
    mutable uint32_t waiting_ms_ = 0;
    mutable uint64_t calls_ = 0;
    mutable std::optional<DeviceError> lost_;
};

Result<void> check_options(const NrtOptions& options) {
    const auto unsupported = [](const char* param, const std::string& why) {
        return Error{ErrorCode::unsupported_value, std::string(param) + " " + why, param};
    };
    for (const auto& [param, value] : {std::pair{"step_timeout_ms", options.step_timeout_ms},
                                       std::pair{"start_timeout_ms", options.start_timeout_ms}})
        if (value < 1 || value > limits::nrt_timeout_ms_max)
            return unsupported(param, "must be from 1 to " + std::to_string(limits::nrt_timeout_ms_max));
    const std::string& cores = options.visible_cores;
    const size_t dash = cores.find('-');
    const auto number = [](std::string_view text) {
        return !text.empty() && text.size() <= 5 && text.find_first_not_of("0123456789") == std::string_view::npos;
    };
    const bool range =
        dash == std::string::npos ? number(cores) : number(cores.substr(0, dash)) && number(cores.substr(dash + 1));
    if (!cores.empty() && !range) return unsupported("visible_cores", "must be a core or a range: \"0\" or \"0-3\"");
    return {};
}

std::string program_beside_ours() {
    std::string path(4096, '\0');
    const ssize_t got = ::readlink("/proc/self/exe", path.data(), path.size());
    path.resize(size_t(std::max<ssize_t>(got, 0)));
    return path.substr(0, path.rfind('/') + 1) + "mainstay-nrt-worker";
}

}  // namespace

Result<std::unique_ptr<Device>> open_nrt_device(const NrtOptions& options) {
    if (auto checked = check_options(options); !checked) return checked.error();
    auto worker =
        Worker::start(options.worker_program.empty() ? program_beside_ours() : options.worker_program, options);
    if (!worker) return worker.error();
    auto device = std::make_unique<NrtProcessDevice>(std::move(*worker), options);
    if (auto opened = device->open(options.start_timeout_ms); !opened) return opened.error();
    return std::unique_ptr<Device>(std::move(device));
}

}  // namespace mainstay
