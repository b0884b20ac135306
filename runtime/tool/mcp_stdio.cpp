#include "runtime/tool/mcp_stdio.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <mutex>
#include <thread>
#include <tuple>

#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/tool/child_process.h"

namespace mainstay {

namespace {

constexpr size_t read_bytes = 64 * 1024;
constexpr int reads_per_round = 8;         // then the other servers have their turn
constexpr int reads_after_exit = 4096;     // of what a dead server left in its pipe, which holds far less
constexpr uint64_t settle_us = 1'000'000;  // how long a killed server may take to die before its calls are settled

uint64_t us(uint32_t ms) { return uint64_t{ms} * 1000; }

/// Identity of a running instance, and without the session that of a remembered list.
using ServerKey = std::tuple<uint32_t, std::optional<SessionKey>, std::string>;

/// Length-prefixed, so that no two commands and environments give the same text.
std::string identity(const McpServer& server) {
    std::string text;
    auto add = [&](const std::string& part) { text += std::to_string(part.size()) + ":" + part; };
    text += std::to_string(server.command.size()) + ";";
    for (const auto& part : server.command) add(part);
    for (const auto& [name, value] : server.env) {
        add(name);
        add(value);
    }
    return text;
}

ServerKey key_of(const McpServer& server, bool with_session) {
    return {server.tenant.value, with_session ? server.session : std::nullopt, identity(server)};
}

/// What a server prints, as one line of a log: control characters would let it forge others.
std::string printable(std::string_view line) {
    std::string text(line.substr(0, limits::tool_log_line_bytes_max));
    for (char& c : text) {
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
    }
    return text;
}

/// stderr of one server: cut into bounded lines, at most so many a minute, the rest counted.
class ErrorLog {
  public:
    template <class F>
    void feed(std::string_view bytes, uint64_t now_us, F&& log) {
        for (const char c : bytes) {
            if (c == '\n') {
                end_line(now_us, log);
            } else if (line_.size() < limits::tool_log_line_bytes_max) {
                line_ += c;
            }
        }
    }

  private:
    template <class F>
    void end_line(uint64_t now_us, F&& log) {
        if (now_us - window_us_ >= 60'000'000) {
            if (left_out_ > 0) log("(" + std::to_string(left_out_) + " lines left out)");
            window_us_ = now_us;
            lines_ = left_out_ = 0;
        }
        if (lines_ < limits::tool_log_lines_per_minute_max) {
            ++lines_;
            log(printable(line_));
        } else {
            ++left_out_;
        }
        line_.clear();
    }

    std::string line_;
    uint64_t window_us_ = 0;
    size_t lines_ = 0, left_out_ = 0;
};

}  // namespace

class McpStdio::Loop {
  public:
    explicit Loop(Options options);
    ~Loop();
    void post(std::function<void()> task);
    Figures figures() const;

    // On the I/O thread.
    void list(McpServer server, Listed done);
    void call(McpServer server, McpCall call, uint64_t deadline_us, ToolDone done);
    void cancel(uint64_t call_id);
    uint64_t now_us() const { return clock_.monotonic_ns() / 1000; }

  private:
    enum class Watch : uint64_t { wake, in, out, err, exit };
    enum class Life : uint8_t { running, closing, terminating, killed };

    struct Instance;
    struct Running {
        uint64_t id = 0;
        std::unique_ptr<ChildProcess> process;
        std::unique_ptr<McpClient> client;
        Instance* instance = nullptr;  // null once it is given up
        std::string label;
        Life life = Life::running;
        uint64_t life_until_us = UINT64_MAX;  // when the next stage of its end is due
        uint64_t used_us = 0;
        bool wants_in = false;  // EPOLLOUT is armed
        bool closed = false;    // the client is settled
        std::string reason;     // why it is ended
        ErrorClass error_class = ErrorClass::transient;
        ErrorCode code = ErrorCode::tool_unavailable;
        ErrorLog errors;
    };
    struct Instance {
        ServerKey key, list_key;
        Running* running = nullptr;
        std::vector<Listed> waiting;  // for the list under way
        uint32_t failures = 0;        // in a row
        uint64_t not_before_us = 0;
    };
    struct Listing {
        McpTools tools;      // null: never listed
        bool stale = false;  // the server said that they changed
        uint64_t used_us = 0;
    };
    struct InFlight {
        uint64_t running = 0;
        ToolDone done;
    };

