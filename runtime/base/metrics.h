#pragma once
// What the node counts, for Prometheus: one registry, every family and every label value resolved when the object is
// made, so counting is one atomic addition and the number of series is fixed. Labels are words of closed lists; a word
// that is not in its list counts as "other". Names of tenants, sessions, users, agents or tools are never labels.
//
// Owned by tools/mainstayd, which passes it in. Counting: any thread. expose() and the setters: any thread, serialised.

#include <prometheus/registry.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace mainstay {

/// Figures of the store that only ever grow, or stand as they are, since this process started.
struct StoreFigures {
    uint64_t journal_syncs = 0, journal_bytes = 0, journal_records = 0;
    uint64_t state_syncs = 0, state_commits = 0, recovered_records = 0;
    uint64_t apply_backlog_bytes = 0, append_queue_bytes = 0;
    bool read_only = false;
    uint64_t damaged_sessions = 0;
};

class Metrics {
  public:
    Metrics();
    ~Metrics();
    Metrics(const Metrics&) = delete;
    Metrics& operator=(const Metrics&) = delete;

    void turn_settled(std::string_view status, double seconds);  // a TurnStatus word
    void step_settled(std::string_view kind);                    // "model", "tool"
    /// Of a model step, as its device counts them; cached ones are part of the input.
    void model_tokens(uint64_t input, uint64_t cached, uint64_t output);
    void step_failed(std::string_view error_class);  // an ErrorClass word
    void retried();
    void session_activated();
    void session_passivated();
    void tool_call(std::string_view outcome);  // "result", "error", "failed", "lost"
    void refused(std::string_view code);       // an error code's name

    void set_sessions_active(size_t sessions);
    void model_requests_in_flight(size_t requests);
    /// Counters move by what was added since the last call; a total that fell counts from zero again.
    void set_store_figures(const StoreFigures& figures);
    /// From anything that has StoreFigures' fields (the store's own figures are above this folder).
    template <class Stats>
    void set_store(const Stats& stats) {
        set_store_figures({stats.journal_syncs, stats.journal_bytes, stats.journal_records, stats.state_syncs,
                           stats.state_commits, stats.recovered_records, stats.apply_backlog_bytes,
                           stats.append_queue_bytes, stats.read_only, stats.damaged_sessions});
    }

    /// Other rooms register their own families here, once, when they are made.
    prometheus::Registry& registry();
    /// Text exposition of everything, process figures read now.
    std::string expose();

  private:
    struct Handles;
    std::unique_ptr<Handles> handles_;
};

}  // namespace mainstay
