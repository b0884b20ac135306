#pragma once
// What every actor of a node may use, wired by tools/mainstayd and borrowed: all of it outlives the actor system.
// Store, catalogue, devices and tool host are safe from any thread; nothing here holds state of a session.

#include <atomic>
#include <caf/actor.hpp>
#include <cstdint>
#include <functional>
#include <memory>

#include "actors/agent_tools.h"
#include "actors/shard_activity.h"
#include "actors/step_pauses.h"
#include "actors/step_placement.h"
#include "cluster/shard_directory.h"
#include "runtime/agent/catalogue.h"
#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/metrics.h"
#include "runtime/base/random.h"
#include "runtime/inference/text_device.h"
#include "runtime/store/journal.h"
#include "runtime/tool/tool.h"

namespace mainstay {

class LeftWork;
class ModelScheduler;

/// What an operator may move (config/mainstay.toml), as actors need it.
struct NodeOptions {
    bool strict =
        false;  // each step durable before the next begins; else a model step may overlap the commit before it
    size_t window_bytes = limits::history_window_bytes;
    size_t sessions_active_max = limits::sessions_active_max;
    uint32_t passivate_after_ms = limits::passivate_after_ms;
    uint64_t turn_duration_ms = limits::turn_duration_ms_default;
    uint32_t steps_per_turn = limits::steps_per_turn_default;  // where the agent says nothing
    uint32_t tool_call_timeout_ms = limits::tool_call_timeout_ms_default;
    std::string default_agent = "assistant";  // of a request that names none
    uint16_t shard_count = shard_count_default;
};

struct NodeContext {
    Store& store;
    Catalogue& catalogue;
    ModelScheduler& models;
    ToolHost& tools;
    const Clock& clock;
    Random& random;
    Metrics& metrics;
    NodeOptions options;

    /// Null: the node is alone, and every shard is here.
    const ShardDirectory* shards = nullptr;
    ShardActivity activity{};
    StepPauses pauses{clock};
    /// Whether what this node knows of a shard is still so: an answer to a read leaves when it has been confirmed.
    /// Null: the node is alone. Any thread; `done` is called once.
    std::function<void(ShardId, std::function<void(bool)> done)> confirm_read{};

    /// A call on a user's memory whose shard another node leads. Null: the node is alone. Any thread; `done` is called
    /// once.
    std::function<void(const ShardPlace&, const ToolCall&, std::function<void(ToolOutcome)> done)> memory_elsewhere{};

    /// Called when an agent or model was journalled: the other nodes are to know it. Null: the node is alone.
    std::function<void(const std::string& entity)> entity_committed{};
    std::function<void(const NodeUuid& to, const std::vector<std::string>& entities)> give_entities{};
    /// Called when this node begins to lead a shard, before its sessions are taken up. Null: the node is alone.
    std::function<void(ShardId)> shard_led{};

    /// Which node would compute a step of a session's on devices of our own. Null: the node is alone. Any thread.
    std::function<std::optional<StepChoice>(const SessionKey&, const std::string& model)> step_place{};
    /// Null: the node is alone.
    LeftWork* left_work = nullptr;
    bool computes_every_model = true;  // so that what is asked for here needs no other node

    // Set by the node supervisor when it has spawned them.
    caf::actor tool_worker{}, timer{}, router{}, user_memories{};

    AgentToolsCache agent_tools{};
    std::atomic<uint64_t> next_request{1};  // names model steps and tool calls in this process
    std::atomic<bool> draining{false};
    std::atomic<bool> leaving{false};  // hands its shards over, and still answers
    std::atomic<size_t> sessions_active{0};
    std::atomic<size_t> sessions_busy{0};  // with a step in flight or an output held
    /// Set once the open turns found at start have been taken up.
    std::atomic<bool> resumed{false};

    ShardId shard_of(const SessionKey& key) const { return mainstay::shard_of(key, options.shard_count); }
    /// Where requests for a shard go.
    ShardPlace place_of(ShardId shard) const {
        return shards ? shards->find(shard) : ShardPlace{ShardPlace::Where::here, {}, {}, {}};
    }
    /// What is answered for a shard at such a place. `param` is the shard's number. Also where the place is here again:
    /// whoever is told so was dropped between two leaderships, and may ask again.
    static Error elsewhere(const ShardPlace& place, ShardId shard) {
        if (place.where == ShardPlace::Where::nowhere)
            return {ErrorCode::shard_unavailable, "nobody leads the session's shard at present",
                    std::to_string(shard.value)};
        return {ErrorCode::misdirected, "another node leads the session's shard", std::to_string(shard.value)};
    }
};

}  // namespace mainstay
