#include "runtime/base/random.h"

#include <sodium.h>

#include "runtime/base/invariant.h"

namespace mainstay {

__extension__ using Wide = unsigned __int128;

uint64_t Random::below(uint64_t bound) {
    INVARIANT(bound > 0, "an empty range has no element");
    return static_cast<uint64_t>((static_cast<Wide>(next()) * bound) >> 64);
}

uint64_t SecureRandom::next() {
    thread_local uint64_t block[64];
    thread_local unsigned left = 0;
    if (left == 0) {
        randombytes_buf(block, sizeof block);
        left = 64;
    }
    const uint64_t value = block[--left];
    block[left] = 0;  // a later memory disclosure must not reveal ids already handed out
    return value;
}

uint64_t SeededRandom::next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

SessionId make_session_id(Random& random, TimeMs now) {
    const uint64_t family = (now << 22) | (random.next() & ((1ull << 22) - 1));
    return {FamilyId{family}, random.next(), random.next()};
}

SessionId make_fork_id(Random& random, FamilyId family) { return {family, random.next(), random.next()}; }

}  // namespace mainstay
