#include "runtime/store/segment_log.h"

#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime/base/crash_point.h"
#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view suffix = ".seg";
constexpr std::string_view unfinished = "new.tmp";
constexpr size_t ready_surplus = 2;  // recycled segments kept beyond the minimum; the rest goes back to the disk
constexpr size_t acks_searched = 64;
constexpr auto disk_full_retry = std::chrono::milliseconds(500);

bool is_full(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG; }

std::string segment_name(uint64_t number) {
    char name[32];
    std::snprintf(name, sizeof name, "%010" PRIu64 ".seg", number);
    return name;
}

/// The number in a segment's name, or 0.
uint64_t number_of(const fs::path& path) {
    const std::string name = path.filename().string();
    if (!name.ends_with(suffix)) return 0;
    uint64_t number = 0;
    const char* end = name.data() + name.size() - suffix.size();
    const auto parsed = std::from_chars(name.data(), end, number);
    return parsed.ec == std::errc() && parsed.ptr == end ? number : 0;
}

class DiskSource final : public SegmentSource {
  public:
    DiskSource(fs::path directory, std::vector<uint64_t> numbers, bool direct)
        : directory_(std::move(directory)), numbers_(std::move(numbers)), direct_(direct) {}

    std::vector<uint64_t> numbers() override { return numbers_; }
    std::string name(uint64_t number) const override { return (directory_ / segment_name(number)).string(); }

    ~DiskSource() override { stop_ahead(); }

    Result<std::string_view> read(uint64_t number, size_t limit) override {
        if (ahead_.thread.joinable() && ahead_.number == number && limit > probed_bytes) {
            ahead_.thread.join();
            std::swap(buffer_, ahead_.segment);
        } else {
            stop_ahead();
            load(number, limit, *buffer_);
        }
        if (buffer_->error != 0)
            return {ErrorCode::journal_damaged, name(number) + " cannot be read: " + std::strerror(buffer_->error), ""};
        // While this segment is checked and indexed the disk gives the next.
        if (limit > probed_bytes && std::binary_search(numbers_.begin(), numbers_.end(), number + 1))
            start_ahead(number + 1, limit);
        return std::string_view(buffer_->bytes.data(), std::min(buffer_->got, limit));
    }

  private:
    static constexpr size_t probed_bytes = 1024 * 1024;  // what is asked for up to here is read at once
    struct Segment {
        AlignedBuffer bytes;
        size_t got = 0;
        int error = 0;
    };

    void load(uint64_t number, size_t limit, Segment& into) {
        into.got = 0;
        auto file = DirectFile::open(directory_ / segment_name(number), false, direct_, into.error);
        if (!file) return;
        into.bytes.reserve(limit);
        while (into.got < limit && !ahead_.stop.load(std::memory_order_relaxed)) {
            size_t got = 0;
            const size_t piece = std::min(limit - into.got, probed_bytes);
            into.error = file->read(into.bytes.data() + into.got, piece, into.got, got);
            into.got += got;
            if (into.error != 0 || got < piece) return;
        }
    }
    void start_ahead(uint64_t number, size_t limit) {
        ahead_.number = number;
        ahead_.stop = false;
        ahead_.thread = std::thread([this, number, limit] { load(number, limit, *ahead_.segment); });
    }
    void stop_ahead() {
        if (!ahead_.thread.joinable()) return;
        ahead_.stop = true;
        ahead_.thread.join();
        ahead_.stop = false;
    }

    const fs::path directory_;
    const std::vector<uint64_t> numbers_;
    const bool direct_;
    std::unique_ptr<Segment> buffer_ = std::make_unique<Segment>();
    struct {
        uint64_t number = 0;
        std::unique_ptr<Segment> segment = std::make_unique<Segment>();
        std::atomic<bool> stop{false};
        std::thread thread;
    } ahead_;
};

}  // namespace

SegmentLog::SegmentLog(SegmentLogConfig config) : config_(std::move(config)), header_(segment_header_bytes) {
    INVARIANT(config_.segment_bytes % segment_header_bytes == 0, "segments are whole pages");
    next_index_.assign(config_.shard_count, 0);
}

