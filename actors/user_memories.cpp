#include "actors/user_memories.h"

#include <caf/send.hpp>

#include "runtime/tool/builtin.h"

namespace mainstay {
namespace {

constexpr std::string_view entity_kind = "memory";

class MemoryAck final : public AckTarget {
  public:
    MemoryAck(caf::actor owner, SessionKey key) : owner_(std::move(owner)), key_(key) {}
    void acknowledged(Sequence, Sequence committed) override {
        caf::anon_send(owner_, MemoryCommitted{key_, committed});
    }
    void refused() override { caf::anon_send(owner_, MemoryRefused{key_}); }

  private:
    caf::actor owner_;
    const SessionKey key_;
};

/// It surely did not run: whether it is tried again is the supervisor's to decide, by the class.
ToolOutcome not_run(ErrorClass error_class, ErrorCode code, std::string message) {
    ToolOutcome outcome;
    outcome.kind = ToolOutcome::Kind::failed;
    outcome.error_class = error_class;
    outcome.code = code;
    outcome.message = std::move(message);
    return outcome;
}

ToolOutcome answered(std::string output, bool is_error) {
    ToolOutcome outcome;
    outcome.output = std::move(output);
    outcome.is_error = is_error;
    return outcome;
}

}  // namespace

void UserMemories::run(const RunToolCall& run) {
    const ToolCall& call = run.call;
    const auto* spec = call.agent && call.agent->memory ? &*call.agent->memory : nullptr;
    if (!spec || spec->scope != MemoryScope::user)
        return answer(run, not_run(ErrorClass::invalid, ErrorCode::tool_not_allowed,
                                   "the agent version of this turn, or its memory, is gone"));
    const auto action = plan_builtin(call.name, call.arguments);
    if (action.kind == BuiltinAction::Kind::answer) return answer(run, answered(action.text, action.is_error));

    const SessionKey key = memory_key(call.tenant, call.principal, spec->name);
    const auto place = node_.place_of(node_.shard_of(key));
    if (place.where != ShardPlace::Where::here) {
        if (place.where == ShardPlace::Where::there && node_.memory_elsewhere && !run.done)
            return node_.memory_elsewhere(place, call, [session = run.session, id = call.call_id](ToolOutcome outcome) {
                caf::anon_send(session, std::make_shared<ToolSettled>(ToolSettled{id, std::move(outcome)}));
            });
        const Error error = NodeContext::elsewhere(place, node_.shard_of(key));
        return answer(run, not_run(ErrorClass::overloaded, error.code, error.message));
    }
    auto found = find(key, call.principal, spec->name);
    if (!found) return answer(run, not_run(ErrorClass::invalid, found.error().code, found.error().message));
    Kept& kept = **found;
    auto decided = kept.memory.decide(action, call.idempotency_key, spec->bytes_max);
    if (decided.change) {
        // The record holds the memory as a whole.
        if (auto admitted = node_.store.admit(kept.memory.bytes() + action.value.size()); !admitted)
            return answer(run, not_run(ErrorClass::overloaded, admitted.error().code, admitted.error().message));
        const bool removed = !decided.change->value;
        kept.memory.apply(std::move(*decided.change));
        append(kept, call, spec->name, removed);
    }
    kept.held.push_back(std::make_shared<const RunToolCall>(run));
    kept.gate.hold(Sequence{kept.memory.revision()},
                   [this, &kept, outcome = answered(std::move(decided.output), decided.is_error)]() mutable {
                       const auto held = std::move(kept.held.front());
                       kept.held.pop_front();
                       answer(*held, std::move(outcome));
                   });
    forget_oldest();
}

void UserMemories::committed(const MemoryCommitted& acknowledged) {
    const auto found = by_key_.find(acknowledged.key);
    if (found == by_key_.end()) return;
    crash_point("memory.before_answer");
    found->second->gate.commit(acknowledged.committed);
    forget_oldest();
}

void UserMemories::drop(const SessionKey& key) {
    const auto found = by_key_.find(key);
    if (found == by_key_.end()) return;
    for (const auto& held : found->second->held)
        answer(*held, not_run(ErrorClass::overloaded, ErrorCode::misdirected, "the memory is led by another node now"));
    kept_.erase(found->second);
    by_key_.erase(found);
}

void UserMemories::drop_shard(ShardId shard, std::optional<Epoch> but_of) {
    std::vector<SessionKey> dropped;
    for (const auto& kept : kept_)
        if (node_.shard_of(kept.key) == shard && kept.led_in != but_of) dropped.push_back(kept.key);
    for (const auto& key : dropped) drop(key);
}

Result<UserMemories::Kept*> UserMemories::find(const SessionKey& key, const std::string& user,
                                               const std::string& name) {
    if (const auto known = by_key_.find(key); known != by_key_.end()) {
        kept_.splice(kept_.begin(), kept_, known->second);
        return &kept_.front();
    }
    const Epoch led_in = node_.place_of(node_.shard_of(key)).epoch;  // before it is read
    auto memory = read(key, user, name);
    if (!memory) return memory.error();
    kept_.push_front({key, std::move(*memory), {}, nullptr, led_in, {}});
    Kept& kept = kept_.front();
    kept.gate.start_at(Sequence{kept.memory.revision()});
    kept.target = std::make_shared<MemoryAck>(caf::actor_cast<caf::actor>(self_), key);
    by_key_[key] = kept_.begin();
    return &kept;
}

Result<UserMemory> UserMemories::read(const SessionKey& key, const std::string& user, const std::string& name) {
    auto row = node_.store.read_memory(key);
    if (!row) return row.error();
    if (!*row) return UserMemory{};
    const auto record = decode_entity(**row);
    if (!record) return record.error();
    // The key is a digest: nobody is shown what the record says is somebody else's.
    if (record->kind != entity_kind || record->principal != user || record->name != name)
        return {ErrorCode::state_damaged, "a user's memory: the record belongs to another user or memory"};
    return UserMemory::from_body(record->body);
}

void UserMemories::append(Kept& kept, const ToolCall& call, const std::string& name, bool removed) {
    const uint64_t revision = kept.memory.revision();
    Append append;
    append.kind = RecordKind::entity;
    append.session = kept.key;
    append.first_sequence = Sequence{revision};
    append.event_count = 1;
    append.payload = encode_entity({std::string(entity_kind), name, revision, kept.memory.to_body(),
                                    node_.clock.now_ms(), call.principal, removed});
    append.target = kept.target;
    append.led_in = kept.led_in;
    append.companions = static_cast<uint32_t>(node_.sessions_busy.load(std::memory_order_relaxed));
    crash_point("memory.before_append");
    node_.store.append(std::move(append));
    crash_point("memory.after_append");
}

/// Those that wait for the disk stay: the store does not have them yet.
void UserMemories::forget_oldest() {
    for (auto oldest = kept_.end(); kept_.size() > limits::user_memories_cached_max && oldest != kept_.begin();) {
        --oldest;
        if (!oldest->gate.is_committed(Sequence{oldest->memory.revision()})) continue;
        by_key_.erase(oldest->key);
        oldest = kept_.erase(oldest);
    }
}

void UserMemories::answer(const RunToolCall& run, ToolOutcome outcome) {
    if (run.done) return run.done(std::move(outcome));
    self_->send(run.session, std::make_shared<ToolSettled>(ToolSettled{run.call.call_id, std::move(outcome)}));
}

caf::behavior user_memories(caf::stateful_actor<UserMemoriesHolder>* self, NodeContext* node) {
    self->state.memories = std::make_unique<UserMemories>(self, *node);
    return {
        [self](const RunToolCallPtr& run) { self->state.memories->run(*run); },
        [self](const MemoryCommitted& acknowledged) { self->state.memories->committed(acknowledged); },
        [self](const MemoryRefused& refused) { self->state.memories->drop(refused.key); },
        [self](const ShardLed& led) { self->state.memories->drop_shard(led.shard, led.epoch); },
        [self](const ShardLost& lost) { self->state.memories->drop_shard(lost.shard, std::nullopt); },
        [self](drain_atom) { self->quit(); },
    };
}

}  // namespace mainstay
