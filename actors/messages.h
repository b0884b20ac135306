#pragma once
// Every message between actors, in one place. Messages are immutable structs behind shared pointers: nothing is copied
// on a hop, nothing is ever serialised (between processes only Cap'n Proto bytes travel). Imperatives ask, past
// participles report.

#include <atomic>
#include <caf/actor.hpp>
#include <caf/allowed_unsafe_message_type.hpp>
#include <caf/atom.hpp>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "actors/answers.h"
#include "cluster/coordinator.h"
#include "runtime/inference/text_device.h"
#include "runtime/session/command.h"
#include "runtime/tool/tool.h"

namespace mainstay {

/// A callback that is answered even if whoever holds it dies: a dropped request never hangs its caller.
template <class T>
class ReplyTo {
  public:
    ReplyTo() = default;
    explicit ReplyTo(Callback<T> callback) : callback_(std::move(callback)) {}
    ReplyTo(ReplyTo&& other) noexcept : callback_(std::exchange(other.callback_, nullptr)) {}
    ReplyTo& operator=(ReplyTo&& other) noexcept {
        if (this != &other) {
            drop();
            callback_ = std::exchange(other.callback_, nullptr);
        }
        return *this;
    }
    ~ReplyTo() { drop(); }

    void operator()(Result<T> result) {
        if (auto callback = std::exchange(callback_, nullptr)) callback(std::move(result));
    }
    explicit operator bool() const { return static_cast<bool>(callback_); }

