#pragma once
// The memories of users: the one owner of each, so that calls of any number of sessions on one memory happen one after
// the other. A call comes here when its intent is committed, and is answered when the memory's own record is: nobody is
// told what a crash could take back, readers included. A call that comes again after a crash is known by its
// idempotency key and changes nothing twice (runtime/memory).
//
// One actor for the node. Memories are read when they are asked for; at most user_memories_cached_max of them are kept,
// and those that wait for the disk.

#include <caf/event_based_actor.hpp>
#include <caf/stateful_actor.hpp>
#include <list>
#include <memory>
#include <unordered_map>

#include "actors/messages.h"
#include "actors/node_context.h"
#include "actors/output_gate.h"
#include "runtime/memory/user_memory.h"

namespace mainstay {

class UserMemories {
  public:
    UserMemories(caf::event_based_actor* self, NodeContext& node) : self_(self), node_(node) {}

    /// A call of a builtin memory tool, for the principal of its turn.
    void run(const RunToolCall& run);
    /// The memories of a shard that is led elsewhere, or anew: calls that wait are answered as not done, and tried
    /// again, where their idempotency keys are known if they were done after all.
    void drop_shard(ShardId shard, std::optional<Epoch> but_of);
    void drop(const SessionKey& key);
    void committed(const MemoryCommitted& acknowledged);

  private:
    struct Kept {
        SessionKey key;
        UserMemory memory;
        OutputGate gate;
        std::shared_ptr<AckTarget> target;
        Epoch led_in;                                        // when it was read
        std::list<std::shared_ptr<const RunToolCall>> held;  // calls whose answers wait for the disk, in order
    };

    Result<Kept*> find(const SessionKey& key, const std::string& user, const std::string& name);
    Result<UserMemory> read(const SessionKey& key, const std::string& user, const std::string& name);
    void append(Kept& kept, const ToolCall& call, const std::string& name, bool removed);
    void forget_oldest();
    void answer(const RunToolCall& run, ToolOutcome outcome);

    caf::event_based_actor* self_;
    NodeContext& node_;
    std::list<Kept> kept_;  // the one that was used last first
    std::unordered_map<SessionKey, std::list<Kept>::iterator> by_key_;
};

struct UserMemoriesHolder {
    std::unique_ptr<UserMemories> memories;
};

caf::behavior user_memories(caf::stateful_actor<UserMemoriesHolder>* self, NodeContext* node);

}  // namespace mainstay