fs::path SegmentLog::path_of(uint64_t number) const { return config_.directory / segment_name(number); }

Result<std::unique_ptr<SegmentLog>> SegmentLog::open(SegmentLogConfig config, uint64_t from_lsn,
                                                     const std::function<void(const RecordView&)>& visit) {
    std::unique_ptr<SegmentLog> log(new SegmentLog(std::move(config)));
    auto recovered = log->recover(from_lsn, visit);
    if (!recovered) return recovered.error();
    return log;
}

Result<void> SegmentLog::recover(uint64_t from_lsn, const std::function<void(const RecordView&)>& visit) {
    std::error_code failed;
    fs::create_directories(config_.directory, failed);
    fs::remove(config_.directory / unfinished, failed);
    std::vector<uint64_t> numbers;
    for (const auto& entry : fs::directory_iterator(config_.directory, failed))
        if (const uint64_t number = number_of(entry.path())) numbers.push_back(number);
    if (failed)
        return {ErrorCode::journal_damaged, config_.directory.string() + " cannot be read: " + failed.message(), ""};
    std::sort(numbers.begin(), numbers.end());

    if (numbers.empty() && from_lsn == first_lsn(config_.segment_bytes)) {
        int error = 0;
        const fs::path path = config_.directory / unfinished;
        auto file = DirectFile::open(path, true, config_.direct, error);
        if (file) error = zero(*file, 1);
        if (error == 0) {
            fs::rename(path, path_of(1), failed);
            error = failed ? failed.value() : sync_directory(config_.directory);
        }
        if (error != 0) {
            fs::remove(path, failed);
            return {ErrorCode::storage_full,
                    "the first journal segment in " + config_.directory.string() +
                        " cannot be made: " + std::strerror(error),
                    ""};
        }
        numbers.push_back(1);
    }

    DiskSource source(config_.directory, numbers, config_.direct);
    auto end = scan_journal(source, config_.uuid, config_.segment_bytes, from_lsn, visit);
    if (!end) return end.error();
    recovered_ = *end;

    const uint64_t first_live = segment_of(from_lsn, config_.segment_bytes);
    for (const uint64_t number : numbers) {
        int error = 0;
        Segment segment{number, DirectFile::open(path_of(number), false, config_.direct, error), true, false, false};
        if (!segment.file)
            return {ErrorCode::journal_damaged, path_of(number).string() + " cannot be opened: " + std::strerror(error),
                    ""};
        const bool whole = segment.file->size() == config_.segment_bytes;
        if (number >= first_live && number <= recovered_.number) {
            live_.push_back(std::move(segment));
        } else if (number == recovered_.number + 1 + ready_.size() && whole) {
            ready_.push_back(std::move(segment));
        } else {
            free_.push_back(std::move(segment));
        }
    }
    if (auto erased = erase_torn_tail(); !erased) return erased;
    // What was found complete is going to be acted upon, so it must survive a loss of power too: the process before may
    // have ended between a write and its sync.
    for (auto& segment : live_)
        if (const int error = segment.file->sync_data())
            return {ErrorCode::journal_damaged,
                    path_of(segment.number).string() + " cannot be synced: " + std::strerror(error), ""};

    const size_t device_block = live_.back().file->block();
    header_pending_ = !recovered_.header_written;
    block_ = header_pending_ ? device_block : std::max<size_t>(device_block, recovered_.block);
    set_base(recovered_.end_lsn);
    // A store that moved to a disk with larger blocks goes on in a segment of its own.
    if (recovered_.end_lsn % block_ != 0) staging_.room = 0;
    durable_lsn_ = recovered_.end_lsn;
    return {};
}

