#pragma once
// The session: a pure state machine, no clock, no thread, no disk. decide() turns a command into events and applies
// them at once (the caller appends the batch and holds every output until the store says committed); apply() is the
// only thing that changes state, so recovery is: load the head, apply the tail, ask pending() again. There is no second
// path.
//
// Invariants: turns are numbered from 1 without gaps and run one at a time in order; an item index never changes once
// given; a tool step is dispatched only after its ToolIntent, and settled by exactly one ToolReceipt; after TurnSettled
// nothing of that turn changes, except that an unknown outcome has been closed before.
//
// Owned by one session actor (or by the fold of the store's background thread): not thread-safe.

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/session/command.h"
#include "runtime/session/event.h"
#include "runtime/session/prompt.h"
#include "runtime/session/recent_keys.h"
#include "runtime/session/turn.h"

namespace mainstay {

// --- what the state implies ---------------------------------------------------------------------------------------
// `cause` is the sequence of the event that made the effect necessary. Tool effects may start only when the store has
// committed `cause`; a model step may start before that in pipelined mode.

struct RunModelStep {
    TurnNo turn;
    uint32_t step = 0, attempt = 0;
    Sequence cause;
    std::shared_ptr<const StepTokens>
        resume{};  // what the attempt had said when it was paused; null: from the beginning
};
struct RunTool {
    TurnNo turn;
    uint32_t call = 0, attempt = 0;
    Sequence cause;
    std::string server_label, name, arguments;
    EffectClass effect = EffectClass::once;
    uint64_t timeout_ms = 0;
    std::string idempotency_key;  // stable over attempts and restarts: BLAKE2b of session, turn and call, in hex
};
struct AskRetry {
    TurnNo turn;
    uint32_t step = 0;
    bool is_tool = false;
    uint32_t attempt = 0;  // the one that failed
    ErrorClass error_class = ErrorClass::transient;
    std::string code, message;
    uint64_t cause_sequence = 0;
};
struct Pending {
    std::optional<RunModelStep> model;  // at most one: turns run one at a time
    std::vector<RunTool> tools;         // the parallel calls of one model step
    std::vector<AskRetry> retries;
    TimeMs wake_at = 0;  // earliest timer, expiry, retry or deadline; 0: none
};

/// A packed batch of an open turn, as a head carries it.
struct OpenBatchBytes {
    Sequence first_sequence;
    std::string bytes;
};

/// What a decision means to whoever asked; held back until `sequence` is committed.
struct Decided {
    std::optional<EventBatch> batch;  // empty: nothing changed (a repeated key, a stale result)
    Sequence first_sequence;          // of the batch's first event
    TurnNo turn;                      // SubmitInput: the turn that answers (also for a repeated key)
    bool repeated = false;            // the key had been used: `turn` is the recorded one
    std::vector<TurnNo> settled;      // turns that this decision settled, in order
    std::optional<Error> refused;     // a decision record may be in `batch` all the same
};

class Session {
  public:
    explicit Session(SessionKey key);

    // Copying is for tests and for the fold's scratch state.
    Session(const Session&) = default;
    Session& operator=(const Session&) = default;
    Session(Session&&) = default;
    Session& operator=(Session&&) = default;

    Decided decide(const Command& command);
    /// Applies a batch from the journal (recovery and fold); decide() calls it as well. INVARIANT: first_sequence
    /// follows the last applied one.
    void apply(const EventBatch& batch, Sequence first_sequence);
    /// Everything that the state implies now, whether or not it was started: the caller knows what is in flight.
    Pending pending() const;

    bool exists() const;  // created and not deleted
    bool deleted() const;
    bool idle() const;  // no open or queued turn, no open wait
    /// Nothing is left to do by itself: idle, no wake-up ahead, nothing to delete. A start need not take it up.
    bool at_rest() const;
    Sequence last_sequence() const;
    const SessionKey& key() const;
    TurnNo last_turn() const;  // of any status; 0: none
    TurnNo tip() const;        // last settled; 0: none
    const SessionCreated& created() const;
    TimeMs created_at() const;
    const std::string& metadata() const;
    const std::unordered_map<std::string, std::string>& memory() const;
    uint64_t item_count() const;  // of settled turns
    const Usage& usage() const;   // sum over settled turns
    bool ephemeral() const;       // store: false; takes one turn
    /// An ephemeral session that has done its work: to be deleted by a command of its own once its answer has left. One
    /// whose turn came under an idempotency key first outlives the key, because until then a repetition is owed the
    /// same answer and nothing may run twice; the Tick at wake_at() deletes it.
    bool disposable(TimeMs now) const;
    SessionId parent() const;  // of a fork; invalid: a root
    /// Turns up to this one are the parent's (their ids too); the first own turn has the next number. A reader that
    /// looks for an earlier one walks up: parent(), and from there on again. 0: none.
    TurnNo parent_turn() const;
    uint32_t children() const;         // forks that share this history
    uint64_t stream_reserved() const;  // stream sequence numbers below this may have been sent
    TimeMs now() const;                // the newest recorded time
    TimeMs wake_at() const;            // as in pending(); 0: none
    /// Open and queued turns, oldest first.
    std::vector<TurnNo> open_turns() const;

