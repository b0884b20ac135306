#pragma once
// The KV cache's tier on disk: attention state of sessions that sleep, block by block, so that a turn after a restart
// computes its new tokens only. A cache and treated as one: an LMDB environment of its own, not synchronised (a crash
// of the process loses nothing, a crash of the machine is detected by the boot id and empties it), bounded in bytes,
// the least recently used block goes first. Every value is guarded by a checksum over key and value and names whose
// model and format it is; whatever does not hold is deleted and counts as missing. Blocks belong to the session that
// wrote them and are deleted with it. docs/formats/kv_tier.md describes the rows.
//
// One owner thread; it blocks for the disk.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/base/digest.h"
#include "runtime/base/id.h"
#include "runtime/base/limits.h"
#include "runtime/base/result.h"

struct MDB_env;
struct MDB_txn;

namespace mainstay {

struct LmdbKvConfig {
    std::filesystem::path directory;
    uint64_t bytes_max = limits::kv_disk_bytes_default;  // of all values, rounded up to pages
    std::string boot_id;   // of the machine's current run; another one than last time empties the tier
    std::string identity;  // model hash and KV format: blocks of another one are never served
};

struct KvBlock {
    KeyHash hash{};
    SessionKey owner;  // an invalid session: of an agent's definition of the tenant
    uint32_t tokens = 0;
    std::string bytes;
};

struct LmdbKvStats {
    uint64_t blocks = 0, bytes = 0;  // held
    uint64_t puts = 0, hits = 0, misses = 0, damaged = 0, foreign = 0, evicted = 0, refused = 0;
    bool emptied = false;  // at open, because the machine was started anew or the environment could not be opened
};

class LmdbKv {
  public:
    /// An environment that cannot be opened is emptied. Fails with storage_full where no directory can be made.
    static Result<std::unique_ptr<LmdbKv>> open(LmdbKvConfig config);
    ~LmdbKv();
    LmdbKv(const LmdbKv&) = delete;
    LmdbKv& operator=(const LmdbKv&) = delete;

    /// Stores the blocks in one transaction and returns the names of those that had to go for them. A block that is
    /// larger than the tier is refused with storage_full, as is everything where the disk is full; nothing changed
    /// then.
    Result<std::vector<KeyHash>> put(std::span<const KvBlock> blocks);
    /// Nothing where it is missing, damaged or of another identity; the last two are deleted.
    std::optional<KvBlock> get(const KeyHash& hash);
    void erase(std::span<const KeyHash> hashes);
    /// Names of what was deleted.
    std::vector<KeyHash> drop_session(const SessionKey& owner);
    std::vector<KeyHash> drop_tenant(TenantId tenant);
    /// Blocks of this identity, oldest first; without bytes.
    void visit(const std::function<void(const KvBlock&)>& each) const;
    LmdbKvStats stats() const;

  private:
    struct Held {
        SessionKey owner;
        uint32_t tokens = 0;
        uint64_t room = 0;
        bool ours = true;  // of this identity
        std::list<KeyHash>::iterator place;
    };
    struct HashOf {
        size_t operator()(const KeyHash& hash) const noexcept;
    };

    explicit LmdbKv(LmdbKvConfig config);
    Result<void> open_environment();
    void close_environment();
    int load_index();
    void index(const KeyHash& hash, const SessionKey& owner, uint32_t tokens, uint64_t room, bool ours);
    void unindex(const KeyHash& hash);
    int write(std::span<const KvBlock> blocks, const std::vector<KeyHash>& out);

    const LmdbKvConfig config_;
    const KeyHash identity_;
    MDB_env* env_ = nullptr;
    unsigned table_ = 0;
    uint64_t order_ = 0;         // of the newest block, stored with it
    std::list<KeyHash> by_age_;  // oldest first
    std::unordered_map<KeyHash, Held, HashOf> held_;
    std::map<SessionKey, std::set<KeyHash>> by_owner_;
    uint64_t room_ = 0;
    LmdbKvStats stats_;
};

/// Of the running kernel; empty where it does not tell, which counts as another one each time.
std::string current_boot_id();

}  // namespace mainstay
