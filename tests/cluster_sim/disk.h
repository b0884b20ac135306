#pragma once
// A node's disk as one shard sees it. At a crash any prefix of the groups that were under way may have arrived, and of
// the next one a beginning: promise, then cut, then entries, as the store writes them (docs/decisions/0022). What is
// known to be committed is not kept. What is durable here is what the invariants are checked against.

#include <cstdint>
#include <deque>
#include <string>

#include "cluster/replica.h"
#include "cluster_sim/register.h"

namespace mainstay::cluster_sim {

struct Disk {
    ReplicaName name;
    Epoch promised;
    ReplicationLog log;
    Registers base_state;  // everything up to the log's base
    uint64_t commit = 0;
    bool full = false;
    uint32_t sync_ms = 1;  // the longest that a sync takes

    struct Pending {
        WriteGroup group;
        std::string snapshot;  // of a group that installs one
    };
    std::deque<Pending> pending;
    std::string staged;  // parts of a snapshot; lost with the process

    /// The oldest group under way is on the disk.
    void sync_one();
    /// At a crash: only the first `records` records of the oldest group under way arrive.
    void tear(size_t records);
    /// At a crash, what did not arrive is gone. Returns how many groups that was.
    size_t lose_pending();
    void trim(uint64_t index);
    DurableShard read() const;
};

}  // namespace mainstay::cluster_sim
