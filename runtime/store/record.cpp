#include "runtime/store/record.h"

#include <bit>
#include <cstring>

#include "runtime/base/digest.h"
#include "runtime/base/invariant.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

static_assert(std::endian::native == std::endian::little, "the journal is little-endian and is copied, not converted");

template <class T>
void put(char* out, size_t at, T value) {
    std::memcpy(out + at, &value, sizeof value);
}

template <class T>
T get(const char* in, size_t at) {
    T value;
    std::memcpy(&value, in + at, sizeof value);
    return value;
}

// Record: offsets of the fixed fields.
constexpr size_t at_crc = 0, at_length = 4, at_lsn = 8, at_epoch = 16, at_index = 24, at_group_offset = 32,
                 at_shard = 36, at_kind = 38, at_flags = 39, at_event_count = 40, at_turn = 44, at_tenant = 48,
                 at_key_id = 52, at_family = 56, at_high = 64, at_low = 72, at_first_sequence = 80;
static_assert(at_first_sequence + 8 == record_header_bytes);

// Entry of a replicated log: a record's payload.
constexpr size_t at_entry_kind = 0, at_entry_flags = 1, at_entry_event_count = 4, at_entry_turn = 8,
                 at_entry_tenant = 12, at_entry_family = 16, at_entry_high = 24, at_entry_low = 32,
                 at_entry_first_sequence = 40, entry_header_bytes = 48;

// Segment header.
constexpr char segment_magic[8] = {'M', 'S', 'T', 'Y', 'J', 'R', 'N', 'L'};
constexpr size_t at_segment_crc = 8, at_format = 12, at_uuid = 16, at_number = 32, at_previous_end = 40,
                 at_segment_epoch = 48, at_segment_bytes = 56, at_block = 64, segment_fields_bytes = 72;

uint32_t record_crc(const char* record, size_t length) { return crc32c({record + at_length, length - at_length}); }

size_t optional_bytes(uint8_t flags) {
    return ((flags & record_sealed) ? record_nonce_bytes : 0) + ((flags & record_chained) ? record_chain_bytes : 0);
}

}  // namespace

RecordHeader header_of(const Append& append, Epoch epoch, uint16_t shard_count) {
    RecordHeader header;
    header.epoch = epoch;
    header.kind = append.kind;
    header.shard = append.kind == RecordKind::promise ? ShardId{shard_all} : shard_of(append.session, shard_count);
    if (append.at_rest) header.flags |= record_at_rest;
    if (append.deletes) header.flags |= record_deletes;
    header.event_count = append.event_count;
    header.turn = append.turn;
    header.session = append.session;
    header.first_sequence = append.first_sequence;
    return header;
}

std::string encode_entry(const Append& append) {
    std::string out(entry_header_bytes, '\0');
    char* at = out.data();
    uint8_t flags = 0;
    if (append.at_rest) flags |= record_at_rest;
    if (append.deletes) flags |= record_deletes;
    put(at, at_entry_kind, append.kind);
    put(at, at_entry_flags, flags);
    put(at, at_entry_event_count, append.event_count);
    put(at, at_entry_turn, append.turn.value);
    put(at, at_entry_tenant, append.session.tenant.value);
    put(at, at_entry_family, append.session.session.family.value);
    put(at, at_entry_high, append.session.session.high);
    put(at, at_entry_low, append.session.session.low);
    put(at, at_entry_first_sequence, append.first_sequence.value);
    out += append.payload;
    return out;
}

