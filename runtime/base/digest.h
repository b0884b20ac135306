#pragma once
// Checksums and digests. crc32c guards records and rows (Castagnoli polynomial, reflected, initial and final value
// 0xffffffff, as in RFC 3720); BLAKE2b (libsodium) names things; xxHash64 is for hashing that need not resist anyone.

#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/base/id.h"

namespace mainstay {

/// SSE4.2 where the CPU has it, a table otherwise. `seed` is the crc of what came before (0 at the start).
uint32_t crc32c(std::string_view bytes, uint32_t seed = 0);
uint64_t xxh64(std::string_view bytes, uint64_t seed = 0);
/// First 16 bytes of BLAKE2b-256 over length-prefixed scope and key.
KeyHash key_hash(std::string_view scope, std::string_view key);
/// BLAKE2b truncated to 8 bytes, little-endian.
uint64_t digest64(std::string_view bytes);
std::string to_hex(std::string_view bytes);

}  // namespace mainstay
