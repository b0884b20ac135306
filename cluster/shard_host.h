#pragma once
// The shards of this node: one ShardMember each, and what carries their words. A thread of its own steps the members;
// the store, the links and the coordinator are asked from it and answer into its inbox. Two more threads talk to the
// coordinator (one keeps the lease, which must not wait for anything; one reads and changes records), one reads
// snapshots.
//
// Invariants: a proposal is told as committed after its entry went to the state, so that whoever loads the session
// then finds it; none is accepted in another epoch than the one that its session was activated in; what a member
// wrote, sent or changed is done in the order in which it said so.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

#include "cluster/coordinator.h"
#include "cluster/shard_directory.h"
#include "cluster/shard_figures.h"
#include "cluster/shard_member.h"
#include "runtime/store/journal.h"
#include "runtime/store/shard_log.h"

namespace mainstay {

/// Told on the host's thread; must not block.
class ShardHostEvents {
  public:
    virtual ~ShardHostEvents() = default;
    /// This node leads the shard and serves: its sessions may be activated, from the store as it is.
    virtual void led(ShardId shard, Epoch epoch) = 0;
    /// It does not any more: what was activated under it must go, and its outputs that are held with it.
    virtual void lost(ShardId shard, Epoch epoch) = 0;
    /// All shards and nodes, as just read.
    virtual void viewed(const ClusterView&) {}
    /// Once a second.
    virtual void figures(const ShardFigures&, const CoordinatorFigures&) {}
};

struct ShardHostConfig {
    ClusterMeta meta;
    LiveNode self;
    ReplicationSettings replication;
    uint32_t lease_ms = limits::node_lease_ms;
    /// Between two reads of the coordinator, whatever hints say: ten times what the last one took, at least the one
    /// and at most the other. A hand-over waits for two of them, so where a read is short they follow soon.
    uint32_t list_spacing_min_ms = 5, list_spacing_ms = 50;
    /// Under load a round of the host waits for so long since the last one began, as a group of the journal does: what
    /// comes in one round shares its write, its messages and the threads that are woken. Up to gather_stretch_max times
    /// as long where commits take so long already that it does not show. 0: never.
    uint32_t gather_us = limits::group_gather_us;
    std::function<void(const NodeUuid& to, std::vector<ReplicationMessage>)> send;  // never blocks
    /// Whether a hand-over by wish to that node, which could be now, should wait: a tool call that must not be lost is
    /// under way, or something that goes ahead of it. Asked again and again on the host's thread, at most for
    /// hand_over_hold_ms; `held_ms`: for how long it has waited.
    std::function<bool(ShardId, const NodeUuid& to, TimeMs held_ms)> busy{};
    TimeMs hand_over_hold_ms = limits::hand_over_unfollowed_ms;
};

/// What a node sees of one shard.
struct ShardSight {
    ShardRecord record;  // config_version 0: none is known
    bool leads = false, serving = false, halted = false;
    uint64_t last_index = 0, commit_index = 0;
};

class ShardHost final : public ShardDirectory, public ShardLogEvents {
  public:
    /// `log` and `events` outlive it.
    ShardHost(ShardHostConfig config, ShardLog& log, ShardHostEvents& events);
    ~ShardHost() override;

    /// `coordinator` outlives the host's threads.
    void start(ClusterCoordinator& coordinator);
    /// Asks somebody else to lead what this node leads; true once nothing is led here, false after `patience_ms`.
    bool hand_over_all(uint32_t patience_ms);
    /// Of a node that is about to stop and leads nothing: while it has a lease, whoever evens primaries out gives it
    /// some back. Once; it goes on as a replica until stop().
    void give_lease_back();
    /// Ends all threads. Nothing that was proposed is told any more.
    void stop();

    // --- from sessions: any thread, never blocks
    /// `target` is told of `last` when the entry is committed, or that it was refused.
    void propose(ShardId shard, Epoch epoch, std::shared_ptr<const std::string> entry,
                 std::shared_ptr<AckTarget> target, Sequence last);
    /// Whether an answer from the state as it is now may leave: after every copy in sync has confirmed that nobody has
    /// taken over. Called once, on the host's thread.
    void confirm_read(ShardId shard, std::function<void(bool)> done);

    // --- from links: any thread, never blocks
    void receive(std::vector<ReplicationMessage> messages);

    /// Runs on the thread that talks to the coordinator, where it may block.
    void ask(std::function<void(ClusterCoordinator&)> question);
    /// Likewise; the answer as the coordinator gave it.
    void change(ShardChange change, std::function<void(const ChangeAnswer&)> done);
    /// The coordinator is read soon.
    void look();
    std::vector<ShardSight> sights() const;
    std::shared_ptr<const ClusterView> view() const;
    /// Milliseconds since the coordinator was last read; nothing: never.
    std::optional<uint64_t> view_age_ms() const;

    // --- ShardDirectory
    uint16_t shard_count() const override { return config_.meta.shards; }
    bool known() const override { return view() != nullptr; }
    ShardPlace find(ShardId shard) const override;
    void when_changed(uint64_t seen, std::function<void()> changed) override;
    uint64_t version() const override { return version_.load(std::memory_order_acquire); }

    // --- ShardLogEvents
    void groups_synced(const std::vector<std::pair<ShardId, uint64_t>>& tickets) override;
    void state_applied(const std::vector<std::pair<ShardId, uint64_t>>& indexes) override;

