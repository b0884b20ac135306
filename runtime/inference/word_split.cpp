#include "runtime/inference/word_split.h"

#include "runtime/base/utf8.h"
#include "runtime/inference/unicode_classes.h"

namespace mainstay {

namespace {

enum class Class : uint8_t { letter, number, space, other };

struct Char {
    char32_t point = 0;
    size_t bytes = 0;  // 0: the end of the text
    Class kind = Class::other;
    bool line_end() const { return bytes && (point == '\n' || point == '\r'); }
    bool is(Class wanted) const { return bytes && kind == wanted; }
};

Char char_at(std::string_view text, size_t at) {
    if (at >= text.size()) return {};
    const Utf8Step step = utf8_next(text.substr(at));
    Char c{step.point, step.bytes, Class::other};
    if (!step.valid) return c;
    if (is_unicode_letter(c.point)) {
        c.kind = Class::letter;
    } else if (is_unicode_number(c.point)) {
        c.kind = Class::number;
    } else if (is_unicode_space(c.point)) {
        c.kind = Class::space;
    }
    return c;
}

/// The end of the run of `kind` that begins at `at`, at most `most` characters.
size_t run_end(std::string_view text, size_t at, Class kind, size_t most = SIZE_MAX) {
    for (size_t n = 0; n < most; ++n) {
        const Char c = char_at(text, at);
        if (!c.is(kind)) break;
        at += c.bytes;
    }
    return at;
}

/// 's 't 're 've 'm 'll 'd at the front: their bytes, or 0.
size_t contraction(std::string_view text, bool any_case) {
    if (text.size() < 2 || text[0] != '\'') return 0;
    const auto lower = [&](size_t i) {
        const char c = i < text.size() ? text[i] : '\0';
        return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c;
    };
    const char a = lower(1), b = lower(2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return 0;
}

/// `\s+(?!\S)|\s+`: white space without its last character, which goes with the word after it.
size_t spaces(std::string_view text) {
    size_t at = 0, last = 0;
    for (Char c = char_at(text, 0); c.is(Class::space); c = char_at(text, at)) {
        last = at;
        at += c.bytes;
    }
    return at == text.size() || last == 0 ? at : last;
}

/// `\s*[\r\n]+`: white space up to its last line end; 0 where it has none.
size_t up_to_line_end(std::string_view text) {
    size_t at = 0, end = 0;
    for (Char c = char_at(text, 0); c.is(Class::space); c = char_at(text, at)) {
        at += c.bytes;
        if (c.line_end()) end = at;
    }
    return end;
}

size_t gpt2_word(std::string_view text) {
    if (const size_t bytes = contraction(text, false)) return bytes;
    const size_t skip = text[0] == ' ' ? 1 : 0;
    const Char c = char_at(text, skip);
    if (c.bytes && c.kind != Class::space) return run_end(text, skip, c.kind);
    return spaces(text);
}

size_t llama3_word(std::string_view text, size_t digits_max) {
    if (const size_t bytes = contraction(text, true)) return bytes;
    const Char first = char_at(text, 0);
    if (first.kind == Class::letter) return run_end(text, 0, Class::letter);
    if (first.kind != Class::number && !first.line_end() && char_at(text, first.bytes).is(Class::letter))
        return run_end(text, first.bytes, Class::letter);
    if (first.kind == Class::number) return run_end(text, 0, Class::number, digits_max);
    const size_t skip = text[0] == ' ' ? 1 : 0;
    if (char_at(text, skip).is(Class::other)) {
        size_t at = run_end(text, skip, Class::other);
        while (char_at(text, at).line_end()) ++at;
        return at;
    }
    if (const size_t bytes = up_to_line_end(text)) return bytes;
    return spaces(text);
}

size_t up_to_digit(std::string_view text) {
    if (char_at(text, 0).kind == Class::number) return char_at(text, 0).bytes;
    size_t at = 0;
    for (Char c = char_at(text, 0); c.bytes && c.kind != Class::number; c = char_at(text, at)) at += c.bytes;
    return at;
}

}  // namespace

size_t first_word(std::string_view text, WordRule rule) {
    switch (rule) {
        case WordRule::gpt2: return gpt2_word(text);
        case WordRule::llama3: return llama3_word(text, 3);
        case WordRule::qwen2: return llama3_word(text, 1);
        case WordRule::single_digits: return up_to_digit(text);
        case WordRule::whole: break;
    }
    return text.size();
}

std::optional<WordRule> find_word_rule(std::string_view pattern) {
    if (pattern == R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)")
        return WordRule::gpt2;
    if (pattern ==
        R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)")
        return WordRule::llama3;
    if (pattern ==
        R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)")
        return WordRule::qwen2;
    if (pattern == R"(\p{N})" || pattern == R"(\d)") return WordRule::single_digits;
    return std::nullopt;
}

}  // namespace mainstay
