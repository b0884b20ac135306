#pragma once
// The Store on a disk: segment log, tail and LMDB state behind one contract. A record is acknowledged when its group is
// synced; from then on it is in the tail, and an applier thread folds the tail into the state in large transactions
// that also store the journal position they contain. Only then is the segment free. Opening reads the position, scans
// the journal from there into the tail and is done: applying goes on in the background.
//
// Replicated, the journal holds what replication writes instead of what sessions append: a record goes to the tail when
// it is committed, and until then its group stays in the journal.

#include <array>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/limits.h"
#include "runtime/store/held_entries.h"
#include "runtime/store/journal.h"
#include "runtime/store/lmdb_state.h"
#include "runtime/store/quarantine.h"
#include "runtime/store/segment_log.h"
#include "runtime/store/shard_log.h"
#include "runtime/store/shard_rows.h"
#include "runtime/store/tail.h"

namespace mainstay {

struct DiskStoreConfig {
    std::filesystem::path directory;  // holds journal/ and state/
    StoreUuid uuid{};                 // of the node; a directory written under another one is refused
    Epoch epoch;                      // raised at each start; one lower than what the journal holds is refused
    Fold* fold = nullptr;             // outlives the store
    uint16_t shard_count = shard_count_default;
    /// The cluster whose shards this store keeps copies of; absent: it is alone. A directory made for the one is
    /// refused as the other.
    std::optional<StoreUuid> cluster;

    size_t segment_bytes = limits::segment_bytes;  // of a new store; an old one keeps its own
    size_t segments_ready_min = limits::segments_ready_min;
    size_t group_bytes_max = limits::group_bytes_max;
    size_t apply_batch_bytes = limits::apply_batch_bytes;
    uint32_t apply_interval_ms = limits::apply_interval_ms;
    size_t apply_backlog_bytes_max = limits::apply_backlog_bytes_max;
    size_t state_map_bytes = limits::state_map_bytes;
    size_t disk_reserve_bytes = limits::disk_reserve_bytes;
    uint32_t deleted_text_lifetime_ms = limits::deleted_text_lifetime_ms;
    bool direct_io = true;  // where the file system allows it
    AbortHook abort;        // empty: log to stderr and abort()
    DiskFault fault;        // tests
};

class DiskStore final : public Store, public ShardLog {
  public:
    /// journal_damaged or state_damaged names the place; storage_full only where a new store cannot be made (an old
    /// one opens on a full disk, read-only); conflict where uuid, shard count or epoch do not fit.
    static Result<std::unique_ptr<Store>> open(DiskStoreConfig config);
    /// The same, for those who need what is below besides the contract (tests, benchmarks).
    static Result<std::unique_ptr<DiskStore>> open_disk(DiskStoreConfig config);
    /// Syncs what was appended. Does not wait for it to be applied: flush() before does.
    ~DiskStore() override;

    Result<void> admit(size_t bytes) override;
    void append(Append append) override;
    Result<SessionImage> load(const SessionKey& key) override;
    Result<std::optional<std::string>> read_row(Table table, std::string_view key) override;
    Result<void> scan(Table table, std::string_view prefix, std::string_view from, size_t limit,
                      const std::function<bool(std::string_view key, std::string_view value)>& visit) override;
    Result<std::optional<std::string>> read_turn(const SessionKey& key, TurnNo turn) override;
    std::vector<SessionKey> sessions_in_tail() override;
    std::vector<SessionKey> resting_in_tail() override;
    void on_applied(std::function<void()> callback) override;
    Result<std::vector<std::string>> entities() override;
    Result<std::optional<std::string>> read_memory(const SessionKey& key) override;
    StoreStats stats() const override;
    void flush() override;

    // Of a replicated store; append() is for the others.
    std::vector<DurableShard> recovered_shards() override;
    void start_shards(ShardLogEvents& events) override;
    void stop_shards() override;
    void write_groups(std::vector<std::pair<ShardId, WriteGroup>> groups) override;
    void apply_entries(const std::vector<std::pair<ShardId, uint64_t>>& indexes) override;
    Result<std::unique_ptr<ShardSnapshot>> snapshot(ShardId shard) override;
    void stage(ShardId shard, const StagePart& part) override;
    bool out_of_space() const override;
    /// What a store that was alone has becomes a cluster's first copy: each shard at its index, in `epoch`. Everything
    /// appended must be applied (flush()), and the store be closed afterwards.
    Result<void> adopt(const StoreUuid& cluster, Epoch epoch);
    /// The epoch in which it was adopted; nothing where it was made for the cluster.
    std::optional<Epoch> adopted_in() const { return adopted_in_; }