/// The bytes of a torn group are erased before anything is written there: left in place, they could complete a later
/// group that is torn at the same position.
Result<void> SegmentLog::erase_torn_tail() {
    if (recovered_.torn_bytes == 0) return {};
    const uint64_t reach = config_.group_bytes_max + limits::record_bytes_max;
    int error = 0;
    if (recovered_.torn_next) {
        INVARIANT(!ready_.empty(), "a torn next segment was read, so it is there");
        error = ready_.front().file->write_zeros(0, std::min<uint64_t>(config_.segment_bytes, reach));
        if (error == 0) error = ready_.front().file->sync_data();
    }
    const uint64_t offset = recovered_.end_lsn - recovered_.number * config_.segment_bytes;
    const size_t block = live_.back().file->block();
    const uint64_t from = offset / block * block;
    if (error == 0 && from == offset)
        error = live_.back().file->write_zeros(from, std::min<uint64_t>(config_.segment_bytes - from, reach));
    if (error != 0)
        return {ErrorCode::journal_damaged,
                path_of(recovered_.number).string() + ": the torn tail cannot be erased: " + std::strerror(error), ""};
    return {};
}

void SegmentLog::start(std::vector<uint64_t> shard_indexes, std::function<void(DurableGroup&)> on_durable) {
    shard_indexes.resize(config_.shard_count, 0);
    next_index_ = std::move(shard_indexes);
    on_durable_ = std::move(on_durable);
    writer_ = std::thread([this] { write_loop(); });
    preparer_ = std::thread([this] { prepare_loop(); });
}

SegmentLog::~SegmentLog() {
    {
        Lock lock(mutex_);
        stopping_ = true;
        writer_wakes_.notify_all();
        prepared_.notify_all();
        preparer_wakes_.notify_all();
    }
    if (writer_.joinable()) writer_.join();
    if (preparer_.joinable()) preparer_.join();
}

// --- appending ----------------------------------------------------------------------------------------------------

void SegmentLog::append(Append append) {
    LoggedRecord record;
    record.header = header_of(append, config_.epoch, config_.shard_count);
    record.payload = std::make_shared<const std::string>(std::move(append.payload));
    record.target = std::move(append.target);
    bool wake = false;
    {
        Lock lock(mutex_);
        RecordHeader& header = record.header;
        if (header.shard.value < next_index_.size()) header.index = ++next_index_[header.shard.value];
        enqueue(std::move(record));
        companions_ = append.companions;
        wake = wakes_writer();
    }
    if (wake) writer_wakes_.notify_one();
}

void SegmentLog::append_stamped(std::vector<StampedRecord> records) {
    static const auto nothing = std::make_shared<const std::string>();
    bool wake = false;
    {
        Lock lock(mutex_);
        for (auto& [stamp, payload] : records) {
            LoggedRecord record;
            record.header.kind = stamp.kind;
            record.header.shard = stamp.shard;
            record.header.epoch = stamp.epoch;
            record.header.index = stamp.index;
            record.payload = payload ? std::move(payload) : nothing;
            record.ticket = stamp.ticket;
            enqueue(std::move(record));
        }
        wake = wakes_writer();
    }
    if (wake) writer_wakes_.notify_one();
}

/// Under the lock.
void SegmentLog::enqueue(LoggedRecord record) {
    record.stored_bytes = record_stored_bytes(0, record.payload->size());
    INVARIANT(record.stored_bytes <= std::min<size_t>(limits::record_bytes_max, usable()), "a record fits its bound");
    ++appended_count_;
    queue_bytes_ += record.stored_bytes;
    if (!overflow_.empty() || !try_stage(record)) overflow_.push_back(std::move(record));
}

/// Under the lock; one wake is enough.
bool SegmentLog::wakes_writer() {
    const bool wake = writer_sleeps_ || (gather_goal_ > 0 && staging_.records.size() >= gather_goal_);
    writer_sleeps_ = false;
    if (wake) gather_goal_ = 0;
    return wake;
}

/// Encodes into the group that is being gathered; false where it does not fit. Here, not in the writer: its time is
/// the disk's.
bool SegmentLog::try_stage(LoggedRecord& record) {
    const size_t grown = staging_.used + record.stored_bytes;
    if (grown > staging_.room || (staging_.used > 0 && grown > config_.group_bytes_max)) return false;
    staging_.buffer.reserve(round_up(grown, segment_header_bytes));
    record.header.lsn = Lsn{staging_.base + staging_.used};
    record.header.group_offset = static_cast<uint32_t>(staging_.used);
    encode_record(staging_.buffer.data() + staging_.used, record.header, *record.payload);
    staging_.last = staging_.used;
    staging_.used = grown;
    staging_.records.push_back(std::move(record));
    return true;
}

