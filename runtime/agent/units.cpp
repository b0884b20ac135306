#include "runtime/agent/units.h"

#include <charconv>
#include <iterator>

namespace mainstay {
namespace {

struct Unit {
    std::string_view word;
    uint64_t factor;
};
// Largest first: the writer takes the first that divides.
constexpr Unit durations[] = {{"d", 86'400'000}, {"h", 3'600'000}, {"m", 60'000}, {"s", 1000}, {"ms", 1}};
constexpr Unit sizes[] = {{"TB", 1ull << 40}, {"GB", 1ull << 30}, {"MB", 1ull << 20}, {"KB", 1ull << 10}, {"B", 1}};
constexpr uint64_t duration_max = 100ull * 366 * 86'400'000;
constexpr uint64_t size_max = 1ull << 50;

template <size_t N>
std::optional<uint64_t> parse(std::string_view text, const Unit (&units)[N], uint64_t max) {
    uint64_t number = 0;
    const auto [rest, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (failure != std::errc{}) return std::nullopt;
    const std::string_view word = text.substr(static_cast<size_t>(rest - text.data()));
    for (const auto& unit : units)
        if (word == unit.word) return number <= max / unit.factor ? std::optional(number * unit.factor) : std::nullopt;
    return std::nullopt;
}

template <size_t N>
std::string format(uint64_t number, const Unit (&units)[N]) {
    const Unit* unit = &units[N - 1];
    for (const auto& larger : units) {
        if (number == 0 || number % larger.factor != 0) continue;
        unit = &larger;
        break;
    }
    return std::to_string(number / unit->factor) + std::string(unit->word);
}

}  // namespace

std::optional<uint64_t> parse_duration_ms(std::string_view text) { return parse(text, durations, duration_max); }
std::string format_duration_ms(uint64_t milliseconds) { return format(milliseconds, durations); }
std::optional<uint64_t> parse_size_bytes(std::string_view text) { return parse(text, sizes, size_max); }
std::string format_size_bytes(uint64_t bytes) { return format(bytes, sizes); }

}  // namespace mainstay
