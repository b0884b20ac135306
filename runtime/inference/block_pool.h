#pragma once
// Who holds which KV block, for all devices of one model. A full block is immutable, named by its hash (kv_hash.h) and
// shared by reference counts; what follows the last full block of a sequence, its tail, belongs to one table and is
// written to. Blocks that no table needs stay as a cache, least recently used first to go, and are copied to the host's
// memory and from there to disk by effects that an actor performs: the pool itself holds no byte of attention state.
//
// Invariants: a device block is exactly one of free, in tables (refs > 0), or cached (refs = 0, named, evictable). A
// table names a block only for the tokens that its hash stands for. No tier exceeds its bound. A cached block is always
// content of a session that exists (its holders) or of an agent's definition: when the last holder is deleted it goes
// from every tier.
//
// Effects are performed in the order given. Of one device's work: saves, copies, loads, and then the step; since a
// block is reused only by work that comes later, a save that was handed out needs no lock on its block.
//
// Pure; one owner, the scheduler.

#include <deque>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "runtime/base/id.h"
#include "runtime/base/limits.h"
#include "runtime/inference/device.h"
#include "runtime/inference/kv_hash.h"

namespace mainstay {

/// A device of this model, numbered by whoever wires them; small and dense.
using DeviceId = StrongId<struct DeviceTag, uint32_t>;
using TableId = StrongId<struct TableTag, uint32_t>;

enum class KvTier : uint8_t { device, host, disk };
const char* to_string(KvTier tier);

struct BlockPoolConfig {
    uint32_t block_tokens = 16;
    uint64_t host_blocks_max = 0;  // 0: no tier in the host's memory, and none on disk
    bool disk = false;             // the tier on disk bounds itself and tells what it evicted
    uint32_t saves_per_work_max = limits::kv_saves_per_work_max;
    uint32_t loads_per_work_max = limits::kv_loads_per_work_max;  // so that others' steps do not wait for all of them
};

/// Export `block` and keep the bytes in the host's memory under `hash`; answer with saved().
struct BlockSave {
    BlockId block = block_none;
    uint32_t tokens = 0;
    KvHash hash{};
};

/// Import the bytes of `hash` into `block`; answer with loaded().
struct BlockLoad {
    BlockId block = block_none;
    uint32_t tokens = 0;
    KvHash hash{};
    KvTier from = KvTier::host;
};

struct DeviceEffects {
    std::vector<BlockSave> saves;
    std::vector<BlockCopy> copies;
    std::vector<BlockLoad> loads;
    std::vector<BlockSave> exports;  // with the saves; the bytes go to who asked. block_none: it is no longer there
    bool empty() const { return saves.empty() && copies.empty() && loads.empty() && exports.empty(); }
};

/// A block as another node is told of it.
struct BlockName {
    KvHash hash{};
    uint32_t tokens = 0;
    SessionKey owner;  // an invalid session: of an agent's definition of the tenant
    friend bool operator==(const BlockName&, const BlockName&) = default;
};

/// What becomes of a block that another node sent.
enum class BlockTaken : uint8_t { host, disk, known, no_room };

/// What happens to bytes that are in the host's memory or on disk.
struct TierEffect {
    enum class Kind : uint8_t { store_disk, drop_host, drop_disk };
    Kind kind = Kind::drop_host;
    KvHash hash{};
    uint32_t tokens = 0;
    SessionKey owner;  // store_disk: who to delete it with; an invalid session: of an agent's definition
};

/// How much of a sequence is cached, by device. Blocks, from the first.
struct PrefixMatch {
    struct OnDevice {
        DeviceId device;
        uint32_t reach = 0;      // leading blocks that this device has or can load
        uint32_t hits = 0;       // of them on the device
        uint32_t disk_only = 0;  // of the hits: those that else were on disk only
    };
    std::vector<OnDevice> devices;      // those with at least one hit
    uint32_t reach = 0;                 // of every other device: leading blocks in the host's memory or on disk
    std::vector<uint32_t> disk_before;  // [i]: blocks below i that no memory of the host holds, but the disk does

    OnDevice of(DeviceId device) const;
    uint32_t disk_loads(const OnDevice& on) const;
};

struct BlockPoolStats {
    uint64_t device_hit_blocks = 0, host_hit_blocks = 0, disk_hit_blocks = 0;
    uint64_t evicted_device = 0, evicted_host = 0, saved = 0, save_failed = 0, loaded = 0, load_failed = 0;
    uint64_t shared_after_all = 0;  // computed twice at the same time, and then merged
    uint64_t host_blocks = 0, disk_blocks = 0, entries = 0;
};

class BlockPool {
  public:
    explicit BlockPool(BlockPoolConfig config);

    /// `block_count` counts the null block, as DeviceCaps do.
    void add_device(DeviceId device, uint32_t block_count);
    /// Its blocks and tables are gone; so are saves that it had not answered.
    void remove_device(DeviceId device);
    bool has_device(DeviceId device) const { return device.value < devices_.size() && devices_[device.value].present; }

