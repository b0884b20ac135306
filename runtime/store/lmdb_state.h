#pragma once
// The state of a partition: one LMDB environment, one database per Table, written by one thread in large synchronous
// transactions that also store the journal position they contain. Every value is framed with a checksum over key and
// value that each read verifies: a row that does not hold is reported by table and key and never served.
// Never NOSYNC, NOMETASYNC or WRITEMAP: once a record is applied this is its only copy.
//
// Threads: one applier writes; any thread reads, in short transactions, and gets copies.

#include <array>
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/fold.h"
#include "runtime/base/limits.h"
#include "runtime/base/result.h"

struct MDB_env;
struct MDB_txn;

namespace mainstay {

struct LmdbStateConfig {
    std::filesystem::path directory;
    size_t map_bytes = limits::state_map_bytes;
    std::function<void(const std::string&)> abort;  // any error of a write or commit except MAP_FULL; must not return
                                                    // in production
};

struct LmdbTableStat {
    size_t entries = 0, leaf_pages = 0, branch_pages = 0, overflow_pages = 0, page_bytes = 0;
};

/// Row values as stored: crc32c of key and what follows, length and encoding, value, zeros to a multiple of 8. Values
/// of some size are compressed where that pays (zstd): it costs a few microseconds in the background and halves the
/// pages.
std::string frame_value(std::string_view key, std::string_view value);
/// A copy of the value, or nothing where the frame does not hold.
std::optional<std::string> unframe_value(std::string_view key, std::string_view framed);
std::string_view table_name(Table table);

class LmdbState {
  public:
    /// Creates the environment where there is none. Works on a full disk if the environment exists.
    static Result<std::unique_ptr<LmdbState>> open(LmdbStateConfig config);
    ~LmdbState();

    Result<std::optional<std::string>> get(Table table, std::string_view key) const;
    Result<void> scan(Table table, std::string_view prefix, std::string_view from, size_t limit,
                      const std::function<bool(std::string_view, std::string_view)>& visit) const;
    /// The same for who only looks for rows of a kind: one whose checksum does not hold is passed over, not reported.
    Result<void> scan_whole(Table table, std::string_view from, size_t limit,
                            const std::function<bool(std::string_view, std::string_view)>& visit) const;

    /// Every row of a shard, and one row of the meta table (nothing where it is absent), as they were at one moment.
    /// `visit` runs within the read transaction: it must not take its time.
    Result<std::optional<std::string>> scan_shard(
        ShardId shard, std::string_view meta_key,
        const std::function<Result<void>(Table, std::string_view key, std::string_view value)>& visit) const;

    /// One transaction with all rows: first the prefix deletes, then the others in order of table and key (of several
    /// operations on one key the last counts). Returns when it is on disk. storage_full where the map is full: nothing
    /// happened. The order of `rows` changes.
    Result<void> apply(std::vector<RowOp>& rows);

    uint64_t commits() const { return commits_.load(std::memory_order_relaxed); }
    uint64_t syncs() const { return syncs_.load(std::memory_order_relaxed); }
    uint64_t rows_written() const { return rows_.load(std::memory_order_relaxed); }
    LmdbTableStat stat(Table table) const;
    /// Bytes of the environment's file that have ever been used.
    uint64_t used_bytes() const;

    /// Applier only. Overwrites with zeros what LMDB keeps of deleted and moved rows: free pages and the gaps within
    /// live ones. Afterwards the file holds no byte of a row deleted before the call. Two empty transactions are
    /// committed first, so that neither meta page refers to the pages any more.
    Result<void> erase_deleted();

  private:
    class Reader;
    friend class Reader;

    explicit LmdbState(LmdbStateConfig config) : config_(std::move(config)) {}
    Result<void> scan_rows(Table table, std::string_view prefix, std::string_view from, size_t limit, bool skip_damaged,
                           const std::function<bool(std::string_view, std::string_view)>& visit) const;
    Result<void> open_environment();
    void close_environment();
    Result<void> open_tables();
    Result<void> write(MDB_txn* txn, std::vector<RowOp>& rows);
    Error failed(std::string_view what, int code) const;
    void die(std::string_view what, int code) const;
    MDB_txn* take_reader() const;
    void give_reader(MDB_txn* txn) const;
    std::string name_of(Table table, std::string_view key) const;

    const LmdbStateConfig config_;
    MDB_env* env_ = nullptr;
    std::array<unsigned, table_count> tables_{};
    mutable std::shared_mutex env_mutex_;  // readers share it; erase_deleted() reopens the environment
    mutable std::mutex readers_mutex_;
    mutable std::vector<MDB_txn*> readers_;  // reset, ready to be renewed
    std::atomic<uint64_t> commits_{0}, syncs_{0}, rows_{0};
    uint64_t erase_count_ = 0;
};

}  // namespace mainstay
