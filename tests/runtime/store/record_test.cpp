#include "runtime/store/record.h"

#include <doctest/doctest.h>

#include <string>

using namespace mainstay;

namespace {

RecordHeader sample() {
    RecordHeader header;
    header.lsn = Lsn{4096 + 512};
    header.epoch = Epoch{9};
    header.index = 77;
    header.group_offset = 512;
    header.shard = ShardId{1023};
    header.kind = RecordKind::entity;
    header.event_count = 3;
    header.turn = TurnNo{12};
    header.session = {TenantId{5}, SessionId{FamilyId{0x0102030405060708}, 0x1112131415161718, 0x2122232425262728}};
    header.first_sequence = Sequence{1ull << 40};
    header.key_id = 6;
    return header;
}

std::string encode(const RecordHeader& header, std::string_view payload, std::string_view nonce = {},
                   std::string_view chain = {}) {
    std::string out(record_stored_bytes(header.flags, payload.size()), '?');
    encode_record(out.data(), header, payload, nonce, chain);
    return out;
}

}  // namespace

TEST_CASE("record: every field survives encoding, and the fixed part is 88 bytes") {
    const RecordHeader in = sample();
    const std::string bytes = encode(in, "payload");
    CHECK(bytes.size() == 96);
    const auto out = decode_record(bytes, in.lsn.value);
    REQUIRE(out);
    CHECK(out->payload == "payload");
    CHECK(out->stored_bytes == 96);
    CHECK(out->header.lsn == in.lsn);
    CHECK(out->header.epoch == in.epoch);
    CHECK(out->header.index == in.index);
    CHECK(out->header.group_offset == in.group_offset);
    CHECK(out->header.shard == in.shard);
    CHECK(out->header.kind == in.kind);
    CHECK(out->header.event_count == in.event_count);
    CHECK(out->header.turn == in.turn);
    CHECK(out->header.session == in.session);
    CHECK(out->header.first_sequence == in.first_sequence);
    CHECK(out->header.key_id == in.key_id);
}

TEST_CASE("record: the bytes are those that docs/formats/journal.md shows") {
    const std::string bytes = encode(sample(), "hi");
    const auto at = [&](size_t offset) { return static_cast<unsigned char>(bytes[offset]); };
    CHECK(at(4) == 90);                     // length
    CHECK((at(8) | at(9) << 8) == 4608);    // lsn
    CHECK(at(16) == 9);                     // epoch
    CHECK(at(24) == 77);                    // index
    CHECK((at(32) | at(33) << 8) == 512);   // group offset
    CHECK((at(36) | at(37) << 8) == 1023);  // shard
    CHECK(at(38) == 2);                     // kind
    CHECK(at(39) == 0);                     // flags
    CHECK(at(40) == 3);                     // event count
    CHECK(at(44) == 12);                    // turn
    CHECK(at(48) == 5);                     // tenant
    CHECK(at(52) == 6);                     // key id
    CHECK(at(56) == 8);                     // family, lowest byte
    CHECK(at(64) == 0x18);                  // session high
    CHECK(at(72) == 0x28);                  // session low
    CHECK(at(85) == 1);                     // first sequence 2^40
    CHECK(bytes.substr(88, 2) == "hi");
    CHECK(bytes.substr(90) == std::string(6, '\0'));
}

TEST_CASE("record: a reader skips the fields that are reserved for sealing and chaining") {
    const std::string nonce(record_nonce_bytes, 'n'), chain(record_chain_bytes, 'c');
    for (uint8_t flags : {record_sealed, record_chained, static_cast<uint8_t>(record_sealed | record_chained)}) {
        RecordHeader header = sample();
        header.flags = flags;
        const std::string bytes = encode(header, "secret", nonce, chain);
        const auto out = decode_record(bytes, header.lsn.value);
        REQUIRE(out);
        CHECK(out->payload == "secret");
        CHECK(out->nonce == ((flags & record_sealed) ? nonce : ""));
        CHECK(out->chain == ((flags & record_chained) ? chain : ""));
        CHECK(out->stored_bytes == bytes.size());
    }
}

TEST_CASE("record: a flip of any bit, another position or a cut makes it invalid") {
    RecordHeader header = sample();
    header.flags = record_chained;
    const std::string good = encode(header, "some payload", {}, std::string(record_chain_bytes, 'c'));
    const size_t length = record_header_bytes + record_chain_bytes + 12;
    for (size_t bit = 0; bit < length * 8; ++bit) {
        std::string bad = good;
        bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
        CHECK_FALSE(decode_record(bad, header.lsn.value).has_value());
    }
    CHECK_FALSE(decode_record(good, header.lsn.value + 8).has_value());
    for (size_t cut = 0; cut < length; ++cut)
        CHECK_FALSE(decode_record(good.substr(0, cut), header.lsn.value).has_value());
}

TEST_CASE("record: marking the last of a group keeps the record valid") {
    std::string bytes = encode(sample(), "payload");
    mark_last_of_group(bytes.data());
    const auto out = decode_record(bytes, sample().lsn.value);
    REQUIRE(out);
    CHECK(out->header.flags == record_last_of_group);
}

TEST_CASE("segment header: valid in its place, other in a recycled one, foreign in another store, absent if damaged") {
    const StoreUuid uuid{1, 2, 3};
    const SegmentHeader in{uuid, 7, 7 * 65536 - 100, Epoch{3}, 65536, 512};
    std::string bytes(segment_header_bytes, '?');
    encode_segment_header(bytes.data(), in);
    SegmentHeader out;
    CHECK(decode_segment_header(bytes, uuid, 7, 65536, out) == SegmentHeaderState::valid);
    CHECK(out.previous_end == in.previous_end);
    CHECK(out.epoch == in.epoch);
    CHECK(out.block == 512);
    CHECK(decode_segment_header(bytes, uuid, 8, 65536, out) == SegmentHeaderState::other);
    CHECK(decode_segment_header(bytes, StoreUuid{9}, 7, 65536, out) == SegmentHeaderState::foreign);
    CHECK(decode_segment_header(bytes, uuid, 7, 131072, out) == SegmentHeaderState::foreign);
    for (size_t byte = 0; byte < 72; ++byte) {
        std::string bad = bytes;
        bad[byte] = static_cast<char>(bad[byte] ^ 0x10);
        CHECK(decode_segment_header(bad, uuid, 7, 65536, out) == SegmentHeaderState::absent);
    }
    CHECK(decode_segment_header(std::string(4096, '\0'), uuid, 7, 65536, out) == SegmentHeaderState::absent);
}
