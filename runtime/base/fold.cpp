#include "runtime/base/fold.h"

#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

template <class T>
void append_be(std::string& out, T value) {
    for (int shift = static_cast<int>(sizeof(T) * 8) - 8; shift >= 0; shift -= 8)
        out.push_back(static_cast<char>(value >> shift));
}

uint64_t be(std::string_view bytes) {
    uint64_t value = 0;
    for (unsigned char c : bytes) value = (value << 8) | c;
    return value;
}

void append_session(std::string& out, const SessionKey& key, uint16_t shard_count) {
    append_be(out, shard_of(key, shard_count).value);
    append_be(out, uint16_t{0});
    append_be(out, key.tenant.value);
    append_be(out, key.session.family.value);
    append_be(out, key.session.high);
    append_be(out, key.session.low);
}

}  // namespace

std::string session_row_key(const SessionKey& key, uint16_t shard_count) {
    std::string out;
    out.reserve(32);
    append_session(out, key, shard_count);
    return out;
}

std::string turn_row_key(const SessionKey& key, TurnNo turn, uint16_t shard_count) {
    std::string out;
    out.reserve(40);
    append_session(out, key, shard_count);
    append_be(out, uint64_t{turn.value});
    return out;
}

std::string key_row_key(const SessionKey& key, const KeyHash& hash, uint16_t shard_count) {
    std::string out;
    out.reserve(48);
    append_session(out, key, shard_count);
    out.append(reinterpret_cast<const char*>(hash.data()), hash.size());
    return out;
}

std::string memory_row_key(const SessionKey& key, uint16_t shard_count) {
    std::string out;
    out.reserve(24);
    append_be(out, shard_of(key, shard_count).value);
    append_be(out, uint16_t{0});
    append_be(out, key.tenant.value);
    append_be(out, key.session.high);
    append_be(out, key.session.low);
    return out;
}

std::string due_row_key(TimeMs due, const SessionKey& key, uint16_t shard_count) {
    std::string out;
    out.reserve(40);
    append_be(out, due);
    append_session(out, key, shard_count);
    return out;
}

std::optional<SessionKey> parse_session_row_key(std::string_view row_key) {
    if (row_key.size() < 32) return std::nullopt;
    SessionKey key;
    key.tenant = TenantId{static_cast<uint32_t>(be(row_key.substr(4, 4)))};
    key.session.family = FamilyId{be(row_key.substr(8, 8))};
    key.session.high = be(row_key.substr(16, 8));
    key.session.low = be(row_key.substr(24, 8));
    return key;
}

TurnNo turn_of_row_key(std::string_view row_key) {
    INVARIANT(row_key.size() == 40, "a turn row key has 40 bytes");
    return TurnNo{static_cast<uint32_t>(be(row_key.substr(32, 8)))};
}

}  // namespace mainstay