void SegmentLog::drain_overflow() {
    while (!overflow_.empty() && try_stage(overflow_.front())) overflow_.pop_front();
}

void SegmentLog::set_base(uint64_t base) {
    staging_.base = base;
    staging_.used = staging_.last = 0;
    staging_.room = static_cast<size_t>((live_.back().number + 1) * config_.segment_bytes - base);
}

Result<void> SegmentLog::admit(size_t bytes) const {
    Lock lock(mutex_);
    if (queue_bytes_ + bytes > limits::append_queue_bytes_max)
        return {ErrorCode::journal_backlog_full,
                "append_queue_bytes_max (" + std::to_string(limits::append_queue_bytes_max) + ") would be exceeded",
                ""};
    // Staged records are inside the queue and inside the segment's room alike.
    const size_t here = staging_.room;
    const size_t kept_back = 1;
    const size_t segments = ready_.size() > kept_back ? ready_.size() - kept_back : 0;
    const size_t room = here + segments * usable();
    if (queue_bytes_ + bytes <= room) return {};
    if (disk_full_)
        return {
            ErrorCode::storage_full,
            "the disk has no room for another journal segment; " + std::to_string(ready_.size()) + " kept for results",
            ""};
    return {ErrorCode::journal_backlog_full, "segments_ready_min: the next journal segments are still being prepared",
            ""};
}

// --- writing ------------------------------------------------------------------------------------------------------

void SegmentLog::die(const std::string& what) {
    dead_.store(true, std::memory_order_release);
    if (config_.abort) {
        config_.abort(what);
        return;
    }
    std::fprintf(stderr, "journal: %s; the process ends, acknowledged records are safe\n", what.c_str());
    std::fflush(stderr);
    std::abort();
}

void SegmentLog::write_loop() {
    ::pthread_setname_np(::pthread_self(), "journal");
    ::prctl(PR_SET_TIMERSLACK, 1000);  // ns: the kernel's usual 50 us are a third of gather()'s window
    Lock lock(mutex_);
    uint64_t handed_on = 0;
    while (true) {
        while (staging_.used == 0 && overflow_.empty() && !roll_wanted_ && !stopping_) {
            writer_sleeps_ = true;
            writer_wakes_.wait(lock);
        }
        writer_sleeps_ = false;
        gather(lock);
        bool rolling = false;
        if (staging_.used == 0) {
            if (overflow_.empty() && !roll_wanted_) return;
            rolling = roll_wanted_;
            if (!open_next_segment(lock)) return;
            drain_overflow();
        }
        writing_.buffer.swap(staging_.buffer);
        writing_.records.swap(staging_.records);
        writing_.base = staging_.base;
        writing_.used = staging_.used;
        writing_.last = staging_.last;
        const uint64_t end_lsn = writing_.base + round_up(writing_.used, block_);
        set_base(end_lsn);
        if (rolling) roll_wanted_ = false;
        if (roll_wanted_) staging_.room = 0;  // what comes now goes to the next segment
        drain_overflow();
        DirectFile* const file = live_.back().file.get();
        lock.unlock();

        handed_on += writing_.records.size();
        const uint64_t written = writing_.used;
        if (!write_group(writing_, *file)) return;
        hand_on(writing_, end_lsn, handed_on);

        lock.lock();
        queue_bytes_ -= written;
        if (rolling) {
            ++rolled_count_;
            prepared_.notify_all();
        }
    }
}

