#pragma once
// How a text falls into words before pairs are merged: the patterns of GPT-2, Llama 3 and Qwen 2, written as scanners
// instead of run by a regex engine, so that no text makes them slow. Each character is looked at a small constant
// number of times. Pure; any thread.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace mainstay {

enum class WordRule : uint8_t {
    whole,          // the text is one word
    gpt2,           // the pattern of GPT-2, also that of a ByteLevel pre-tokenizer of its own
    llama3,         // contractions in any case, up to three digits, line ends apart
    qwen2,          // as llama3, digits one by one
    single_digits,  // digits one by one, all between them as it is
};

/// Bytes of the first word of `text`, which is not empty; at least one. Bytes that are no UTF-8 count as characters
/// that are neither letter nor number nor space.
size_t first_word(std::string_view text, WordRule rule);

/// The rule that a regular expression of tokenizer.json stands for; nothing for an expression that is not known.
std::optional<WordRule> find_word_rule(std::string_view pattern);

}  // namespace mainstay
