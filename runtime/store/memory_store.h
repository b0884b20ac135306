#pragma once
// The Store on memory, for the simulator and for tests of whoever uses a store. No threads: step() does the next thing
// that the disk store's threads would do, so a run is a function of the calls. Records go through the real framing into
// byte buffers, and reopening goes through the real recovery scan. Faults strike by order or by seed, and each that
// really struck is counted. Not thread-safe.

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/base/limits.h"
#include "runtime/base/random.h"
#include "runtime/store/journal.h"
#include "runtime/store/journal_scan.h"
#include "runtime/store/quarantine.h"
#include "runtime/store/record.h"
#include "runtime/store/tail.h"

namespace mainstay {

enum class StoreFault : uint8_t {
    lost_unsynced,  // at a crash: what was written and not synced is gone
    torn,           // at a crash: a prefix of the unsynced group survives, cut at any byte
    write_error,    // EIO: a prefix is written, the process must abort
    sync_error,     // EIO: written, perhaps not durable, the process must abort
    no_space,       // admit() refuses and nothing is applied, for a number of steps
    slow,           // a sync, and so its acknowledgements, takes a number of steps
};
constexpr size_t store_fault_count = 6;

/// Chances per thousand opportunities: a crash for the first two, a write, a sync, an admit, a sync.
struct StoreFaultRates {
    std::array<uint32_t, store_fault_count> per_thousand{};
};

struct MemoryStoreConfig {
    StoreUuid uuid{};
    Epoch epoch;
    Fold* fold = nullptr;  // outlives the store
    uint16_t shard_count = shard_count_default;
    size_t segment_bytes = 1024 * 1024;
    size_t group_bytes_max = 64 * 1024;
    size_t block = 512;
    size_t append_queue_bytes_max = limits::append_queue_bytes_max;
    size_t apply_backlog_bytes_max = limits::apply_backlog_bytes_max;
};

class MemoryStore final : public Store {
  public:
    explicit MemoryStore(MemoryStoreConfig config);

    /// Does the next thing: write a group, sync it, acknowledge it, or, with nothing of that to do, apply the tail.
    /// False where there is nothing to do (or the process must abort).
    bool step();
    /// The same without applying, and applying alone.
    bool step_journal();
    bool step_apply();
    /// Until nothing is left to do. A store without space keeps its tail.
    void run();

    /// The process ends here: what was not written is gone, so are targets and callbacks. Unless a fault strikes, what
    /// was written survives, as after kill -9.
    void crash();
    /// Recovers as the disk store does. Precondition: crash() came before. journal_damaged as scan_journal.
    Result<void> reopen(Epoch epoch);
    /// After EIO: every call but crash() is without effect; the host must crash() the process.
    bool must_abort() const { return must_abort_; }
    const std::string& abort_reason() const { return abort_reason_; }

    /// Strikes at the next opportunity. `parameter`: steps for no_space (0: until space_returns()) and slow, bytes that
    /// survive for torn and write_error (reduced modulo the group).
    void inject(StoreFault fault, uint64_t parameter = 0);
    /// From now on faults are drawn; the same seed and calls give the same faults.
    void inject_randomly(uint64_t seed, const StoreFaultRates& rates);
    void space_returns() { no_space_steps_ = 0; }
    uint64_t struck(StoreFault fault) const { return struck_[static_cast<size_t>(fault)]; }

    /// The bytes of the journal, for tests that damage them.
    std::map<uint64_t, std::string>& journal() { return segments_; }

    Result<void> admit(size_t bytes) override;
    void append(Append append) override;
    Result<SessionImage> load(const SessionKey& key) override;
    Result<std::optional<std::string>> read_row(Table table, std::string_view key) override;
    Result<void> scan(Table table, std::string_view prefix, std::string_view from, size_t limit,
                      const std::function<bool(std::string_view key, std::string_view value)>& visit) override;
    Result<std::optional<std::string>> read_turn(const SessionKey& key, TurnNo turn) override;
    std::vector<SessionKey> sessions_in_tail() override;
    std::vector<SessionKey> resting_in_tail() override;
    void on_applied(std::function<void()> callback) override { on_applied_ = std::move(callback); }
    Result<std::vector<std::string>> entities() override;
    Result<std::optional<std::string>> read_memory(const SessionKey& key) override;
    StoreStats stats() const override;
    /// Runs all steps.
    void flush() override { run(); }

  private:
    struct Pending {
        RecordHeader header;
        std::shared_ptr<const std::string> payload;
        std::shared_ptr<AckTarget> target;
        size_t stored_bytes = 0;
    };
    struct Ack {
        std::shared_ptr<AckTarget> target;
        Sequence sequence;
    };
    enum class Stage : uint8_t { idle, written, synced };

    bool strikes(StoreFault fault, uint64_t& parameter);
    void write_group();
    void sync_group();
    void acknowledge_group();
    void must_abort(std::string why);
    void put(uint64_t lsn, std::string_view bytes);
    void cut_written(uint64_t keep);
    Result<std::vector<RowOp>> fold_tail(const SessionKey& key, const std::vector<TailRecord>& records);
    Result<void> recover_quarantine();
    std::map<std::string, std::string>& table(Table t) { return tables_[static_cast<size_t>(t)]; }

    MemoryStoreConfig config_;
    // What survives a crash.
    std::map<uint64_t, std::string> segments_;
    std::deque<std::string> recycled_;
    std::array<std::map<std::string, std::string>, table_count> tables_;
    std::vector<uint64_t> applied_indexes_;
    uint64_t applied_lsn_ = 0;
    // What does not.
    std::deque<Pending> queue_;
    size_t queue_bytes_ = 0;
    std::vector<Pending> group_;
    Stage stage_ = Stage::idle;
    uint64_t group_lsn_ = 0, group_end_ = 0;      // of the group in flight
    uint64_t written_from_ = 0, written_to_ = 0;  // its bytes, with a segment header before it
    std::string overwritten_;                     // what lay there
    uint64_t end_lsn_ = 0;                        // where the next group goes
    bool header_written_ = false;
    std::vector<uint64_t> next_index_;
    std::unique_ptr<Tail> tail_;
    std::unique_ptr<Quarantine> quarantine_;
    std::function<void()> on_applied_;
    bool crashed_ = false, must_abort_ = false;
    std::string abort_reason_;
    uint64_t slow_steps_ = 0, no_space_steps_ = 0;

    std::optional<SeededRandom> random_;
    StoreFaultRates rates_;
    std::array<std::deque<uint64_t>, store_fault_count> ordered_;
    std::array<uint64_t, store_fault_count> struck_{};
    StoreStats stats_;
};

}  // namespace mainstay
