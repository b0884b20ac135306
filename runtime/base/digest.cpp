#include "runtime/base/digest.h"

#include <sodium.h>
#include <xxhash.h>

#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace mainstay {
namespace {

struct Crc32cTable {
    uint32_t at[256];
    constexpr Crc32cTable() : at() {
        for (uint32_t i = 0; i < 256; ++i) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (0x82f63b78u & (0u - (c & 1)));
            at[i] = c;
        }
    }
};
constexpr Crc32cTable crc_table;

uint32_t crc32c_portable(const uint8_t* p, size_t n, uint32_t crc) {
    for (size_t i = 0; i < n; ++i) crc = (crc >> 8) ^ crc_table.at[(crc ^ p[i]) & 0xff];
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(const uint8_t* p, size_t n, uint32_t crc) {
    uint64_t c = crc;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        std::memcpy(&word, p, 8);
        c = _mm_crc32_u64(c, word);
    }
    for (; n > 0; --n, ++p) c = _mm_crc32_u8(static_cast<uint32_t>(c), *p);
    return static_cast<uint32_t>(c);
}
const bool have_sse42 = __builtin_cpu_supports("sse4.2");
#endif

}  // namespace

uint32_t crc32c(std::string_view bytes, uint32_t seed) {
    const auto* p = reinterpret_cast<const uint8_t*>(bytes.data());
#if defined(__x86_64__)
    if (have_sse42) return ~crc32c_sse42(p, bytes.size(), ~seed);
#endif
    return ~crc32c_portable(p, bytes.size(), ~seed);
}

uint64_t xxh64(std::string_view bytes, uint64_t seed) { return XXH64(bytes.data(), bytes.size(), seed); }

KeyHash key_hash(std::string_view scope, std::string_view key) {
    crypto_generichash_state state;
    crypto_generichash_init(&state, nullptr, 0, 32);
    const uint64_t length = scope.size();
    crypto_generichash_update(&state, reinterpret_cast<const uint8_t*>(&length), sizeof length);
    crypto_generichash_update(&state, reinterpret_cast<const uint8_t*>(scope.data()), scope.size());
    crypto_generichash_update(&state, reinterpret_cast<const uint8_t*>(key.data()), key.size());
    uint8_t out[32];
    crypto_generichash_final(&state, out, sizeof out);
    KeyHash hash;
    std::memcpy(hash.data(), out, hash.size());
    return hash;
}

uint64_t digest64(std::string_view bytes) {
    uint8_t out[16];
    crypto_generichash(out, sizeof out, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), nullptr, 0);
    uint64_t value;
    std::memcpy(&value, out, sizeof value);
    return value;
}

std::string to_hex(std::string_view bytes) {
    static const char digits[] = "0123456789abcdef";
    std::string out;
    out.reserve(bytes.size() * 2);
    for (unsigned char c : bytes) {
        out.push_back(digits[c >> 4]);
        out.push_back(digits[c & 15]);
    }
    return out;
}

}  // namespace mainstay
