#include "runtime/base/metrics.h"

#include <dirent.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <mutex>
#include <vector>

#include "runtime/base/error_code.h"
#include "runtime/base/version.h"

namespace mainstay {
namespace {

using prometheus::Counter;
using prometheus::Gauge;

Counter& counter(prometheus::Registry& registry, const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
}

Gauge& gauge(prometheus::Registry& registry, const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
}

/// One counter a word of a closed list.
class CounterByWord {
  public:
    CounterByWord(prometheus::Registry& registry, const char* name, const char* help, const char* label,
                  const std::vector<std::string>& words) {
        auto& family = prometheus::BuildCounter().Name(name).Help(help).Register(registry);
        for (const auto& word : words) entries_.push_back({word, &family.Add({{label, word}})});
        other_ = &family.Add({{label, "other"}});
    }
    void increment(std::string_view word, double by = 1) {
        for (const auto& [known, series] : entries_)
            if (known == word) return series->Increment(by);
        other_->Increment(by);
    }

  private:
    std::vector<std::pair<std::string, Counter*>> entries_;
    Counter* other_;
};

/// Follows a total that somebody else keeps.
class FollowingCounter {
  public:
    explicit FollowingCounter(Counter& series) : series_(series) {}
    void follow(double total) {
        series_.Increment(total >= seen_ ? total - seen_ : total);
        seen_ = total;
    }

  private:
    Counter& series_;
    double seen_ = 0;
};

std::vector<std::string> all_error_names() {
    size_t count = 0;
    const ErrorInfo* table = error_table(count);
    std::vector<std::string> out;
    for (size_t i = 0; i < count; ++i) out.emplace_back(table[i].name);
    return out;
}

const prometheus::Histogram::BucketBoundaries turn_seconds = {
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600};

double cpu_seconds() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& t) { return double(t.tv_sec) + double(t.tv_usec) / 1e6; };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double resident_bytes() {
    FILE* file = std::fopen("/proc/self/statm", "re");
    if (!file) return 0;
    unsigned long total = 0, resident = 0;
    const int read = std::fscanf(file, "%lu %lu", &total, &resident);
    std::fclose(file);
    return read == 2 ? double(resident) * double(::sysconf(_SC_PAGESIZE)) : 0;
}

double open_descriptors() {
    DIR* folder = ::opendir("/proc/self/fd");
    if (!folder) return 0;
    double count = -3;  // ".", ".." and the folder's own descriptor
    while (::readdir(folder)) ++count;
    ::closedir(folder);
    return count;
}

}  // namespace

struct Metrics::Handles {
    prometheus::Registry registry;
    std::mutex setting;  // one setter or exposition at a time

    CounterByWord turns{registry,
                        "mainstay_turns_total",
                        "Turns settled, by status.",
                        "status",
                        {"completed", "failed", "incomplete", "cancelled"}};
    prometheus::Histogram& turn_duration = prometheus::BuildHistogram()
                                               .Name("mainstay_turn_duration_seconds")
                                               .Help("Time from the acceptance of an input to the end of its turn.")
                                               .Register(registry)
                                               .Add({}, turn_seconds);
    CounterByWord steps{registry, "mainstay_steps_total", "Steps settled, by kind.", "kind", {"model", "tool"}};
    CounterByWord tokens{registry,
                         "mainstay_model_tokens_total",
                         "Tokens of settled model steps, by kind; cached ones are part of the input.",
                         "kind",
                         {"input", "cached", "output"}};
    CounterByWord step_failures{registry,
                                "mainstay_step_failures_total",
                                "Attempts of steps that failed, by class of error.",
                                "class",
                                {"transient", "rate_limited", "overloaded", "invalid", "auth", "context_overflow",
                                 "content_filter", "protocol", "timeout", "lost"}};
    Counter& retries = counter(registry, "mainstay_retries_total", "Failed steps that were tried again.");
    CounterByWord tool_calls{registry,
                             "mainstay_tool_calls_total",
                             "Tool calls that ended, by outcome.",
                             "outcome",
                             {"result", "error", "failed", "lost"}};
    CounterByWord refusals{registry, "mainstay_refusals_total", "Commands refused, by error code.", "code",
                           all_error_names()};
    Gauge& model_requests = gauge(registry, "mainstay_model_requests_in_flight", "Model steps under way at a device.");

    Gauge& sessions_active = gauge(registry, "mainstay_sessions_active", "Sessions in memory.");
    Counter& activated = counter(registry, "mainstay_sessions_activated_total", "Sessions taken into memory.");
    Counter& passivated = counter(registry, "mainstay_sessions_passivated_total", "Sessions put to sleep.");

