#pragma once
// The journal of one partition on disk: pre-zeroed segments, one writer thread, one synced write per group. A group is
// what arrived while the one before was being synced, so the disk sets the pace; under load it also waits a moment for
// a part of the sessions that are at work (gather()), because a sync costs more than that wait. Nothing of a group is
// handed on or acknowledged before its sync has returned; a write or sync that fails ends the process.
//
// Three threads: any thread appends (encodes under a short mutex), the writer writes, syncs, hands on and acknowledges,
// the preparer zeroes and recycles segments so that the writer never waits for an allocation.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/limits.h"
#include "runtime/store/direct_file.h"
#include "runtime/store/journal.h"
#include "runtime/store/journal_scan.h"
#include "runtime/store/record.h"

namespace mainstay {

/// Called where the process must end; production aborts. If a test's hook returns, the store is dead: it acknowledges
/// nothing more.
using AbortHook = std::function<void(const std::string& what)>;
/// For tests: called before each write ("write") and sync ("sync") of a group, and before each zeroing ("zero");
/// a value other than 0 is the errno that the operation then fails with.
using DiskFault = std::function<int(std::string_view operation, uint64_t lsn)>;

struct SegmentLogConfig {
    std::filesystem::path directory;
    StoreUuid uuid{};
    Epoch epoch;
    uint16_t shard_count = shard_count_default;
    size_t segment_bytes = limits::segment_bytes;
    size_t segments_ready_min = limits::segments_ready_min;
    size_t group_bytes_max = limits::group_bytes_max;
    uint32_t group_gather_us = limits::group_gather_us;  // 0: never waits
    size_t disk_reserve_bytes = limits::disk_reserve_bytes;
    bool direct = true;
    AbortHook abort;
    DiskFault fault;
};

/// Where a record of a replicated log belongs: not the journal's to number.
struct LogStamp {
    RecordKind kind = RecordKind::replicated;
    ShardId shard;
    Epoch epoch;
    uint64_t index = 0;
    uint64_t ticket = 0;  // given back with the durable record; 0: none
};

/// `payload` may be null: then the record has none.
struct StampedRecord {
    LogStamp stamp;
    std::shared_ptr<const std::string> payload;
};

/// A record that is durable, on its way to the tail and to whoever appended it.
struct LoggedRecord {
    RecordHeader header;
    std::shared_ptr<const std::string> payload;
    std::shared_ptr<AckTarget> target;
    size_t stored_bytes = 0;
    uint64_t ticket = 0;
};

struct DurableGroup {
    std::vector<LoggedRecord> records;
    uint64_t end_lsn = 0;         // where the next group starts
    uint64_t appended_count = 0;  // appends of this process up to and including this group
};

class SegmentLog {
  public:
    /// Scans from `from_lsn` and visits every durable record after it. Works on a full disk (then there is no room).
    /// storage_full where even the first segment of a new journal cannot be made; journal_damaged as scan_journal.
    static Result<std::unique_ptr<SegmentLog>> open(SegmentLogConfig config, uint64_t from_lsn,
                                                    const std::function<void(const RecordView&)>& visit);
    /// Writes and syncs what is queued, then ends the threads.
    ~SegmentLog();

    /// Position of the first group of a new journal.
    static uint64_t first_lsn(size_t segment_bytes) { return segment_start(1, segment_bytes); }

    /// `index` continues these per-shard indexes (those applied, raised by what was visited).
    void start(std::vector<uint64_t> shard_indexes, std::function<void(DurableGroup&)> on_durable);
    void append(Append append);
    /// Whoever writes many at once has gathered already: the writer is woken once, when the last of them is queued.
    void append_stamped(std::vector<StampedRecord> records);
    /// Whether segments have room for `bytes` more than what is queued, with one segment kept back.
    Result<void> admit(size_t bytes) const;