    uint32_t free_blocks(DeviceId device) const;
    uint32_t evictable_blocks(DeviceId device) const;
    uint32_t available_blocks(DeviceId device) const { return free_blocks(device) + evictable_blocks(device); }
    uint32_t total_blocks(DeviceId device) const;
    uint32_t block_tokens() const { return config_.block_tokens; }

    /// Of the first `blocks_max` blocks of the chain.
    void match(const KvChain& chain, uint32_t blocks_max, PrefixMatch& out) const;

    struct Acquired {
        TableId table;
        uint32_t tokens = 0;  // what will be valid without computing: full blocks, and the tail where it was kept
        uint32_t device_tokens = 0, host_tokens = 0, disk_tokens = 0;  // where these are
        uint32_t loads = 0;                                            // that settled() waits for
    };
    /// A table that holds the longest cached prefix of `tokens`, at least one token short of all (the last one has to
    /// be computed for its logits). `chain` names the full blocks of `tokens`. Loads from tiers as far as blocks are
    /// available and `load_host`, `load_disk` allow.
    Acquired acquire(DeviceId device, const SessionKey& session, const KvChain& chain, std::span<const TokenId> tokens,
                     bool load_host = true, bool load_disk = true);
    /// Whether all loads have ended.
    bool settled(TableId table) const { return at(table).pending == 0; }
    /// Valid tokens of a settled table: fewer than acquired where a load failed.
    uint32_t valid_tokens(TableId table) const { return at(table).valid; }

    /// Makes room for `tokens` tokens. False, and nothing changed, where no block is free or evictable.
    bool reserve(TableId table, uint32_t tokens);
    const std::vector<BlockId>& blocks(TableId table) const { return at(table).blocks; }
    /// Blocks that reserve(tokens) would take.
    uint32_t blocks_missing(TableId table, uint32_t tokens) const;
    /// Tokens up to `valid` are computed; full blocks get their names from `chain`. Blocks that lie within the first
    /// `definition_tokens` belong to an agent's definition and to no session.
    void computed(TableId table, uint32_t valid, const KvChain& chain, const SessionKey& session,
                  uint32_t definition_tokens);
    /// A table over the same tokens: full blocks are shared, the tail gets a copy (an effect). Nothing where no block
    /// is available for it.
    std::optional<TableId> fork(TableId table);
    /// A table that only keeps what the device has of the chain from being evicted.
    TableId pin(DeviceId device, const KvChain& chain);
    /// The blocks become cache, the tail too (its name is computed from `tokens`, all that the table holds).
    void close(TableId table, const SessionKey& session, const KvChain& chain, std::span<const TokenId> tokens);
    /// Full blocks become cache, the tail is freed.
    void drop(TableId table);

    /// Everything that only this session holds leaves all tiers.
    void delete_session(const SessionKey& session);
    /// Writes what the session holds in the host's memory, or what is on its way there, to disk: it survives a restart.
    void settle_to_disk(const SessionKey& session);
    /// Names of what the session holds anywhere, each once: first what `chain` names, in its order and with the blocks
    /// of an agent's definition, then the rest in no order.
    void holdings(const SessionKey& session, const KvChain& chain, std::vector<BlockName>& out) const;
    /// Blocks of agents' definitions of the tenant.
    void definitions(TenantId tenant, std::vector<BlockName>& out) const;
    /// Every session that holds something, in no order.
    template <class Visit>
    void visit_sessions(Visit visit) const {
        for (const auto& [key, index] : session_index_) visit(key);
    }
    /// The bytes of a block that a device has, among the exports of that device's work to come. False: none has it.
    bool export_block(const KvHash& hash);
    /// Whether the block is anywhere here; the owner then holds it, too.
    bool claim(const BlockName& block);
    /// A block came from another node: into the host's memory as long as there is room, then to disk, by effects for
    /// which the bytes are in the host's memory. Nothing that is here gives way.
    BlockTaken accept(const BlockName& block);
    /// Whether accept() would find room now.
    bool has_tier_room() const;
    /// A block was found on disk at start. False: not wanted (no room, or known).
    bool offer(KvTier tier, const KvHash& hash, uint32_t tokens, const SessionKey& owner);

    /// Brings a block of the host's memory or the disk onto the device as cache, before anybody asks. False: it is
    /// there, it is nowhere, or no block is free.
    bool prefetch(DeviceId device, const KvHash& hash);

    void saved(DeviceId device, const KvHash& hash, bool ok);
    void loaded(DeviceId device, BlockId block, const KvHash& hash, KvTier from, bool ok);
    void stored_on_disk(const KvHash& hash, bool ok);
    /// The disk tier evicted or found it damaged.
    void lost_on_disk(const KvHash& hash);

    bool has_device_effects(DeviceId device) const;
    DeviceEffects take_device_effects(DeviceId device);
    std::vector<TierEffect> take_tier_effects();

    BlockPoolStats stats() const;
    /// Empty, or the invariant that does not hold. For tests: linear in everything.
    std::string check() const;

  private:
    static constexpr uint32_t none = UINT32_MAX;
    static constexpr size_t holders_max = 4;

