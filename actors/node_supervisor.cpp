#include "actors/node_supervisor.h"

#include <spdlog/spdlog.h>

#include <caf/scoped_actor.hpp>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <unordered_set>

#include "actors/left_work.h"
#include "actors/model_scheduler.h"
#include "actors/router.h"
#include "actors/tenant_supervisor.h"
#include "actors/timer_actor.h"
#include "actors/tool_worker.h"
#include "actors/user_memories.h"
#include "runtime/store/shard_rows.h"

namespace mainstay {
namespace {

// Requests of users queue behind what is being taken up, on the same workers: few at once, so that the first answer
// after a crash does not wait for all of them.
constexpr size_t resume_at_once = 8;
constexpr uint64_t session_end_ns = 5'000'000'000;  // for sessions to end at a stop
static_assert(resume_at_once <= limits::resume_parallel_max);

caf::actor tenant_of(caf::stateful_actor<NodeSupervisorState>* self, NodeContext* node, TenantId tenant) {
    auto& slot = self->state.tenants[tenant];
    if (!slot) {
        slot = self->spawn<caf::monitored>(tenant_supervisor, node, tenant);
        self->send(node->router, tenant, slot);
    }
    return slot;
}

/// Sessions that a start, or the lead of a shard, takes up: those with an open turn, and those whose last records LMDB
/// does not contain yet; but none whose newest record says that it is at rest, which under load is nearly all of them.
std::deque<SessionKey> find_resumable(NodeContext& node, std::optional<ShardId> shard) {
    std::deque<SessionKey> found;
    const auto resting = node.store.resting_in_tail();
    std::unordered_set<SessionKey> seen(resting.begin(), resting.end());
    auto add = [&](const SessionKey& key) {
        if (shard && node.shard_of(key) != *shard) return;
        if (seen.insert(key).second) found.push_back(key);
    };
    auto scanned = node.store.scan(Table::open, shard ? shard_prefix(*shard) : std::string(), {}, SIZE_MAX,
                                   [&](std::string_view key, std::string_view) {
                                       if (const auto session = parse_session_row_key(key)) add(*session);
                                       return true;
                                   });
    if (!scanned.ok()) spdlog::error("index of open turns: {}", scanned.error().message);
    for (const auto& key : node.store.sessions_in_tail()) add(key);
    return found;
}

void resume_some(caf::stateful_actor<NodeSupervisorState>* self, NodeContext* node) {
    auto& state = self->state;
    while (!state.to_resume.empty() && state.resuming < resume_at_once) {
        const SessionKey key = state.to_resume.front();
        state.to_resume.pop_front();
        ++state.resuming;
        WakeUp wake;
        wake.done = [me = caf::actor_cast<caf::actor>(self)] { caf::anon_send(me, listen_atom::value); };
        self->send(tenant_of(self, node, key.tenant), std::make_shared<Envelope>(Envelope{key, std::move(wake)}));
    }
    if (state.to_resume.empty() && state.resuming == 0) node->resumed = true;
}

}  // namespace

caf::behavior node_supervisor(caf::stateful_actor<NodeSupervisorState>* self, NodeContext* node) {
    node->router = self->spawn<caf::monitored>(router, node, caf::actor_cast<caf::actor>(self));
    node->timer = self->spawn<caf::monitored>(timer_actor, node);
    node->user_memories = self->spawn<caf::monitored>(user_memories, node);
    node->tool_worker = self->spawn<caf::monitored>(tool_worker, node);
    self->set_down_handler([node](caf::down_msg& down) {
        if (node->draining || down.reason == caf::exit_reason::normal) return;
        spdlog::critical("a supervising actor died; the node stops and recovers from its journal");
        std::abort();
    });
    return {
        [self, node](const EnvelopePtr& envelope) {
            self->send(tenant_of(self, node, envelope->key.tenant), envelope);
        },
        [](caf::get_atom) { return caf::ok_atom::value; },
        [self, node](resume_atom) {
            // In a cluster each shard is taken up when it is led.
            if (!node->shards) self->state.to_resume = find_resumable(*node, std::nullopt);
            if (!self->state.to_resume.empty()) spdlog::info("taking up {} sessions", self->state.to_resume.size());
            resume_some(self, node);
        },
        [self, node](const ShardLed& led) {
            for (auto& [tenant, supervisor] : self->state.tenants) self->send(supervisor, led);
            self->send(node->user_memories, led);
            if (node->shard_led) node->shard_led(led.shard);
            const auto found = find_resumable(*node, led.shard);
            self->state.to_resume.insert(self->state.to_resume.end(), found.begin(), found.end());
            resume_some(self, node);
        },
        [self, node](const ShardLost& lost) {
            for (auto& [tenant, supervisor] : self->state.tenants) self->send(supervisor, lost);
            self->send(node->user_memories, lost);
        },
        [self](const LeftAskPtr& ask) {
            const auto tenant = self->state.tenants.find(ask->claim.session.tenant);
            if (tenant != self->state.tenants.end()) self->send(tenant->second, ask);
        },
        [self](const CancelLeftWork& cancel) {
            const auto tenant = self->state.tenants.find(cancel.session.tenant);
            if (tenant != self->state.tenants.end()) self->send(tenant->second, cancel);
        },
        [node](const EntitiesWanted& wanted) {
            if (const auto entities = node->store.entities()) node->give_entities(wanted.node, *entities);
        },
        [self, node](listen_atom) {
            --self->state.resuming;
            resume_some(self, node);
        },
        [self, node](drain_atom) {
            for (auto& [tenant, supervisor] : self->state.tenants) self->send(supervisor, drain_atom::value);
            for (const auto& child : {node->router, node->timer, node->tool_worker, node->user_memories})
                self->send(child, drain_atom::value);
            self->quit();
        },
    };
}

caf::actor start_node(caf::actor_system& system, NodeContext& node) {
    auto supervisor = system.spawn(node_supervisor, &node);
    // The behaviour above has run once the supervisor answers anything.
    caf::scoped_actor waiting{system};
    waiting->request(supervisor, caf::infinite, caf::get_atom::value).receive([](caf::ok_atom) {}, [](caf::error&) {});
    waiting->send(supervisor, resume_atom::value);
    return supervisor;
}

void stop_node(caf::actor_system& system, NodeContext& node, const caf::actor& supervisor) {
    node.draining = true;
    caf::anon_send(supervisor, drain_atom::value);
    // Sessions say what they leave in caches when they end: models end after them.
    const uint64_t until = node.clock.monotonic_ns() + session_end_ns;
    while (node.sessions_active.load() > 0 && node.clock.monotonic_ns() < until)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));  // a poll with a bound
    node.models.stop();
    system.await_all_actors_done();
    node.router = node.timer = node.tool_worker = node.user_memories = {};
}

}  // namespace mainstay
