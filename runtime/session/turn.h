#pragma once
// One turn: what can be shown of it (Turn) and, while it is not settled, how far it has come (TurnProgress). Everything
// about the order of steps within a turn is derived here from events alone, so that a live session, the fold and a
// reader of a turn row reach the same turn from the same batches.
//
// Invariants: an item index never changes once given; a model step is due exactly when no call of the last step is
// outstanding; a settled turn takes no further event.
//
// Owned by one session (or fold, or reader): not thread-safe.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/session/event.h"
#include "runtime/session/ledger.h"
#include "runtime/session/wait.h"

namespace mainstay {

/// One turn as it can be shown: what GET /v1/responses/{id} and the items list are made of. Immutable once settled.
struct Turn {
    TurnNo no;
    TurnStatus status = TurnStatus::queued;
    TimeMs created_at = 0, settled_at = 0;
    std::string agent;
    uint64_t agent_version = 0;
    std::string principal;
    std::optional<KeyHash> key;
    uint64_t request_digest = 0;
    TurnLimits limits;
    std::string options;         // JSON, as accepted
    std::vector<ItemPtr> items;  // inputs first
    uint32_t input_count = 0;
    uint32_t model_steps = 0;  // settled
    Usage usage;
    std::string model;  // of the last step
    std::string finish_reason;
    std::string code, message;  // when failed, incomplete or cancelled
    /// For a turn number made by AddItems (items without a model run): true. Such a turn is settled at birth.
    bool items_only = false;
    /// Positions of items that are history but no part of a prompt: what a stream had shown of a step that failed, and
    /// answers that a filter or a bound on their form cut.
    std::vector<uint32_t> withheld;
};
using TurnPtr = std::shared_ptr<const Turn>;

/// A batch of a turn that is not settled, kept so that a head can carry it.
struct OpenBatch {
    Sequence first_sequence;
    EventBatch batch;
};

struct TurnProgress {
    Turn turn;
    bool accepted = false;  // its first event was applied
    StepAttempt model;      // of model step number turn.model_steps
    Ledger calls;           // of the last settled model step
    Waits waits;
    bool client_calls = false;        // the last step asked for functions that the client runs
    TimeMs deadline = 0;              // moves by the time spent in waits and with an unknown outcome; 0: none
    std::optional<TimeMs> paused_at;  // since when the deadline stands still
    uint32_t noted = 0;               // refusals already recorded for this turn (bit set of Noted)
    size_t bytes = 0;                 // text that the turn has gathered; bounds its row
    std::vector<OpenBatch> batches;

    bool settled() const { return is_settled(turn.status); }
    /// No call is outstanding and the turn is open: the next model step is due (or failed, or waits for its retry).
    bool model_step_due() const { return !settled() && calls.outstanding() == 0; }
    /// Earliest time at which something happens by itself, as known at `now` (the recorded time); 0: never.
    TimeMs wake_at(TimeMs now) const;

    /// False if the event does not fit: a journal or row that was not written by a session. Events of the session
    /// itself (created, memory) pass through untouched.
    bool apply(const Event& event, Sequence sequence, TimeMs at);
    /// The recorded time has moved on, by a batch that ends with `sequence`: that batch is what makes a retry due.
    void reach(TimeMs before, TimeMs now, Sequence sequence);

  private:
    bool accept(const InputAccepted& event, Sequence sequence, TimeMs at);
    bool add_items(const ItemsAdded& event, TimeMs at);
    bool settle_model_step(const ModelStepSettled& event);
    bool record_intent(const ToolIntent& event, Sequence sequence);
    bool record_receipt(const ToolReceipt& event, Sequence sequence);
    bool record_failure(const StepFailed& event, Sequence sequence);
    bool record_progress(const StepProgress& event, Sequence sequence);
    bool schedule_retry(const RetryScheduled& event, Sequence sequence);
    bool resolve_unknown(const UnknownResolved& event, Sequence sequence);
    bool open_wait(const WaitOpened& event, TimeMs at);
    bool settle(const TurnSettled& event, TimeMs at);
    void move_deadline(TimeMs at);
    void set_call_item(uint32_t index, ItemStatus status, const std::string& output, const std::string& error);
};

/// Refusals that leave a decision record: those that follow from the session's state, not from a malformed request. Of
/// each kind the first within a turn, and the first between two turns: a flood must not fill the journal.
enum class Noted : uint32_t { queue_full = 1, busy = 2, keys_full = 4, conflict = 8, key_reused = 16, too_late = 32 };
std::optional<Noted> noted_of(std::string_view code);

}  // namespace mainstay
