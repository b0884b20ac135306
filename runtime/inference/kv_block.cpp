#include "runtime/inference/kv_block.h"

#include <cstring>

#include "runtime/base/digest.h"

namespace mainstay {

namespace {

// Offsets in the header, little-endian.
constexpr char magic[8] = {'M', 'S', 'K', 'V', 'B', 'L', 'K', '1'};
constexpr size_t checksum_at = 8;   // of everything from byte 12 on
constexpr size_t tokens_at = 12;    // u32
constexpr size_t payload_at = 16;   // u64 bytes
constexpr size_t identity_at = 24;  // 16 bytes; the rest is zero
constexpr size_t identity_bytes = 16;

template <class T>
void put(std::string& out, size_t at, T value) {
    for (size_t i = 0; i < sizeof(T); ++i) out[at + i] = char(uint64_t(value) >> (8 * i));
}

template <class T>
T get(std::string_view in, size_t at) {
    uint64_t value = 0;
    for (size_t i = sizeof(T); i-- > 0;) value = value << 8 | uint8_t(in[at + i]);
    return T(value);
}

DeviceError bad_bytes(std::string why) {
    return {DeviceAction::fail_request, DeviceFault::bad_bytes, "KV block: " + std::move(why), std::nullopt, 0};
}

}  // namespace

std::string kv_block_identity(std::string_view model_hash, std::string_view kv_format) {
    const KeyHash hash = key_hash("kv", std::string(model_hash) + " " + std::string(kv_format));
    return {reinterpret_cast<const char*>(hash.data()), hash.size()};
}

void seal_kv_block(std::string& bytes, std::string_view identity, uint32_t tokens) {
    INVARIANT(bytes.size() >= kv_block_header_bytes, "room for the header of a KV block");
    INVARIANT(identity.size() == identity_bytes, "an identity is 16 bytes");
    std::memset(bytes.data(), 0, kv_block_header_bytes);
    std::memcpy(bytes.data(), magic, sizeof(magic));
    put<uint32_t>(bytes, tokens_at, tokens);
    put<uint64_t>(bytes, payload_at, bytes.size() - kv_block_header_bytes);
    std::memcpy(bytes.data() + identity_at, identity.data(), identity.size());
    put<uint32_t>(bytes, checksum_at, crc32c(std::string_view(bytes).substr(tokens_at)));
}

DeviceResult<uint32_t> open_kv_block(std::string_view bytes, std::string_view identity, uint32_t block_tokens,
                                     size_t payload_bytes) {
    if (bytes.size() != kv_block_header_bytes + payload_bytes)
        return bad_bytes(std::to_string(bytes.size()) + " bytes, not " +
                         std::to_string(kv_block_header_bytes + payload_bytes));
    if (std::memcmp(bytes.data(), magic, sizeof(magic)) != 0) return bad_bytes("not a KV block of this version");
    if (get<uint32_t>(bytes, checksum_at) != crc32c(bytes.substr(tokens_at)))
        return bad_bytes("damaged: the checksum differs");
    if (bytes.substr(identity_at, identity_bytes) != identity) return bad_bytes("of another model, kernel or shape");
    const uint32_t tokens = get<uint32_t>(bytes, tokens_at);
    if (tokens < 1 || tokens > block_tokens || get<uint64_t>(bytes, payload_at) != payload_bytes)
        return bad_bytes("its token count or size does not fit");
    return tokens;
}

}  // namespace mainstay
