#include "runtime/store/journal_scan.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/limits.h"

namespace mainstay {
namespace {

// Of a segment after the end only the beginning can prove that it was used: its first write is header and first group.
constexpr size_t probe_bytes = 1024 * 1024;

struct Group {
    std::vector<RecordView> records;
    uint64_t end = 0;  // before padding
};

/// The complete group at `start`, or nothing.
bool read_group(std::string_view segment, uint64_t base, uint64_t start, Group& group) {
    group.records.clear();
    uint64_t at = start;
    while (at - base < segment.size()) {
        auto record = decode_record(segment.substr(at - base), at);
        if (!record || record->header.group_offset != at - start) return false;
        at += record->stored_bytes;
        group.records.push_back(*record);
        if (record->header.flags & record_last_of_group) {
            group.end = at;
            return true;
        }
    }
    return false;
}

struct Leftover {
    bool later_group = false;  // a record of a group that started after `end`
    uint64_t later_lsn = 0;
    uint64_t torn_end = 0;  // end of the last record of the group that started at `end`
};

/// Looks for records that lie after `end` in a segment. Records lie at multiples of 8 and know their position.
Leftover search_after(std::string_view segment, uint64_t base, uint64_t end) {
    Leftover found;
    uint64_t at = std::max(end, base + segment_header_bytes);
    while (at + record_header_bytes <= base + segment.size()) {
        uint64_t lsn;
        std::memcpy(&lsn, segment.data() + (at - base) + 8, sizeof lsn);
        if (lsn == at) {
            const auto record = decode_record(segment.substr(at - base), at);
            if (record) {
                const uint64_t start = at - record->header.group_offset;
                if (start > end) {
                    found.later_group = true;
                    found.later_lsn = at;
                    return found;
                }
                if (start == end) found.torn_end = at + record->stored_bytes;
            } else if (at == end) {
                found.torn_end = at + record_header_bytes;
            }
        }
        at += record_align;
    }
    return found;
}

class Scan {
  public:
    Scan(SegmentSource& source, const StoreUuid& uuid, uint64_t segment_bytes,
         const std::function<void(const RecordView&)>& visit)
        : source_(source), uuid_(uuid), segment_bytes_(segment_bytes), visit_(visit) {}

    Result<JournalEnd> run(uint64_t from_lsn) {
        numbers_ = source_.numbers();
        position_ = from_lsn;
        number_ = segment_of(from_lsn, segment_bytes_);
        if (!present(number_)) return damaged(number_, "the segment that holds the applied position is missing");
        while (true) {
            auto bytes = source_.read(number_, segment_bytes_);
            if (!bytes) return bytes.error();
            auto more = scan_segment(*bytes);
            if (!more) return more.error();
            if (!*more) return end_;
            ++number_;
            position_ = segment_start(number_, segment_bytes_);
        }
    }

  private:
    bool present(uint64_t number) const { return std::binary_search(numbers_.begin(), numbers_.end(), number); }

    Error damaged(uint64_t number, const std::string& what) const {
        return {ErrorCode::journal_damaged,
                source_.name(number) + " at offset " + std::to_string(position_ - number_ * segment_bytes_) + " (lsn " +
                    std::to_string(position_) + "): " + what,
                ""};
    }

    /// True: go on with the next segment.
    Result<bool> scan_segment(std::string_view bytes) {
        const uint64_t base = number_ * segment_bytes_;
        SegmentHeader header;
        const auto state = decode_segment_header(bytes, uuid_, number_, segment_bytes_, header);
        if (state == SegmentHeaderState::foreign)
            return damaged(number_, "the segment belongs to another store or a newer format");
        // Only a journal that was never written has a segment without a header before its end.
        if (state != SegmentHeaderState::valid && position_ != segment_start(1, segment_bytes_))
            return damaged(number_, "the segment header does not hold");
        if (state == SegmentHeaderState::valid) {
            end_.block = header.block;
            Group group;
            while (read_group(bytes, base, position_, group)) {
                for (const RecordView& record : group.records) {
                    end_.epoch_max = std::max(end_.epoch_max, record.header.epoch);
                    visit_(record);
                }
                end_.records += group.records.size();
                end_.bytes += group.end - position_;
                position_ = std::min(base + round_up(group.end - base, header.block), base + segment_bytes_);
            }
        }
        end_.number = number_;
        end_.end_lsn = position_;
        end_.header_written = state == SegmentHeaderState::valid;
        if (!end_.header_written) end_.block = 0;
        return finish(bytes, base);
    }

    /// No complete group at position_: the segment was closed here, the journal ends here, or something is damaged.
    Result<bool> finish(std::string_view bytes, uint64_t base) {
        const Leftover here = search_after(bytes, base, position_);
        if (here.later_group)
            return damaged(
                number_, "a record before the synced one at lsn " + std::to_string(here.later_lsn) + " does not hold");
        end_.torn_bytes = here.torn_end > position_ ? here.torn_end - position_ : 0;
        for (const uint64_t later : numbers_) {
            if (later <= number_) continue;
            auto probe = source_.read(later, probe_bytes);
            if (!probe) return probe.error();
            SegmentHeader header;
            const auto state = decode_segment_header(*probe, uuid_, later, segment_bytes_, header);
            if (state == SegmentHeaderState::foreign)
                return damaged(later, "the segment belongs to another store or a newer format");
            if (state == SegmentHeaderState::valid) {
                if (later == number_ + 1 && header.previous_end == position_) return true;
                return damaged(number_, "the journal goes on in " + source_.name(later) + " after lsn " +
                                            std::to_string(header.previous_end));
            }
            // Header and first group are one write: that group alone may be torn, one after it was preceded by a sync.
            const uint64_t first = segment_start(later, segment_bytes_);
            const Leftover there = search_after(*probe, later * segment_bytes_, first);
            if (there.later_group || (there.torn_end > 0 && later != number_ + 1))
                return damaged(number_, "the header of " + source_.name(later) + " does not hold");
            if (there.torn_end > 0) {
                end_.torn_next = true;
                end_.torn_bytes += there.torn_end - first;
            }
        }
        return false;
    }

    SegmentSource& source_;
    const StoreUuid& uuid_;
    const uint64_t segment_bytes_;
    const std::function<void(const RecordView&)>& visit_;
    std::vector<uint64_t> numbers_;
    uint64_t number_ = 0;
    uint64_t position_ = 0;
    JournalEnd end_;
};

}  // namespace

Result<JournalEnd> scan_journal(SegmentSource& source, const StoreUuid& uuid, uint64_t segment_bytes, uint64_t from_lsn,
                                const std::function<void(const RecordView&)>& visit) {
    return Scan(source, uuid, segment_bytes, visit).run(from_lsn);
}

}  // namespace mainstay
