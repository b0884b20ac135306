#pragma once
// The coordinator of a node that is alone. One process holds the lock on the data directory; each start raises the
// epoch of all shards by one and makes it durable before open() returns, so nothing is ever acknowledged in an epoch
// that a crash could take back. Node uuid and disk id stay with the directory.
//
// The epoch lives in two slots that are written in turn, in place: a torn write spoils only the slot that does not
// count yet, and a start on a full disk needs no new space (a temporary file would). Format:
// docs/formats/data_directory.md.
//
// Opened once by tools/mainstayd; afterwards immutable, any thread. The lock goes with the object or the process.

#include <memory>
#include <string>

#include "cluster/coordinator.h"
#include "runtime/base/random.h"

namespace mainstay {

class LocalCoordinator final : public Coordinator {
  public:
    /// Makes the directory (mode 0700) if there is none. Errors: conflict (another process holds it; names its pid),
    /// state_damaged (identity or epoch unreadable, or written by a newer release: nothing is touched), storage_full,
    /// invalid_request (cannot be made or opened). Never blocks on the lock.
    static Result<std::unique_ptr<LocalCoordinator>> open(const std::string& directory, Random& random);
    ~LocalCoordinator() override;
    LocalCoordinator(const LocalCoordinator&) = delete;
    LocalCoordinator& operator=(const LocalCoordinator&) = delete;

    NodeUuid node_uuid() const { return self_.node; }
    Epoch epoch() const { return epoch_; }

    ReplicaName self() const override { return self_; }
    uint64_t incarnation() const override { return incarnation_; }
    Result<ShardRecord> ownership(ShardId shard) override;

  private:
    LocalCoordinator(int lock, ReplicaName self, Epoch epoch, uint64_t incarnation)
        : lock_(lock), self_(self), epoch_(epoch), incarnation_(incarnation) {}

    const int lock_;  // descriptor that holds the lock
    const ReplicaName self_;
    const Epoch epoch_;
    const uint64_t incarnation_;
};

}  // namespace mainstay
