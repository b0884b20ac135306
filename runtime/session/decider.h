#pragma once
// One decision in the making: reads the session, collects the events of one batch and what is to be told to whoever
// asked. It changes nothing; Session::decide applies what it returns. One function for each command, in decide_*.cpp by
// what the command is about.
//
// Lives for one call of Session::decide.

#include <string>
#include <string_view>
#include <utility>

#include "runtime/session/session.h"

namespace mainstay {

class Decider {
  public:
    Decider(const Session& session, const CommandContext& context);

    /// Whether the command gets as far as its own rules: a session that is not there and a deadline that has passed
    /// refuse requests, and results that come too late for a session are ignored.
    bool admits(const CommandBody& body);

    void decide(const CreateSession& command);
    void decide(const SubmitInput& command);
    void decide(const AddItems& command);
    void decide(const SetMetadata& command);
    void decide(const DeleteSession& command);
    void decide(const ForkSession& command);
    void decide(const ModelStepDone& command);
    void decide(const ModelStepFailed& command);
    void decide(const ModelStepPaused& command);
    void decide(const RetryVerdict& command);
    void decide(const CancelTurn& command);
    void decide(const ToolStepDone& command);
    void decide(const ToolFailed& command);
    void decide(const ResolveUnknown& command);
    void decide(const Recover& command);
    void decide(const Tick& command);
    void decide(const ResolveWait& command);

    Decided take();

  private:
    void refuse(ErrorCode code, std::string message, std::string param = {});
    /// Refuses and records it, once for each open turn and code, and once between two turns.
    void refuse_noted(ErrorCode code, std::string message);
    bool items_fit(const std::vector<ItemPtr>& items);
    bool key_admits(const SubmitInput& command);

    void begin(TurnNo turn);
    void begin(const TurnProgress& turn);
    template <class E>
    void emit(E event) {
        events_.emplace_back(std::in_place_type<E>, std::move(event));
    }
    /// Sequence that the event emitted next will have.
    Sequence next_sequence() const { return Sequence{session_.sequence_.value + events_.size() + 1}; }

    /// The turn in progress if it has this number; null: the result is stale.
    const TurnProgress* running(TurnNo turn) const;
    /// The same, if an answer to this attempt of its model step is still awaited.
    const TurnProgress* awaited_step(TurnNo turn, uint32_t step, uint32_t attempt) const;
    /// Its call, if an answer to this attempt is still awaited.
    const Call* awaited(const TurnProgress* turn, uint32_t call, uint32_t attempt) const;

    /// The prompt was too long: a shorter one, or the end of the turn.
    void overflow(const ModelStepFailed& failed, const TurnProgress& turn);
    /// Turns up to the one returned are to be left out; none: nothing is left to leave out.
    std::optional<TurnNo> shorten(const ModelStepFailed& failed, const TurnProgress& turn) const;
    /// Records where prompts begin, if the window has moved on since that was last recorded.
    void keep_window();

    void settle_step(const ModelStepDone& done, const TurnProgress& turn, std::vector<ItemPtr> items);
    ItemPtr message_item(const ModelStepDone& done, ItemStatus status) const;
    void plan_call(const PlannedCall& call, uint32_t index);
    void run_builtin(const BuiltinAction& action, uint32_t index);
    void change_memory(const BuiltinAction& action, uint32_t index);
    void sleep(const BuiltinAction& action, uint32_t index);
    std::optional<std::string> remembered(const std::string& key) const;
    std::vector<std::pair<std::string, std::string>> memory_now() const;

    void receipt(uint32_t call, ItemStatus status, std::string output, std::string error, uint64_t micros = 0);
    /// Emits a receipt; the last one of the step ends the turn or makes the next model step due.
    void settle_call(ToolReceipt receipt);
    void fail_call(uint32_t call, ErrorCode code, const std::string& message, uint64_t micros = 0);
    void after_calls();
    bool past_deadline(const TurnProgress& turn) const;
    void fail_by_deadline(const TurnProgress& turn);
    void settle_turn(TurnStatus status, std::string code, std::string message);
    /// Receipts and outcomes for everything that the turn has open, so that nothing stays in progress behind it.
    void close_open_work(const TurnProgress& turn, ErrorCode why);
    void close_call(const Call& call, ErrorCode why);
    void resolve_wait(const OpenWait& wait, WaitOutcome outcome, const std::string& payload);
    void start_due_retries(const TurnProgress& turn);

    const Session& session_;
    const CommandContext& context_;
    const TimeMs now_;  // recorded time never goes back
    Decided decided_;
    TurnNo turn_;
    std::vector<Event> events_;

    // What the turn will be after the events so far.
    size_t outstanding_ = 0;
    size_t turn_bytes_ = 0;  // before this batch: one step more than the bound is bounded as well
    uint32_t model_steps_ = 0, output_tokens_ = 0;
    bool client_calls_ = false;
    TurnLimits limits_;
    size_t room_ = 0;  // bytes that the answers of builtins may still add to the batch
};

/// At most `bytes_max` bytes, cut between characters.
std::string clip(std::string_view text, size_t bytes_max);

}  // namespace mainstay
