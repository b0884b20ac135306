#pragma once
// A node that was alone becomes a cluster's first copy: its data directory is opened as a daemon would, everything that
// its journal holds is applied, and from then on it belongs to the cluster and opens only as a part of it. Nothing is
// copied; what can go wrong before the last write leaves the directory as it was.
//
// Offline, one thread, the caller's. No daemon may have the directory open: its lock says so.

#include <string>

#include "cluster/coordinator.h"
#include "runtime/base/result.h"

namespace mainstay {

struct Adopted {
    ClusterUuid cluster{};
    Epoch epoch;          // the copy ends in it: the cluster's records begin in the one after
    uint16_t shards = 0;  // the cluster must be made with as many
};

/// `cluster_directory` holds cluster.id (cluster/certificates.h). Errors: not_found, there is no data directory;
/// conflict, a process has it open (names its pid), or it belongs to a cluster already; storage_full; those of
/// DiskStore::open.
Result<Adopted> adopt_directory(const std::string& data_directory, const std::string& cluster_directory);

}  // namespace mainstay
