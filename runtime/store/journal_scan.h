#pragma once
// Recovery of the journal: from the applied position to the last complete group. The invariant that it rests on: one
// group is written and synced before the next is written. So at most the last group can be torn, and a bad group before
// a good one had been synced, perhaps acknowledged, and was damaged later: then opening fails and nothing is served.
// Pure: it reads segments through a source, so disk, memory store and fuzzer run the same code.

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/result.h"
#include "runtime/store/record.h"

namespace mainstay {

class SegmentSource {
  public:
    virtual ~SegmentSource() = default;
    /// Numbers of the segments present, ascending.
    virtual std::vector<uint64_t> numbers() = 0;
    /// The first `limit` bytes, or fewer where the segment is shorter; what is missing counts as zeros. Valid until the
    /// next call. journal_damaged where the medium does not give them.
    virtual Result<std::string_view> read(uint64_t number, size_t limit) = 0;
    /// How messages call the segment.
    virtual std::string name(uint64_t number) const = 0;
};

struct JournalEnd {
    uint64_t end_lsn = 0;         // where the next group goes
    uint64_t number = 0;          // its segment
    bool header_written = false;  // that segment has a valid header
    uint32_t block = 0;           // of that header
    uint64_t records = 0, bytes = 0;
    uint64_t torn_bytes = 0;  // of a last group that was cut; it had been acknowledged to nobody
    bool torn_next = false;   // the torn group is the first of the segment after `number`, whose header is lost
    Epoch epoch_max;
};

/// Visits the records of all complete groups at or after `from_lsn`, in order, a group only when all of it holds.
/// journal_damaged names file, offset and lsn of what does not hold.
Result<JournalEnd> scan_journal(SegmentSource& source, const StoreUuid& uuid, uint64_t segment_bytes, uint64_t from_lsn,
                                const std::function<void(const RecordView&)>& visit);

}  // namespace mainstay
