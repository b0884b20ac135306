#pragma once
// The smallest tokenizers that tests need: every byte is a token, then special marks, then added texts.

#include <boost/json.hpp>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/utf8.h"
#include "runtime/inference/tokenizer.h"

namespace mainstay {

inline std::shared_ptr<const Tokenizer> byte_tokenizer(const std::vector<std::string>& marks,
                                                       const std::vector<std::string>& texts = {}) {
    namespace json = boost::json;
    json::object vocabulary;
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
        const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        std::string letter;
        utf8_append(letter, itself ? byte : next++);
        vocabulary[letter] = static_cast<unsigned>(byte);
    }
    json::array added;
    for (const auto& mark : marks) added.push_back({{"id", 256 + added.size()}, {"content", mark}, {"special", true}});
    for (const auto& text : texts) added.push_back({{"id", 256 + added.size()}, {"content", text}, {"special", false}});
    const json::object root{
        {"added_tokens", added},
        {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
        {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", json::array{}}}}};
    return *Tokenizer::parse(json::serialize(root));
}

}  // namespace mainstay
