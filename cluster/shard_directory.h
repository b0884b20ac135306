#pragma once
// Where requests for a shard go: to this node, to the one that leads it, or to nobody yet. A view, not a promise: the
// shard's member on the node that is asked has the last word, and whoever is sent on in vain looks again.

#include <cstdint>
#include <functional>
#include <optional>

#include "cluster/coordinator.h"

namespace mainstay {

struct ShardPlace {
    enum class Where : uint8_t {
        here,     // this node leads it and serves
        there,    // `node` is on record as its primary
        nowhere,  // nobody serves it now: no primary with a lease, or this node leads and does not serve yet
    };
    Where where = Where::nowhere;
    NodeUuid node{};  // with there
    Epoch epoch;      // with here: that it is led in
    /// With here: why nothing new is accepted at present (under_replicated, storage_full, journal_backlog_full). What
    /// was accepted before goes on: it waits for its commit.
    std::optional<ErrorCode> refuses;
};

class ShardDirectory {
  public:
    virtual ~ShardDirectory() = default;
    virtual uint16_t shard_count() const = 0;
    /// Whether the coordinator was ever read.
    virtual bool known() const { return true; }
    /// Any thread; takes no lock that anything waits under.
    virtual ShardPlace find(ShardId shard) const = 0;
    /// Calls `changed` once, on any thread, when find() may say something else about any shard; at once if it may
    /// already do so since `seen` (version() before the caller looked).
    virtual void when_changed(uint64_t seen, std::function<void()> changed) = 0;
    virtual uint64_t version() const = 0;
};

}  // namespace mainstay
