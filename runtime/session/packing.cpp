#include "runtime/session/packing.h"

#include <bit>
#include <cstring>

namespace mainstay {
namespace {

static_assert(std::endian::native == std::endian::little, "words are used as they lie in memory");

// One bit for each byte that is not zero, the lowest byte first.
uint8_t tag_of(uint64_t word) {
    const uint64_t high = (((word & 0x7f7f7f7f7f7f7f7f) + 0x7f7f7f7f7f7f7f7f) | word) & 0x8080808080808080;
    return static_cast<uint8_t>(((high >> 7) * 0x0102040810204080) >> 56);
}

}  // namespace

size_t pack_words(const uint64_t* words, size_t count, char* out) {
    char* const begin = out;
    for (size_t i = 0; i < count;) {
        const uint64_t word = words[i++];
        const uint8_t tag = tag_of(word);
        *out++ = static_cast<char>(tag);
        if (tag == 0) {
            size_t run = 0;
            while (run < 255 && i < count && words[i] == 0) ++run, ++i;
            *out++ = static_cast<char>(run);
        } else if (tag == 0xff) {
            std::memcpy(out, &word, 8);
            out += 8;
            // A word with one zero byte costs as much packed as not: the run goes on.
            size_t run = 0;
            while (run < 255 && i + run < count && std::popcount(tag_of(words[i + run])) >= 7) ++run;
            *out++ = static_cast<char>(run);
            std::memcpy(out, words + i, run * 8);
            out += run * 8;
            i += run;
        } else {
            for (uint8_t bits = tag; bits != 0; bits = static_cast<uint8_t>(bits & (bits - 1)))
                *out++ = static_cast<char>(word >> (8 * std::countr_zero(bits)));
        }
    }
    return static_cast<size_t>(out - begin);
}

std::optional<size_t> unpacked_words(std::string_view packed) {
    size_t words = 0;
    for (size_t at = 0; at < packed.size();) {
        const auto tag = static_cast<uint8_t>(packed[at++]);
        at += static_cast<size_t>(std::popcount(tag));
        ++words;
        if (tag != 0 && tag != 0xff) {
            if (at > packed.size()) return std::nullopt;
            continue;
        }
        if (at >= packed.size()) return std::nullopt;
        const auto run = static_cast<uint8_t>(packed[at++]);
        words += run;
        if (tag == 0xff) at += size_t{run} * 8;
        if (at > packed.size()) return std::nullopt;
    }
    return words;
}

void unpack_words(std::string_view packed, uint64_t* out) {
    const char* in = packed.data();
    const char* const end = in + packed.size();
    while (in < end) {
        const auto tag = static_cast<uint8_t>(*in++);
        if (tag == 0xff) {
            std::memcpy(out++, in, 8);
            in += 8;
            const size_t run = static_cast<uint8_t>(*in++);
            std::memcpy(out, in, run * 8);
            out += run;
            in += run * 8;
        } else if (tag == 0) {
            const size_t zeros = size_t{1} + static_cast<uint8_t>(*in++);
            std::memset(out, 0, zeros * 8);
            out += zeros;
        } else {
            uint64_t word = 0;
            for (uint8_t bits = tag; bits != 0; bits = static_cast<uint8_t>(bits & (bits - 1)))
                word |= uint64_t{static_cast<uint8_t>(*in++)} << (8 * std::countr_zero(bits));
            *out++ = word;
        }
    }
}

}  // namespace mainstay
