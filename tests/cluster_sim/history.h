#pragma once
// One simulated cluster with everything around one shard: real ShardMembers and a real MemoryCluster, nodes that crash,
// stand still and lose disks, a network that drops, doubles, delays and cuts one way, clients that repeat what was not
// answered, and faults aimed at the moments that matter. One thread, virtual milliseconds, one seed: the same seed
// gives the same history. At its end the faults stop, and everything must become one cluster in which nothing is
// missing.

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <variant>
#include <vector>

#include "cluster/memory_coordinator.h"
#include "cluster/shard_member.h"
#include "cluster_sim/disk.h"
#include "cluster_sim/oracle.h"
#include "runtime/base/random.h"

namespace mainstay::cluster_sim {

enum class Fault : uint8_t {
    crash,           // and restart; one in three starts twice
    pause,           // the process stands still, mostly for longer than its lease
    isolate,         // a node from everybody, coordinator included
    one_way,         // one direction between two nodes
    no_coordinator,  // one node or all of them
    noise,           // drops, doubles and long delays everywhere
    disk_full,
    disk_slow,
    disk_error,  // the process dies of it
    disk_lost,   // ... and comes back with an empty one
    unknown,     // changes are lost, answered to nobody, or late
};
constexpr size_t fault_count = 11;

struct Counts {
    uint64_t histories = 0, commands = 0, events = 0, acknowledged = 0, repeats = 0, reads = 0, virtual_ms = 0;
    std::array<uint64_t, fault_count> struck{};
    uint64_t take_overs = 0, hand_overs = 0, shrinks = 0, grows = 0, swaps = 0, confirms = 0, retired = 0;
    uint64_t unknown = 0, unknown_with_effect = 0, late_effects = 0, conflicts = 0;
    uint64_t truncations = 0, snapshots = 0, fenced = 0, groups_lost = 0, groups_torn = 0, leases_lost = 0,
             ambushes = 0;
    uint64_t dropped = 0, doubled = 0, damaged = 0, refused_full = 0;
    void add(const Counts& other);
    friend bool operator==(const Counts&, const Counts&) = default;
};

struct HistoryOptions {
    uint64_t seed = 1;
    uint32_t commands = 200;
    uint32_t faults = 5;
    bool clients_only = false;                   // no invariants, only what clients see
    bool as_shipped = false;                     // the settings of a real node instead of quicker ones
    std::optional<uint32_t> hints_percent = {};  // of changes and expired leases that each watch tells; none: by seed
};

class History {
  public:
    explicit History(const HistoryOptions& options);
    /// Throws Violation.
    void run();
    const Counts& counts() const { return counts_; }
    /// Instead of run(): between the last write that the first primary acknowledges and the moment in which the next
    /// one serves, when the first dies, or is told to move the shard. Virtual milliseconds.
    TimeMs interruption(bool planned);

  private:
    static constexpr uint32_t client_count = 3;
    static constexpr size_t coordinator = 255;  // as an end of the network

    // --- what is under way
    struct Request {  // of a client; an attempt
        uint32_t client = 0;
        uint64_t attempt = 0;
        bool reads = false;
        Write write;
        Oracle::Floor begun;
    };
    struct Reply {
        uint32_t client = 0;
        uint64_t attempt = 0;
        bool done = false;
        std::optional<size_t> hint;  // the node that the refusing one takes for the primary
    };
    struct ToMember {
        ReplicationMessage message;
    };
    struct Sync {};
    struct TickDue {};
    struct AskList {
        bool keep_alive = false;
    };
    struct ListRead {
        RecordRead read;
        bool keep_alive = false, expired = false;
    };
    struct AskChange {
        uint64_t request = 0;
        ShardChange change;
        bool no_answer = false, late = false;
    };
    struct ChangeDone {
        uint64_t request = 0;
        ChangeAnswer answer;
    };
    struct Hint {};  // a watch says that something may have changed
    struct Start {};
    struct SpaceReturns {};
    struct ClientWakes {
        uint32_t client = 0;
        uint64_t attempt = 0;
    };
    struct AmbushEnds {};
    struct AimedStrike {
        bool pauses = false;  // else the process dies
        TimeMs back = 0;      // after this time it goes on, or starts anew
    };
    using Work = std::variant<ToMember, Sync, TickDue, AskList, ListRead, AskChange, ChangeDone, Hint, Start,
                              SpaceReturns, Request, Reply, ClientWakes, AmbushEnds, AimedStrike>;
    struct Event {
        Work work;
        size_t node = coordinator;
        uint64_t life = 0;  // of the node's process that it belongs to; 0: any
    };
    struct Due {
        TimeMs at = 0;
        uint64_t order = 0;
        size_t slot = 0;
        bool operator<(const Due& other) const { return at != other.at ? at > other.at : order > other.order; }
    };

