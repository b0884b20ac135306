#include "gateway/actor_bridge.h"

#include <caf/send.hpp>
#include <caf/spawn_options.hpp>

#include "actors/agent_binding.h"
#include "actors/model_scheduler.h"
#include "actors/session_inspector.h"
#include "cluster/placement.h"
#include "runtime/agent/agent_file.h"
#include "runtime/base/digest.h"
#include "runtime/inference/device_set.h"
#include "runtime/session/fold.h"

namespace mainstay {
namespace {

constexpr TimeMs key_window_ms = limits::idempotency_key_lifetime_ms;
constexpr int request_key_tries = 32;   // who leads a tenth of all misses with every one in 3 of 100
constexpr int placed_key_tries = 1024;  // ... and a hundredth, one in 3 of 100,000

/// An entity's acknowledgement: the catalogue learns of an agent only when it is committed.
class EntityCommitted final : public AckTarget {
  public:
    /// `then` is told whether it is committed; where it is not, it may be so all the same.
    explicit EntityCommitted(std::function<void(bool)> then) : then_(std::move(then)) {}
    void acknowledged(Sequence, Sequence) override {
        if (auto then = std::exchange(then_, nullptr)) then(true);
    }
    void refused() override {
        if (auto then = std::exchange(then_, nullptr)) then(false);
    }

