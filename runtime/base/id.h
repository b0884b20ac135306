#pragma once
// Strong ids and their text forms. A response id and an item id contain the session, the turn and the position, so an
// id alone finds its owner and no index is kept. Text: a prefix, then lower-case base32 (RFC 4648 alphabet, unpadded)
// of the big-endian bytes. Text never contains a tenant: an id of another tenant is simply not found.

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace mainstay {

template <class Tag, class Raw>
struct StrongId {
    Raw value{};
    constexpr StrongId() = default;
    constexpr explicit StrongId(Raw raw) : value(raw) {}
    friend constexpr auto operator<=>(const StrongId&, const StrongId&) = default;
};

using TenantId = StrongId<struct TenantTag, uint32_t>;
using FamilyId = StrongId<struct FamilyTag, uint64_t>;  // 42 bits of milliseconds, 22 random: new ones sort last
using ShardId = StrongId<struct ShardTag, uint16_t>;
using Epoch = StrongId<struct EpochTag, uint64_t>;
using Sequence = StrongId<struct SequenceTag, uint64_t>;  // of an event within its session, from 1
using TurnNo = StrongId<struct TurnTag, uint32_t>;        // of a turn within its session, from 1; 0: no turn
using Lsn = StrongId<struct LsnTag, uint64_t>;            // byte position in the journal of a partition

struct SessionId {
    FamilyId family;
    uint64_t high = 0, low = 0;  // 128 random bits
    friend constexpr auto operator<=>(const SessionId&, const SessionId&) = default;
    bool valid() const { return family.value != 0; }
};

/// What every queue, table and record is keyed by: a session id is only ever looked up under a tenant.
struct SessionKey {
    TenantId tenant;
    SessionId session;
    friend constexpr auto operator<=>(const SessionKey&, const SessionKey&) = default;
};

struct ResponseId {
    SessionId session;
    TurnNo turn;
    friend constexpr auto operator<=>(const ResponseId&, const ResponseId&) = default;
};

struct ItemId {
    SessionId session;
    TurnNo turn;
    uint16_t index = 0;  // within the turn: inputs first, then outputs in order
    friend constexpr auto operator<=>(const ItemId&, const ItemId&) = default;
};

std::string to_text(const SessionId& id);                          // conv_...  39 characters after the prefix
std::string to_text(const ResponseId& id);                         // resp_...
std::string to_text(const ItemId& id, std::string_view prefix);    // msg_... fc_... mcp_... (prefix without underscore)
std::optional<SessionId> parse_session_id(std::string_view text);  // accepts only conv_
std::optional<ResponseId> parse_response_id(std::string_view text);  // accepts only resp_
std::optional<ItemId> parse_item_id(std::string_view text);          // accepts any prefix of lower-case letters

/// Appends to `out` without a temporary (the answer path renders several ids a turn).
void append_text(std::string& out, const SessionId& id);
void append_text(std::string& out, const ResponseId& id);
void append_text(std::string& out, const ItemId& id, std::string_view prefix);

constexpr uint16_t shard_count_default = 1024;
/// Shard = hash(tenant, family) (xxHash64 of the 12 little-endian bytes, seed 0) modulo the shard count.
ShardId shard_of(TenantId tenant, FamilyId family, uint16_t shard_count = shard_count_default);
/// The same of a key. An entity that stands by itself (family 0: a user's memory) has its owner's digest in `high`, and
/// that is hashed in the family's place.
ShardId shard_of(const SessionKey& key, uint16_t shard_count = shard_count_default);

/// 16 bytes of BLAKE2b over an idempotency key and its scope.
using KeyHash = std::array<uint8_t, 16>;

}  // namespace mainstay

template <>
struct std::hash<mainstay::SessionKey> {
    // The 128 bits are random, so any of them are a hash.
    size_t operator()(const mainstay::SessionKey& k) const noexcept {
        return k.session.low ^ (size_t(k.tenant.value) << 32);
    }
};
template <class Tag, class Raw>
struct std::hash<mainstay::StrongId<Tag, Raw>> {
    size_t operator()(const mainstay::StrongId<Tag, Raw>& id) const noexcept { return std::hash<Raw>{}(id.value); }
};
