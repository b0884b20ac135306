#pragma once
// The 16 bytes of a node's, disk's or cluster's id as Cap'n Proto has them: two numbers, the first of them the first
// eight bytes, big-endian. Pure functions.

#include <array>
#include <cstdint>

namespace mainstay {

template <class Builder>
void write_uuid(Builder to, const std::array<uint8_t, 16>& uuid) {
    uint64_t half[2] = {};
    for (size_t i = 0; i < 16; ++i) half[i / 8] = half[i / 8] << 8 | uuid[i];
    to.setHigh(half[0]);
    to.setLow(half[1]);
}

template <class Reader>
std::array<uint8_t, 16> read_uuid(Reader from) {
    const uint64_t half[2] = {from.getHigh(), from.getLow()};
    std::array<uint8_t, 16> uuid;
    for (size_t i = 0; i < 16; ++i) uuid[i] = uint8_t(half[i / 8] >> (56 - 8 * (i % 8)));
    return uuid;
}

}  // namespace mainstay
