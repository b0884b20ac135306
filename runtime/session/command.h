#pragma once
// Requests to a session that may be refused. Results of steps are commands too, but are never refused for want of room:
// only the next step waits. Every command carries its time, tenant, principal, deadline and key.

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "runtime/base/tool_plan.h"
#include "runtime/session/event.h"

namespace mainstay {

struct CommandContext {
    TimeMs now = 0;  // the only clock that the session knows
    TenantId tenant;
    std::string principal;
    TimeMs deadline = 0;  // 0: none; a command that arrives after it is refused with request_timeout
    std::optional<KeyHash> key;
    uint64_t request_digest = 0;
};

struct CreateSession {
    SessionCreated created;
    std::vector<ItemPtr> items;  // initial items of a conversation; may be empty
};
/// A key that LMDB knows, looked up by the shell before it asks (older than what the session remembers itself).
struct KnownKey {
    TurnNo turn;
    uint64_t request_digest = 0;
    TimeMs at = 0;
};
struct SubmitInput {
    InputAccepted input;                   // key and digest are taken from the context
    std::optional<SessionCreated> create;  // make the session first if it does not exist
    std::optional<TurnNo>
        after_turn;  // previous_response_id: must be the settled idle tip, else conflict (the shell forks)
    std::optional<KnownKey> known_key;
    std::optional<Compacted> inherited;  // with a `create` that forks: where the parent's prompts begin
    std::optional<Decision> placed;      // with a `create`: why the session is where it is
};
struct ModelStepDone {
    TurnNo turn;
    uint32_t step = 0, attempt = 0;
    std::string text;  // message of the step; empty: none
    std::vector<PlannedCall> calls;
    Usage usage;
    std::string model, finish_reason;
    std::shared_ptr<const StepTokens> tokens;  // where the text does not say them
    std::optional<Decision> placed;            // on which node it ran, where that is news
};
struct ModelStepFailed {
    TurnNo turn;
    uint32_t step = 0, attempt = 0;
    ErrorClass error_class = ErrorClass::transient;
    ErrorCode code = ErrorCode::model_unavailable;
    std::string message;
    std::string partial_text;  // deltas that a stream was shown
    // context_overflow:
    bool truncate = false;                           // older turns may be left out of the prompt
    uint32_t context_tokens = 0, context_limit = 0;  // what the prompt has, what it may have; 0: unknown
};
/// Its device ended the attempt between two tokens, so that another may go on with it.
struct ModelStepPaused {
    TurnNo turn;
    uint32_t step = 0, attempt = 0;
    StepTokens tokens;  // all that the attempt has sampled
};
struct ToolStepDone {
    TurnNo turn;
    uint32_t call = 0, attempt = 0;
    bool is_error = false;  // the tool says so itself; the model sees the output either way
    std::string output;
    uint64_t duration_micros = 0;
};
struct ToolFailed {
    TurnNo turn;
    uint32_t call = 0, attempt = 0;
    bool lost = false;  // dispatched, no answer: `once` becomes unknown, others may be tried again
    ErrorClass error_class = ErrorClass::transient;
    ErrorCode code = ErrorCode::tool_unavailable;
    std::string message;
    uint64_t duration_micros = 0;
};
/// The supervisor's answer to AskRetry.
struct RetryVerdict {
    TurnNo turn;
    uint32_t step = 0;
    bool is_tool = false;
    uint32_t attempt = 0;  // the one that failed
    bool retry = false;
    TimeMs at = 0;
    std::string reason;
};
struct CancelTurn {
    TurnNo turn;
    std::string reason;
};               // turn 0: the open one
struct Tick {};  // time passed: timers, expiries, deadlines, retries that are due
/// First command after an activation that followed a crash or a hand-over: intents without receipt may have been
/// dispatched, so those of class `once` become unknown; but for those that go on at the node where they began.
struct Recover {
    struct Elsewhere {
        bool is_tool = false;
        uint32_t number = 0, attempt = 0;  // of the open turn's step, or call
        std::string where;                 // in words
    };
    std::vector<Elsewhere> elsewhere{};
};
struct ResolveWait {
    uint32_t wait = 0;
    WaitOutcome outcome = WaitOutcome::signalled;
    std::string payload;
};
struct ResolveUnknown {
    TurnNo turn;
    uint32_t call = 0;
    Resolution how = Resolution::done;
    std::string output;
};
struct AddItems {
    std::vector<ItemPtr> items;
};
struct SetMetadata {
    std::string metadata;
};
struct DeleteSession {};
struct ForkSession {
    SessionId child;
    TurnNo at;
};  // records the child; the child itself is created by CreateSession/SubmitInput

using CommandBody = std::variant<CreateSession, SubmitInput, ModelStepDone, ModelStepFailed, ModelStepPaused,
                                 ToolStepDone, ToolFailed, RetryVerdict, CancelTurn, Tick, Recover, ResolveWait,
                                 ResolveUnknown, AddItems, SetMetadata, DeleteSession, ForkSession>;

struct Command {
    CommandContext context;
    CommandBody body;
};

}  // namespace mainstay