    const LmdbState& state() const { return *state_; }
    /// True once nothing that was deleted before the call is in any file (tests wait for it).
    bool deletions_erased() const;

  private:
    explicit DiskStore(DiskStoreConfig config);
    Result<void> recover();
    Result<void> read_meta(const std::string& format, size_t& segment_bytes, uint64_t& applied_lsn);
    Result<void> make_meta(uint64_t& applied_lsn);
    Result<void> recover_quarantine();

    struct Install {
        ShardId shard;
        LogPosition at;
        uint64_t ticket = 0;
        std::unique_ptr<ShardRowsReader> rows;
    };
    /// Of one shard of a replicated store.
    struct ShardState {
        LogPosition base;                // applied and durable
        Epoch promised;                  // durable
        bool dirty = false;              // `promised` is not in the state yet
        Epoch writing;                   // the newest epoch that was asked to be promised
        std::deque<LogPosition> handed;  // in the tail, not applied
        std::unique_ptr<ShardRowsReader> staged;
        std::optional<Install> install;  // its record is on its way to the disk
        bool installing = false;
        std::deque<WriteGroup> waiting;  // behind the install
    };
    struct ShardAt {
        ShardId shard;
        LogPosition base;
        Epoch promised;
    };
    bool replicated() const { return config_.cluster.has_value(); }
    Result<void> read_shards();
    Result<void> take_recovered(const RecordView& record);
    void stamp_group(ShardId shard, WriteGroup group, std::vector<StampedRecord>& out);
    bool hand_entries(ShardId shard, uint64_t index);
    void group_durable(DurableGroup& group);
    void close_held();
    void wake_applier();
    void add_shard_rows(const TailGeneration& generation, std::vector<RowOp>& rows,
                        std::vector<ShardAt>& reached) const;
    void shards_reached(const std::vector<ShardAt>& reached);
    using Tickets = std::vector<std::pair<ShardId, uint64_t>>;
    void tell_synced(const Tickets& tickets);
    void tell_applied(const Tickets& indexes);
    void install_pending();
    void install(Install& install);

    void apply_loop();
    bool must_apply() const;
    void apply_generation(const TailGeneration& generation);
    Result<void> fold_generation(const TailGeneration& generation, std::vector<RowOp>& rows);
    bool room_to_apply(size_t bytes) const;
    void sweep_keys(std::vector<RowOp>& rows);
    bool erase_due() const;
    void erase_deleted();
    std::chrono::milliseconds until_erase() const;
    Result<std::vector<RowOp>> fold_tail(const SessionKey& key, const std::vector<TailRecord>& records);
    void die(const std::string& what);

    const DiskStoreConfig config_;
    std::unique_ptr<LmdbState> state_;
    std::unique_ptr<Quarantine> quarantine_;
    Tail tail_;
    std::unique_ptr<SegmentLog> log_;
    std::vector<uint64_t> shard_indexes_;  // applier only, as applied
    bool applied_since_rest_ = false;      // applier only
    std::string sweep_from_;               // applier only: key row where the sweep goes on; empty: the first
    size_t keys_added_ = 0;                // applier only: by the last transaction

    mutable std::mutex mutex_;
    std::condition_variable applier_wakes_, applied_;
    bool applier_sleeps_ = false;
    bool applier_waits_for_more_ = false;  // has work, gathers until the interval ends or a generation is full
    bool deleted_again_ = false;           // a deletion was applied after the erasing began
    bool erasing_ = false;                 // applier only: the state is erased, tainted segments are being zeroed
    bool stopping_ = false;
    unsigned flushing_ = 0;
    uint64_t applied_count_ = 0;
    uint64_t applied_lsn_ = 0;
    bool apply_blocked_ = false;            // the disk has no room for a transaction
    uint64_t delete_pending_since_ms_ = 0;  // wall time of the oldest deletion that is not erased; 0: none
    uint64_t erase_not_before_ms_ = 0;      // the erasing found segments that are still needed
    std::function<void()> on_applied_;

    // Replicated; guarded by shards_mutex_, which is taken before the journal's and the tail's.
    mutable std::mutex shards_mutex_;
    HeldEntries held_{0};
    std::vector<ShardState> shards_;
    std::deque<Install> installs_;
    std::optional<Epoch> adopted_in_;
    uint64_t held_end_lsn_ = 0;  // of the journal, as durable
    uint64_t handed_count_ = 0;  // records given to the tail
    std::atomic<bool> installs_wait_{false};

    std::mutex events_mutex_;  // held while somebody is told; taken after none of the others
    ShardLogEvents* events_ = nullptr;

    std::thread applier_;
};

}  // namespace mainstay
