#pragma once
// Between the door (one Asio thread) and the actors: the only header of the gateway that stands for the node behind it.
// The door hands over plain requests and gets each callback exactly once, on an actor's or the store's thread: the
// callback posts itself to the connection's executor. Nothing here knows HTTP; nothing here needs CAF.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "actors/answers.h"
#include "actors/worker_info.h"

namespace mainstay {

/// What a door's own keys begin with; behind it stands the session that a request under it makes.
constexpr std::string_view request_key_prefix = "mainstay-";

class Bridge {
  public:
    virtual ~Bridge() = default;

    /// In a cluster: a new idempotency key for a request without one. Used without a conversation it makes its session
    /// on a shard that this node leads, if there is one; or another one that computes the agent's model, where this
    /// node does not (docs/decisions/0023). `agent`: as the request names it, empty where it names none; asked for only
    /// where it matters.
    virtual std::string make_request_key(const Principal& principal, const std::function<std::string()>& agent) = 0;

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

    // Accelerator workers: every model on devices of our own, with its workers.
    virtual void list_workers(const Principal& principal, Callback<std::vector<ModelInfo>> done) = 0;
    /// The worker takes nothing new, or (`on` false) works again; answers with its model. Error: not_found.
    virtual void drain_worker(const Principal& principal, const std::string& model, uint32_t index, bool on,
                              Callback<ModelInfo> done) = 0;

    // Health. ready() is empty when requests are welcome, else says why not ("starting", "draining", "storage_full").
    virtual std::string not_ready_because() const = 0;
    /// Prometheus text exposition of the whole process.
    virtual std::string metrics_text() = 0;
};

}  // namespace mainstay
