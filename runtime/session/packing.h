#pragma once
// Cap'n Proto's packed encoding of whole words (its "Serialization" page, section Packing), between memory and memory.
// The library's own packs through streams, a byte at a time, and took most of the time of a decision.
//
// A word becomes a tag, one bit for each byte that is not zero, and those bytes. Tag 0x00 is followed by the number of
// further zero words, tag 0xff by the number of further words that follow as they are. Thread-safe: no state.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace mainstay {

/// Bytes that `words` words may need at most.
constexpr size_t packed_size_max(size_t words) { return words * 10; }
/// Packs into `out` (of packed_size_max) and returns the bytes used.
size_t pack_words(const uint64_t* words, size_t count, char* out);
/// Words that these packed bytes stand for; nothing if they end in the middle.
std::optional<size_t> unpacked_words(std::string_view packed);
/// Precondition: `out` has room for unpacked_words(packed), which is not empty.
void unpack_words(std::string_view packed, uint64_t* out);

}  // namespace mainstay