    struct Waiting {  // an answer behind the gate
        Request request;
        uint64_t index = 0;  // a write's
        uint32_t version = 0;
        uint64_t hash = 0;
    };
    struct Node {
        Disk disk;
        uint64_t incarnation = 0;
        uint64_t life = 0;
        bool up = false, syncing = false;
        TimeMs paused_until = 0, keep_alive_at = 0;
        std::unique_ptr<ShardMember> member;
        std::optional<Registers> sessions;             // while it serves
        std::array<uint64_t, session_count> newest{};  // entry of each session, of those proposed here
        std::deque<Waiting> writes;
        std::map<uint64_t, Waiting> reads;
        uint64_t tokens = 0;
        std::map<uint64_t, uint64_t> changes;  // under way: request, life
        struct Snapshot {
            LogPosition at;
            std::string bytes;
        };
        std::map<uint64_t, Snapshot> snapshots;
    };
    struct Client {
        bool busy = false;
        uint64_t first = 0;  // attempt for this request
        Request request;
        size_t guess = 0;
        uint64_t attempts = 0;
    };

    // --- time and network (history.cpp)
    void choose_settings();
    bool chance(uint64_t percent) { return random_.below(100) < percent; }
    TimeMs between(TimeMs least, TimeMs most) { return least + random_.below(most - least + 1); }
    void after(TimeMs delay, size_t node, uint64_t life, Work work);
    bool linked(size_t from, size_t to) const;
    TimeMs delay();
    bool noisy() const { return now_ < noise_until_; }
    bool damage(Work& work);
    void send(size_t from, size_t to, uint64_t life, Work work);
    bool step_event();
    void perform(Event& event);

    // --- nodes (node.cpp)
    size_t node_of(const NodeUuid& uuid) const;
    void start(size_t node);
    void stop(size_t node);
    void restart_after(size_t node, TimeMs delay);
    void input(size_t node, const ShardInput& what);
    void perform_outputs(size_t node, ShardOutputs& out);
    void write(size_t node, WriteGroup& group, ShardOutputs& out);
    void sync(size_t node);
    void begin_sync(size_t node);
    void read_part(size_t node, const ShardOutputs::PartWanted& wanted);
    void serve(size_t node, const Request& request);
    void drop_sessions(size_t node);
    void release_writes(size_t node, uint64_t committed);
    void answer(size_t node, const Waiting& waiting);
    void reply(size_t node, const Request& request, bool done);

    // --- the coordinator's end
    void coordinate(const AskList& ask, size_t node, uint64_t life);
    void coordinate(const AskChange& ask, size_t node, uint64_t life);
    void request_change(size_t node, ShardOutputs::Change& change);
    void tell_watches();
    void count_change(const ShardRecord& before, const ShardRecord& after);

    // --- clients and faults (faults.cpp)
    void client_acts(uint32_t client, uint64_t attempt);
    void client_hears(const Reply& reply);
    void client_sends(uint32_t client);
    void strike();
    size_t victim();
    bool may_lose_disk() const;
    void ambush(size_t proposer, const ShardRecord& before, const ShardChange& change);
    void wish_for_move();
    void assign_other();
    void lead_again();

    // --- the end
    void heal();
    bool quiet() const;
    std::string describe() const;
    void finish();

    const HistoryOptions options_;
    SeededRandom random_;
    TimeMs now_ = 1'000'000;
    const uint32_t lease_ms_, request_timeout_ms_;
    ReplicationSettings settings_;
    MemoryCluster cluster_;
    std::vector<Node> nodes_;
    std::vector<Disk*> disks_;
    Oracle oracle_;
    std::array<Client, client_count> clients_;
    std::priority_queue<Due> due_;
    std::vector<Event> slots_;
    std::vector<size_t> free_;
    uint64_t order_ = 0, incarnations_ = 0, disks_made_ = 0;
    uint32_t commands_ = 0, strikes_ = 0, requests_ = 0;
    bool healing_ = false;
    Counts counts_;
    std::vector<std::array<TimeMs, 8>> cut_;  // from, to (7: coordinator): until when
    TimeMs noise_until_ = 0;
    uint32_t unknowns_ = 0;  // the next changes that are not answered
    uint32_t ambush_percent_ = 0, hints_percent_ = 0;
    bool changed_ = false;  // since watches were told
    size_t leases_ = 0;     // when they were
    TimeMs answered_at_ = 0, interruption_ = 0;
    std::deque<ShardOutputs> outputs_;  // kept for their storage
    size_t depth_ = 0;
};

}  // namespace mainstay::cluster_sim
