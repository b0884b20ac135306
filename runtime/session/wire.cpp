#include "runtime/session/wire.h"

#include <capnp/serialize.h>
#include <kj/exception.h>

#include <cstring>
#include <memory>
#include <vector>

#include "runtime/base/limits.h"
#include "runtime/session/packing.h"

namespace mainstay::wire {
namespace {

// Scratch of a thread: a message that fits costs no allocation. The builder's segment starts zeroed, and the builder
// zeroes what it used of it.
constexpr size_t scratch_words = 4096;
thread_local capnp::word scratch_build[scratch_words];
thread_local capnp::word scratch_read[scratch_words];
thread_local char scratch_packed[packed_size_max(scratch_words)];

const uint64_t* as_words(const capnp::word* words) { return reinterpret_cast<const uint64_t*>(words); }

uint64_t big_endian(const uint8_t* bytes) {
    uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = (value << 8) | bytes[i];
    return value;
}

}  // namespace

std::string session_bytes(const SessionId& id) {
    std::string out;
    out.reserve(16);
    for (uint64_t half : {id.high, id.low})
        for (int shift = 56; shift >= 0; shift -= 8) out.push_back(static_cast<char>(half >> shift));
    return out;
}

SessionId session_of(uint64_t family, capnp::Data::Reader bytes) {
    if (family == 0) return SessionId{};
    if (bytes.size() != 16) throw Malformed{"a session has 16 bytes"};
    return SessionId{FamilyId{family}, big_endian(bytes.begin()), big_endian(bytes.begin() + 8)};
}

void write(Usage::Builder out, const mainstay::Usage& usage) {
    out.setInputTokens(usage.input_tokens);
    out.setCachedTokens(usage.cached_tokens);
    out.setOutputTokens(usage.output_tokens);
    out.setReasoningTokens(usage.reasoning_tokens);
    out.setDeviceMicros(usage.device_micros);
    out.setMicroJoules(usage.micro_joules);
    out.setSimulated(usage.simulated);
}

mainstay::Usage read(Usage::Reader in) {
    return {in.getInputTokens(),  in.getCachedTokens(), in.getOutputTokens(), in.getReasoningTokens(),
            in.getDeviceMicros(), in.getMicroJoules(),  in.getSimulated()};
}

void write(Item::Builder out, const mainstay::Item& item) {
    out.setKind(static_cast<ItemKind>(item.kind));
    out.setRole(static_cast<Role>(item.role));
    out.setStatus(static_cast<ItemStatus>(item.status));
    if (!item.text.empty()) out.setText(as_text(item.text));
    if (!item.more_parts.empty()) {
        auto parts = out.initMoreParts(static_cast<uint32_t>(item.more_parts.size()));
        for (uint32_t i = 0; i < parts.size(); ++i) parts.set(i, as_text(item.more_parts[i]));
    }
    if (!item.call_id.empty()) out.setCallId(as_text(item.call_id));
    if (!item.name.empty()) out.setName(as_text(item.name));
    if (!item.server_label.empty()) out.setServerLabel(as_text(item.server_label));
    if (!item.arguments.empty()) out.setArguments(as_text(item.arguments));
    if (!item.error.empty()) out.setError(as_text(item.error));
    out.setStep(item.step);
}

std::shared_ptr<mainstay::Item> read_item(Item::Reader in, size_t& room) {
    auto item = std::make_shared<mainstay::Item>();
    item->kind = checked(in.getKind(), mainstay::ItemKind::approval_response);
    item->role = checked(in.getRole(), mainstay::Role::developer);
    item->status = checked(in.getStatus(), mainstay::ItemStatus::unknown);
    item->text = text_of(in.getText());
    if (in.hasMoreParts()) {
        take(room, in.getMoreParts().size());
        for (auto part : in.getMoreParts()) item->more_parts.push_back(text_of(part));
    }
    if (in.hasCallId()) item->call_id = text_of(in.getCallId());
    if (in.hasName()) item->name = text_of(in.getName());
    if (in.hasServerLabel()) item->server_label = text_of(in.getServerLabel());
    if (in.hasArguments()) item->arguments = text_of(in.getArguments());
    if (in.hasError()) item->error = text_of(in.getError());
    item->step = in.getStep();
    return item;
}

std::string pack_message(const std::function<void(capnp::MessageBuilder&)>& build) {
    capnp::MallocMessageBuilder message(kj::arrayPtr(scratch_build, scratch_words));
    build(message);
    const auto segments = message.getSegmentsForOutput();
    // The segment table: number of segments less one and the words of each, 32 bits, padded to a word.
    std::vector<uint32_t> table{static_cast<uint32_t>(segments.size() - 1)};
    size_t words = segments.size() / 2 + 1;
    for (auto segment : segments) {
        table.push_back(static_cast<uint32_t>(segment.size()));
        words += segment.size();
    }
    if (table.size() % 2 != 0) table.push_back(0);
    std::vector<uint64_t> table_words(table.size() / 2);
    std::memcpy(table_words.data(), table.data(), table.size() * sizeof(uint32_t));

    std::unique_ptr<char[]> large;
    char* out = scratch_packed;
    if (words > scratch_words) {
        large.reset(new char[packed_size_max(words)]);
        out = large.get();
    }
    // Each piece for itself: runs do not cross from the table into a segment, as readers of streams expect.
    size_t size = pack_words(table_words.data(), table_words.size(), out);
    for (auto segment : segments) size += pack_words(as_words(segment.begin()), segment.size(), out + size);
    return std::string(out, size);
}

std::optional<std::string> unpack_message(std::string_view bytes,
                                          const std::function<void(capnp::MessageReader&)>& read) {
    const size_t words_max = bytes.size() + limits::batch_unpacked_bytes_max / 8;  // a word is eight bytes
    const std::optional<size_t> words = unpacked_words(bytes);
    if (!words) return "the packed bytes end in the middle";
    if (*words > words_max) return "the message unpacks to more than any that is written";
    try {
        std::unique_ptr<capnp::word[]> large;
        capnp::word* unpacked = scratch_read;
        if (*words > scratch_words) {
            large.reset(new capnp::word[*words]);
            unpacked = large.get();
        }
        unpack_words(bytes, reinterpret_cast<uint64_t*>(unpacked));
        capnp::ReaderOptions options;
        options.traversalLimitInWords = words_max;
        options.nestingLimit = 64;
        capnp::FlatArrayMessageReader message(kj::arrayPtr(unpacked, *words), options);
        read(message);
        return std::nullopt;
    } catch (const Malformed& malformed) {
        return malformed.what;
    } catch (const kj::Exception& e) {
        return std::string(e.getDescription().cStr());
    } catch (const std::exception& e) {
        return std::string(e.what());
    }
}

}  // namespace mainstay::wire