/// Like PostgreSQL's commit_delay with commit_siblings: a sync and the wake-ups behind it cost more CPU than anything
/// else in a commit, so where many sessions append all the time, a group waits for a third of them, and never longer
/// than the window since the last one. Sessions that only wait for a model do not count: the rate of arrivals must
/// promise companions within the window. A lone session is written at once.
void SegmentLog::gather(Lock& lock) {
    using std::chrono::microseconds;
    using std::chrono::steady_clock;
    const microseconds window(config_.group_gather_us);
    auto now = steady_clock::now();
    const size_t goal = std::min<size_t>(companions_ / limits::group_gather_share, limits::group_gather_records_max);
    const bool promising = goal > 1 && records_per_us_ * static_cast<double>(window.count()) >= 2.0;
    const auto until = taken_at_ + window;
    while (promising && !stopping_ && !roll_wanted_ && overflow_.empty() && staging_.records.size() < goal &&
           now < until) {
        gather_goal_ = goal;
        writer_wakes_.wait_until(lock, until);
        gather_goal_ = 0;
        now = steady_clock::now();
    }
    const double elapsed = std::max(1.0, std::chrono::duration<double, std::micro>(now - taken_at_).count());
    // What was longer than a window ago says nothing about the next one.
    const double weight = std::clamp(elapsed / std::max(1.0, static_cast<double>(window.count())), 0.25, 1.0);
    records_per_us_ += weight * (static_cast<double>(staging_.records.size()) / elapsed - records_per_us_);
    taken_at_ = now;
}

/// Waits for a ready segment and makes it the current one. False: the store stops and there is none.
bool SegmentLog::open_next_segment(Lock& lock) {
    while (ready_.empty() || ready_.front().tainted || ready_.front().zeroing) {
        if (stopping_ && disk_full_) return false;
        preparer_wakes_.notify_one();
        prepared_.wait(lock);
    }
    crash_point("journal.segment_roll");
    previous_end_ = staging_.base;
    live_.push_back(std::move(ready_.front()));
    ready_.pop_front();
    block_ = live_.back().file->block();
    header_pending_ = true;
    set_base(segment_start(live_.back().number, config_.segment_bytes));
    preparer_wakes_.notify_one();
    return true;
}

bool SegmentLog::write_group(Staging& group, DirectFile& file) {
    const uint64_t segment = segment_of(group.base + 1, config_.segment_bytes);
    const size_t padded = round_up(group.used, block_);
    char* data = group.buffer.data();
    if (group.used > 0) {
        mark_last_of_group(data + group.last);
        std::memset(data + group.used, 0, padded - group.used);
    }
    uint64_t offset = group.base - segment * config_.segment_bytes;
    crash_point("journal.before_write");
    int error = config_.fault ? config_.fault("write", group.base) : 0;
    if (error == 0 && header_pending_) {
        // Header and first group in one write: the commit path never pays a sync for a new segment.
        encode_segment_header(header_.data(), {config_.uuid, segment, previous_end_, config_.epoch,
                                               config_.segment_bytes, static_cast<uint32_t>(block_)});
        offset = 0;
        error = file.write2(header_.data(), segment_header_bytes, data, padded, 0);
        bytes_.fetch_add(segment_header_bytes, std::memory_order_relaxed);
    } else if (error == 0) {
        error = file.write(data, padded, offset);
    }
    const char* operation = "write";
    if (error == 0) {
        crash_point("journal.after_write");
        operation = "fdatasync";
        error = config_.fault ? config_.fault("sync", group.base) : 0;
        if (error == 0) error = file.sync_data();
    }
    if (error != 0) {
        die(std::string(operation) + " of " + path_of(segment).string() + " at offset " + std::to_string(offset) +
            " (lsn " + std::to_string(group.base) + ", " + std::to_string(padded) + " bytes) failed: errno " +
            std::to_string(error) + " (" + std::strerror(error) + ")");
        return false;
    }
    crash_point("journal.after_sync");
    header_pending_ = false;
    syncs_.fetch_add(1, std::memory_order_relaxed);
    groups_.fetch_add(1, std::memory_order_relaxed);
    bytes_.fetch_add(padded, std::memory_order_relaxed);
    records_.fetch_add(group.records.size(), std::memory_order_relaxed);
    return true;
}

