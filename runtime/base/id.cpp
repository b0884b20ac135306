#include "runtime/base/id.h"

#include <cstring>

#include "runtime/base/digest.h"

namespace mainstay {
namespace {

constexpr char alphabet[] = "abcdefghijklmnopqrstuvwxyz234567";

void append_base32(std::string& out, const uint8_t* bytes, size_t size) {
    const size_t start = out.size();
    out.resize(start + (size * 8 + 4) / 5);
    char* at = out.data() + start;
    for (; size >= 5; size -= 5, bytes += 5) {
        uint64_t word = 0;
        for (int i = 0; i < 5; ++i) word = word << 8 | bytes[i];
        for (int shift = 35; shift >= 0; shift -= 5) *at++ = alphabet[word >> shift & 31];
    }
    uint64_t word = 0;
    for (size_t i = 0; i < size; ++i) word = word << 8 | bytes[i];
    int bits = static_cast<int>(size) * 8;
    for (; bits >= 5; bits -= 5) *at++ = alphabet[word >> (bits - 5) & 31];
    if (bits > 0) *at = alphabet[word << (5 - bits) & 31];
}

/// Exactly `size` bytes, with zero bits in the padding: one text for one id.
bool parse_base32(std::string_view text, uint8_t* bytes, size_t size) {
    if (text.size() != (size * 8 + 4) / 5) return false;
    uint32_t buffer = 0;
    int bits = 0;
    size_t at = 0;
    for (char c : text) {
        uint32_t digit;
        if (c >= 'a' && c <= 'z')
            digit = static_cast<uint32_t>(c - 'a');
        else if (c >= '2' && c <= '7')
            digit = static_cast<uint32_t>(c - '2') + 26;
        else
            return false;
        buffer = (buffer << 5) | digit;
        bits += 5;
        if (bits >= 8) {
            bits -= 8;
            bytes[at++] = static_cast<uint8_t>(buffer >> bits);
        }
        buffer &= (1u << bits) - 1;
    }
    return at == size && buffer == 0;
}

template <class T>
uint8_t* put_be(uint8_t* at, T value) {
    for (int shift = static_cast<int>(sizeof(T) * 8) - 8; shift >= 0; shift -= 8)
        *at++ = static_cast<uint8_t>(value >> shift);
    return at;
}

template <class T>
const uint8_t* get_be(const uint8_t* at, T& value) {
    value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>((uint64_t(value) << 8) | *at++);
    return at;
}

constexpr size_t session_bytes = 24, response_bytes = 28, item_bytes = 30;

uint8_t* put(uint8_t* at, const SessionId& id) {
    at = put_be(at, id.family.value);
    at = put_be(at, id.high);
    return put_be(at, id.low);
}

const uint8_t* get(const uint8_t* at, SessionId& id) {
    at = get_be(at, id.family.value);
    at = get_be(at, id.high);
    return get_be(at, id.low);
}

bool strip(std::string_view& text, std::string_view prefix) {
    if (!text.starts_with(prefix)) return false;
    text.remove_prefix(prefix.size());
    return true;
}

}  // namespace

void append_text(std::string& out, const SessionId& id) {
    uint8_t bytes[session_bytes];
    put(bytes, id);
    out += "conv_";
    append_base32(out, bytes, sizeof bytes);
}

void append_text(std::string& out, const ResponseId& id) {
    uint8_t bytes[response_bytes];
    put_be(put(bytes, id.session), id.turn.value);
    out += "resp_";
    append_base32(out, bytes, sizeof bytes);
}

void append_text(std::string& out, const ItemId& id, std::string_view prefix) {
    uint8_t bytes[item_bytes];
    put_be(put_be(put(bytes, id.session), id.turn.value), id.index);
    out += prefix;
    out += '_';
    append_base32(out, bytes, sizeof bytes);
}

std::string to_text(const SessionId& id) {
    std::string out;
    append_text(out, id);
    return out;
}

std::string to_text(const ResponseId& id) {
    std::string out;
    append_text(out, id);
    return out;
}

std::string to_text(const ItemId& id, std::string_view prefix) {
    std::string out;
    append_text(out, id, prefix);
    return out;
}

std::optional<SessionId> parse_session_id(std::string_view text) {
    uint8_t bytes[session_bytes];
    if (!strip(text, "conv_") || !parse_base32(text, bytes, sizeof bytes)) return std::nullopt;
    SessionId id;
    get(bytes, id);
    if (!id.valid()) return std::nullopt;
    return id;
}

std::optional<ResponseId> parse_response_id(std::string_view text) {
    uint8_t bytes[response_bytes];
    if (!strip(text, "resp_") || !parse_base32(text, bytes, sizeof bytes)) return std::nullopt;
    ResponseId id;
    get_be(get(bytes, id.session), id.turn.value);
    if (!id.session.valid() || id.turn.value == 0) return std::nullopt;
    return id;
}

std::optional<ItemId> parse_item_id(std::string_view text) {
    const auto underscore = text.find('_');
    if (underscore == std::string_view::npos || underscore == 0 || underscore > 8) return std::nullopt;
    for (char c : text.substr(0, underscore))
        if (c < 'a' || c > 'z') return std::nullopt;
    text.remove_prefix(underscore + 1);
    uint8_t bytes[item_bytes];
    if (!parse_base32(text, bytes, sizeof bytes)) return std::nullopt;
    ItemId id;
    get_be(get_be(get(bytes, id.session), id.turn.value), id.index);
    if (!id.session.valid()) return std::nullopt;
    return id;
}

ShardId shard_of(TenantId tenant, FamilyId family, uint16_t shard_count) {
    char bytes[12];
    std::memcpy(bytes, &tenant.value, 4);
    std::memcpy(bytes + 4, &family.value, 8);
    return ShardId{static_cast<uint16_t>(xxh64({bytes, sizeof bytes}) % shard_count)};
}

ShardId shard_of(const SessionKey& key, uint16_t shard_count) {
    const FamilyId family = key.session.valid() ? key.session.family : FamilyId{key.session.high};
    return shard_of(key.tenant, family, shard_count);
}

}  // namespace mainstay
