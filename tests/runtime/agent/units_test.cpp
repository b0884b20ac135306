#include "runtime/agent/units.h"

#include <doctest/doctest.h>

using namespace mainstay;

TEST_CASE("units: durations have one number and one unit") {
    CHECK(parse_duration_ms("500ms") == 500);
    CHECK(parse_duration_ms("10s") == 10'000);
    CHECK(parse_duration_ms("2m") == 120'000);
    CHECK(parse_duration_ms("1h") == 3'600'000);
    CHECK(parse_duration_ms("3d") == 259'200'000);
    for (const auto* text : {"", "s", "10", "10 s", "1m30s", "-1s", "1.5s", "10S", "36601d", "99999999999999999999s",
                             "18446744073709551615d", "1e3s", "+1s"})
        CHECK_FALSE(parse_duration_ms(text).has_value());
}

TEST_CASE("units: sizes are powers of 1024") {
    CHECK(parse_size_bytes("7B") == 7);
    CHECK(parse_size_bytes("8KB") == 8192);
    CHECK(parse_size_bytes("64MB") == 67'108'864);
    CHECK(parse_size_bytes("1TB") == 1ull << 40);
    for (const auto* text : {"", "8", "8kb", "8 KB", "8KiB", "-1B", "1025TB", "18446744073709551615TB"})
        CHECK_FALSE(parse_size_bytes(text).has_value());
}

TEST_CASE("units: what is written is read again") {
    for (const uint64_t value :
         {0ull, 1ull, 999ull, 1000ull, 1024ull, 60'000ull, 61'000ull, 86'400'000ull, 1ull << 40}) {
        CHECK(parse_duration_ms(format_duration_ms(value)) == value);
        CHECK(parse_size_bytes(format_size_bytes(value)) == value);
    }
    CHECK(format_duration_ms(60'000) == "1m");
    CHECK(format_duration_ms(0) == "0ms");
    CHECK(format_size_bytes(131'072) == "128KB");
}