    struct Block {
        uint32_t refs = 0;
        uint32_t entry = none;                            // what names it; none: private or free
        BlockId before = block_none, after = block_none;  // in the list of cached blocks
        bool cached = false;                              // is in that list
        bool loading = false;
        bool save_queued = false;
    };
    struct Load {
        KvHash hash{};
        bool pins_host = false;
        std::vector<uint32_t> tables;  // that wait for it
    };
    struct DeviceState {
        bool present = false;
        std::vector<Block> blocks;
        std::vector<BlockId> free;
        BlockId oldest = block_none, newest = block_none;
        uint32_t cached = 0;
        std::deque<BlockSave> saves;          // in the background, a few with each work
        std::vector<BlockSave> saves_urgent;  // the block is about to be reused
        std::vector<BlockCopy> copies;
        std::deque<BlockLoad> loads;
        std::deque<KvHash> exports;
        std::unordered_map<BlockId, Load> in_load;
    };
    struct Holder {
        uint32_t session = none;
        uint32_t place = 0;  // in the session's list
    };
    struct Copy {
        DeviceId device;
        BlockId block = block_none;
    };
    enum class HostState : uint8_t { absent, saving, ready };
    enum class DiskState : uint8_t { absent, storing, ready };
    struct Entry {
        KvHash hash{};
        uint32_t tokens = 0;
        bool definition = false;
        bool to_disk = false;  // as soon as it is in the host's memory
        bool live = false;
        HostState host = HostState::absent;
        DiskState disk = DiskState::absent;
        DeviceId saving_from;
        TenantId tenant;
        uint32_t load_pins = 0;  // loads from the host's memory that are under way: not in its list
        uint32_t host_before = none, host_after = none;  // in the list of the host's blocks, while ready
        Holder holders[holders_max];
        uint8_t holder_count = 0;
        std::vector<Copy> copies;
    };
    struct HeldEntry {
        uint32_t entry = 0;
        uint8_t holder = 0;
    };
    struct Session {
        SessionKey key;
        std::vector<HeldEntry> held;
    };
    struct Table {
        bool live = false;
        DeviceId device;
        std::vector<BlockId> blocks;
        uint32_t named = 0;  // leading blocks that are full and immutable
        uint32_t valid = 0;  // tokens
        uint32_t pending = 0;
    };

    Table& at(TableId table);
    const Table& at(TableId table) const;
    TableId new_table(DeviceId device);
    void free_table(TableId table);
    Block& block_at(DeviceId device, BlockId block) { return devices_[device.value].blocks[size_t(block)]; }

    uint32_t find(const KvHash& hash) const;
    uint32_t find_or_make(const KvHash& hash, uint32_t tokens, TenantId tenant);
    void erase_if_unused(uint32_t entry);
    BlockId copy_on(const Entry& entry, DeviceId device) const;

    void hold(uint32_t entry, const SessionKey& session);
    void hold(uint32_t entry, const BlockName& block);
    void define(uint32_t entry);
    void unhold(uint32_t entry, size_t holder);
    SessionKey owner_of(const Entry& entry) const;

    BlockId take_block(DeviceId device);
    void add_ref(DeviceId device, BlockId block);
    void wait_for(DeviceId device, BlockId block, uint32_t table);
    void start_load(DeviceId device, BlockId block, uint32_t entry, KvTier from);
    void end_load(DeviceId device, BlockId block);
    void truncate(uint32_t table, size_t blocks);
    void release(DeviceId device, BlockId block);
    void unlink_cached(DeviceState& device, BlockId block);
    void unname(DeviceId device, BlockId block);
    void acquire_tail(Acquired& out, const KvChain& chain, std::span<const TokenId> tokens, bool load_host,
                      bool load_disk);
    void name(uint32_t table, size_t at, const KvHash& hash, uint32_t tokens, const SessionKey& session,
              bool definition);

    void host_link(uint32_t entry);
    void host_unlink(uint32_t entry);
    void host_touch(uint32_t entry);
    bool make_host_room();
    void drop_host(uint32_t entry, bool store_first);
    void store_disk(uint32_t entry);
    void drop_disk(uint32_t entry);
    void queue_save(DeviceId device, BlockId block);
    bool start_save(DeviceId device, const BlockSave& save);

    BlockPoolConfig config_;
    std::vector<DeviceState> devices_;
    std::vector<Table> tables_;
    std::vector<uint32_t> free_tables_;
    std::deque<Entry> entries_;  // growing moves nothing: there may be millions
    std::vector<uint32_t> free_entries_;
    std::unordered_map<KvHash, uint32_t, KvHashHasher> index_;
    std::unordered_set<uint32_t> definitions_;  // entries of agents' definitions
    std::vector<Session> sessions_;
    std::vector<uint32_t> free_sessions_;
    std::unordered_map<SessionKey, uint32_t> session_index_;
    uint32_t host_oldest_ = none, host_newest_ = none;
    uint64_t host_blocks_ = 0;  // ready or being saved
    uint64_t disk_blocks_ = 0;  // ready or being stored
    std::vector<TierEffect> tier_effects_;
    mutable std::vector<uint32_t> match_slot_;  // of match(): device -> index in its answer
    BlockPoolStats stats_;
};

}  // namespace mainstay
