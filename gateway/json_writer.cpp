#include "gateway/json_writer.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace mainstay {
namespace {

bool needs_escape(unsigned char c) { return c < 0x20 || c == '"' || c == '\\'; }

/// Position of the first byte that needs an escape, or `size`.
size_t plain_run(const char* text, size_t size) {
    size_t at = 0;
#if defined(__SSE2__)
    const __m128i quote = _mm_set1_epi8('"'), backslash = _mm_set1_epi8('\\'), control = _mm_set1_epi8(0x1f);
    for (; at + 16 <= size; at += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(text + at));
        // Unsigned "<= 0x1f": the minimum with 0x1f is the byte itself.
        const __m128i low = _mm_cmpeq_epi8(_mm_min_epu8(bytes, control), bytes);
        const __m128i special = _mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, backslash));
        const int mask = _mm_movemask_epi8(_mm_or_si128(low, special));
        if (mask != 0) return at + static_cast<size_t>(__builtin_ctz(static_cast<unsigned>(mask)));
    }
#endif
    while (at < size && !needs_escape(static_cast<unsigned char>(text[at]))) ++at;
    return at;
}

}  // namespace

void append_json_escaped(std::string& out, std::string_view text) {
    static const char digits[] = "0123456789abcdef";
    while (true) {
        const size_t run = plain_run(text.data(), text.size());
        out.append(text.data(), run);
        if (run == text.size()) return;
        const auto c = static_cast<unsigned char>(text[run]);
        switch (c) {
            case '"': out += "\\\""; break;
            case '\\': out += "\\\\"; break;
            case '\n': out += "\\n"; break;
            case '\r': out += "\\r"; break;
            case '\t': out += "\\t"; break;
            case '\b': out += "\\b"; break;
            case '\f': out += "\\f"; break;
            default:
                out += "\\u00";
                out.push_back(digits[c >> 4]);
                out.push_back(digits[c & 15]);
        }
        text.remove_prefix(run + 1);
    }
}

}  // namespace mainstay
