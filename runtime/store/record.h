#pragma once
// Framing of the journal: what a record, a group and a segment header look like as bytes (docs/formats/journal.md).
// A record carries its own position (lsn), so bytes that a recycled segment still holds from an earlier life never pass
// for new ones, and the offset within its group, so recovery can tell a torn tail from damage. Pure functions over
// bytes: the disk store, the memory store and the fuzzer share them.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/store/journal.h"

namespace mainstay {

constexpr size_t record_header_bytes = 88;
constexpr size_t record_align = 8;
constexpr size_t record_nonce_bytes = 24;
constexpr size_t record_chain_bytes = 32;
constexpr size_t segment_header_bytes = 4096;  // groups begin here; one page, so that any device alignment divides it
constexpr uint32_t journal_format = 1;
constexpr uint16_t shard_all = 0xffff;

/// Bits of RecordHeader::flags. A reader skips the optional fields; it need not understand what they protect.
constexpr uint8_t record_sealed = 1;         // 24-byte nonce follows the header, the payload is ciphertext
constexpr uint8_t record_chained = 2;        // 32-byte session chain hash follows (after the nonce, if any)
constexpr uint8_t record_last_of_group = 4;  // the group ends here; without it the group is torn
constexpr uint8_t record_at_rest = 8;        // after this batch the session has nothing to do by itself
constexpr uint8_t record_deletes = 16;       // the batch deletes the session
constexpr uint8_t record_flags_known = 31;

using StoreUuid = std::array<uint8_t, 16>;

struct RecordHeader {
    Lsn lsn;
    Epoch epoch;
    uint64_t index = 0;         // per shard, from 1
    uint32_t group_offset = 0;  // bytes between the start of the group and this record
    ShardId shard;
    RecordKind kind = RecordKind::events;
    uint8_t flags = 0;
    uint32_t event_count = 0;
    TurnNo turn;
    SessionKey session;
    Sequence first_sequence;
    uint32_t key_id = 0;  // 0: clear text
};

struct RecordView {
    RecordHeader header;
    std::string_view nonce, chain, payload;  // into the bytes that were decoded
    size_t stored_bytes = 0;                 // with padding
};

constexpr size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

/// What an append says of its record; position, index and the end of the group are the journal's.
RecordHeader header_of(const Append& append, Epoch epoch, uint16_t shard_count);
/// What replication carries of an append: 48 bytes of its header's fields, then its payload.
std::string encode_entry(const Append& append);
struct EntryView {
    RecordHeader header;       // kind, flags, counts, session and sequence; shard and position are not the entry's
    std::string_view payload;  // into the bytes that were decoded
};
/// Nothing where the bytes are no entry of this format.
std::optional<EntryView> decode_entry(std::string_view bytes);
/// Bytes in the journal of a record with these flags, padding included.
size_t record_stored_bytes(uint8_t flags, size_t payload_bytes);
/// Writes record_stored_bytes() bytes. `nonce` and `chain` are used where the flags say so.
void encode_record(char* out, const RecordHeader& header, std::string_view payload, std::string_view nonce = {},
                   std::string_view chain = {});
/// Sets record_last_of_group on an encoded record and renews its checksum.
void mark_last_of_group(char* record);
/// The record at the start of `bytes`, which lies at `lsn`; nothing where length, position or checksum do not hold.
std::optional<RecordView> decode_record(std::string_view bytes, uint64_t lsn);

struct SegmentHeader {
    StoreUuid uuid{};
    uint64_t number = 0;         // position of the file's first byte is number * segment_bytes
    uint64_t previous_end = 0;   // where the journal left the segment before; 0 for the first
    Epoch epoch;                 // of the process that opened the segment
    uint64_t segment_bytes = 0;  // size of every segment of this store
    uint32_t block = 0;          // groups of this segment start at multiples of this
};

/// Fills segment_header_bytes bytes (zeros after the fields).
void encode_segment_header(char* out, const SegmentHeader& header);

enum class SegmentHeaderState : uint8_t {
    absent,  // no header, or one whose checksum does not hold
    other,   // a header of another number: a recycled segment that has not been used again
    valid,
    foreign,  // of another store, or of a newer format: opening must fail, nothing may be overwritten
};
SegmentHeaderState decode_segment_header(std::string_view bytes, const StoreUuid& uuid, uint64_t number,
                                         uint64_t segment_bytes, SegmentHeader& header);

/// A position is the end of what was written, so the boundary between two segments belongs to the former.
constexpr uint64_t segment_of(uint64_t lsn, uint64_t segment_bytes) { return lsn == 0 ? 0 : (lsn - 1) / segment_bytes; }
constexpr uint64_t segment_start(uint64_t number, uint64_t segment_bytes) {
    return number * segment_bytes + segment_header_bytes;
}

}  // namespace mainstay
