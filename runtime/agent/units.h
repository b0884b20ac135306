#pragma once
// Durations and sizes as people write them: "10s", "128KB" (but not "1m30s"). One number, one unit, so that
// a reader never has to add. Pure; the text forms are stable because they are part of an agent's canonical JSON.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mainstay {

/// Units ms, s, m, h, d. Nothing for anything else, or beyond 100 years.
std::optional<uint64_t> parse_duration_ms(std::string_view text);
/// The largest unit that divides without rest: 60000 is "1m", 1500 is "1500ms", 0 is "0ms".
std::string format_duration_ms(uint64_t milliseconds);

/// Units B, KB, MB, GB, TB, powers of 1024. Nothing for anything else, or beyond 2^50.
std::optional<uint64_t> parse_size_bytes(std::string_view text);
std::string format_size_bytes(uint64_t bytes);

}  // namespace mainstay
