#include "cluster/replication_codec.h"

#include <capnp/message.h>
#include <capnp/serialize.h>

#include <cstring>

#include "cluster/wire_uuid.h"
#include "runtime/base/limits.h"
#include "schema/cluster.capnp.h"

namespace mainstay {

namespace {

constexpr size_t length_bytes = 4;
constexpr size_t scratch_words = 512;

void put_length(std::string& out, size_t at, uint32_t length) {
    for (size_t i = 0; i < length_bytes; ++i) out[at + i] = char(length >> (8 * i));
}

void add_payload(EncodedMessage& out, const std::shared_ptr<const std::string>& payload) {
    if (!payload || payload->empty()) return;
    out.payloads.push_back(payload);
    out.bytes += payload->size();
}

void write_body(wire::ReplicationHead::Builder head, const AppendEntries& body, EncodedMessage& out) {
    head.setEpoch(body.epoch.value);
    head.setRound(body.round);
    auto append = head.initAppend();
    append.setPreviousIndex(body.previous.index);
    append.setPreviousEpoch(body.previous.epoch.value);
    append.setPreviousChain(body.previous.chain);
    append.setCommit(body.commit);
    auto entries = append.initEntries(unsigned(body.entries.size()));
    out.payloads.reserve(body.entries.size());
    for (unsigned i = 0; i < entries.size(); ++i) {
        const LogEntry& entry = body.entries[i];
        entries[i].setEpoch(entry.epoch.value);
        entries[i].setIndex(entry.index);
        entries[i].setChain(entry.chain);
        entries[i].setKind(entry.kind == EntryKind::barrier ? wire::EntryKind::BARRIER : wire::EntryKind::RECORD);
        entries[i].setLength(uint32_t(entry.bytes().size()));
        add_payload(out, entry.payload);
    }
}

void write_body(wire::ReplicationHead::Builder head, const AppendAnswer& body, EncodedMessage&) {
    head.setEpoch(body.epoch.value);
    head.setRound(body.round);
    auto answer = head.initAppendAnswer();
    answer.setStatus(wire::AppendStatus(uint16_t(body.status)));
    answer.setMatched(body.matched);
    answer.setHint(body.hint);
    answer.setPromised(body.promised.value);
    answer.setFull(body.full);
}

void write_body(wire::ReplicationHead::Builder head, const SnapshotPart& body, EncodedMessage& out) {
    head.setEpoch(body.epoch.value);
    head.setRound(body.round);
    auto part = head.initSnapshotPart();
    part.setTransfer(body.transfer);
    part.setAtIndex(body.at.index);
    part.setAtEpoch(body.at.epoch.value);
    part.setAtChain(body.at.chain);
    part.setPart(body.part);
    part.setLast(body.last);
    part.setLength(body.bytes ? uint32_t(body.bytes->size()) : 0);
    add_payload(out, body.bytes);
}

void write_body(wire::ReplicationHead::Builder head, const SnapshotAnswer& body, EncodedMessage&) {
    head.setEpoch(body.epoch.value);
    head.setRound(body.round);
    auto answer = head.initSnapshotAnswer();
    answer.setTransfer(body.transfer);
    answer.setParts(body.parts);
    answer.setFull(body.full);
}

Error refused(const char* why) { return {ErrorCode::peer_refused, std::string("a replication message: ") + why, {}}; }

/// Takes the payloads that follow a head, one after the other.
class Payloads {
  public:
    explicit Payloads(std::string_view bytes) : rest_(bytes) {}
    /// Null where there are not so many left.
    std::shared_ptr<const std::string> take(uint32_t length) {
        if (length > rest_.size()) return nullptr;
        auto out = std::make_shared<const std::string>(rest_.substr(0, length));
        rest_.remove_prefix(length);
        return out;
    }
    bool empty() const { return rest_.empty(); }