    void run();
    void round();
    bool drained() const;
    int wait_ms() const;
    void run_tasks();
    void on_event(uint64_t data, uint32_t events);
    void stop_everything();

    Instance& instance_of(const McpServer& server);
    /// Null: `problem` says why.
    Running* running_of(Instance& instance, const McpServer& server, Error& problem);
    bool make_room();
    Running* start(Instance& instance, const McpServer& server, Error& problem);
    void watch(int fd, Watch what, uint64_t id, uint32_t events);
    void unwatch(int fd);

    void write(Running& running);
    void read_out(Running& running, int reads);
    void read_err(Running& running);
    void on_exit(Running& running);
    void advance(Running& running);
    void stop(Running& running, std::string reason);
    void kill(Running& running, std::string reason, ErrorClass error_class, ErrorCode code);
    void let_go(Running& running, bool failed);
    void hold_back(Instance& instance);
    void forget_instances();
    void settle_all(Running& running, size_t unread);
    void after_step(Running& running, McpOutputs& out);
    void finish_list(Instance& instance, const McpTools& tools, const std::string& failure);
    Listing& listing_of(const ServerKey& key);
    void settle(uint64_t call_id, ToolOutcome outcome);
    void log(const Running& running, std::string_view line) const;
    void publish();

    const Options options_;
    SystemClock clock_;
    int epoll_ = -1, wake_ = -1;

    mutable std::mutex mutex_;  // guards the three below
    std::vector<std::function<void()>> tasks_;
    bool stop_ = false;
    Figures figures_;

    // The I/O thread's own.
    bool stopping_ = false;
    uint64_t next_id_ = 1;
    std::map<uint64_t, std::unique_ptr<Running>> running_;
    std::map<ServerKey, std::unique_ptr<Instance>> instances_;
    std::map<ServerKey, Listing> listings_;
    std::unordered_map<uint64_t, InFlight> in_flight_;
    uint64_t starts_ = 0, crashes_ = 0;
    McpCounters ended_;  // counters of servers that are gone

    std::thread thread_;
};

// --- the thread ---------------------------------------------------------------------------------------------------

McpStdio::Loop::Loop(Options options) : options_(std::move(options)) {
    epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
    wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    INVARIANT(epoll_ >= 0 && wake_ >= 0, "descriptors for the tool thread");
    watch(wake_, Watch::wake, 0, EPOLLIN);
    thread_ = std::thread([this] { run(); });
}

McpStdio::Loop::~Loop() {
    {
        std::lock_guard lock(mutex_);
        stop_ = true;
    }
    const uint64_t one = 1;
    INVARIANT(::write(wake_, &one, sizeof one) == sizeof one, "wake the tool thread");
    thread_.join();
    ::close(wake_);
    ::close(epoll_);
}

void McpStdio::Loop::post(std::function<void()> task) {
    bool first;
    {
        std::lock_guard lock(mutex_);
        first = tasks_.empty();
        tasks_.push_back(std::move(task));
    }
    if (!first) return;  // the one before has woken the thread
    const uint64_t one = 1;
    INVARIANT(::write(wake_, &one, sizeof one) == sizeof one, "wake the tool thread");
}

McpStdio::Figures McpStdio::Loop::figures() const {
    std::lock_guard lock(mutex_);
    return figures_;
}

void McpStdio::Loop::run() {
    // Signals are the main thread's; a server that died while we write to it is EPIPE.
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
    while (!drained()) round();
    // What callbacks asked for while everything ended is refused, but answered.
    for (bool more = true; more;) {
        run_tasks();
        std::lock_guard lock(mutex_);
        more = !tasks_.empty();
    }
}

bool McpStdio::Loop::drained() const { return stopping_ && running_.empty(); }

void McpStdio::Loop::round() {
    std::array<epoll_event, 64> events;
    const int count = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), wait_ms());
    INVARIANT(count >= 0 || errno == EINTR, "epoll_wait");
    run_tasks();
    for (int i = 0; i < count; ++i) {
        const auto& event = events[static_cast<size_t>(i)];
        on_event(event.data.u64, event.events);
    }
    // advance() may erase: ids first.
    std::vector<uint64_t> ids;
    for (const auto& [id, running] : running_) ids.push_back(id);
    for (const uint64_t id : ids) {
        if (const auto found = running_.find(id); found != running_.end()) advance(*found->second);
    }
    publish();
}

