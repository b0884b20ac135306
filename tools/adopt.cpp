#include "tools/adopt.h"

#include <sys/stat.h>
#include <unistd.h>

#include "actors/node_fold.h"
#include "cluster/certificates.h"
#include "cluster/local_coordinator.h"
#include "runtime/store/disk_store.h"

namespace mainstay {

Result<Adopted> adopt_directory(const std::string& data_directory, const std::string& cluster_directory) {
    const auto cluster = read_cluster_uuid(cluster_directory);
    if (!cluster) return cluster.error();
    // What opens a directory makes one where there is none, and a new one is nothing to begin a cluster with.
    if (::access((data_directory + "/identity").c_str(), F_OK) != 0)
        return {ErrorCode::not_found, data_directory + " is no data directory: it has no file identity", {}};
    const mode_t before = ::umask(077);
    SecureRandom random;
    auto coordinator = LocalCoordinator::open(data_directory, random);
    ::umask(before);
    if (!coordinator) return coordinator.error();

    NodeFold fold;
    DiskStoreConfig config;
    config.directory = data_directory;
    config.uuid = (*coordinator)->node_uuid();
    config.epoch = (*coordinator)->epoch();
    config.fold = &fold;
    auto store = DiskStore::open_disk(config);
    if (!store) return store.error();
    if ((*store)->stats().read_only)
        return {ErrorCode::storage_full, "the disk is full: not everything can be applied", {}};
    (*store)->flush();
    if (auto adopted = (*store)->adopt(*cluster, config.epoch); !adopted) return adopted.error();
    return Adopted{*cluster, config.epoch, config.shard_count};
}

}  // namespace mainstay