  private:
    struct Proposal {
        ShardId shard;
        Epoch epoch;
        std::shared_ptr<const std::string> entry;
        std::shared_ptr<AckTarget> target;
        Sequence last;
        std::chrono::steady_clock::time_point since;
    };
    struct Read {
        ShardId shard;
        std::function<void(bool)> done;
        std::chrono::steady_clock::time_point since;
    };
    struct Settled {
        ShardId shard;
        uint64_t request = 0;
        ChangeAnswer answer;
    };
    struct PartRead {
        ShardId shard;
        SnapshotData data;
    };
    struct Inbox {
        std::vector<ReplicationMessage> messages;
        std::vector<std::pair<ShardId, uint64_t>> synced, applied;
        std::vector<Proposal> proposals;
        std::vector<Read> reads;
        std::vector<Settled> settled;
        std::vector<PartRead> parts;
        std::shared_ptr<const ClusterView> view;
        /// What a load brings much of.
        size_t many() const {
            return messages.size() + synced.size() + applied.size() + proposals.size() + reads.size();
        }
        bool empty() const { return many() == 0 && settled.empty() && parts.empty() && !view; }
    };
    struct Waiting {
        uint64_t index = 0;
        std::shared_ptr<AckTarget> target;
        Sequence last;
        std::shared_ptr<const std::string> entry;
        std::chrono::steady_clock::time_point since;
    };
    struct WaitingRead {
        std::function<void(bool)> done;
        std::chrono::steady_clock::time_point since;
    };
    struct Member {
        std::unique_ptr<ShardMember> member;
        std::deque<Waiting> waiting;   // proposals, by index
        std::deque<Waiting> deferred;  // while the shard is being handed over
        bool held = false;             // the member was told to hold
        TimeMs held_since = 0;
        std::unordered_map<uint64_t, WaitingRead> reads;  // by token
    };
    /// What the steps of one round did, given on when they are done: written and applied before anything is told.
    struct Round {
        std::vector<std::pair<ShardId, WriteGroup>> writes;
        std::map<NodeUuid, std::vector<ReplicationMessage>> sends;
        std::vector<std::pair<ShardId, uint64_t>> applies;
        std::vector<std::pair<std::shared_ptr<AckTarget>, Sequence>> acks;
        std::vector<std::function<void()>> reads;
    };
    struct CoordinatorWork {
        ShardId shard;
        uint64_t request = 0;            // of the member; 0: somebody else's
        std::optional<ChangeKind> kind;  // of the member's
        ShardChange change;
        std::function<void(const ChangeAnswer&)> done;
        std::function<void(ClusterCoordinator&)> question;  // instead of a change
    };

    void run();
    void take(Inbox& inbox);
    void step(ShardId shard, const ShardInput& input);
    void perform(ShardId shard);
    void gather(std::unique_lock<std::mutex>& lock);
    std::chrono::microseconds gather_window() const;
    void began_round();
    void take_proposals(std::vector<Proposal>& proposals);
    void offer(ShardId shard, std::vector<Waiting> proposals);
    void offer_deferred(ShardId shard);
    void took_proposals(Member& member);
    void send(ReplicationMessage message);
    void acknowledge(Member& member, uint64_t committed);
    std::optional<ErrorCode> refuses(ShardId shard) const;
    void hold_or_not(ShardId shard, const ShardRecord& record);
    void drop_waiting(Member& member);
    void end_read(Member& member, uint64_t token, bool confirmed);
    void count();
    void end_round();
    void place(ShardId shard);
    void bump();
    TimeMs now() const;
    void post(const std::function<void(Inbox&)>& put);

    void keep_lease();
    void talk_to_coordinator();
    bool list();
    ChangeKind kind_in_view(const ShardChange& change) const;
    void read_snapshots();

    const ShardHostConfig config_;
    ShardLog& log_;
    ClusterCoordinator* coordinator_ = nullptr;
    ShardHostEvents& events_;
    std::vector<Member> members_;                       // host thread
    ShardOutputs outputs_;                              // host thread
    uint64_t tokens_ = 0;                               // host thread
    Round round_;                                       // host thread
    std::chrono::steady_clock::time_point taken_at_{};  // host thread: when the last round began
    double commit_us_ = 0;                              // host thread: mean of the last commits
    double inputs_per_us_ = 0;                          // host thread: over the last few rounds
    bool full_ = false;                                 // host thread: as the members were told
    bool placed_ = false;                               // host thread: a place has changed in this round
    ShardFigures figures_;                              // host thread
    CoordinatorFigures coordinator_figures_;

    std::mutex inbox_mutex_;
    std::condition_variable inbox_filled_;
    Inbox inbox_;
    bool gathering_ = false;  // the host has been woken, and waits for more
    bool stopping_ = false;

    mutable std::shared_mutex places_mutex_;
    std::vector<ShardPlace> places_;
    std::vector<ShardSight> sights_;
    std::atomic<uint64_t> version_{1};
    std::mutex watchers_mutex_;
    std::vector<std::function<void()>> watchers_;

    mutable std::mutex view_mutex_;
    std::shared_ptr<const ClusterView> view_;
    TimeMs viewed_at_ = 0;

    std::mutex work_mutex_;
    std::condition_variable work_waits_;
    std::deque<CoordinatorWork> work_;
    bool list_wanted_ = true;
    bool work_stops_ = false;
    bool lease_ends_ = false;  // under lease_mutex_

    std::mutex lease_mutex_;
    std::condition_variable lease_wakes_;

    struct PartWanted {
        ShardId shard;
        uint64_t transfer = 0;
        uint32_t part = 0;
        bool closed = false;
    };
    std::mutex parts_mutex_;
    std::condition_variable parts_wait_;
    std::deque<PartWanted> parts_;

    std::thread host_, lease_, talker_, reader_;
};

}  // namespace mainstay