  private:
    std::string_view rest_;
};

Result<ReplicationBody> read_append(wire::ReplicationHead::Reader head, Payloads& payloads) {
    const auto append = head.getAppend();
    AppendEntries body{Epoch(head.getEpoch()),
                       {append.getPreviousIndex(), Epoch(append.getPreviousEpoch()), append.getPreviousChain()},
                       {},
                       append.getCommit(),
                       head.getRound()};
    const auto entries = append.getEntries();
    if (entries.size() > limits::replication_message_records_max)
        return refused("more than replication_message_records_max");
    body.entries.reserve(entries.size());
    for (const auto entry : entries) {
        LogEntry out{Epoch(entry.getEpoch()), entry.getIndex(), EntryKind::record, entry.getChain(), nullptr};
        if (entry.getKind() == wire::EntryKind::BARRIER) {
            out.kind = EntryKind::barrier;
            if (entry.getLength() != 0) return refused("a barrier has no payload");
        } else if (entry.getKind() == wire::EntryKind::RECORD) {
            out.payload = payloads.take(entry.getLength());
            if (!out.payload) return refused("a payload is cut off");
        } else {
            return refused("unknown kind of an entry");
        }
        body.entries.push_back(std::move(out));
    }
    return ReplicationBody(std::move(body));
}

Result<ReplicationBody> read_append_answer(wire::ReplicationHead::Reader head) {
    const auto answer = head.getAppendAnswer();
    const auto status = uint16_t(answer.getStatus());
    if (status > uint16_t(AppendStatus::fenced)) return refused("unknown status of an append");
    return ReplicationBody(AppendAnswer{AppendStatus(status), Epoch(head.getEpoch()), answer.getMatched(),
                                        head.getRound(), answer.getHint(), Epoch(answer.getPromised()),
                                        answer.getFull()});
}

Result<ReplicationBody> read_snapshot_part(wire::ReplicationHead::Reader head, Payloads& payloads) {
    const auto part = head.getSnapshotPart();
    SnapshotPart body{Epoch(head.getEpoch()),
                      part.getTransfer(),
                      {part.getAtIndex(), Epoch(part.getAtEpoch()), part.getAtChain()},
                      part.getPart(),
                      part.getLast(),
                      head.getRound(),
                      payloads.take(part.getLength())};
    if (!body.bytes) return refused("a snapshot's part is cut off");
    return ReplicationBody(std::move(body));
}

Result<ReplicationBody> read_body(wire::ReplicationHead::Reader head, Payloads& payloads) {
    switch (head.which()) {
        case wire::ReplicationHead::APPEND: return read_append(head, payloads);
        case wire::ReplicationHead::APPEND_ANSWER: return read_append_answer(head);
        case wire::ReplicationHead::SNAPSHOT_PART: return read_snapshot_part(head, payloads);
        case wire::ReplicationHead::SNAPSHOT_ANSWER: {
            const auto answer = head.getSnapshotAnswer();
            return ReplicationBody(SnapshotAnswer{Epoch(head.getEpoch()), answer.getTransfer(), answer.getParts(),
                                                  head.getRound(), answer.getFull()});
        }
    }
    return refused("unknown type");
}

Result<ReplicationMessage> read_message(kj::ArrayPtr<const capnp::word> words, std::string_view rest) {
    capnp::ReaderOptions options;
    options.traversalLimitInWords = 8 * words.size();
    options.nestingLimit = 8;
    capnp::FlatArrayMessageReader reader(words, options);
    if (reader.getEnd() != words.end()) return refused("bytes after the head");
    const auto head = reader.getRoot<wire::ReplicationHead>();
    Payloads payloads(rest);
    auto body = read_body(head, payloads);
    if (!body) return body.error();
    if (!payloads.empty()) return refused("bytes after the payloads");
    return ReplicationMessage{read_uuid(head.getCluster()),
                              ShardId(head.getShard()),
                              {read_uuid(head.getFromNode()), read_uuid(head.getFromDisk())},
                              {read_uuid(head.getToNode()), read_uuid(head.getToDisk())},
                              head.getFromIncarnation(),
                              std::move(body).value()};
}

}  // namespace

EncodedMessage encode_replication(const ReplicationMessage& message) {
    EncodedMessage out;
    // Most heads fit: no 8 KiB are taken from the heap and cleared for each. The builder leaves it cleared.
    thread_local capnp::word scratch[scratch_words];
    capnp::MallocMessageBuilder builder(kj::arrayPtr(scratch, scratch_words));
    auto head = builder.initRoot<wire::ReplicationHead>();
    write_uuid(head.getCluster(), message.cluster);
    write_uuid(head.getFromNode(), message.from.node);
    write_uuid(head.getFromDisk(), message.from.disk);
    write_uuid(head.getToNode(), message.to.node);
    write_uuid(head.getToDisk(), message.to.disk);
    head.setFromIncarnation(message.from_incarnation);
    head.setShard(message.shard.value);
    std::visit([&](const auto& body) { write_body(head, body, out); }, message.body);
    const size_t bytes = capnp::computeSerializedSizeInWords(builder) * sizeof(capnp::word);
    out.head.resize(length_bytes + bytes);
    put_length(out.head, 0, uint32_t(bytes));
    kj::ArrayOutputStream to(kj::arrayPtr(reinterpret_cast<kj::byte*>(out.head.data()) + length_bytes, bytes));
    capnp::writeMessage(to, builder);
    out.bytes += out.head.size();
    return out;
}

std::string flat(const EncodedMessage& message) {
    std::string out;
    out.reserve(message.bytes);
    out += message.head;
    for (const auto& payload : message.payloads) out += *payload;
    return out;
}

Result<ReplicationMessage> decode_replication(std::string_view bytes) {
    if (bytes.size() < length_bytes) return refused("cut off");
    size_t length = 0;
    for (size_t i = 0; i < length_bytes; ++i) length |= size_t(uint8_t(bytes[i])) << (8 * i);
    bytes.remove_prefix(length_bytes);
    if (length > bytes.size() || length % sizeof(capnp::word) != 0) return refused("its head is cut off");
    if (length > limits::link_chunk_bytes_max) return refused("its head is larger than link_chunk_bytes_max");
    // Bytes of a frame start anywhere, Cap'n Proto reads words.
    KJ_STACK_ARRAY(capnp::word, words, length / sizeof(capnp::word), scratch_words, scratch_words);
    if (length != 0) std::memcpy(words.asBytes().begin(), bytes.data(), length);
    try {
        return read_message(words, bytes.substr(length));
    } catch (const kj::Exception&) {
        return refused("its head is damaged");
    }
}

}  // namespace mainstay
