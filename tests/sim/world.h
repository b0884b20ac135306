#pragma once
// One simulated node with everything around it: a real MemoryStore that fails by seed, shells around real sessions, a
// client that retries with its idempotency keys, models and tools that fail, a supervisor, virtual time. One thread and
// one seed: the same seed gives the same history. A history is some hundreds of commands with crashes between; at its
// end the faults stop and everything must finish and be found as it was acknowledged.

#include <array>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/random.h"
#include "runtime/policy/retry.h"
#include "runtime/session/fold.h"
#include "runtime/store/memory_store.h"
#include "sim/oracle.h"
#include "sim/shell.h"

namespace mainstay::sim {

struct Counts {
    uint64_t histories = 0, commands = 0, processes_killed = 0, crashes_by_eio = 0;
    std::array<uint64_t, store_fault_count> struck{};
    uint64_t refused_full = 0, submits = 0, answers = 0, repeats = 0, forks = 0, deletes = 0, cancels = 0;
    uint64_t unknowns = 0, resolved = 0, retries = 0, timers = 0, sleeps = 0, hand_overs = 0, taken = 0, executions = 0,
             rebuilds = 0;
    uint64_t turns_read = 0, segments = 0;
    void add(const Counts& other);
};

struct HistoryOptions {
    uint64_t seed = 1;
    uint32_t commands = 200;
    Mutant mutant = Mutant::none;
};

/// What a client wants done once, however often it must ask.
struct Request {
    enum class State : uint8_t { unanswered, waiting, answered, refused };
    size_t number = 0;
    uint32_t session = 0;  // asked
    uint32_t child = 0;    // the session of the fork, if `after` is no idle tip
    std::optional<TurnNo> after;
    bool creates = false, ephemeral = false, background = false, forked = false;
    KeyHash key{};
    uint64_t digest = 0;
    std::string text;
    TurnLimits limits;
    State state = State::unanswered;
    std::optional<TurnNo> turn;  // that was acknowledged for it
    uint32_t turn_session = 0;   // and whose it is
};

class World {
  public:
    static constexpr uint16_t store_shards() { return 4; }

    explicit World(const HistoryOptions& options);
    /// Throws Violation.
    void run();
    const Counts& counts() const { return counts_; }

  private:
    friend class Shell;
    struct Job {
        enum class Kind : uint8_t { commit, model, tool, retry } kind = Kind::commit;
        uint32_t session = 0;
        uint64_t incarnation = 0;
        Sequence committed;
        RunModelStep model;
        RunTool tool;
        std::optional<CommandBody> tool_answer;  // set: the tool has done what it will do
        AskRetry retry;
    };
    struct EarlyAck {
        std::shared_ptr<AckTarget> target;
        Sequence sequence;
    };

    bool chance(uint64_t percent) { return random_.below(100) < percent; }
    template <class T>
    size_t any_of(const std::vector<T>& all) {
        return static_cast<size_t>(random_.below(all.size()));
    }
    std::string words(const char* what, size_t bytes_max);

    // --- the node
    Shell& shell(uint32_t session);
    void append(Append append);
    void step_store();
    void run_job();
    void run_tool(Job job);
    CommandBody model_step(const RunModelStep& step);
    CommandBody tool_result(const RunTool& tool);
    void drop_job(size_t at);
    void sleep(uint32_t session);
    void hand_over(uint32_t session);
    void pass_time();
    TimeMs next_wake() const;
    void wake_due();
    void kill();
    void restart();

    // --- the client
    void act_as_client();
    void send(Request& request);
    uint32_t new_session(bool ephemeral, std::optional<FamilyId> family = std::nullopt);
    void submit_new();
    void fork_some();
    void resolve_some();
    void answered(Request& request, uint32_t session, const TurnPtr& turn);

    // --- what must hold
    void check_dispatch(uint32_t session, const RunTool& tool);
    void check_activated(const Shell& shell);
    void check_rebuilt(const Shell& shell);
    void settle_everything();
    void run_until_quiet();
    void finish();
    void expire_unstored();
    void check_at_rest();
    void check_session_at_rest(uint32_t session);
    Session rebuild(const SessionKey& key, bool* only_head = nullptr);

    const HistoryOptions options_;
    SeededRandom random_;
    SessionFold fold_;
    MemoryStore store_;
    const bool strict_;
    TimeMs now_ = 1'700'000'000'000;
    uint64_t epoch_ = 1, incarnations_ = 0;
    bool finishing_ = false;

    std::vector<SessionKey> keys_;
    std::deque<ClientView> views_;
    std::vector<std::unique_ptr<Shell>> shells_;
    std::map<SessionKey, uint32_t> index_of_;
    std::vector<TimeMs> alarms_;  // of sessions that sleep; 0: none
    std::deque<Request> requests_;
    std::vector<Job> jobs_;
    std::vector<EarlyAck> early_;
    ToolWorld tools_;
    RetryBudget budget_;
    Counts counts_;
};

}  // namespace mainstay::sim
