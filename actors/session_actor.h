#pragma once
// One session in memory: the shell around the pure Session. It carries messages in, appends what was decided, starts
// the effects that pending() names when the output gate allows them, and answers when the store has committed. All
// decisions are in runtime/session; all waiting is in OutputGate. Only this actor appends to its session's journal.
//
// Life: spawned by the tenant supervisor on the first message, activates from the store (head, window, tail), sleeps
// when idle by asking the supervisor first, so that no message is ever lost between an old and a new incarnation.

#include <caf/event_based_actor.hpp>
#include <caf/stateful_actor.hpp>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "actors/agent_binding.h"
#include "actors/agent_tools.h"
#include "actors/history_reader.h"
#include "actors/left_behind.h"
#include "actors/left_claims.h"
#include "actors/messages.h"
#include "actors/node_context.h"
#include "actors/output_gate.h"
#include "actors/turn_watch.h"

namespace mainstay {

class SessionActor {
  public:
    SessionActor(caf::event_based_actor* self, NodeContext& node, SessionKey key, caf::actor supervisor, Epoch led_in);
    ~SessionActor();

    /// Builds the session from the store. A session whose rows are damaged stays up only to say so.
    void activate();

    void handle(Envelope& envelope);
    void committed(const Committed& acknowledged);
    void model_delta(const ModelDelta& delta);
    void model_settled(ModelSettled& settled);
    void tool_settled(ToolSettled& settled);
    void tools_ready(const ToolsReady& ready);
    void retry_decided(const RetryDecided& decided);
    /// The supervisor holds new messages back: true if the actor goes, false if it has work.
    bool go_to_sleep();
    void rest();
    /// Another node leads the session's shard: nothing that is held leaves any more.
    void lost();
    /// After lost(): what is under way and goes on without the session. It is the caller's now.
    std::vector<LeftBehindWork> leave_behind();
    Epoch led_in() const { return led_in_; }
    void news_came(LeftNews& news);
    /// Whoever did not answer by now has nothing.
    void claim_over(uint64_t claim);
    void claim_again(uint64_t claim, uint32_t source);

  private:
    struct ModelInFlight {
        RunModelStep step;
        uint64_t request_id = 0;
        AgentToolsPtr tools;
        std::string streamed;  // deltas that came
        uint32_t stream_index = 0;
        size_t published = 0;              // of `streamed`: what readers were shown
        bool truncate = false;             // a prompt that is too long may leave out older turns
        std::shared_ptr<void> pausable{};  // node_.pauses: on a device of our own
        std::optional<uint32_t> left{};    // it runs at this node of claims_
    };
    struct ToolInFlight {
        uint64_t call_id = 0;
        TurnNo turn;
        uint32_t call = 0, attempt = 0;
        std::shared_ptr<void> activity{};  // the shard's, until the receipt is committed
        std::optional<uint32_t> left{};    // it runs at this node of claims_
    };
    struct RetryAskedFor {
        TurnNo turn;
        uint32_t step = 0, attempt = 0;
        bool is_tool = false;
    };

    // --- commands
    CommandContext context(const std::string& principal) const;
    Decided decide(CommandContext context, CommandBody body);
    void append(const EventBatch& batch, Sequence first_sequence);
    void follow_up(const Decided& decided);
    void answer_settled(TurnPtr turn);
    TurnAnswer make_answer(TurnPtr turn) const;
    Sequence last() const { return session_->last_sequence(); }

    bool can_sleep() const;
    void sleep_if_idle(TimeMs now);

    // --- asks
    void on(SubmitTurn& ask);
    void on(ReadTurn& ask);
    void on(CancelTurnOf& ask);
    void on(OpenSession& ask);
    void on(ReadInfo& ask);
    void on(ChangeMetadata& ask);
    void on(RemoveSession& ask);
    bool damaged() const;
    void discard(RemoveSession& ask);
    void on(ListItems& ask);
    void on(ReadItem& ask);
    void on(AppendItems& ask);
    void on(ListEvents& ask);
    void on(ResolveCall& ask);
    void on(WakeUp& ask);
    void fork_and_submit(SubmitTurn& ask);
    void publish_deltas();
    void follow_parents();
    /// Keys whose rows LMDB has need not be remembered here; called now and then.
    void forget_applied_keys();
    void load_window();
    std::optional<KnownKey> known_key(const KeyHash& key) const;
    Result<TurnPtr> find_turn(TurnNo turn) const;
    SessionInfo info() const;
    void answer_info(ReplyTo<SessionInfo>& done);
    ItemId item_id(TurnNo turn, size_t index) const;

    // --- recovery
    void begin_recovery();
    void recover();
    void take_step(const RunModelStep& step, LeftClaims::Work& work, AgentToolsPtr tools);
    void heed(uint32_t source, LeftClaims::Next next);
    void deliver(uint64_t id, LeftPart outcome);
    void cancel_left(uint32_t source, const LeftName& work);

    // --- effects
    void drive();
    const Pending& pending_now();
    void start_model(const RunModelStep& step);
    void start_tool(const RunTool& tool);
    void fail_model(const RunModelStep& step, ErrorClass error_class, ErrorCode code, std::string message);
    void cancel_stale(const Pending& pending);
    void arm_timer(TimeMs at);
    /// Tells the node whether this session has work under way: a drain waits for that.
    void count_busy();
    AgentToolsPtr tools_of(const AgentPtr& agent, const std::string& options);
    void publish_step(TurnNo turn, size_t items_before, const RunModelStep& step);

    caf::event_based_actor* self_;
    NodeContext& node_;
    const SessionKey key_;
    caf::actor supervisor_;
    std::unique_ptr<Session> session_;
    std::optional<Error> broken_;
    const Epoch led_in_;  // in which the session's shard was led when this actor was spawned: it acts in no other
    HistoryReader history_;
    OutputGate gate_;
    TurnWatch watch_;
    std::shared_ptr<AckTarget> ack_target_;

    /// Settled turns that are not committed yet: neither the window nor the store need have them.
    std::deque<std::pair<Sequence, TurnPtr>> settling_;
    uint32_t keyed_turns_ = 0;  // since keys were last forgotten
    std::optional<Pending> pending_;
    Sequence pending_of_;
    std::optional<ModelInFlight> model_;
    std::vector<ToolInFlight> tools_;
    std::vector<RetryAskedFor> retries_;
    bool waits_for_commit_ = false;  // an effect is pending that only the commit holds back
    std::optional<LeftClaims> claims_;
    bool recovered_ = false;  // until then nothing begins
    TurnNo taken_up_;         // the turn that was open when this actor began: its readers come later
    std::optional<ToolsReady> listed_;
    bool listing_ = false;
    bool window_loaded_ = false;

    TimeMs armed_at_ = 0;
    TimeMs last_active_ = 0;
    bool asked_to_sleep_ = false, counted_busy_ = false;
    bool used_model_ = false;  // since it was activated: caches may hold something of it
    uint32_t last_retry_after_ms_ = 0;
    uint64_t steps_settled_ = 0;  // since the supervisor was told
};

struct SessionActorHolder {
    std::unique_ptr<SessionActor> actor;
};

caf::behavior session_actor(caf::stateful_actor<SessionActorHolder>* self, NodeContext* node, SessionKey key,
                            caf::actor supervisor, Epoch led_in);

}  // namespace mainstay