    /// Segments that lie wholly before this position are free to be used again.
    void release(uint64_t applied_lsn);
    /// Leaves the current segment, so that what it holds can be released; returns when that is durable (at once where
    /// the segment is empty), false where there is no room.
    bool roll();
    /// Every segment that may hold bytes written before now is zeroed before it is used again.
    void taint();
    /// No file holds bytes written before the last taint().
    bool clean() const;

    const JournalEnd& recovered() const { return recovered_; }
    uint64_t durable_lsn() const { return durable_lsn_.load(std::memory_order_acquire); }
    uint64_t appended_count() const;
    void fill(StoreStats& stats) const;
    bool dead() const { return dead_.load(std::memory_order_acquire); }

  private:
    struct Segment {
        uint64_t number = 0;
        std::unique_ptr<DirectFile> file;
        bool stale = false;    // holds bytes of an earlier life
        bool tainted = false;  // must be zeroed before it is used again
        bool zeroing = false;
    };
    struct Staging {
        AlignedBuffer buffer;
        uint64_t base = 0;  // lsn of the group's start
        size_t used = 0;    // bytes
        size_t last = 0;    // offset of the last record
        size_t room = 0;    // of the segment, from the group's start
        std::vector<LoggedRecord> records;
    };
    using Lock = std::unique_lock<std::mutex>;

    explicit SegmentLog(SegmentLogConfig config);
    Result<void> recover(uint64_t from_lsn, const std::function<void(const RecordView&)>& visit);
    Result<void> erase_torn_tail();
    std::filesystem::path path_of(uint64_t number) const;

    void enqueue(LoggedRecord record);
    bool wakes_writer();
    bool try_stage(LoggedRecord& record);
    void drain_overflow();
    void set_base(uint64_t base);

    void write_loop();
    void gather(Lock& lock);
    bool open_next_segment(Lock& lock);
    bool write_group(Staging& group, DirectFile& file);
    void hand_on(Staging& group, uint64_t end_lsn, uint64_t appended_count);
    void die(const std::string& what);

    void prepare_loop();
    bool prepare_one(Lock& lock);
    bool recycle(Lock& lock);
    bool zero_stale(Lock& lock);
    bool create(Lock& lock);
    int zero(DirectFile& file, uint64_t number);
    size_t usable() const { return config_.segment_bytes - segment_header_bytes; }

    const SegmentLogConfig config_;
    JournalEnd recovered_;
    std::function<void(DurableGroup&)> on_durable_;

    mutable std::mutex mutex_;
    std::condition_variable writer_wakes_, prepared_, preparer_wakes_;
    bool writer_sleeps_ = false;
    size_t gather_goal_ = 0;   // records that the gathering writer waits for; 0: it does not
    uint32_t companions_ = 0;  // as the newest append says
    bool stopping_ = false;
    bool roll_wanted_ = false;
    uint64_t rolled_count_ = 0;
    Staging staging_;
    std::deque<LoggedRecord> overflow_;
    std::vector<uint64_t> next_index_;
    uint64_t appended_count_ = 0;
    uint64_t queue_bytes_ = 0;
    std::deque<Segment> live_;   // the last one is being written
    std::deque<Segment> ready_;  // numbered on from it
    std::deque<Segment> free_;   // applied, to be recycled
    bool preparing_tainted_ = false;
    bool disk_full_ = false;
    bool header_pending_ = false;  // the current segment's header goes out with its first group
    uint64_t previous_end_ = 0;
    size_t block_ = 512;

    Staging writing_;                                   // writer only
    std::chrono::steady_clock::time_point taken_at_{};  // writer only: when the last group was taken
    double records_per_us_ = 0;                         // writer only: arrivals, over the last few groups
    AlignedBuffer header_;                              // writer only
    std::atomic<uint64_t> durable_lsn_{0};
    std::atomic<bool> dead_{false};
    std::atomic<uint64_t> syncs_{0}, bytes_{0}, records_{0}, groups_{0};
    std::thread writer_, preparer_;
};

}  // namespace mainstay
