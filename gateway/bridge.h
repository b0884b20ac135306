#pragma once
// Between the door (one Asio thread) and the actors: the only header of the gateway that stands for the node behind it.
// The door hands over plain requests and gets each callback exactly once, on an actor's or the store's thread: the
// callback posts itself to the connection's executor. Nothing here knows HTTP; nothing here needs CAF.

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

class Bridge {
  public:
    virtual ~Bridge() = default;

    // Turns.
    virtual void create_turn(TurnRequest request, Callback<TurnAnswer> done) = 0;
    /// Cancelled subscriptions (client gone) do not cancel the turn. Returns a handle for unsubscribe().
    virtual uint64_t stream_turn(TurnRequest request, StreamCallback on_event) = 0;
    virtual void unsubscribe(uint64_t subscription) = 0;
    virtual void read_turn(const Principal& principal, const ResponseId& id, Callback<TurnAnswer> done) = 0;
    virtual void cancel_turn(const Principal& principal, const ResponseId& id, Callback<TurnAnswer> done) = 0;

    // Sessions (conversations).
    virtual void create_session(const Principal& principal, std::string metadata, std::vector<ItemPtr> items,
                                std::string idempotency_key, uint64_t request_digest, Callback<SessionInfo> done) = 0;
    virtual void read_session(const Principal& principal, const SessionId& id, Callback<SessionInfo> done) = 0;
    virtual void set_metadata(const Principal& principal, const SessionId& id, std::string metadata,
                              Callback<SessionInfo> done) = 0;
    virtual void delete_session(const Principal& principal, const SessionId& id, Callback<SessionInfo> done) = 0;
    virtual void list_sessions(const Principal& principal, std::optional<SessionId> after, size_t limit,
                               Callback<std::vector<SessionInfo>> done) = 0;
    virtual void list_items(const Principal& principal, const SessionId& id, ItemQuery query,
                            Callback<ItemPage> done) = 0;
    virtual void read_item(const Principal& principal, const SessionId& id, const ItemId& item,
                           Callback<ItemEntry> done) = 0;
    virtual void add_items(const Principal& principal, const SessionId& id, std::vector<ItemPtr> items,
                           Callback<ItemPage> done) = 0;
    virtual void list_events(const Principal& principal, const SessionId& id, uint64_t after_sequence, size_t limit,
                             Callback<std::vector<EventEntry>> done) = 0;
    virtual void resolve_unknown(const Principal& principal, const SessionId& id, const ItemId& call, Resolution how,
                                 std::string result_json, Callback<TurnAnswer> done) = 0;

    // Agents and models: answered from the catalogue.
    virtual std::vector<AgentPtr> list_agents(const Principal& principal) = 0;
    virtual std::vector<ModelPtr> list_models(const Principal& principal) = 0;
    /// `toml_or_json` as an author writes it (content type decides). dry_run: only the difference, as text.
    struct Applied {
        AgentPtr agent;
        bool changed = false;
        std::string difference;
    };
    virtual void apply_agent(const Principal& principal, std::string text, bool is_toml, bool dry_run,
                             Callback<Applied> done) = 0;

    // Health. ready() is empty when requests are welcome, else says why not ("starting", "draining", "storage_full").
    virtual std::string not_ready_because() const = 0;
    /// Prometheus text exposition of the whole process.
    virtual std::string metrics_text() = 0;
};

}  // namespace mainstay
