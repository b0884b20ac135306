#pragma once
// The shell around one real Session, as actors/session_actor is in the daemon: same activation from the store, same
// order of decide, append and hold, same real output gate and history reader; messages are calls, and the world decides
// when they happen. Lives at most as long as the simulated process. Mutants break one guarantee each.

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/history_reader.h"
#include "actors/output_gate.h"
#include "runtime/session/session.h"
#include "runtime/store/journal.h"

namespace mainstay::sim {

class World;

enum class Mutant : uint8_t {
    none,
    acknowledge_before_commit,
    dispatch_before_intent,
    recovery_repeats_once,
    store_acknowledges_before_sync,
    keys_forgotten,
};

struct Request;

/// What goes on of a session where it was led before.
struct Elsewhere {
    std::optional<RunModelStep> model{};
    std::vector<RunTool> tools{};
};

class Shell {
  public:
    Shell(World& world, uint32_t index, uint64_t incarnation);

    void activate(const Elsewhere& elsewhere = {});

    // --- asks
    void submit(Request& request, std::optional<SessionCreated> create);
    void cancel(TurnNo turn);
    void add_items(std::string text);
    void set_metadata(uint64_t number);
    void remove();
    void resolve(TurnNo turn, uint32_t call, Resolution how, std::string output);
    void read(TurnNo turn);
    void wake();

    // --- outcomes
    void committed(Sequence sequence);
    void model_outcome(const RunModelStep& step);
    void tool_outcome(const RunTool& tool, CommandBody outcome);
    void retry_decided(const RetryVerdict& verdict);

    bool can_sleep() const;
    const Session& session() const { return session_; }
    uint64_t incarnation() const { return incarnation_; }
    bool all_committed() const { return gate_.empty() && gate_.is_committed(session_.last_sequence()); }
    Result<TurnPtr> find_turn(TurnNo turn) const;
    /// Of clients, by number.
    std::vector<size_t> waiting_requests() const;
    /// Calls of the open turn whose outcome nobody knows.
    std::vector<uint32_t> unknown_calls() const;

  private:
    struct AskedRetry {
        TurnNo turn;
        uint32_t step = 0, attempt = 0;
        bool is_tool = false;
    };

    Decided decide(CommandBody body, const Request* request = nullptr);
    void hold(OutputGate::Output output);
    void hold_shown(TurnNo turn);
    void follow_up(const Decided& decided);
    void answer_settled(const TurnPtr& turn);
    void fork_and_submit(Request& request);
    void adopt_history();
    void drive();

    World& world_;
    const uint32_t index_;
    const uint64_t incarnation_;
    const SessionKey key_;
    Session session_;
    HistoryReader history_;
    OutputGate gate_;
    std::shared_ptr<AckTarget> ack_target_;
    std::optional<RunModelStep> model_;
    std::vector<RunTool> tools_;
    std::vector<AskedRetry> retries_;
    std::map<uint32_t, std::vector<size_t>> waiting_;  // requests, by turn
    /// Settled, and perhaps out of the window, before the store could give them back.
    std::vector<std::pair<Sequence, TurnPtr>> settling_;
    bool waits_for_commit_ = false;
};

}  // namespace mainstay::sim
