#pragma once
// What this node does for other nodes of its cluster beside replication and clients' requests, and asks of them: calls
// on memories of users whose shard the other leads, and agents and models that it should know. Bytes:
// docs/formats/peer.md. Any thread.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actors/node_context.h"
#include "cluster/link.h"

namespace mainstay {

class PeerService {
  public:
    /// Both outlive it. `ask` asks another node, with calls of kind `shard`.
    PeerService(NodeContext& node, AskNode ask) : node_(node), ask_(std::move(ask)) {}

    /// A call of kind `shard` of another node. An answer follows at once or when the memory's record is committed.
    void serve(const std::string& request, std::shared_ptr<CallReply> reply);

    /// NodeContext::memory_elsewhere. A call that may have arrived ends as lost: the session decides by its class, and
    /// the memory knows its idempotency key.
    void call_memory(const ShardPlace& place, const ToolCall& call, std::function<void(ToolOutcome)> done);

    /// Gives these entities to a node's catalogue; nobody is told whether they arrived, the next link tells again.
    void give_entities(const NodeUuid& to, const std::vector<std::string>& entities);

    // Requests, as serve() reads them.
    static std::string memory_request(const ToolCall& call);
    static std::string entities_request(const std::vector<std::string>& entities);

  private:
    NodeContext& node_;
    const AskNode ask_;
};

}  // namespace mainstay
