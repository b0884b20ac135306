#pragma once
// What the node is asked and what it answers, as plain values without CAF or HTTP: the door fills requests in, actors
// answer them. Callbacks come exactly once (stream callbacks: in order, the last is StreamEnded or StreamFailed), on an
// actor's or the store's thread; who needs another thread posts itself there.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/base/agent_spec.h"
#include "runtime/base/result.h"
#include "runtime/session/session.h"

namespace mainstay {

struct Principal {
    TenantId tenant;
    std::string name;  // "admin" for the admin key
    bool admin = false;
};

/// A turn with what is needed to render it.
struct TurnAnswer {
    SessionId session;
    TurnPtr turn;
    AgentPtr agent;  // as bound; null if its specification is gone
    std::optional<ResponseId> previous;
    bool conversation = false;
    bool repeated = false;  // answered from a recorded turn, by idempotency key
};

struct TurnRequest {
    Principal principal;
    std::optional<SessionId> conversation;  // exclusive with previous
    std::optional<ResponseId> previous;
    std::vector<ItemPtr> items;
    std::string agent;    // the request's `model`
    std::string options;  // JSON object: fields that the answer echoes and the step uses
    std::string metadata;
    bool store = true;
    bool background = false;      // answer as soon as the input is committed
    std::string idempotency_key;  // empty: none
    uint64_t request_digest = 0;
    uint64_t timeout_ms = 0;  // of this request; 0: the turn's own limit
    std::optional<uint32_t> max_output_tokens;
};

// --- streaming ------------------------------------------------------------------------------------------------------
struct StreamAccepted {
    TurnAnswer answer;
};  // the input is committed
struct StreamDelta {
    uint32_t step = 0, attempt = 0;
    std::string text;
};  // provisional
struct StreamItems {
    uint32_t first_index = 0;
    std::vector<ItemPtr> items;
    uint32_t step = 0, attempt = 0;
};  // committed output items
struct StreamItemDone {
    uint32_t index = 0;
    ItemPtr item;
};  // a tool call's output is committed
/// The step failed after deltas: the item that was shown ends `incomplete` with exactly this text; a new one may begin.
struct StreamBroken {
    uint32_t index = 0;
    ItemPtr item;
};
struct StreamEnded {
    TurnAnswer answer;
};  // the last one
struct StreamFailed {
    Error error;
};  // refused, or the node gave up; the last one
using StreamEvent =
    std::variant<StreamAccepted, StreamDelta, StreamItems, StreamItemDone, StreamBroken, StreamEnded, StreamFailed>;
using StreamCallback = std::function<void(StreamEvent)>;  // many times, in order, ends with StreamEnded or StreamFailed

struct SessionInfo {
    SessionId id;
    TimeMs created_at = 0, updated_at = 0;
    std::string principal, metadata, agent;
    uint32_t turns = 0;
    uint64_t items = 0;
    Usage usage;
    std::string state;  // "idle", "running", "waiting", "unknown_outcome", "quarantined"
    bool conversation = false, active = false;
};

struct ItemEntry {
    ItemId id;
    ItemPtr item;
};
struct ItemPage {
    std::vector<ItemEntry> items;
    bool has_more = false;
};
struct ItemQuery {
    std::optional<ItemId> after;
    size_t limit = 20;
    bool ascending = false;
};

/// One journalled event as `mainstay session events` and `explain` show it.
struct EventEntry {
    uint64_t sequence = 0;
    TimeMs at = 0;
    TurnNo turn;
    std::string name;
    std::string json;
};

template <class T>
using Callback = std::function<void(Result<T>)>;

}  // namespace mainstay