void SegmentLog::hand_on(Staging& group, uint64_t end_lsn, uint64_t appended_count) {
    // One call per target with the highest sequence: a group can hold several batches of a session. Groups are short
    // where sessions are few; long ones are not searched, and a session is told twice.
    std::vector<std::pair<std::shared_ptr<AckTarget>, Sequence>> acks;
    acks.reserve(group.records.size());
    for (LoggedRecord& record : group.records) {
        if (!record.target) continue;
        const Sequence last{record.header.first_sequence.value + std::max(1u, record.header.event_count) - 1};
        const auto from = acks.end() - static_cast<ptrdiff_t>(std::min(acks.size(), acks_searched));
        const auto same = std::find_if(from, acks.end(), [&](const auto& ack) { return ack.first == record.target; });
        if (same == acks.end())
            acks.emplace_back(std::move(record.target), last);
        else
            same->second = std::max(same->second, last);
    }
    DurableGroup durable{std::move(group.records), end_lsn, appended_count};
    group.records.clear();
    on_durable_(durable);  // into the tail first: whoever is acknowledged may load at once
    durable_lsn_.store(end_lsn, std::memory_order_release);
    for (auto& [target, sequence] : acks) target->acknowledged(sequence, sequence);
    crash_point("journal.after_ack");
}

bool SegmentLog::roll() {
    Lock lock(mutex_);
    if (stopping_ || dead() || (ready_.empty() && disk_full_)) return false;
    const uint64_t goal = rolled_count_ + 1;
    roll_wanted_ = true;
    writer_wakes_.notify_one();
    prepared_.wait(lock,
                   [&] { return rolled_count_ >= goal || stopping_ || dead() || (ready_.empty() && disk_full_); });
    if (rolled_count_ < goal) roll_wanted_ = false;
    return rolled_count_ >= goal;
}

// --- segments -----------------------------------------------------------------------------------------------------

void SegmentLog::release(uint64_t applied_lsn) {
    Lock lock(mutex_);
    const uint64_t applied_in = segment_of(applied_lsn, config_.segment_bytes);
    bool freed = false;
    while (live_.size() > 1 && live_.front().number < applied_in) {
        live_.front().stale = true;
        free_.push_back(std::move(live_.front()));
        live_.pop_front();
        freed = true;
    }
    if (freed) preparer_wakes_.notify_one();
}

void SegmentLog::taint() {
    Lock lock(mutex_);
    for (auto& segment : live_) segment.tainted = true;
    for (auto& segment : free_) segment.tainted = true;
    for (auto& segment : ready_) segment.tainted = segment.tainted || segment.stale;
    preparer_wakes_.notify_one();
}

bool SegmentLog::clean() const {
    Lock lock(mutex_);
    const auto tainted = [](const Segment& segment) { return segment.tainted; };
    return !preparing_tainted_ && std::none_of(live_.begin(), live_.end(), tainted) &&
           std::none_of(ready_.begin(), ready_.end(), tainted) && std::none_of(free_.begin(), free_.end(), tainted);
}

void SegmentLog::prepare_loop() {
    Lock lock(mutex_);
    while (!stopping_ && !dead()) {
        if (prepare_one(lock)) {
            prepared_.notify_all();
        } else if (disk_full_) {
            prepared_.notify_all();
            preparer_wakes_.wait_for(lock, disk_full_retry);
        } else {
            preparer_wakes_.wait(lock);
        }
    }
}

bool SegmentLog::prepare_one(Lock& lock) {
    if (zero_stale(lock)) return true;
    if (!free_.empty()) return recycle(lock);
    if (ready_.size() < config_.segments_ready_min) return create(lock);
    disk_full_ = false;
    return false;
}

bool SegmentLog::zero_stale(Lock& lock) {
    const auto found = std::find_if(ready_.begin(), ready_.end(), [](const Segment& s) { return s.tainted; });
    if (found == ready_.end()) return false;
    // The writer does not take a segment that is being zeroed, so the element stays where it is.
    const uint64_t number = found->number;
    DirectFile* const file = found->file.get();
    found->zeroing = true;
    lock.unlock();
    const int error = zero(*file, number);
    lock.lock();
    for (auto& segment : ready_) {
        if (segment.number != number) continue;
        segment.zeroing = segment.tainted = segment.stale = false;
    }
    if (error != 0) die("zeroing " + path_of(number).string() + " failed: errno " + std::to_string(error));
    return error == 0;
}

