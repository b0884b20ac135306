// The recovery scan over arbitrary bytes: it ends, it stays within them, and it never visits a record whose position or
// checksum does not hold. The first byte chooses how the rest is cut into segments; a run of 0xff asks for a checksum
// to be made right, so that the fuzzer gets behind it.
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <string_view>

#include "runtime/base/digest.h"
#include "runtime/store/journal_scan.h"
#include "runtime/store/lmdb_state.h"

using namespace mainstay;

namespace {

constexpr size_t segment_size = 16 * 1024;
const StoreUuid uuid{1, 2, 3};

class Bytes final : public SegmentSource {
  public:
    std::map<uint64_t, std::string> segments;
    std::vector<uint64_t> numbers() override {
        std::vector<uint64_t> out;
        for (const auto& [number, bytes] : segments) out.push_back(number);
        return out;
    }
    Result<std::string_view> read(uint64_t number, size_t limit) override {
        return std::string_view(segments.at(number)).substr(0, limit);
    }
    std::string name(uint64_t number) const override { return "segment " + std::to_string(number); }
};

/// Where a header claims a length that fits, its checksum is made to hold; positions stay as the fuzzer wrote them.
void repair(std::string& segment) {
    for (size_t at = segment_header_bytes; at + record_header_bytes <= segment.size(); at += record_align) {
        uint32_t crc, length;
        std::memcpy(&crc, segment.data() + at, 4);
        std::memcpy(&length, segment.data() + at + 4, 4);
        if (crc != 0xffffffff || length < record_header_bytes || length > segment.size() - at) continue;
        crc = crc32c(std::string_view(segment).substr(at + 4, length - 4));
        std::memcpy(segment.data() + at, &crc, 4);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 1) return 0;
    const uint8_t shape = data[0];
    std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
    Bytes source;
    uint64_t previous_end = 0;
    for (uint64_t number = 1; number <= 1u + shape % 3; ++number) {
        std::string segment;
        if (shape & 0x80) {
            segment = std::string(rest.substr(0, segment_size));
        } else {
            segment.resize(segment_header_bytes);
            encode_segment_header(segment.data(), {uuid, number, previous_end, Epoch{1}, segment_size, 512});
            segment += rest.substr(0, segment_size - segment_header_bytes);
            previous_end = segment_start(number, segment_size) + 512u * (shape >> 3 & 7);
        }
        rest.remove_prefix(std::min(rest.size(), segment_size - segment_header_bytes));
        repair(segment);
        source.segments[number] = std::move(segment);
    }
    uint64_t last = 0, records = 0;
    auto end = scan_journal(source, uuid, segment_size, segment_start(1, segment_size), [&](const RecordView& record) {
        const uint64_t lsn = record.header.lsn.value;
        const std::string& segment = source.segments.at(segment_of(lsn + 1, segment_size));
        const auto again = decode_record(std::string_view(segment).substr(lsn % segment_size), lsn);
        if (!again || again->payload != record.payload || lsn <= last) std::abort();
        last = lsn;
        ++records;
    });
    if (end && (end->records != records || end->end_lsn < segment_start(1, segment_size) || end->end_lsn <= last))
        std::abort();
    // Row frames are parsed from disk too; the first 8 bytes serve as the key.
    if (rest.empty() && size > 9) {
        const std::string_view all(reinterpret_cast<const char*>(data), size);
        (void)unframe_value(all.substr(0, 8), all.substr(8));
    }
    return 0;
}