    /// An open or queued turn, or a settled one that is still in the window; null otherwise (read its row).
    TurnPtr turn(TurnNo no) const;
    /// Turn that a key of the last 24 hours named, as far as the session remembers itself.
    std::optional<KnownKey> find_key(const KeyHash& key, TimeMs now) const;

    /// Settled turns for the prompt, oldest first, bounded by `window_bytes`; extended by apply(). A session that was
    /// made again has those of its tail only: whoever wants a prompt loads the rows behind left_out() instead, in any
    /// order.
    void load_window(std::vector<TurnPtr> settled_turns);
    void set_window_bytes(size_t bytes);
    /// One entry a settled turn, then the open turn's items; calls of the open turn that are settled carry their
    /// output.
    std::vector<std::shared_ptr<const std::vector<ItemPtr>>> window() const;
    /// The same in its two parts, without copying: settled turns (shared by the steps of a turn), and the open turn's
    /// items (null: none).
    TurnRun settled_window() const;
    ItemsPtr open_items() const;
    /// Turns up to this one are in no prompt: compacted, or gone from a window that is complete. Recorded with the next
    /// turn. 0: none.
    TurnNo left_out() const;
    const std::string& summary() const;  // what stands for them; empty: nothing does
    /// When the open turn ends by its limit, time in waits not counted; 0: no bound, or no turn.
    TimeMs open_deadline() const;
    const Turn* open_turn() const;  // the turn in progress; null: none

    /// Keys whose turns are in LMDB up to this turn may be forgotten here.
    void forget_keys(TurnNo up_to);

    /// The snapshot: small, independent of the length of the history (schema Head). `encode_head` after apply of all
    /// batches up to last_sequence(); open turns are kept as their raw batches.
    std::string encode_head() const;
    static Result<Session> decode_head(SessionKey key, std::string_view bytes);

    // --- for the fold -----------------------------------------------------------------------------------------
    /// As apply(), for bytes that nobody vouches for: false if the batch does not fit, and then the state is undefined.
    bool try_apply(const EventBatch& batch, Sequence first_sequence);
    /// Deleted, and nobody will ever ask for it: its head may go as well.
    bool forgettable() const;
    /// No window and no copies of open batches: the fold has their bytes. encode_head() must then be given them.
    void forget_history();
    struct RawBatch {
        Sequence first_sequence;
        std::string_view bytes;
    };
    std::string encode_head(const std::vector<RawBatch>& open_batches) const;
    static Result<Session> decode_head(SessionKey key, std::string_view bytes, std::vector<OpenBatchBytes>* open);

  private:
    friend class Decider;
    bool apply_event(const Event& event, TurnProgress* turn, Sequence sequence, TimeMs at, bool replay);
    bool apply_batch(const EventBatch& batch, Sequence first_sequence, bool replay);
    bool create(const SessionCreated& created, TimeMs at);
    void set_memory(const MemorySet& event);
    void publish(size_t open_index);
    void start_next();
    TurnProgress* find_open(TurnNo no);
    const TurnProgress* find_open(TurnNo no) const;

    SessionKey key_;
    SessionCreated created_;
    bool exists_ = false, deleted_ = false, keep_history_ = true;
    bool window_complete_ = false;  // it begins where prompts do, and not with whatever was applied since
    TimeMs created_at_ = 0, now_ = 0, keep_until_ = 0;
    Sequence sequence_;
    uint32_t turns_settled_ = 0, children_ = 0;
    uint32_t noted_ = 0;  // refusals recorded while no turn is open (bit set of Noted)
    uint64_t items_settled_ = 0, stream_reserved_ = 0;
    TurnNo turn_base_, last_turn_, compacted_to_;
    Usage usage_;
    std::string agent_, summary_;  // agent of the last turn; what stands for compacted turns
    std::unordered_map<std::string, std::string> memory_;
    std::vector<TurnProgress> open_;  // by number; the first is in progress, the others are queued
    Window window_;
    RecentKeys keys_;
    std::vector<SessionId> recent_forks_;  // newest last, bounded; a head does not carry them
};

}  // namespace mainstay