/// An applied segment becomes the next one by a new name: no zeros are written, its stale records know their old place.
bool SegmentLog::recycle(Lock& lock) {
    Segment segment = std::move(free_.front());
    free_.pop_front();
    preparing_tainted_ = segment.tainted;
    const bool surplus = ready_.size() >= config_.segments_ready_min + ready_surplus;
    const bool whole = segment.file->size() == config_.segment_bytes;
    const uint64_t number = (ready_.empty() ? live_.back().number : ready_.back().number) + 1;
    lock.unlock();
    int error = 0;
    std::error_code failed;
    if (surplus || !whole) {
        fs::remove(path_of(segment.number), failed);
        error = failed ? failed.value() : sync_directory(config_.directory);
    } else {
        if (segment.tainted) {
            error = zero(*segment.file, segment.number);
            segment.stale = false;
        }
        if (error == 0) {
            fs::rename(path_of(segment.number), path_of(number), failed);
            error = failed ? failed.value() : sync_directory(config_.directory);
        }
    }
    lock.lock();
    preparing_tainted_ = false;
    if (error != 0) {
        die("recycling " + path_of(segment.number).string() + " failed: errno " + std::to_string(error));
        return false;
    }
    if (surplus || !whole) return true;
    segment.tainted = false;
    segment.number = number;
    ready_.push_back(std::move(segment));
    return true;
}

bool SegmentLog::create(Lock& lock) {
    const uint64_t number = (ready_.empty() ? live_.back().number : ready_.back().number) + 1;
    lock.unlock();
    const fs::path path = config_.directory / unfinished;
    std::error_code failed;
    int error = 0;
    std::unique_ptr<DirectFile> file;
    if (free_bytes(config_.directory) < config_.segment_bytes + config_.disk_reserve_bytes) {
        error = ENOSPC;
    } else {
        file = DirectFile::open(path, true, config_.direct, error);
        if (file) error = zero(*file, number);
    }
    if (error == 0) {
        fs::rename(path, path_of(number), failed);
        error = failed ? failed.value() : sync_directory(config_.directory);
    }
    if (error != 0) fs::remove(path, failed);
    lock.lock();
    disk_full_ = is_full(error);
    if (error != 0 && !is_full(error))
        die("preparing " + path_of(number).string() + " failed: errno " + std::to_string(error));
    if (error != 0) return false;
    ready_.push_back(Segment{number, std::move(file), false, false, false});
    return true;
}

int SegmentLog::zero(DirectFile& file, uint64_t number) {
    if (config_.fault)
        if (const int error = config_.fault("zero", number * config_.segment_bytes)) return error;
    if (const int error = file.allocate(config_.segment_bytes)) return error;
    if (const int error = file.write_zeros(0, config_.segment_bytes)) return error;
    return file.sync_all();
}

uint64_t SegmentLog::appended_count() const {
    Lock lock(mutex_);
    return appended_count_;
}

void SegmentLog::fill(StoreStats& stats) const {
    stats.journal_syncs = syncs_.load(std::memory_order_relaxed);
    stats.journal_bytes = bytes_.load(std::memory_order_relaxed);
    stats.journal_records = records_.load(std::memory_order_relaxed);
    stats.journal_groups = groups_.load(std::memory_order_relaxed);
    stats.durable_lsn = durable_lsn();
    stats.recovered_records = recovered_.records;
    stats.recovered_bytes = recovered_.bytes;
    stats.torn_bytes = recovered_.torn_bytes;
    Lock lock(mutex_);
    stats.append_queue_bytes = queue_bytes_;
    stats.segments = live_.size() + ready_.size() + free_.size();
    stats.segments_ready = ready_.size();
    stats.read_only = stats.read_only || dead() || (disk_full_ && ready_.size() <= 1);
}

}  // namespace mainstay