  private:
    std::function<void(bool)> then_;
};

}  // namespace

ActorBridge::ActorBridge(caf::actor_system& system, NodeContext& node)
    : node_(node), inspector_(system.spawn<caf::detached>(session_inspector, &node)) {}

ActorBridge::~ActorBridge() { caf::anon_send(inspector_, drain_atom::value); }

void ActorBridge::send(const SessionKey& key, Ask ask) {
    caf::anon_send(node_.router, std::make_shared<Envelope>(Envelope{key, std::move(ask)}));
}

/// An answer to a read leaves when every copy in sync has confirmed, since it was made, that no other node leads: a
/// primary that was cut off must not show what others have gone on from. Refusals of other kinds too: "there is none"
/// is an answer.
template <class T>
Callback<T> ActorBridge::confirmed(const SessionId& id, const Principal& principal, Callback<T> done) const {
    if (!node_.confirm_read) return done;
    const ShardId shard = node_.shard_of({principal.tenant, id});
    return [this, shard, done = std::move(done)](Result<T> result) {
        if (!result.ok() &&
            (result.error().code == ErrorCode::misdirected || result.error().code == ErrorCode::shard_unavailable))
            return done(std::move(result));
        auto kept = std::make_shared<Result<T>>(std::move(result));
        node_.confirm_read(shard, [this, shard, done, kept](bool holds) {
            if (holds) return done(std::move(*kept));
            done(NodeContext::elsewhere(node_.place_of(shard), shard));
        });
    };
}

// --- turns
// ----------------------------------------------------------------------------------------------------------------

bool ActorBridge::is_here(const SessionKey& key) const {
    return node_.place_of(node_.shard_of(key)).where == ShardPlace::Where::here;
}

/// The key is the id of the session that it makes, so nothing has to be looked up to find that again.
std::string ActorBridge::make_request_key(const Principal& principal, const std::function<std::string()>& agent) {
    const auto drawn = [&] { return make_session_id(node_.random, node_.clock.now_ms()); };
    const auto key_of = [](const SessionId& id) { return std::string(request_key_prefix) + to_text(id); };
    if (node_.step_place && !node_.computes_every_model) {
        std::string name = agent();
        if (name.empty()) name = node_.options.default_agent;
        const auto choice = step_place({principal.tenant, drawn()}, bind_agent(node_.catalogue, name));
        // Where that node leads nothing the session is born here, and its steps go there.
        for (int tries = 0; choice && choice->why != StepWhy::here && tries < placed_key_tries; ++tries) {
            const SessionId id = drawn();
            const auto place = node_.place_of(node_.shard_of({principal.tenant, id}));
            if (place.where == ShardPlace::Where::there && place.node == choice->node) return key_of(id);
        }
    }
    SessionId id;
    for (int tries = 0; tries < request_key_tries; ++tries) {
        id = drawn();
        if (is_here({principal.tenant, id})) break;
    }
    return key_of(id);
}

std::optional<StepChoice> ActorBridge::step_place(const SessionKey& session, const AgentPtr& agent) const {
    const auto model = agent ? node_.catalogue.model(agent->model) : nullptr;
    if (!model || !runs_on_own_device(*model) || !node_.step_place) return std::nullopt;
    return node_.step_place(session, model->name);
}

/// Of a session whose id a door drew. Where every node would do there was nothing to decide.
std::optional<Decision> ActorBridge::why_born_here(const SessionKey& session, const AgentPtr& agent) const {
    const auto choice = step_place(session, agent);
    if (!choice || choice->why != StepWhy::here || choice->serving == choice->nodes) return std::nullopt;
    return Decision{"placed", short_text(choice->node) + "/" + agent->model,
                    "the session was born where its model's steps run: " + std::to_string(choice->serving) + " of " +
                        std::to_string(choice->nodes) + " nodes compute it"};
}

/// A key without a conversation must find the session that it made the first time, on any node and after any restart:
/// the id follows from the key and the day. A retry may come after midnight, so yesterday's id is looked at first.
///
/// In a cluster both days' ids are of one shard, and only its leader looks: what another node finds in its store may be
/// old, and there its router refuses the request anyway. Keys that a door made are ids already; no client has such.
SessionId ActorBridge::keyed_session(const Principal& principal, const std::string& key) const {
    if (node_.shards != nullptr && key.starts_with(request_key_prefix))
        if (const auto made = parse_session_id(std::string_view(key).substr(request_key_prefix.size()))) return *made;
    auto of_window = [&](TimeMs window) {
        const auto scope =
            "session:" + std::to_string(principal.tenant.value) + ":" + principal.name + ":" + std::to_string(window);
        const auto first = key_hash(scope, key), second = key_hash(scope + ":family", key);
        SessionId id;
        uint64_t family;
        std::memcpy(&id.high, first.data(), 8);
        std::memcpy(&id.low, first.data() + 8, 8);
        std::memcpy(&family, second.data(), 8);
        // Within the day's range of family ids, so that these sessions too are neighbours of their contemporaries.
        const uint64_t begin = (window * key_window_ms) << 22, size = key_window_ms << 22;
        id.family = FamilyId{begin + family % size};
        // The next family of the shard that the key alone decides: one in shard_count is. A node that is alone names
        // the same ids, so that a key stays known when its directory becomes a cluster's.
        const uint32_t shards = node_.options.shard_count;
        const auto of_key = key_hash("shard:" + std::to_string(principal.tenant.value) + ":" + principal.name, key);
        uint64_t wanted;
        std::memcpy(&wanted, of_key.data(), 8);
        for (uint64_t step = 0; step < 64ull * shards; ++step) {
            id.family = FamilyId{begin + (family + step) % size};
            if (shard_of(principal.tenant, id.family, node_.options.shard_count).value == wanted % shards) break;
        }
        return id;
    };
    const TimeMs now = node_.clock.now_ms();
    const SessionKey before{principal.tenant, of_window(now / key_window_ms - 1)};
    if (node_.shards != nullptr && !is_here(before)) return of_window(now / key_window_ms);
    const auto hash = key_hash(principal.name, key);
    auto row = node_.store.read_row(Table::key, key_row_key(before, hash, node_.options.shard_count));
    if (row.ok() && *row && !key_row_expired(**row, now)) return before.session;
    if (auto image = node_.store.load(before); image.ok() && !image->tail.empty()) return before.session;
    return of_window(now / key_window_ms);
}

Result<SessionKey> ActorBridge::route(TurnRequest& request, SubmitTurn& submit) {
    if (node_.draining) return {ErrorCode::draining, "the node is shutting down"};
    if (request.agent.empty()) request.agent = node_.options.default_agent;
    submit.agent = bind_agent(node_.catalogue, request.agent);
    if (!submit.agent)
        return {ErrorCode::model_not_found,
                "no agent or model is called '" + request.agent + "'; GET /v1/models lists them", "model"};
    if (!request.idempotency_key.empty()) submit.key = key_hash(request.principal.name, request.idempotency_key);
    SessionKey key{request.principal.tenant, {}};
    if (request.conversation) {
        key.session = *request.conversation;
    } else if (request.previous) {
        key.session = request.previous->session;
        submit.after = request.previous->turn;
        // A repeated key must find the fork that it made: its id follows from the key.
        if (submit.key) {
            SessionId keyed = keyed_session(request.principal, request.idempotency_key);
            submit.fork_child = {key.session.family, keyed.high, keyed.low};
        } else {
            submit.fork_child = make_fork_id(node_.random, key.session.family);
        }
    } else {
        key.session = submit.key ? keyed_session(request.principal, request.idempotency_key)
                                 : make_session_id(node_.random, node_.clock.now_ms());
        SessionCreated created;
        created.tenant = key.tenant;
        created.principal = request.principal.name;
        created.metadata = request.metadata;
        created.ephemeral = !request.store;
        submit.create = std::move(created);
        if (request.idempotency_key.starts_with(request_key_prefix)) submit.placed = why_born_here(key, submit.agent);
    }
    submit.request = std::move(request);
    return key;
}

void ActorBridge::create_turn(TurnRequest request, Callback<TurnAnswer> done) {
    SubmitTurn submit;
    auto key = route(request, submit);
    if (!key.ok()) return done(key.error());
    submit.done = ReplyTo<TurnAnswer>(std::move(done));
    send(*key, std::move(submit));
}

uint64_t ActorBridge::stream_turn(TurnRequest request, StreamCallback on_event) {
    auto stream = std::make_shared<Subscription>();
    stream->on_event = std::move(on_event);
    uint64_t id;
    {
        std::lock_guard lock(mutex_);
        id = next_subscription_++;
        std::erase_if(subscriptions_, [](const auto& entry) { return entry.second.expired(); });
        subscriptions_.emplace(id, stream);
    }
    SubmitTurn submit;
    auto key = route(request, submit);
    if (!key.ok()) {
        stream->send(StreamFailed{key.error()});
        return id;
    }
    submit.stream = std::move(stream);
    send(*key, std::move(submit));
    return id;
}

void ActorBridge::unsubscribe(uint64_t subscription) {
    std::lock_guard lock(mutex_);
    const auto found = subscriptions_.find(subscription);
    if (found == subscriptions_.end()) return;
    if (const auto stream = found->second.lock()) stream->closed = true;
    subscriptions_.erase(found);
}

void ActorBridge::read_turn(const Principal& principal, const ResponseId& id, Callback<TurnAnswer> done) {
    send({principal.tenant, id.session},
         ReadTurn{id.turn, ReplyTo<TurnAnswer>(confirmed(id.session, principal, std::move(done)))});
}

void ActorBridge::cancel_turn(const Principal& principal, const ResponseId& id, Callback<TurnAnswer> done) {
    send({principal.tenant, id.session}, CancelTurnOf{principal, id.turn, ReplyTo<TurnAnswer>(std::move(done))});
}

// --- sessions
// -------------------------------------------------------------------------------------------------------------

void ActorBridge::create_session(const Principal& principal, std::string metadata, std::vector<ItemPtr> items,
                                 std::string idempotency_key, uint64_t request_digest, Callback<SessionInfo> done) {
    if (node_.draining) return done(Error{ErrorCode::draining, "the node is shutting down", {}});
    OpenSession open;
    open.created.tenant = principal.tenant;
    open.created.principal = principal.name;
    open.created.metadata = std::move(metadata);
    open.created.conversation = true;
    open.items = std::move(items);
    open.digest = request_digest;
    open.done = ReplyTo<SessionInfo>(std::move(done));
    SessionId id;
    if (idempotency_key.empty()) {
        id = make_session_id(node_.random, node_.clock.now_ms());
    } else {
        open.key = key_hash(principal.name, idempotency_key);
        id = keyed_session(principal, idempotency_key);
    }
    send({principal.tenant, id}, std::move(open));
}

void ActorBridge::read_session(const Principal& principal, const SessionId& id, Callback<SessionInfo> done) {
    send({principal.tenant, id}, ReadInfo{ReplyTo<SessionInfo>(confirmed(id, principal, std::move(done)))});
}

void ActorBridge::set_metadata(const Principal& principal, const SessionId& id, std::string metadata,
                               Callback<SessionInfo> done) {
    send({principal.tenant, id}, ChangeMetadata{principal, std::move(metadata), ReplyTo<SessionInfo>(std::move(done))});
}

void ActorBridge::delete_session(const Principal& principal, const SessionId& id, Callback<SessionInfo> done) {
    send({principal.tenant, id}, RemoveSession{principal, ReplyTo<SessionInfo>(std::move(done))});
}

void ActorBridge::list_sessions(const Principal& principal, std::optional<SessionId> after, size_t limit,
                                Callback<std::vector<SessionInfo>> done) {
    caf::anon_send(inspector_, std::make_shared<ListSessions>(ListSessions{
                                   principal, after, limit, ReplyTo<std::vector<SessionInfo>>(std::move(done))}));
}

void ActorBridge::list_items(const Principal& principal, const SessionId& id, ItemQuery query,
                             Callback<ItemPage> done) {
    send({principal.tenant, id},
         ListItems{std::move(query), ReplyTo<ItemPage>(confirmed(id, principal, std::move(done)))});
}

void ActorBridge::read_item(const Principal& principal, const SessionId& id, const ItemId& item,
                            Callback<ItemEntry> done) {
    send({principal.tenant, id}, ReadItem{item, ReplyTo<ItemEntry>(confirmed(id, principal, std::move(done)))});
}

void ActorBridge::add_items(const Principal& principal, const SessionId& id, std::vector<ItemPtr> items,
                            Callback<ItemPage> done) {
    send({principal.tenant, id}, AppendItems{principal, std::move(items), ReplyTo<ItemPage>(std::move(done))});
}

void ActorBridge::list_events(const Principal& principal, const SessionId& id, uint64_t after_sequence, size_t limit,
                              Callback<std::vector<EventEntry>> done) {
    send(
        {principal.tenant, id},
        ListEvents{after_sequence, limit, ReplyTo<std::vector<EventEntry>>(confirmed(id, principal, std::move(done)))});
}

void ActorBridge::resolve_unknown(const Principal& principal, const SessionId& id, const ItemId& call, Resolution how,
                                  std::string result_json, Callback<TurnAnswer> done) {
    send({principal.tenant, id},
         ResolveCall{principal, call, how, std::move(result_json), ReplyTo<TurnAnswer>(std::move(done))});
}

// --- agents and models
// ------------------------------------------------------------------------------------------------------

std::vector<AgentPtr> ActorBridge::list_agents(const Principal&) { return node_.catalogue.agents(); }
std::vector<ModelPtr> ActorBridge::list_models(const Principal&) { return node_.catalogue.models(); }

void ActorBridge::apply_agent(const Principal& principal, std::string text, bool is_toml, bool dry_run,
                              Callback<Applied> done) {
    auto parsed = parse_agent(text, is_toml ? Syntax::toml : Syntax::json);
    if (!parsed.ok()) return done(parsed.error());
    const AgentPtr agent = *parsed;
    if (auto checked = node_.catalogue.check(*agent); !checked.ok()) return done(checked.error());
    const auto before = node_.catalogue.agent(agent->name);
    Applied applied{agent, !before || before->version != agent->version, difference(before.get(), *agent)};
    if (dry_run || !applied.changed) return done(std::move(applied));
    // An entity is a record of its tenant's shard, and only the leader writes there.
    const ShardId shard = node_.shard_of(SessionKey{principal.tenant, {}});
    const auto place = node_.place_of(shard);
    if (place.where != ShardPlace::Where::here) return done(NodeContext::elsewhere(place, shard));
    if (auto admitted = node_.store.admit(agent->canonical_json.size()); !admitted.ok()) return done(admitted.error());
    Append append;
    append.kind = RecordKind::entity;
    append.session.tenant = principal.tenant;
    append.event_count = 1;
    const TimeMs at = node_.clock.now_ms();
    append.payload = encode_agent_entity(*agent, at, principal.name);
    append.led_in = place.epoch;
    append.target =
        std::make_shared<EntityCommitted>([this, agent, at, entity = append.payload, applied = std::move(applied),
                                           done = std::move(done)](bool committed) mutable {
            if (!committed)
                return done(Error{ErrorCode::internal,
                                  "the node was relieved of its shard; whether the agent is applied is not known",
                                  {}});
            node_.catalogue.apply(agent, at);
            if (node_.entity_committed) node_.entity_committed(entity);
            done(std::move(applied));
        });
    node_.store.append(std::move(append));
}

// --- accelerator workers
// --------------------------------------------------------------------------------------------------------

void ActorBridge::list_workers(const Principal&, Callback<std::vector<ModelInfo>> done) {
    node_.models.read_models(std::move(done));
}

void ActorBridge::drain_worker(const Principal&, const std::string& model, uint32_t index, bool on,
                               Callback<ModelInfo> done) {
    node_.models.drain_worker(model, index, on, std::move(done));
}

// --- health
// -----------------------------------------------------------------------------------------------------------------

std::string ActorBridge::not_ready_because() const {
    if (node_.draining || node_.leaving) return "draining";
    if (node_.shards && !node_.shards->known()) return "starting";
    if (node_.store.stats().read_only) return "storage_full";
    return {};
}

std::string ActorBridge::metrics_text() {
    node_.metrics.set_store(node_.store.stats());
    node_.metrics.set_sessions_active(node_.sessions_active.load());
    return node_.metrics.expose();
}

}  // namespace mainstay
