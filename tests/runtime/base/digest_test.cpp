#include "runtime/base/digest.h"

#include <doctest/doctest.h>

#include "runtime/base/random.h"

using namespace mainstay;

TEST_CASE("digest: crc32c of the vectors of RFC 3720, B.4") {
    CHECK(crc32c("") == 0);
    CHECK(crc32c("123456789") == 0xe3069283u);
    CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aau);
    CHECK(crc32c(std::string(32, '\xff')) == 0x62a8ab43u);
    std::string up, down;
    for (int i = 0; i < 32; ++i) up += static_cast<char>(i);
    for (int i = 31; i >= 0; --i) down += static_cast<char>(i);
    CHECK(crc32c(up) == 0x46dd794eu);
    CHECK(crc32c(down) == 0x113fdb5cu);
}

TEST_CASE("digest: crc32c goes on where it was, at any length and alignment") {
    SeededRandom random(7);
    std::string bytes;
    for (int i = 0; i < 300; ++i) bytes += static_cast<char>(random.next());
    // The definition, bit by bit.
    const auto slow = [](std::string_view text) {
        uint32_t crc = 0xffffffff;
        for (const char c : text) {
            crc ^= static_cast<uint8_t>(c);
            for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
        }
        return ~crc;
    };
    for (size_t from = 0; from < 17; ++from)
        for (size_t length = 0; from + length <= bytes.size(); length += 1 + length / 5) {
            const std::string_view part = std::string_view(bytes).substr(from, length);
            REQUIRE(crc32c(part) == slow(part));
            const size_t cut = length / 3;
            REQUIRE(crc32c(part.substr(cut), crc32c(part.substr(0, cut))) == slow(part));
        }
}

TEST_CASE("digest: names of things are fixed, they are on disks") {
    // xxHash's own vectors; BLAKE2b with an output of 16 bytes, first 8 little-endian, from another implementation.
    CHECK(xxh64("") == 0xef46db3751d8e999ull);
    CHECK(xxh64("abc") == 0x44bc2cf5ad770999ull);
    CHECK(digest64("") == 0x40bdefd94169e6caull);
    CHECK(digest64("abc") == 0x2b8d2bc691b74acfull);
}

TEST_CASE("digest: a key of one scope is not a key of another") {
    CHECK(key_hash("a", "bc") == key_hash("a", "bc"));
    CHECK(key_hash("a", "bc") != key_hash("ab", "c"));
    CHECK(key_hash("", "abc") != key_hash("abc", ""));
    CHECK(key_hash("a", "b") != key_hash("b", "a"));
}

TEST_CASE("digest: hex is lower-case and keeps leading zeros") {
    CHECK(to_hex(std::string("\x00\x0f\xff", 3)) == "000fff");
    CHECK(to_hex("").empty());
}
