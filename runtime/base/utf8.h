#pragma once
// Reading UTF-8 that may be broken (RFC 3629): what comes from outside is refused or mended by one rule, the tokenizer
// must take any bytes, and text that is cut must never end in the middle of a character. Pure; any thread.

#include <cstddef>
#include <string>
#include <string_view>

namespace mainstay {

inline constexpr std::string_view utf8_replacement = "\xef\xbf\xbd";  // U+FFFD

struct Utf8Step {
    char32_t point = 0;  // U+FFFD where the bytes are no character
    size_t bytes = 1;    // taken; 1 where they are none
    bool valid = false;
    bool cut = false;  // no character yet: more bytes could make these one
};

/// The character at the front of `text`, which is not empty.
inline Utf8Step utf8_next(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char lead = byte(0);
    if (lead < 0x80) return {lead, 1, true, false};
    size_t length = 0;
    unsigned char low = 0x80, high = 0xbf;  // of the second byte
    if (lead >= 0xc2 && lead <= 0xdf) {
        length = 2;
    } else if (lead >= 0xe0 && lead <= 0xef) {
        length = 3;
        if (lead == 0xe0) low = 0xa0;
        if (lead == 0xed) high = 0x9f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
        length = 4;
        if (lead == 0xf0) low = 0x90;
        if (lead == 0xf4) high = 0x8f;
    } else {
        return {0xfffd, 1, false, false};
    }
    char32_t point = lead & (0xff >> (length + 1));
    for (size_t i = 1; i < length; ++i) {
        if (i == text.size()) return {0xfffd, 1, false, true};
        if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xbf)) return {0xfffd, 1, false, false};
        point = point << 6 | (byte(i) & 0x3f);
    }
    return {point, length, true, false};
}

inline bool is_valid_utf8(std::string_view text) {
    while (!text.empty()) {
        const Utf8Step step = utf8_next(text);
        if (!step.valid) return false;
        text.remove_prefix(step.bytes);
    }
    return true;
}

/// Where `text` may be cut so that at most `bytes` of it stay: the start of the character that lies there, or its end.
inline size_t utf8_floor(std::string_view text, size_t bytes) {
    if (bytes >= text.size()) return text.size();
    while (bytes > 0 && (static_cast<unsigned char>(text[bytes]) & 0xc0) == 0x80) --bytes;
    return bytes;
}

inline void utf8_append(std::string& out, char32_t point) {
    if (point < 0x80) {
        out += static_cast<char>(point);
    } else if (point < 0x800) {
        out += static_cast<char>(0xc0 | point >> 6);
        out += static_cast<char>(0x80 | (point & 0x3f));
    } else if (point < 0x10000) {
        out += static_cast<char>(0xe0 | point >> 12);
        out += static_cast<char>(0x80 | (point >> 6 & 0x3f));
        out += static_cast<char>(0x80 | (point & 0x3f));
    } else {
        out += static_cast<char>(0xf0 | point >> 18);
        out += static_cast<char>(0x80 | (point >> 12 & 0x3f));
        out += static_cast<char>(0x80 | (point >> 6 & 0x3f));
        out += static_cast<char>(0x80 | (point & 0x3f));
    }
}

}  // namespace mainstay
