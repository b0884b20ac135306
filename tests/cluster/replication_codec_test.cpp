#include "cluster/replication_codec.h"

#include <doctest/doctest.h>

#include <random>

#include "runtime/base/limits.h"

using namespace mainstay;

namespace {

std::shared_ptr<const std::string> text(std::string value) {
    return std::make_shared<const std::string>(std::move(value));
}

NodeUuid uuid(uint8_t first) {
    NodeUuid out;
    for (size_t i = 0; i < out.size(); ++i) out[i] = uint8_t(first + 17 * i);
    return out;
}

ReplicationMessage with(ReplicationBody body) {
    return {uuid(1), ShardId(1023), {uuid(2), uuid(3)}, {uuid(4), uuid(5)}, 77, std::move(body)};
}

ReplicationMessage append(size_t entries, size_t bytes) {
    AppendEntries body{Epoch(9), {100, Epoch(8), 0xfeedfacecafebeef}, {}, 99, 12345678901234567890ull};
    body.entries.push_back({Epoch(9), 101, EntryKind::barrier, 5, nullptr});
    for (size_t i = 0; i < entries; ++i)
        body.entries.push_back(
            {Epoch(9), 102 + i, EntryKind::record, ~i, text(std::string(bytes + i, char('a' + i % 26)))});
    return with(body);
}

std::vector<ReplicationMessage> samples() {
    return {append(0, 0),
            append(7, 0),
            append(50, 333),
            with(AppendAnswer{AppendStatus::fenced, Epoch(1), 2, 3, 4, Epoch(5), true}),
            with(AppendAnswer{AppendStatus::mismatch, Epoch(1), ~0ull, 3, 4, Epoch(~0ull), false}),
            with(SnapshotPart{Epoch(1), 2, {3, Epoch(4), 5}, 6, true, 7, text(std::string(100'000, '\0'))}),
            with(SnapshotPart{Epoch(1), 2, {3, Epoch(4), 5}, 0, false, 7, text("")}),
            with(SnapshotAnswer{Epoch(1), 2, 3, 4, true})};
}

/// The bytes of a message say all of it, so messages are the same if their bytes are.
std::string again(const ReplicationMessage& message) {
    const auto read = decode_replication(flat(encode_replication(message)));
    REQUIRE(read);
    return flat(encode_replication(*read));
}

}  // namespace

TEST_CASE("replication codec: every field of every message comes back") {
    for (const ReplicationMessage& message : samples()) {
        const EncodedMessage encoded = encode_replication(message);
        CHECK(encoded.bytes == flat(encoded).size());
        CHECK(again(message) == flat(encoded));
    }
    const auto read = decode_replication(flat(encode_replication(append(2, 3))));
    REQUIRE(read);
    CHECK(read->cluster == uuid(1));
    CHECK(read->shard == ShardId(1023));
    CHECK(read->from == ReplicaName{uuid(2), uuid(3)});
    CHECK(read->to == ReplicaName{uuid(4), uuid(5)});
    CHECK(read->from_incarnation == 77);
    const auto& body = std::get<AppendEntries>(read->body);
    CHECK(body.epoch == Epoch(9));
    CHECK(body.previous == LogPosition{100, Epoch(8), 0xfeedfacecafebeef});
    CHECK(body.commit == 99);
    CHECK(body.round == 12345678901234567890ull);
    REQUIRE(body.entries.size() == 3);
    CHECK(body.entries[0].kind == EntryKind::barrier);
    CHECK_FALSE(body.entries[0].payload);
    CHECK(body.entries[2].kind == EntryKind::record);
    CHECK(body.entries[2].index == 103);
    CHECK(body.entries[2].epoch == Epoch(9));
    CHECK(body.entries[2].chain == ~uint64_t(1));
    CHECK(body.entries[2].bytes() == "bbbb");
    const auto answer = std::get<AppendAnswer>(decode_replication(flat(encode_replication(samples()[3])))->body);
    CHECK(answer.status == AppendStatus::fenced);
    CHECK(answer.epoch == Epoch(1));
    CHECK(answer.matched == 2);
    CHECK(answer.round == 3);
    CHECK(answer.hint == 4);
    CHECK(answer.promised == Epoch(5));
    CHECK(answer.full);
    const auto part = std::get<SnapshotPart>(decode_replication(flat(encode_replication(samples()[5])))->body);
    CHECK(part.epoch == Epoch(1));
    CHECK(part.transfer == 2);
    CHECK(part.at == LogPosition{3, Epoch(4), 5});
    CHECK(part.part == 6);
    CHECK(part.last);
    CHECK(part.round == 7);
    CHECK(part.bytes->size() == 100'000);
    const auto taken = std::get<SnapshotAnswer>(decode_replication(flat(encode_replication(samples()[7])))->body);
    CHECK(taken.epoch == Epoch(1));
    CHECK(taken.transfer == 2);
    CHECK(taken.parts == 3);
    CHECK(taken.round == 4);
    CHECK(taken.full);
}

TEST_CASE("replication codec: payloads are referred to, not copied") {
    const auto payload = text(std::string(1 << 20, 'x'));
    AppendEntries body;
    body.entries.push_back({Epoch(1), 1, EntryKind::record, 1, payload});
    const EncodedMessage encoded = encode_replication(with(body));
    REQUIRE(encoded.payloads.size() == 1);
    CHECK(encoded.payloads[0] == payload);
    CHECK(encoded.head.size() < 1024);
}

TEST_CASE("replication codec: the largest append of the primary fits a message of a link") {
    AppendEntries body;
    for (uint64_t i = 0; i + 1 < limits::replication_message_records_max; ++i)
        body.entries.push_back(
            {Epoch(1), i, EntryKind::record, 1, text(std::string(limits::replication_message_bytes_max / 1024, 'x'))});
    body.entries.push_back({Epoch(1), 1, EntryKind::record, 1, text(std::string(limits::record_bytes_max, 'y'))});
    const EncodedMessage encoded = encode_replication(with(body));
    CHECK(encoded.bytes <= limits::link_message_bytes_max);
    CHECK(decode_replication(flat(encoded)));
    body.entries.push_back({Epoch(1), 1, EntryKind::record, 1, text("")});
    CHECK(decode_replication(flat(encode_replication(with(body)))).error().code == ErrorCode::peer_refused);
}

TEST_CASE("replication codec: what is cut off or has more is refused") {
    for (const ReplicationMessage& message : samples()) {
        const std::string bytes = flat(encode_replication(message));
        for (size_t length = 0; length < bytes.size(); length += 1 + length / 50)
            CHECK(decode_replication(std::string_view(bytes).substr(0, length)).error().code ==
                  ErrorCode::peer_refused);
        CHECK_FALSE(decode_replication(bytes + "x"));
    }
}

TEST_CASE("replication codec: damaged bytes are refused or are a message that reads and writes as itself") {
    std::mt19937 random(7);
    size_t refused = 0, read = 0;
    for (int i = 0; i < 20'000; ++i) {
        std::string bytes = flat(encode_replication(samples()[random() % 5]));
        const size_t reach = std::min<size_t>(bytes.size(), 400);  // the head
        for (int flips = 1 + int(random() % 3); flips > 0; --flips) bytes[random() % reach] ^= char(1 << random() % 8);
        const auto message = decode_replication(bytes);
        if (!message) {
            CHECK(message.error().code == ErrorCode::peer_refused);
            ++refused;
            continue;
        }
        ++read;
        const std::string first = flat(encode_replication(*message));
        CHECK(again(*message) == first);
    }
    CHECK(refused > 1000);
    CHECK(read > 1000);
}