std::optional<EntryView> decode_entry(std::string_view bytes) {
    if (bytes.size() < entry_header_bytes) return std::nullopt;
    const char* in = bytes.data();
    const auto kind = get<uint8_t>(in, at_entry_kind);
    const auto flags = get<uint8_t>(in, at_entry_flags);
    if (kind != static_cast<uint8_t>(RecordKind::events) && kind != static_cast<uint8_t>(RecordKind::entity))
        return std::nullopt;
    if ((flags & ~(record_at_rest | record_deletes)) != 0) return std::nullopt;
    EntryView view;
    RecordHeader& header = view.header;
    header.kind = static_cast<RecordKind>(kind);
    header.flags = flags;
    header.event_count = get<uint32_t>(in, at_entry_event_count);
    header.turn = TurnNo{get<uint32_t>(in, at_entry_turn)};
    header.session.tenant = TenantId{get<uint32_t>(in, at_entry_tenant)};
    header.session.session.family = FamilyId{get<uint64_t>(in, at_entry_family)};
    header.session.session.high = get<uint64_t>(in, at_entry_high);
    header.session.session.low = get<uint64_t>(in, at_entry_low);
    header.first_sequence = Sequence{get<uint64_t>(in, at_entry_first_sequence)};
    view.payload = bytes.substr(entry_header_bytes);
    return view;
}

size_t record_stored_bytes(uint8_t flags, size_t payload_bytes) {
    return round_up(record_header_bytes + optional_bytes(flags) + payload_bytes, record_align);
}

void encode_record(char* out, const RecordHeader& header, std::string_view payload, std::string_view nonce,
                   std::string_view chain) {
    const size_t length = record_header_bytes + optional_bytes(header.flags) + payload.size();
    INVARIANT(length <= limits::record_bytes_max, "a record fits its bound");
    put(out, at_length, static_cast<uint32_t>(length));
    put(out, at_lsn, header.lsn.value);
    put(out, at_epoch, header.epoch.value);
    put(out, at_index, header.index);
    put(out, at_group_offset, header.group_offset);
    put(out, at_shard, header.shard.value);
    put(out, at_kind, header.kind);
    put(out, at_flags, header.flags);
    put(out, at_event_count, header.event_count);
    put(out, at_turn, header.turn.value);
    put(out, at_tenant, header.session.tenant.value);
    put(out, at_key_id, header.key_id);
    put(out, at_family, header.session.session.family.value);
    put(out, at_high, header.session.session.high);
    put(out, at_low, header.session.session.low);
    put(out, at_first_sequence, header.first_sequence.value);
    char* at = out + record_header_bytes;
    if (header.flags & record_sealed) {
        INVARIANT(nonce.size() == record_nonce_bytes, "a sealed record has a nonce");
        std::memcpy(at, nonce.data(), record_nonce_bytes);
        at += record_nonce_bytes;
    }
    if (header.flags & record_chained) {
        INVARIANT(chain.size() == record_chain_bytes, "a chained record has a hash");
        std::memcpy(at, chain.data(), record_chain_bytes);
        at += record_chain_bytes;
    }
    if (!payload.empty()) std::memcpy(at, payload.data(), payload.size());
    std::memset(out + length, 0, round_up(length, record_align) - length);
    put(out, at_crc, record_crc(out, length));
}

void mark_last_of_group(char* record) {
    put(record, at_flags, static_cast<uint8_t>(get<uint8_t>(record, at_flags) | record_last_of_group));
    put(record, at_crc, record_crc(record, get<uint32_t>(record, at_length)));
}

