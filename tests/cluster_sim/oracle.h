#pragma once
// What must hold in every history, checked at the moment when it could break: each change of the record, each durable
// group, each acknowledgement, each answer to a client. Nothing here dies with a simulated process. The names I1 to I7
// are those of docs/CLUSTER.md. One history, one thread.

#include <array>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cluster/membership.h"
#include "cluster_sim/disk.h"

namespace mainstay::cluster_sim {

/// A guarantee that did not hold. Thrown through the simulator only, never by what it tests.
struct Violation : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void check(bool holds, const char* what) {
    if (!holds) throw Violation(what);
}

class Oracle {
  public:
    /// Disks by name; those that were lost are no longer there. With `clients_only` nothing is checked but what clients
    /// can see: to learn what a broken rule really costs, and whether the faults make it cost that.
    Oracle(const std::vector<Disk*>& disks, bool clients_only) : disks_(disks), clients_only_(clients_only) {}

    // --- the record: I1, I3, I5, I7
    void changed(const ShardRecord* before, const ShardRecord& after);
    // --- disks: I2, I4, I6, and I3 after a cut
    void before_sync(const Disk& disk) const;
    void synced(const Disk& disk, uint64_t first, uint64_t last);
    /// A replica has answered in this epoch: it must never forget that.
    void attested(const ReplicaName& name, Epoch epoch);
    void restarted(const Disk& disk) const;
    // --- acknowledgements: I3, I5
    void acknowledged(Epoch epoch, const ReplicaName& by, uint64_t incarnation, const LogPosition& up_to);

    // --- clients: linearizability of each register, and exactly once
    struct Floor {
        std::array<uint32_t, session_count> version{};
    };
    /// What had been told to anybody before a request began.
    Floor told() const { return told_; }
    void answered_write(const Write& write, uint32_t version, const Floor& begun);
    void answered_read(uint8_t session, uint32_t version, uint64_t hash, const Floor& begun);
    /// At the end, by the state that everybody agrees on.
    void finish(const Registers& state) const;

    uint64_t acknowledged_index() const { return acknowledged_.index; }

  private:
    void check_members(const ShardRecord& record, const LogPosition& position) const;
    const Disk* disk(const ReplicaName& name) const;

    const std::vector<Disk*>& disks_;
    const bool clients_only_;
    ShardRecord record_;
    std::map<Epoch, std::pair<ReplicaName, uint64_t>> primaries_;
    std::vector<std::vector<std::pair<Epoch, uint64_t>>> contents_;  // by index: (epoch, chain), each epoch once
    std::vector<std::pair<ReplicaName, Epoch>> attested_;
    LogPosition acknowledged_;
    Floor told_;
    std::array<std::map<uint32_t, uint64_t>, session_count> hashes_;  // by version
    std::map<uint16_t, std::pair<uint8_t, uint32_t>> writes_;         // request: session and version told
};

}  // namespace mainstay::cluster_sim
