#pragma once
// The three classes of code points that the pre-tokenizers of language models are written in: \p{L}, \p{N} and \s.
// Pure; any thread. The tables are written by tools/unicode_classes.

namespace mainstay {

bool is_unicode_letter(char32_t point);
bool is_unicode_number(char32_t point);
/// White_Space, as \s means it in the regex flavour of the tokenizers.
bool is_unicode_space(char32_t point);

}  // namespace mainstay