    FollowingCounter journal_syncs{
        counter(registry, "mainstay_journal_syncs_total", "Synced writes of the journal: one a group.")};
    FollowingCounter journal_bytes{
        counter(registry, "mainstay_journal_bytes_total", "Bytes written to the journal, padding included.")};
    FollowingCounter journal_records{counter(registry, "mainstay_journal_records_total", "Records made durable.")};
    FollowingCounter state_syncs{counter(registry, "mainstay_state_syncs_total", "Syncs of the state.")};
    FollowingCounter state_commits{
        counter(registry, "mainstay_state_commits_total", "Transactions that applied journal records to the state.")};
    FollowingCounter recovered{counter(registry, "mainstay_recovered_records_total",
                                       "Records found in the journal at start that the state did not contain.")};
    Gauge& apply_backlog = gauge(registry, "mainstay_state_apply_backlog_bytes",
                                 "Durable journal bytes that the state does not contain yet.");
    Gauge& append_queue =
        gauge(registry, "mainstay_append_queue_bytes", "Bytes of records that wait for their group to be written.");
    Gauge& read_only =
        gauge(registry, "mainstay_store_read_only", "1 while the disk is too full to accept anything new.");

    Gauge& damaged_sessions =
        gauge(registry, "mainstay_store_damaged_sessions", "Sessions set aside, because their records cannot be read.");

    Gauge& resident = gauge(registry, "mainstay_process_resident_memory_bytes", "Resident memory of the process.");
    Gauge& descriptors = gauge(registry, "mainstay_process_open_fds", "Open file descriptors of the process.");
    FollowingCounter cpu{
        counter(registry, "mainstay_process_cpu_seconds_total", "User and system processor time of the process.")};

    Handles() {
        prometheus::BuildGauge()
            .Name("mainstay_build_info")
            .Help("1, labelled with the release.")
            .Register(registry)
            .Add({{"version", std::string(build_version())}})
            .Set(1);
        gauge(registry, "mainstay_process_start_time_seconds", "When the process started, in seconds since 1970.")
            .Set(double(std::time(nullptr)));
    }
};

Metrics::Metrics() : handles_(std::make_unique<Handles>()) {}
Metrics::~Metrics() = default;

void Metrics::turn_settled(std::string_view status, double seconds) {
    handles_->turns.increment(status);
    handles_->turn_duration.Observe(seconds);
}
void Metrics::step_settled(std::string_view kind) { handles_->steps.increment(kind); }
void Metrics::model_tokens(uint64_t input, uint64_t cached, uint64_t output) {
    handles_->tokens.increment("input", double(input));
    handles_->tokens.increment("cached", double(cached));
    handles_->tokens.increment("output", double(output));
}
void Metrics::step_failed(std::string_view error_class) { handles_->step_failures.increment(error_class); }
void Metrics::retried() { handles_->retries.Increment(); }
void Metrics::session_activated() { handles_->activated.Increment(); }
void Metrics::session_passivated() { handles_->passivated.Increment(); }
void Metrics::tool_call(std::string_view outcome) { handles_->tool_calls.increment(outcome); }
void Metrics::refused(std::string_view code) { handles_->refusals.increment(code); }
void Metrics::set_sessions_active(size_t sessions) { handles_->sessions_active.Set(double(sessions)); }
void Metrics::model_requests_in_flight(size_t requests) { handles_->model_requests.Set(double(requests)); }

void Metrics::set_store_figures(const StoreFigures& figures) {
    std::lock_guard lock(handles_->setting);
    handles_->journal_syncs.follow(double(figures.journal_syncs));
    handles_->journal_bytes.follow(double(figures.journal_bytes));
    handles_->journal_records.follow(double(figures.journal_records));
    handles_->state_syncs.follow(double(figures.state_syncs));
    handles_->state_commits.follow(double(figures.state_commits));
    handles_->recovered.follow(double(figures.recovered_records));
    handles_->apply_backlog.Set(double(figures.apply_backlog_bytes));
    handles_->append_queue.Set(double(figures.append_queue_bytes));
    handles_->read_only.Set(figures.read_only ? 1 : 0);
    handles_->damaged_sessions.Set(double(figures.damaged_sessions));
}

prometheus::Registry& Metrics::registry() { return handles_->registry; }

std::string Metrics::expose() {
    std::lock_guard lock(handles_->setting);
    handles_->resident.Set(resident_bytes());
    handles_->descriptors.Set(open_descriptors());
    handles_->cpu.follow(cpu_seconds());
    return prometheus::TextSerializer().Serialize(handles_->registry.Collect());
}

}  // namespace mainstay
