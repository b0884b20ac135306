#pragma once
// A shard's copy on this node: the log, the promised epoch, and what of both is durable. It refuses lower epochs, keeps
// what it has verified against the primary of the highest, cuts what diverges, and answers only what a sync has made
// true. The primary's own copy is a Replica as well. Pure: writes go out as groups, each one synced write of the
// journal, and come back as tickets in their order. Driven by ShardMember on one thread.
//
// Invariants. I2: promised never falls; it is in the same group as the first entries taken under it, so that no crash
// keeps the entries and forgets the promise. I6: nothing at or below commit is cut: a primary that asks for it is
// answered by a halt, because either of the two copies is wrong and going on would choose one.

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "cluster/replication_log.h"
#include "cluster/replication_message.h"

namespace mainstay {

/// What a step of a Replica asks for.
struct ReplicaOutputs {
    std::vector<WriteGroup> writes;
    std::vector<StagePart> staged;
    std::optional<ReplicationBody> answer;  // to whom the message came from, or to the primary last heard
    const char* halt = nullptr;             // the shard must stop here, for people to look at
};

class Replica {
  public:
    explicit Replica(const DurableShard& durable);

    Epoch promised() const { return promised_; }
    const ReplicationLog& log() const { return log_; }
    uint64_t durable_index() const { return durable_index_; }
    bool promise_durable() const { return promised_durable_ == promised_; }
    uint64_t commit() const { return commit_; }
    /// Committed and durable here: may be applied to the state.
    uint64_t applicable() const { return std::min(commit_, durable_index_); }
    size_t groups_in_flight() const { return in_flight_.size(); }
    bool full() const { return full_; }

    // --- as a replica of another primary
    void append(const AppendEntries& message, ReplicaOutputs& out);
    void take_part(const SnapshotPart& message, ReplicaOutputs& out);

    // --- as the primary's own copy
    /// Promises the epoch and begins it with a barrier, in one group. Precondition: epoch > promised().
    void begin_epoch(Epoch epoch, ReplicaOutputs& out);
    /// The next entry of the own epoch; durable only after write_own() and its sync.
    uint64_t add_own(std::shared_ptr<const std::string> payload);
    /// Writes what add_own() has gathered, at most one group's bytes. False: there was nothing.
    bool write_own(ReplicaOutputs& out);
    void committed(uint64_t index);

    // --- the disk
    void synced(uint64_t ticket, ReplicaOutputs& out);
    void set_full(bool full) { full_ = full; }
    /// The state was applied up to `index` and is durable: the log may begin there.
    void trim(uint64_t index);

  private:
    struct InFlight {
        uint64_t ticket = 0, last = 0;  // of the log once this group is durable, unless cut or reset since
        Epoch promised;
    };

    bool fence(Epoch epoch, ReplicaOutputs& out, WriteGroup& group);
    bool take_entries(const AppendEntries& message, WriteGroup& group, ReplicaOutputs& out);
    void truncate(uint64_t index, WriteGroup& group);
    void drop_unwritten();
    void write(WriteGroup group, ReplicaOutputs& out);
    void answer(ReplicaOutputs& out) const;
    void answer_mismatch(uint64_t hint, ReplicaOutputs& out) const;

    ReplicationLog log_;
    Epoch promised_, promised_durable_;
    uint64_t commit_ = 0;
    uint64_t durable_index_ = 0;
    uint64_t verified_ = 0;   // the log up to here is that of promised_'s primary
    uint64_t round_ = 0;      // highest that arrived in promised_
    uint64_t unwritten_ = 0;  // own entries from here on are in no group yet; 0: none
    bool heard_ = false;      // somebody else leads promised_
    bool full_ = false;
    uint64_t next_ticket_ = 1;
    std::deque<InFlight> in_flight_;
    uint64_t transfer_ = 0;  // that is being staged; 0: none
    uint32_t parts_ = 0;     // of it
};

}  // namespace mainstay