int McpStdio::Loop::wait_ms() const {
    uint64_t next = UINT64_MAX;
    for (const auto& [id, running] : running_) {
        next = std::min(next, running->life_until_us);
        if (running->closed || running->life == Life::killed) continue;
        next = std::min(next, running->client->next_deadline_us());
        if (running->life == Life::running && running->client->idle()) {
            next = std::min(next, running->used_us + us(options_.idle_ms));
        }
    }
    if (next == UINT64_MAX) return -1;
    const uint64_t now = now_us();
    return next <= now ? 0 : static_cast<int>(std::min<uint64_t>((next - now) / 1000 + 1, 60'000));
}

void McpStdio::Loop::run_tasks() {
    std::vector<std::function<void()>> tasks;
    bool stop;
    uint64_t count;
    // Emptied before the tasks are taken: a task that comes in between wakes the next round.
    [[maybe_unused]] const auto got = ::read(wake_, &count, sizeof count);
    {
        std::lock_guard lock(mutex_);
        tasks.swap(tasks_);
        stop = stop_;
    }
    for (auto& task : tasks) task();
    if (stop && !stopping_) stop_everything();
}

void McpStdio::Loop::stop_everything() {
    stopping_ = true;
    for (auto& [id, running] : running_) {
        if (running->life == Life::running) stop(*running, "Mainstay is shutting down.");
    }
}

void McpStdio::Loop::on_event(uint64_t data, uint32_t events) {
    const auto what = static_cast<Watch>(data & 7);
    if (what == Watch::wake) return;
    const auto found = running_.find(data >> 3);
    if (found == running_.end()) return;  // ended within this round
    Running& running = *found->second;
    switch (what) {
        case Watch::in:
            // EPOLLERR comes unasked and for ever once nobody holds the reading end.
            if ((events & EPOLLERR) == 0) return write(running);
            return kill(running, "The tool server closed its input.", ErrorClass::transient,
                        ErrorCode::tool_unavailable);
        case Watch::out: return read_out(running, reads_per_round);
        case Watch::err: return read_err(running);
        case Watch::exit: return on_exit(running);
        case Watch::wake: return;
    }
}

void McpStdio::Loop::watch(int fd, Watch what, uint64_t id, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = id << 3 | static_cast<uint64_t>(what);
    INVARIANT(::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
}

void McpStdio::Loop::unwatch(int fd) {
    if (fd >= 0) ::epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
}

// --- requests -----------------------------------------------------------------------------------------------------

McpStdio::Loop::Instance& McpStdio::Loop::instance_of(const McpServer& server) {
    if (instances_.size() >= limits::tool_listings_max) forget_instances();
    auto key = key_of(server, true);
    auto& slot = instances_[key];
    if (!slot) {
        slot = std::make_unique<Instance>();
        slot->key = std::move(key);
        slot->list_key = key_of(server, false);
    }
    return *slot;
}

McpStdio::Loop::Running* McpStdio::Loop::running_of(Instance& instance, const McpServer& server, Error& problem) {
    if (instance.running) return instance.running;
    const uint64_t now = now_us();
    if (stopping_) {
        problem = {ErrorCode::tool_unavailable, "Mainstay is shutting down.", {}};
        return nullptr;
    }
    if (now < instance.not_before_us) {
        problem = {ErrorCode::tool_unavailable,
                   "The tool server failed " + std::to_string(instance.failures) +
                       " times in a row; it is not started again for " +
                       std::to_string((instance.not_before_us - now) / 1000 + 1) + " ms.",
                   {}};
        return nullptr;
    }
    if (running_.size() >= options_.servers_max && !make_room()) {
        problem = {ErrorCode::tool_unavailable,
                   "All tool_servers_max = " + std::to_string(options_.servers_max) + " tool servers are busy.",
                   {}};
        return nullptr;
    }
    return start(instance, server, problem);
}

/// Ends the server that was idle for longest. Its process may take a moment to end and is not waited for, so for that
/// moment there may be more processes than the bound, at most twice as many.
bool McpStdio::Loop::make_room() {
    Running* oldest = nullptr;
    size_t ending = 0;
    for (auto& [id, running] : running_) {
        if (running->life != Life::running) {
            ++ending;
        } else if (running->client->idle() && (!oldest || running->used_us < oldest->used_us)) {
            oldest = running.get();
        }
    }
    if (ending >= options_.servers_max) return false;
    if (running_.size() - ending < options_.servers_max) return true;
    if (!oldest) return false;
    stop(*oldest, "Stopped to make room for another tool server.");
    return true;
}

McpStdio::Loop::Running* McpStdio::Loop::start(Instance& instance, const McpServer& server, Error& problem) {
    auto process = ChildProcess::start(server.command, server.env);
    const uint64_t now = now_us();
    if (!process) {
        problem = process.error();
        ++instance.failures;
        hold_back(instance);

        return nullptr;
    }
    ++starts_;
    auto running = std::make_unique<Running>();
    running->id = next_id_++;
    running->process = std::move(*process);
    running->client = std::make_unique<McpClient>(now + us(options_.start_timeout_ms));
    running->instance = &instance;
    running->label = server.label;
    running->used_us = now;
    watch(running->process->in(), Watch::in, running->id, 0);
    watch(running->process->out(), Watch::out, running->id, EPOLLIN);
    watch(running->process->err(), Watch::err, running->id, EPOLLIN);
    watch(running->process->pidfd(), Watch::exit, running->id, EPOLLIN);
    instance.running = running.get();
    // A new process may be a new version: a list that we remember is asked for again, while the old one serves.
    if (listings_.contains(instance.list_key)) {
        McpOutputs out;
        running->client->list(now + us(options_.list_timeout_ms), out);
    }
    Running* raw = running.get();
    running_[raw->id] = std::move(running);
    log(*raw, "started as process " + std::to_string(raw->process->pid()));
    return raw;
}

void McpStdio::Loop::list(McpServer server, Listed done) {
    const uint64_t now = now_us();
    const auto known = listings_.find(key_of(server, false));
    if (known != listings_.end() && known->second.tools && !known->second.stale) {
        known->second.used_us = now;
        return done(known->second.tools, {});
    }
    Instance& instance = instance_of(server);
    Error problem;
    Running* running = running_of(instance, server, problem);
    if (!running) return done(nullptr, std::move(problem.message));
    if (instance.waiting.size() >= limits::tool_calls_in_flight_max) {
        return done(nullptr, "More than tool_calls_in_flight_max lists wait for the tool server.");
    }
    // Cleared before asking: a change that is announced while the answer is under way makes it stale again. Where we
    // join a list that was asked for earlier, its answer may be older than the announcement.
    if (known != listings_.end() && !running->client->listing()) known->second.stale = false;

    instance.waiting.push_back(std::move(done));
    running->used_us = now;
    McpOutputs out;
    running->client->list(now + us(options_.list_timeout_ms), out);
    after_step(*running, out);
}

void McpStdio::Loop::call(McpServer server, McpCall call, uint64_t deadline_us, ToolDone done) {
    auto refuse = [&](ErrorClass error_class, Error problem) {
        ToolOutcome outcome;
        outcome.kind = ToolOutcome::Kind::failed;
        outcome.error_class = error_class;
        outcome.code = problem.code;
        outcome.message = std::move(problem.message);
        done(call.call_id, std::move(outcome));
    };
    INVARIANT(!in_flight_.contains(call.call_id), "a call id names one call");
    if (in_flight_.size() >= limits::tool_calls_in_flight_max) {
        return refuse(
            ErrorClass::overloaded,
            {ErrorCode::tool_unavailable,
             "tool_calls_in_flight_max = " + std::to_string(limits::tool_calls_in_flight_max) + " calls are in flight.",
             {}});
    }
    Instance& instance = instance_of(server);
    Error problem;
    Running* running = running_of(instance, server, problem);
    if (!running) return refuse(ErrorClass::transient, std::move(problem));
    const uint64_t now = now_us();
    running->used_us = now;
    call.deadline_us = deadline_us;
    in_flight_[call.call_id] = {running->id, std::move(done)};
    McpOutputs out;
    running->client->call(std::move(call), now, out);
    after_step(*running, out);
}

void McpStdio::Loop::cancel(uint64_t call_id) {
    const auto found = in_flight_.find(call_id);
    if (found == in_flight_.end()) return;
    Running& running = *running_.at(found->second.running);
    McpOutputs out;
    running.client->cancel(call_id, now_us(), out);
    after_step(running, out);
}

// --- one server ---------------------------------------------------------------------------------------------------

void McpStdio::Loop::write(Running& running) {
    if (running.life != Life::running || running.process->in() < 0) return;
    bool blocked = false;
    for (auto bytes = running.client->output(); !bytes.empty() && !blocked; bytes = running.client->output()) {
        const ssize_t took = ::write(running.process->in(), bytes.data(), bytes.size());
        if (took > 0) {
            running.client->wrote(static_cast<size_t>(took));
        } else if (took < 0 && errno == EAGAIN) {
            blocked = true;
        } else if (took < 0 && errno != EINTR) {
            return kill(running, "The tool server closed its input.", ErrorClass::transient,
                        ErrorCode::tool_unavailable);
        }
    }
    if (blocked == running.wants_in) return;
    running.wants_in = blocked;
    epoll_event event{};
    event.events = blocked ? static_cast<uint32_t>(EPOLLOUT) : 0U;
    event.data.u64 = running.id << 3 | static_cast<uint64_t>(Watch::in);
    ::epoll_ctl(epoll_, EPOLL_CTL_MOD, running.process->in(), &event);
}

void McpStdio::Loop::read_out(Running& running, int reads) {
    static thread_local std::array<char, read_bytes> buffer;
    for (int i = 0; i < reads && running.process->out() >= 0; ++i) {
        const ssize_t got = ::read(running.process->out(), buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            unwatch(running.process->out());
            running.process->close_out();
            // Nothing can be answered any more, whatever the process still does.
            return kill(running, "The tool server closed its output.", ErrorClass::transient,
                        ErrorCode::tool_unavailable);
        }
        if (running.closed) continue;  // what a stopped server still says
        McpOutputs out;
        running.client->receive({buffer.data(), static_cast<size_t>(got)}, now_us(), out);
        after_step(running, out);
    }
}

void McpStdio::Loop::read_err(Running& running) {
    static thread_local std::array<char, read_bytes> buffer;
    const ssize_t got = ::read(running.process->err(), buffer.data(), buffer.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (got <= 0) {
        unwatch(running.process->err());
        running.process->close_err();
        return;
    }
    running.errors.feed({buffer.data(), static_cast<size_t>(got)}, now_us(),
                        [&](std::string_view line) { log(running, line); });
}

void McpStdio::Loop::on_exit(Running& running) {
    // Answers that it gave before it ended count.
    read_out(running, reads_after_exit);
    if (running.process->err() >= 0) read_err(running);
    if (!running.process->reap()) return;
    if (running.life == Life::running) {
        let_go(running, true);
        running.reason = "The tool server " + running.process->end() + ".";
    } else if (running.life == Life::killed && !running.client->failure()) {
        running.reason += " It " + running.process->end() + ".";
    }
    log(running, running.process->end());
    settle_all(running, running.process->unread());
    for (const int fd :
         {running.process->in(), running.process->out(), running.process->err(), running.process->pidfd()}) {
        unwatch(fd);
    }
    const auto& counters = running.client->counters();
    ended_.bad_lines += counters.bad_lines;
    ended_.unknown_answers += counters.unknown_answers;
    ended_.late_answers += counters.late_answers;
    ended_.refused_requests += counters.refused_requests;
    ended_.notifications += counters.notifications;
    running_.erase(running.id);
}

/// Time passed: deadlines, idle time, and the stages of an end.
void McpStdio::Loop::advance(Running& running) {
    const uint64_t now = now_us();
    if (!running.closed && running.life != Life::killed) {
        McpOutputs out;
        running.client->expire(now, out);
        after_step(running, out);
    }
    if (running.life == Life::running && running.client->idle() && now >= running.used_us + us(options_.idle_ms)) {
        stop(running, "The tool server was idle.");
    }
    if (now < running.life_until_us) return;
    switch (running.life) {
        case Life::running: return;
        case Life::closing:
            running.life = Life::terminating;
            running.life_until_us = now + us(options_.stop_ms);
            return running.process->signal_group(SIGTERM);
        case Life::terminating:
            running.life = Life::killed;
            running.life_until_us = UINT64_MAX;
            return running.process->signal_group(SIGKILL);
        case Life::killed:
            // It does not die (it waits for a disk, say): its calls are settled without knowing what it read.
            running.life_until_us = UINT64_MAX;
            return settle_all(running, 0);
    }
}

/// The gentle end: its input is closed, then SIGTERM, then SIGKILL.
void McpStdio::Loop::stop(Running& running, std::string reason) {
    let_go(running, false);
    running.reason = std::move(reason);
    running.life = Life::closing;
    running.life_until_us = now_us() + us(options_.stop_ms);
    settle_all(running, 0);
    unwatch(running.process->in());
    running.process->close_in();
}

/// The hard end. Calls are settled once it is dead, because only then it is known what it cannot have read.
void McpStdio::Loop::kill(Running& running, std::string reason, ErrorClass error_class, ErrorCode code) {
    if (running.life != Life::running) return;
    let_go(running, true);
    running.reason = std::move(reason);
    running.error_class = error_class;
    running.code = code;
    running.life = Life::killed;
    running.life_until_us = now_us() + settle_us;
    if (running.process->in() >= 0) unwatch(running.process->in());  // EPOLLERR would come for ever
    log(running, running.reason);
    running.process->signal_group(SIGKILL);
}

void McpStdio::Loop::hold_back(Instance& instance) {
    if (instance.failures < 2) return;
    const uint32_t doublings = std::min<uint32_t>(instance.failures - 2, 16);
    instance.not_before_us = now_us() + std::min<uint64_t>(us(limits::tool_server_backoff_min_ms) << doublings,
                                                           us(limits::tool_server_backoff_max_ms));
}

/// Failed instances are kept only for their back-off; those of sessions would gather without end.
void McpStdio::Loop::forget_instances() {
    const uint64_t now = now_us();
    std::erase_if(instances_, [&](const auto& entry) {
        return !entry.second->running && entry.second->waiting.empty() && now >= entry.second->not_before_us;
    });
}

/// From here on the next use starts another process.
void McpStdio::Loop::let_go(Running& running, bool failed) {
    Instance* instance = running.instance;
    if (!instance) return;
    running.instance = nullptr;
    instance->running = nullptr;
    if (failed) {
        ++crashes_;
        // A server that has worked is started again at once; one that never does is not started in a loop.
        instance->failures = running.client->answers() > 0 ? 1 : instance->failures + 1;
        hold_back(*instance);
    }
    std::string failure = failed ? "The tool server ended." : "The tool server was stopped.";
    if (running.client->failure()) failure = *running.client->failure();
    finish_list(*instance, nullptr, failure);
    if (!failed) instances_.erase(ServerKey(instance->key));
}

void McpStdio::Loop::settle_all(Running& running, size_t unread) {
    if (running.closed) return;
    running.closed = true;
    McpOutputs out;
    running.client->close(running.reason, running.error_class, running.code, unread, now_us(), out);
    for (auto& settled : out.settled) settle(settled.call_id, std::move(settled.outcome));
}

/// Hands out what a step of the client brought, and writes what it wants to say.
void McpStdio::Loop::after_step(Running& running, McpOutputs& out) {
    const uint64_t now = now_us();
    if (!out.settled.empty() || out.listed) running.used_us = now;
    if (out.tools_changed && running.instance) listing_of(running.instance->list_key).stale = true;

    if (out.listed && running.instance) {
        if (out.tools) listing_of(running.instance->list_key).tools = out.tools;

        finish_list(*running.instance, out.tools, out.list_failure);
    }
    for (auto& settled : out.settled) settle(settled.call_id, std::move(settled.outcome));
    if (running.client->failure() && !running.closed) {
        return kill(running, *running.client->failure(), running.client->failure_class(),
                    running.client->failure_code());
    }
    if (running.life == Life::running) write(running);
}

void McpStdio::Loop::finish_list(Instance& instance, const McpTools& tools, const std::string& failure) {
    std::vector<Listed> waiting;
    waiting.swap(instance.waiting);
    for (auto& done : waiting) done(tools, failure);
}

McpStdio::Loop::Listing& McpStdio::Loop::listing_of(const ServerKey& key) {
    if (!listings_.contains(key) && listings_.size() >= limits::tool_listings_max) {
        listings_.erase(std::min_element(listings_.begin(), listings_.end(), [](const auto& a, const auto& b) {
            return a.second.used_us < b.second.used_us;
        }));
    }
    auto& listing = listings_[key];
    listing.used_us = now_us();
    return listing;
}

void McpStdio::Loop::settle(uint64_t call_id, ToolOutcome outcome) {
    const auto found = in_flight_.find(call_id);
    INVARIANT(found != in_flight_.end(), "a call is settled once");
    ToolDone done = std::move(found->second.done);
    in_flight_.erase(found);
    done(call_id, std::move(outcome));
}

void McpStdio::Loop::log(const Running& running, std::string_view line) const {
    if (options_.log) options_.log(running.label, line);
}

void McpStdio::Loop::publish() {
    Figures figures;
    figures.servers = running_.size();
    figures.calls = in_flight_.size();
    figures.starts = starts_;
    figures.crashes = crashes_;
    figures.counters = ended_;
    for (const auto& [id, running] : running_) {
        const auto& counters = running->client->counters();
        figures.counters.bad_lines += counters.bad_lines;
        figures.counters.unknown_answers += counters.unknown_answers;
        figures.counters.late_answers += counters.late_answers;
        figures.counters.refused_requests += counters.refused_requests;
        figures.counters.notifications += counters.notifications;
    }
    std::lock_guard lock(mutex_);
    figures_ = figures;
}

// --- the front ----------------------------------------------------------------------------------------------------

McpStdio::McpStdio(Options options) : loop_(std::make_unique<Loop>(std::move(options))) {}
McpStdio::~McpStdio() = default;

void McpStdio::list(McpServer server, Listed done) {
    post([loop = loop_.get(), server = std::move(server), done = std::move(done)]() mutable {
        loop->list(std::move(server), std::move(done));
    });
}

void McpStdio::call(McpServer server, McpCall call, uint32_t timeout_ms, ToolDone done) {
    const uint64_t deadline = loop_->now_us() + us(timeout_ms);
    post([loop = loop_.get(), server = std::move(server), call = std::move(call), deadline,
          done = std::move(done)]() mutable {
        loop->call(std::move(server), std::move(call), deadline, std::move(done));
    });
}

void McpStdio::cancel(uint64_t call_id) {
    post([loop = loop_.get(), call_id] { loop->cancel(call_id); });
}

void McpStdio::post(std::function<void()> task) { loop_->post(std::move(task)); }
McpStdio::Figures McpStdio::figures() const { return loop_->figures(); }

}  // namespace mainstay
