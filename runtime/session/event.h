#pragma once
// Journalled facts of a session, as plain values; event_codec turns them into schema/session.capnp and back. A batch is
// the outcome of one decision: durable together or not at all.

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/id.h"
#include "runtime/base/item.h"
#include "runtime/base/result.h"

namespace mainstay {

// Numbers as in schema/session.capnp.
enum class TurnStatus : uint8_t { queued, in_progress, completed, failed, incomplete, cancelled };
enum class WaitKind : uint8_t { timer, approval, signal, child };
enum class WaitOutcome : uint8_t { fired, approved, denied, signalled, expired, cancelled };
enum class Resolution : uint8_t { done, failed, retry };

inline bool is_settled(TurnStatus status) { return status != TurnStatus::queued && status != TurnStatus::in_progress; }
std::string_view to_word(
    TurnStatus status);  // OpenAI's words: queued in_progress completed failed incomplete cancelled

struct TurnLimits {
    uint32_t steps = 32;
    uint32_t tokens = 0;  // output tokens over all steps; 0: no bound
    uint64_t duration_ms =
        0;  // from acceptance; time in waits and with an unknown outcome open does not count; 0: no bound
    friend bool operator==(const TurnLimits&, const TurnLimits&) = default;
};

struct SessionCreated {
    TenantId tenant;
    std::string principal;
    SessionId parent;      // invalid: a root
    TurnNo parent_turn;    // history up to and with this turn is shared
    std::string metadata;  // JSON object text
    bool ephemeral = false, conversation = false;
};
struct InputAccepted {
    std::vector<ItemPtr> items;
    std::string agent;
    uint64_t agent_version = 0;
    std::string principal;
    std::optional<KeyHash> key;
    uint64_t request_digest = 0;
    TurnLimits limits;
    std::string options;  // JSON of the request fields that the answer echoes and the step uses
};
struct ModelStepSettled {
    uint32_t step = 0;
    std::vector<ItemPtr> items;
    Usage usage;
    std::string model, finish_reason;
    /// StepTokens as in the journal: ids little-endian; of a whole-text device, or where the text says them, empty.
    std::string token_ids, tokenizer_hash;
    uint32_t template_version = 0;

    void set_tokens(const StepTokens& tokens);
    /// Null where there are none, or of a tokenizer that no hash of 16 bytes names.
    std::shared_ptr<const StepTokens> tokens() const;
};
struct ToolIntent {
    uint32_t call = 0;  // index of the call's item within the turn
    EffectClass effect = EffectClass::once;
    uint64_t timeout_ms = 0;
};
struct ToolReceipt {
    uint32_t call = 0;
    ItemStatus status = ItemStatus::completed;
    std::string output, error;
    uint64_t duration_micros = 0;
};
struct StepFailed {
    uint32_t step = 0;  // model step, or the call when is_tool
    bool is_tool = false;
    ErrorClass error_class = ErrorClass::transient;
    std::string code, message, partial_text;
};
struct RetryScheduled {
    uint32_t step = 0;
    bool is_tool = false;
    TimeMs at = 0;
    uint32_t attempt = 0;  // the one that comes, from 1
    std::string reason;
};
struct TurnSettled {
    TurnStatus status = TurnStatus::completed;
    std::string code, message;
};
struct CancelRequested {
    std::string principal, reason;
};
struct WaitOpened {
    uint32_t wait = 0;
    WaitKind kind = WaitKind::timer;
    TimeMs due = 0;  // timer: fires; others: expires; 0: never
    uint32_t call = 0;
    std::string subject;
};
struct WaitResolved {
    uint32_t wait = 0;
    WaitOutcome outcome = WaitOutcome::fired;
    std::string payload, principal;
};
struct Decision {
    std::string code, subject, reason;
};
struct MemorySet {
    std::string key, value;
    bool removed = false;
};
struct UnknownResolved {
    uint32_t call = 0;
    Resolution how = Resolution::done;
    std::string output, principal;
};
struct ItemsAdded {
    std::vector<ItemPtr> items;
    std::string principal;
};
struct MetadataSet {
    std::string metadata;
};
struct SessionDeleted {
    std::string principal;
};
struct StreamReserved {
    uint64_t below = 0;
};
struct Compacted {
    TurnNo up_to;
    std::string summary;
};
struct Forked {
    SessionId child;
    TurnNo at;
};
/// A model step was paused between two tokens; the same attempt goes on from these.
struct StepProgress {
    uint32_t step = 0;
    StepTokens tokens;  // all that the attempt has sampled
};

using Event =
    std::variant<SessionCreated, InputAccepted, ModelStepSettled, ToolIntent, ToolReceipt, StepFailed, RetryScheduled,
                 TurnSettled, CancelRequested, WaitOpened, WaitResolved, Decision, MemorySet, UnknownResolved,
                 ItemsAdded, MetadataSet, SessionDeleted, StreamReserved, Compacted, Forked, StepProgress>;

struct EventBatch {
    TimeMs at = 0;
    TurnNo turn;  // 0: the session itself
    std::vector<Event> events;
};

/// Packed Cap'n Proto bytes, the body of a journal record. At most limits::record_bytes_max less the record header.
std::string encode(const EventBatch& batch);
/// Refuses (journal_damaged) anything that is not a well-formed batch; never throws, whatever the bytes.
Result<EventBatch> decode_batch(std::string_view bytes);
/// Token ids as in the journal: 4 bytes each, little-endian; and back, without what is left of a last incomplete one.
std::string token_bytes(const std::vector<uint32_t>& ids);
std::vector<uint32_t> token_ids(std::string_view bytes);
/// Short name of an event for people: "InputAccepted" ...
std::string_view event_name(const Event& event);

}  // namespace mainstay
