#include "runtime/base/log.h"

#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <array>
#include <ctime>

namespace mainstay {
namespace {

constexpr char hex[] = "0123456789abcdef";

/// Length of the UTF-8 sequence at `at`, 0 if there is none (RFC 3629; overlong and surrogate forms are none).
size_t sequence_length(std::string_view text, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
    const uint8_t lead = byte(0);
    const size_t length = lead < 0x80                   ? 1
                          : lead >= 0xc2 && lead < 0xe0 ? 2
                          : lead >> 4 == 14             ? 3
                          : lead >= 0xf0 && lead < 0xf5 ? 4
                                                        : 0;
    if (length == 0 || at + length > text.size()) return 0;
    for (size_t i = 1; i < length; ++i)
        if (byte(i) >> 6 != 2) return 0;
    if (length == 3 && ((lead == 0xe0 && byte(1) < 0xa0) || (lead == 0xed && byte(1) >= 0xa0))) return 0;
    if (length == 4 && ((lead == 0xf0 && byte(1) < 0x90) || (lead == 0xf4 && byte(1) >= 0x90))) return 0;
    return length;
}

/// Escapes as JSON does; quotes and backslashes only where `json`.
void append_line(std::string& out, std::string_view text, bool json) {
    for (size_t at = 0; at < text.size();) {
        const auto byte = static_cast<uint8_t>(text[at]);
        if (json && (byte == '"' || byte == '\\')) {
            out += '\\';
            out += text[at++];
        } else if (byte == '\n') {
            out += "\\n";
            ++at;
        } else if (byte < 0x20 || byte == 0x7f) {
            out += "\\u00";
            out += hex[byte >> 4];
            out += hex[byte & 15];
            ++at;
        } else if (const size_t length = sequence_length(text, at)) {
            out += text.substr(at, length);
            at += length;
        } else {
            out += "\xef\xbf\xbd";  // U+FFFD
            ++at;
        }
    }
}

void append_time(std::string& out, spdlog::log_clock::time_point time) {
    const auto since = std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
    const auto seconds = static_cast<std::time_t>(since / 1000);
    std::tm parts{};
    ::gmtime_r(&seconds, &parts);
    char text[40];
    const size_t used = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
    out.append(text, used);
    std::snprintf(text, sizeof text, ".%03dZ", static_cast<int>(since % 1000));
    out += text;
}

class LineFormatter final : public spdlog::formatter {
  public:
    explicit LineFormatter(bool json) : json_(json) {}

    void format(const spdlog::details::log_msg& entry, spdlog::memory_buf_t& dest) override {
        std::string line = json_ ? "{\"time\":\"" : "";
        append_time(line, entry.time);
        const auto level = spdlog::level::to_string_view(entry.level);
        line += json_ ? "\",\"level\":\"" : " ";
        line.append(level.data(), level.size());
        line += json_ ? "\",\"message\":\"" : " ";
        append_line(line, mask_secrets({entry.payload.data(), entry.payload.size()}), json_);
        line += json_ ? "\"}\n" : "\n";
        dest.append(line.data(), line.data() + line.size());
    }
    std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<LineFormatter>(json_); }

  private:
    const bool json_;
};

bool is_secret_character(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("-_.~+/=").find(c) != std::string_view::npos;
}

bool is_word_character(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }

}  // namespace

std::string mask_secrets(std::string_view text) {
    constexpr std::array<std::string_view, 6> marks = {"Bearer ", "bearer ", "Basic ", "basic ", "msk_", "sk-"};
    std::string out;
    for (size_t at = 0; at < text.size();) {
        size_t mark = 0;
        if (at == 0 || !is_word_character(text[at - 1]))
            for (const auto word : marks)
                if (text.substr(at).starts_with(word)) mark = word.size();
        if (mark == 0) {
            out += text[at++];
            continue;
        }
        size_t end = at + mark;
        while (end < text.size() && is_secret_character(text[end])) ++end;
        out += text.substr(at, mark);
        // A word of prose ("basic setup", "bearer of") is no credential: those are longer.
        constexpr size_t secret_bytes_min = 8;
        out += end - at - mark >= secret_bytes_min ? std::string_view("***") : text.substr(at + mark, end - at - mark);
        at = end;
    }
    return out;
}

std::unique_ptr<spdlog::formatter> make_log_formatter(bool json) { return std::make_unique<LineFormatter>(json); }

void init_log(std::string_view level, bool json) {
    auto logger = std::make_shared<spdlog::logger>("mainstay", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    logger->set_formatter(make_log_formatter(json));
    auto parsed = spdlog::level::from_str(std::string(level));
    if (parsed == spdlog::level::off && level != "off") parsed = spdlog::level::info;
    logger->set_level(parsed);
    logger->flush_on(spdlog::level::trace);  // a crash must not keep its last words
    spdlog::set_default_logger(std::move(logger));
}

}  // namespace mainstay