  private:
    void drop() {
        if (callback_)
            (*this)(Error{ErrorCode::internal, "the request was dropped while the session restarted; try again", {}});
    }
    Callback<T> callback_;
};

/// One reader of a turn's stream; `closed` is set from the door's thread when the client went away.
struct Subscription {
    StreamCallback on_event;
    std::atomic<bool> closed{false};
    bool ended = false;  // touched by the session actor only
    ~Subscription() {
        if (on_event && !ended && !closed)
            on_event(StreamFailed{
                {ErrorCode::internal, "the stream was dropped while the session restarted; read the response", {}}});
    }
    void send(StreamEvent event) {
        if (ended || closed) return;
        ended = std::holds_alternative<StreamEnded>(event) || std::holds_alternative<StreamFailed>(event);
        on_event(std::move(event));
    }
};
using SubscriptionPtr = std::shared_ptr<Subscription>;

// --- asked of a session (by way of router and tenant supervisor, which wake it)
// ------------------------------------------
struct SubmitTurn {
    TurnRequest request;
    AgentPtr agent;  // bound
    std::optional<KeyHash> key;
    std::optional<SessionCreated> create;  // where the session does not exist yet
    std::optional<TurnNo> after;           // previous_response_id
    SessionId fork_child;                  // id to use should `after` not be the idle tip
    std::optional<Compacted> inherited;    // with a `create` that forks: where the parent's prompts begin
    std::optional<Decision> placed;        // with a `create`: why the session is where it is
    ReplyTo<TurnAnswer> done;
    SubscriptionPtr stream;
};
struct ReadTurn {
    TurnNo turn;
    ReplyTo<TurnAnswer> done;
};
struct CancelTurnOf {
    Principal principal;
    TurnNo turn;
    ReplyTo<TurnAnswer> done;
};
struct OpenSession {
    SessionCreated created;
    std::vector<ItemPtr> items;
    std::optional<KeyHash> key;
    uint64_t digest = 0;
    ReplyTo<SessionInfo> done;
};
struct ReadInfo {
    ReplyTo<SessionInfo> done;
};
struct ChangeMetadata {
    Principal principal;
    std::string metadata;
    ReplyTo<SessionInfo> done;
};
struct RemoveSession {
    Principal principal;
    ReplyTo<SessionInfo> done;
};
struct ListItems {
    ItemQuery query;
    ReplyTo<ItemPage> done;
};
struct ReadItem {
    ItemId item;
    ReplyTo<ItemEntry> done;
};
struct AppendItems {
    Principal principal;
    std::vector<ItemPtr> items;
    ReplyTo<ItemPage> done;
};
struct ListEvents {
    uint64_t after = 0;
    size_t limit = 100;
    ReplyTo<std::vector<EventEntry>> done;
};
struct ResolveCall {
    Principal principal;
    ItemId call;
    Resolution how = Resolution::done;
    std::string result;
    ReplyTo<TurnAnswer> done;
};
/// A timer is due, or a start takes up open turns. `done` tells the starter that the session has been taken up.
struct WakeUp {
    std::function<void()> done;
};

using Ask = std::variant<SubmitTurn, ReadTurn, CancelTurnOf, OpenSession, ReadInfo, ChangeMetadata, RemoveSession,
                         ListItems, ReadItem, AppendItems, ListEvents, ResolveCall, WakeUp>;
/// Fails whatever callback the ask holds.
void refuse(Ask& ask, const Error& error);

struct Envelope {
    SessionKey key;
    Ask ask;
};
using EnvelopePtr = std::shared_ptr<Envelope>;

// --- reported to a session actor
// --------------------------------------------------------------------------------------
struct Committed {
    Sequence durable, committed;
};
struct ModelDelta {
    uint64_t request_id = 0;
    std::string text;
};
struct ModelSettled {
    uint64_t request_id = 0;
    std::variant<ModelResult, ModelError, StepTokens> outcome;  // tokens: it was paused, and said these
};
using ModelSettledPtr = std::shared_ptr<ModelSettled>;
struct ToolSettled {
    uint64_t call_id = 0;
    ToolOutcome outcome;
};
using ToolSettledPtr = std::shared_ptr<ToolSettled>;
struct ToolsReady {
    uint64_t agent_version = 0;
    std::shared_ptr<const std::vector<ToolInfo>> tools;
    std::string failure;
};
using ToolsReadyPtr = std::shared_ptr<ToolsReady>;
struct RetryDecided {
    RetryVerdict verdict;
};

// --- between session actor and tenant supervisor
// ------------------------------------------------------------------------
struct RetryAsked {
    SessionKey key;
    AskRetry ask;
    RetrySpec policy;
    uint32_t retry_after_ms = 0;  // what the upstream asked for
    TimeMs deadline = 0;          // of the turn; 0: none
    uint64_t successes = 0;       // steps that worked since the session asked last: they earn retries
};

// --- work
// ---------------------------------------------------------------------------------------------------------------
struct RunToolCall {
    ToolCall call;
    caf::actor session;
    std::function<void(ToolOutcome)> done{};  // instead of `session`: whoever asked is on another node
};
using RunToolCallPtr = std::shared_ptr<RunToolCall>;
/// To the owner of the users' memories: the record of this revision is on disk.
struct MemoryCommitted {
    SessionKey key;  // memory_key()
    Sequence committed;
};
/// ... or never will be by this node.
struct MemoryRefused {
    SessionKey key;
};
/// To supervisors and whoever keeps state of sessions: this node leads a shard in this epoch from now on, or does not
/// any more. What was awake in an earlier epoch goes, in either case; what is awake in this one stays: two actors of
/// one session in one epoch would both be believed.
struct ShardLed {
    ShardId shard;
    Epoch epoch;
};
struct ShardLost {
    ShardId shard;
};
/// To the node supervisor: another node is to know every agent and model.
struct EntitiesWanted {
    NodeUuid node{};
};
struct ArmTimer {
    SessionKey key;
    TimeMs at = 0;      // 0: no wake-up
    bool only = false;  // instead of what was armed before; else the earlier one counts
};

using wake_atom = caf::atom_constant<caf::atom("wake")>;
using sleep_atom =
    caf::atom_constant<caf::atom("sleep")>;  // session -> supervisor: may I sleep?  supervisor -> session: you may
using stay_atom = caf::atom_constant<caf::atom("stay")>;  // session -> supervisor: work came, I stay
using gone_atom = caf::atom_constant<caf::atom("gone")>;  // session -> supervisor: I am gone
using sweep_atom = caf::atom_constant<caf::atom("sweep")>;
using lost_atom =
    caf::atom_constant<caf::atom("lost")>;  // to a session: another node leads it, nothing may leave any more
using refused_atom =
    caf::atom_constant<caf::atom("refused")>;  // to a session: what it appended will never be on this node's disk
using claim_atom = caf::atom_constant<caf::atom("claim")>;  // session -> itself: who has not answered has nothing; or:
                                                            // ask a node again
using drain_atom = caf::atom_constant<caf::atom("drain")>;
using resume_atom = caf::atom_constant<caf::atom("resume")>;
using listen_atom = caf::atom_constant<caf::atom("rearm")>;

}  // namespace mainstay

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::EnvelopePtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::Committed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ModelDelta)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ModelSettledPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ToolSettledPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ToolsReadyPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::RetryDecided)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::RetryAsked)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::RunToolCallPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::MemoryCommitted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::MemoryRefused)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ArmTimer)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ShardLed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ShardLost)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::EntitiesWanted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::SessionKey)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::TenantId)
