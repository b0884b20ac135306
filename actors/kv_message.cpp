#include "actors/kv_message.h"

#include "cluster/wire_message.h"
#include "runtime/base/digest.h"
#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"
#include "schema/kv_transfer.capnp.h"

namespace mainstay {
namespace {

constexpr size_t text_bytes_max = 1024;  // of a model's name, hash and format
constexpr uint64_t slack_words = 64;
constexpr int nesting_max = 6;

Error refused(const char* why) { return {ErrorCode::peer_refused, std::string("KV blocks: ") + why, {}}; }

uint64_t half(const KvHash& hash, size_t at) {
    uint64_t out = 0;
    for (size_t i = 8; i-- > 0;) out = out << 8 | hash[at + i];
    return out;
}

void put_half(KvHash& hash, size_t at, uint64_t value) {
    for (size_t i = 0; i < 8; ++i, value >>= 8) hash[at + i] = uint8_t(value);
}

/// Over what the bytes are said to be as well: whole bytes under another block's name are damage, too.
uint32_t checksum_of(const BlockName& name, std::string_view bytes) {
    uint32_t crc = crc32c({reinterpret_cast<const char*>(name.hash.data()), name.hash.size()});
    char tokens[4];
    for (size_t i = 0; i < 4; ++i) tokens[i] = char(name.tokens >> (8 * i));
    crc = crc32c({tokens, 4}, crc);
    return crc32c(bytes, crc);
}

void write(wire::KvOwner::Builder to, const SessionKey& from) {
    to.setTenant(from.tenant.value);
    to.setFamily(from.session.family.value);
    to.setHigh(from.session.high);
    to.setLow(from.session.low);
}

SessionKey read(wire::KvOwner::Reader from) {
    return {TenantId{from.getTenant()}, SessionId{FamilyId{from.getFamily()}, from.getHigh(), from.getLow()}};
}

void write(wire::KvName::Builder to, const BlockName& from) {
    to.setHash0(half(from.hash, 0));
    to.setHash1(half(from.hash, 8));
    to.setTokens(from.tokens);
    write(to.initOwner(), from.owner);
}

BlockName read(wire::KvName::Reader from) {
    BlockName out;
    put_half(out.hash, 0, from.getHash0());
    put_half(out.hash, 8, from.getHash1());
    out.tokens = from.getTokens();
    out.owner = read(from.getOwner());
    return out;
}

void write(wire::KvRequest::Builder to, const KvOf& of) {
    put_bytes(to.initModel(unsigned(of.model.size())), of.model);
    put_bytes(to.initModelHash(unsigned(of.model_hash.size())), of.model_hash);
    put_bytes(to.initKvFormat(unsigned(of.kv_format.size())), of.kv_format);
    to.setBlockTokens(of.block_tokens);
}

bool read(wire::KvRequest::Reader from, KvOf& out) {
    out.model = copied(from.getModel());
    out.model_hash = copied(from.getModelHash());
    out.kv_format = copied(from.getKvFormat());
    out.block_tokens = from.getBlockTokens();
    for (const auto* text : {&out.model, &out.model_hash, &out.kv_format})
        if (text->empty() || text->size() > text_bytes_max || !is_valid_utf8(*text)) return false;
    return out.block_tokens > 0;
}

/// A block of nobody's length has no place in any tier.
bool sound(const BlockName& name, const KvOf& of) { return name.tokens > 0 && name.tokens <= of.block_tokens; }

Result<KvRequest> read(wire::KvRequest::Reader from) {
    if (from.isForget()) {
        if (from.getForget().size() > limits::kv_message_blocks_max) return refused("more than one message has");
        KvForget out;
        for (const auto session : from.getForget()) out.sessions.push_back(read(session));
        return KvRequest(std::move(out));
    }
    KvOf of;
    if (!from.isWanted() && !from.isBlocks()) return refused("this release does not know that request");
    if (!read(from, of)) return refused("of no model");
    const size_t count = from.isWanted() ? from.getWanted().size() : from.getBlocks().size();
    if (count > limits::kv_message_blocks_max) return refused("more than one message has");
    if (from.isWanted()) {
        KvWanted out{std::move(of), {}};
        for (const auto name : from.getWanted()) {
            out.blocks.push_back(read(name));
            if (!sound(out.blocks.back(), out.of)) return refused("a block of no size");
        }
        return KvRequest(std::move(out));
    }
    KvBlocks out{std::move(of), {}, {}, {}};
    for (const auto sent : from.getBlocks()) {
        out.blocks.push_back(read(sent.getName()));
        if (!sound(out.blocks.back(), out.of)) return refused("a block of no size");
        out.bytes.push_back(copied(sent.getBytes()));
        out.whole.push_back(checksum_of(out.blocks.back(), out.bytes.back()) == sent.getChecksum());
    }
    return KvRequest(std::move(out));
}

Result<std::vector<KvOutcome>> read(wire::KvAnswer::Reader from) {
    std::vector<KvOutcome> out;
    for (const uint8_t outcome : from.getOutcomes()) {
        if (outcome >= kv_outcomes) return refused("an outcome that is none");
        out.push_back(KvOutcome(outcome));
    }
    return out;
}

template <class Root, class T>
Result<T> decode(std::string_view bytes) {
    return read_flat<Root, T>(bytes, slack_words, nesting_max, refused, [](auto root) { return read(root); });
}

}  // namespace

std::string encode_kv_wanted(const KvWanted& wanted) {
    capnp::MallocMessageBuilder builder(unsigned(wanted.blocks.size() * 10 + 64));
    auto to = builder.initRoot<wire::KvRequest>();
    write(to, wanted.of);
    auto names = to.initWanted(unsigned(wanted.blocks.size()));
    for (unsigned i = 0; i < wanted.blocks.size(); ++i) write(names[i], wanted.blocks[i]);
    return flat_bytes(builder);
}

std::string encode_kv_blocks(const KvOf& of, const std::vector<BlockName>& blocks,
                             const std::vector<std::string_view>& bytes) {
    size_t size = 0;
    for (const auto one : bytes) size += one.size() + 128;
    capnp::MallocMessageBuilder builder(unsigned(size / sizeof(capnp::word) + 64));
    auto to = builder.initRoot<wire::KvRequest>();
    write(to, of);
    auto sent = to.initBlocks(unsigned(blocks.size()));
    for (unsigned i = 0; i < blocks.size(); ++i) {
        write(sent[i].initName(), blocks[i]);
        sent[i].setChecksum(checksum_of(blocks[i], bytes[i]));
        put_bytes(sent[i].initBytes(unsigned(bytes[i].size())), bytes[i]);
    }
    return flat_bytes(builder);
}

std::string encode_kv_forget(const KvForget& forget) {
    capnp::MallocMessageBuilder builder;
    auto sessions = builder.initRoot<wire::KvRequest>().initForget(unsigned(forget.sessions.size()));
    for (unsigned i = 0; i < forget.sessions.size(); ++i) write(sessions[i], forget.sessions[i]);
    return flat_bytes(builder);
}

std::string encode_kv_answer(const std::vector<KvOutcome>& outcomes) {
    capnp::MallocMessageBuilder builder;
    auto to = builder.initRoot<wire::KvAnswer>().initOutcomes(unsigned(outcomes.size()));
    for (unsigned i = 0; i < outcomes.size(); ++i) to[i] = uint8_t(outcomes[i]);
    return flat_bytes(builder);
}

Result<KvRequest> decode_kv_request(std::string_view bytes) { return decode<wire::KvRequest, KvRequest>(bytes); }
Result<std::vector<KvOutcome>> decode_kv_answer(std::string_view bytes) {
    return decode<wire::KvAnswer, std::vector<KvOutcome>>(bytes);
}

}  // namespace mainstay
