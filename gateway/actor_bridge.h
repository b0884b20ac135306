#pragma once
// The bridge to the real node: requests become envelopes for the router, answers come back by callback. Decides which
// session a request means (conversation, previous response, idempotency key or a new one) and binds the agent. Safe
// from any thread; used by the door's.

#include <caf/actor.hpp>
#include <caf/actor_system.hpp>
#include <mutex>
#include <unordered_map>

#include "actors/messages.h"
#include "actors/node_context.h"
#include "gateway/bridge.h"

namespace mainstay {

class ActorBridge final : public Bridge {
  public:
    ActorBridge(caf::actor_system& system, NodeContext& node);
    ~ActorBridge() override;

    std::string make_request_key(const Principal& principal, const std::function<std::string()>& agent) override;
    void create_turn(TurnRequest request, Callback<TurnAnswer> done) override;
    uint64_t stream_turn(TurnRequest request, StreamCallback on_event) override;
    void unsubscribe(uint64_t subscription) override;
    void read_turn(const Principal& principal, const ResponseId& id, Callback<TurnAnswer> done) override;
    void cancel_turn(const Principal& principal, const ResponseId& id, Callback<TurnAnswer> done) override;
    void create_session(const Principal& principal, std::string metadata, std::vector<ItemPtr> items,
                        std::string idempotency_key, uint64_t request_digest, Callback<SessionInfo> done) override;
    void read_session(const Principal& principal, const SessionId& id, Callback<SessionInfo> done) override;
    void set_metadata(const Principal& principal, const SessionId& id, std::string metadata,
                      Callback<SessionInfo> done) override;
    void delete_session(const Principal& principal, const SessionId& id, Callback<SessionInfo> done) override;
    void list_sessions(const Principal& principal, std::optional<SessionId> after, size_t limit,
                       Callback<std::vector<SessionInfo>> done) override;
    void list_items(const Principal& principal, const SessionId& id, ItemQuery query, Callback<ItemPage> done) override;
    void read_item(const Principal& principal, const SessionId& id, const ItemId& item,
                   Callback<ItemEntry> done) override;
    void add_items(const Principal& principal, const SessionId& id, std::vector<ItemPtr> items,
                   Callback<ItemPage> done) override;
    void list_events(const Principal& principal, const SessionId& id, uint64_t after_sequence, size_t limit,
                     Callback<std::vector<EventEntry>> done) override;
    void resolve_unknown(const Principal& principal, const SessionId& id, const ItemId& call, Resolution how,
                         std::string result_json, Callback<TurnAnswer> done) override;
    std::vector<AgentPtr> list_agents(const Principal& principal) override;
    std::vector<ModelPtr> list_models(const Principal& principal) override;
    void apply_agent(const Principal& principal, std::string text, bool is_toml, bool dry_run,
                     Callback<Applied> done) override;
    void list_workers(const Principal& principal, Callback<std::vector<ModelInfo>> done) override;
    void drain_worker(const Principal& principal, const std::string& model, uint32_t index, bool on,
                      Callback<ModelInfo> done) override;
    std::string not_ready_because() const override;
    std::string metrics_text() override;

  private:
    void send(const SessionKey& key, Ask ask);
    template <class T>
    Callback<T> confirmed(const SessionId& id, const Principal& principal, Callback<T> done) const;
    /// Fills everything in but the reply; an Error where the request cannot be routed.
    Result<SessionKey> route(TurnRequest& request, SubmitTurn& submit);
    SessionId keyed_session(const Principal& principal, const std::string& key) const;
    bool is_here(const SessionKey& key) const;
    /// Where the steps of an agent's sessions run, if on devices of our own and in a cluster.
    std::optional<StepChoice> step_place(const SessionKey& session, const AgentPtr& agent) const;
    std::optional<Decision> why_born_here(const SessionKey& session, const AgentPtr& agent) const;

    NodeContext& node_;
    caf::actor inspector_;  // scans of many sessions, on a thread of its own
    std::mutex mutex_;
    uint64_t next_subscription_ = 1;
    std::unordered_map<uint64_t, std::weak_ptr<Subscription>> subscriptions_;
};

}  // namespace mainstay
