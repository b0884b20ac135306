#pragma once
// The primary of one epoch: what it has sent to whom, who holds what, and from that what is committed. Pipelined: as
// many appends are on their way to a replica as its window holds. A replica behind the log's base is sent a snapshot, a
// few parts at a time. Pure; owned by ShardMember for as long as the epoch is its own, and gone with it.
//
// Invariants. I3: committed is what every required replica has durably, and required are all in any in-sync set that
// the record may have. The epoch's first entry is a barrier: once it is committed all required logs are equal to ours,
// whatever tails earlier epochs left, and only then does the primary serve. Until then anything in its log may have
// been acknowledged by an earlier primary. A read is answered after every required replica has shown, since the read
// began, that it had promised no higher epoch.

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "cluster/shard_step.h"

namespace mainstay {

class Primary {
  public:
    /// `barrier`: index of the epoch's first entry.
    Primary(Epoch epoch, uint64_t barrier, const ReplicationSettings& settings)
        : settings_(settings), epoch_(epoch), barrier_(barrier) {}

    Epoch epoch() const { return epoch_; }
    bool serving() const { return serving_; }
    /// What may have been acknowledged is at or below: who has not got this far comes into no in-sync set.
    uint64_t floor(const Replica& own) const { return std::max(own.commit(), barrier_); }
    size_t reads_waiting() const { return reads_.size(); }
    /// Entries of the own log that the replica farthest behind does not hold, of those that are sent to.
    uint64_t lag_max(const Replica& own) const;

    /// Sends to exactly these from now on. Who is of a node in `newcomers` never failed in this shard, so that no time
    /// of good behaviour is asked of it before it comes in; it is taken out of the list.
    void follow(const std::vector<ReplicaName>& names, std::vector<NodeUuid>& newcomers, const Replica& own, TimeMs now,
                ShardOutputs& out);
    /// The process that answers for a replica: of two leases, one may be its predecessor's.
    void speaks(const ReplicaName& from, uint64_t incarnation);
    uint64_t incarnation(const ReplicaName& name) const;
    void answered(const ReplicaName& from, const AppendAnswer& answer, TimeMs now, ShardOutputs& out);
    void answered(const ReplicaName& from, const SnapshotAnswer& answer, TimeMs now);
    void part_read(const SnapshotData& data, const Replica& own, TimeMs now);
    void begin_read(const BeginRead& read) { reads_.push_back({read.token, read.index, 0}); }

    struct Addressed {
        ReplicaName to;
        ReplicationBody body;
    };
    /// Commits, confirms reads, sends what is due.
    void advance(Replica& own, const ReplicaName& self, const std::vector<ReplicaName>& required, TimeMs now,
                 ShardOutputs& out);
    std::vector<Addressed>& sends() { return sends_; }
    /// The process stood still: silence was its own.
    void forgive(TimeMs now);

    /// In sync or not: has answered nothing for replica_timeout_ms, holds back an entry for that long, or has no space.
    bool failing(const ReplicaName& name, TimeMs now) const { return fault(name, now) != nullptr; }
    /// Which of these it is, for people: what follows a node's name. Null: none.
    const char* fault(const ReplicaName& name, TimeMs now) const;
    /// Holds all that may have been acknowledged and is not far behind.
    bool caught_up(const ReplicaName& name, const Replica& own) const;
    /// Holds everything.
    bool level(const ReplicaName& name, const Replica& own) const;
    bool past_probation(const ReplicaName& name, TimeMs now) const;
    /// The log must not be trimmed beyond: a replica is on its way from there.
    std::optional<uint64_t> needed_from() const;
    void close(ShardOutputs& out);

  private:
    struct Transfer {
        uint64_t id = 0;
        std::optional<LogPosition> at;
        uint32_t taken = 0, asked = 0;  // parts
        std::optional<uint32_t> parts;  // in all
        TimeMs progress = 0;
    };
    struct Sent {
        uint64_t last = 0;
        size_t bytes = 0;
    };
    struct Follower {
        ReplicaName name;
        uint64_t incarnation = 0;  // of the process that answered last
        uint64_t next = 0;         // first entry not sent
        uint64_t matched = 0;      // durable there, and ours
        uint64_t round = 0, round_sent = 0;
        bool probing = true;  // it is not known where the logs agree: one message at a time
        bool due = true;      // the next message need not wait for a heartbeat
        bool full = false;
        bool newcomer = false;  // has not failed since it was given its copy
        std::deque<Sent> window;
        size_t window_bytes = 0;
        TimeMs heard = 0, sent = 0, progress = 0, good_since = 0;
        uint64_t mark = 0;  // an entry that it did not hold at mark_time; 0: it held all
        TimeMs mark_time = 0;
        std::optional<Transfer> transfer;
    };
    struct PendingRead {
        uint64_t token = 0, index = 0, round = 0;  // round 0: it waits for the next
    };

    Follower* find(const ReplicaName& name);
    const Follower* find(const ReplicaName& name) const;
    void hear(Follower& follower, uint64_t round, bool full, TimeMs now);
    void close_transfer(Follower& follower, ShardOutputs& out);
    void commit(Replica& own, const ReplicaName& self, const std::vector<ReplicaName>& required, ShardOutputs& out);
    void confirm_reads(const Replica& own, const ReplicaName& self, const std::vector<ReplicaName>& required,
                       ShardOutputs& out);
    void pump(Follower& follower, const Replica& own, TimeMs now, ShardOutputs& out);
    void pump_snapshot(Follower& follower, TimeMs now, ShardOutputs& out);
    void send(Follower& follower, const Replica& own, bool with_entries, TimeMs now);
    void watch_lag(Follower& follower, const Replica& own, TimeMs now) const;

    const ReplicationSettings settings_;
    const Epoch epoch_;
    const uint64_t barrier_;
    bool serving_ = false;
    std::vector<Follower> followers_;
    std::deque<PendingRead> reads_;
    uint64_t round_ = 1, round_confirmed_ = 0;
    uint64_t transfers_ = 0;
    std::vector<Addressed> sends_;
};

}  // namespace mainstay