std::optional<RecordView> decode_record(std::string_view bytes, uint64_t lsn) {
    if (bytes.size() < record_header_bytes) return std::nullopt;
    const char* in = bytes.data();
    // The position first: it rejects zeros and stale bytes without touching the rest.
    if (get<uint64_t>(in, at_lsn) != lsn) return std::nullopt;
    const size_t length = get<uint32_t>(in, at_length);
    if (length < record_header_bytes || length > limits::record_bytes_max || length > bytes.size()) return std::nullopt;
    if (get<uint32_t>(in, at_crc) != record_crc(in, length)) return std::nullopt;

    RecordView view;
    RecordHeader& header = view.header;
    header.flags = get<uint8_t>(in, at_flags);
    if ((header.flags & ~record_flags_known) != 0) return std::nullopt;
    const size_t fixed = record_header_bytes + optional_bytes(header.flags);
    if (length < fixed) return std::nullopt;
    header.lsn = Lsn{lsn};
    header.epoch = Epoch{get<uint64_t>(in, at_epoch)};
    header.index = get<uint64_t>(in, at_index);
    header.group_offset = get<uint32_t>(in, at_group_offset);
    header.shard = ShardId{get<uint16_t>(in, at_shard)};
    const auto kind = get<uint8_t>(in, at_kind);
    if (kind < static_cast<uint8_t>(RecordKind::events) || kind > static_cast<uint8_t>(RecordKind::barrier))
        return std::nullopt;
    header.kind = static_cast<RecordKind>(kind);
    header.event_count = get<uint32_t>(in, at_event_count);
    header.turn = TurnNo{get<uint32_t>(in, at_turn)};
    header.session.tenant = TenantId{get<uint32_t>(in, at_tenant)};
    header.key_id = get<uint32_t>(in, at_key_id);
    header.session.session.family = FamilyId{get<uint64_t>(in, at_family)};
    header.session.session.high = get<uint64_t>(in, at_high);
    header.session.session.low = get<uint64_t>(in, at_low);
    header.first_sequence = Sequence{get<uint64_t>(in, at_first_sequence)};

    size_t at = record_header_bytes;
    if (header.flags & record_sealed) {
        view.nonce = bytes.substr(at, record_nonce_bytes);
        at += record_nonce_bytes;
    }
    if (header.flags & record_chained) {
        view.chain = bytes.substr(at, record_chain_bytes);
        at += record_chain_bytes;
    }
    view.payload = bytes.substr(at, length - at);
    view.stored_bytes = round_up(length, record_align);
    return view;
}

void encode_segment_header(char* out, const SegmentHeader& header) {
    std::memset(out, 0, segment_header_bytes);
    std::memcpy(out, segment_magic, sizeof segment_magic);
    put(out, at_format, journal_format);
    std::memcpy(out + at_uuid, header.uuid.data(), header.uuid.size());
    put(out, at_number, header.number);
    put(out, at_previous_end, header.previous_end);
    put(out, at_segment_epoch, header.epoch.value);
    put(out, at_segment_bytes, header.segment_bytes);
    put(out, at_block, header.block);
    put(out, at_segment_crc, crc32c({out + at_format, segment_fields_bytes - at_format}));
}

SegmentHeaderState decode_segment_header(std::string_view bytes, const StoreUuid& uuid, uint64_t number,
                                         uint64_t segment_bytes, SegmentHeader& header) {
    if (bytes.size() < segment_header_bytes) return SegmentHeaderState::absent;
    const char* in = bytes.data();
    if (std::memcmp(in, segment_magic, sizeof segment_magic) != 0) return SegmentHeaderState::absent;
    if (get<uint32_t>(in, at_segment_crc) != crc32c({in + at_format, segment_fields_bytes - at_format}))
        return SegmentHeaderState::absent;
    std::memcpy(header.uuid.data(), in + at_uuid, header.uuid.size());
    header.number = get<uint64_t>(in, at_number);
    header.previous_end = get<uint64_t>(in, at_previous_end);
    header.epoch = Epoch{get<uint64_t>(in, at_segment_epoch)};
    header.segment_bytes = get<uint64_t>(in, at_segment_bytes);
    header.block = get<uint32_t>(in, at_block);
    if (get<uint32_t>(in, at_format) != journal_format || header.uuid != uuid || header.segment_bytes != segment_bytes)
        return SegmentHeaderState::foreign;
    if (header.block < record_align || header.block > segment_header_bytes || !std::has_single_bit(header.block))
        return SegmentHeaderState::absent;
    return header.number == number ? SegmentHeaderState::valid : SegmentHeaderState::other;
}

}  // namespace mainstay
