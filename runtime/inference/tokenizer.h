#pragma once
// Text to the tokens of a model and back: byte pair encoding as tokenizer.json of Hugging Face describes it, in its two
// kinds, byte-level (GPT-2, Llama 3, Qwen) and metaspace with byte fallback (Llama 2, Mistral). What else such a file
// may ask for is refused at load, naming the key, instead of being tokenized slightly wrong.
//
// Text of users can never become a special token: those are made from ids by the chat template alone. The cost of a
// text of n bytes is O(n log n), whatever the text; added tokens cost at most their longest length for each byte.
// Immutable after load: any thread.

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/base/id.h"
#include "runtime/base/result.h"
#include "runtime/inference/sampling_params.h"
#include "runtime/inference/word_split.h"

namespace mainstay {

class Tokenizer {
  public:
    /// Fails with model_not_loadable; the message and `param` name the key of tokenizer.json.
    static Result<std::shared_ptr<const Tokenizer>> parse(std::string_view tokenizer_json);
    /// Reads `directory`/tokenizer.json.
    static Result<std::shared_ptr<const Tokenizer>> load(const std::string& directory);

    /// Of the bytes of tokenizer.json: token ids mean the same under the same digest.
    const KeyHash& digest() const { return digest_; }
    /// Largest id + 1.
    size_t size() const { return tokens_.size(); }
    /// A model whose table of embeddings has `vocabulary` rows: fails where a token has no row.
    Result<void> check_vocabulary(size_t vocabulary) const;

    /// Tokens of a text. Added tokens are recognised in it, special ones are not. `begins`: nothing stands before the
    /// text (some vocabularies write a space there).
    std::vector<TokenId> encode(std::string_view text, bool begins = false) const;
    void encode(std::string_view text, std::vector<TokenId>& out, bool begins = false) const;

    /// Special tokens leave nothing. May be no UTF-8 where the tokens end amid a character: TextStream mends that.
    std::string decode(std::span<const TokenId> tokens) const;
    /// What a token adds to the text; empty for a special token and for an id that has none.
    const std::string& bytes(TokenId token) const;
    bool special(TokenId token) const;
    /// An added token, special or not, by its content: "<|eot_id|>".
    std::optional<TokenId> find_added(std::string_view content) const;
    /// Text that is begun by the model's first token has no space in front, though the token may have one.
    bool strips_leading_space() const { return strips_leading_space_; }

  private:
    friend class TokenizerReader;
    Tokenizer() = default;

    enum class Alphabet : uint8_t { bytes, metaspace };
    enum class Prefix : uint8_t { none, where_missing, always };

    struct Token {
        std::string bytes;
        bool special = false, present = false;
    };
    struct Added {
        TokenId id = 0;
        bool special = false, single_word = false, strips_left = false, strips_right = false;
    };
    struct Merge {
        uint32_t rank = 0;
        TokenId token = 0;
    };
    /// A step of the tree of added tokens: children by byte, sorted.
    struct Node {
        std::vector<std::pair<char, uint32_t>> next;
        std::optional<uint32_t> added;  // index in added_
    };
    struct Found {
        size_t at = 0, bytes = 0;
        const Added* added = nullptr;
    };
    class Merger;

    static uint64_t pair_key(TokenId left, TokenId right) { return uint64_t{left} << 32 | right; }
    std::optional<Found> next_added(std::string_view text, size_t from) const;
    void encode_plain(std::string_view text, bool begins, std::vector<TokenId>& out) const;
    void encode_words(std::string_view text, size_t step, std::vector<TokenId>& out) const;
    void encode_word(std::string_view word, std::vector<TokenId>& out) const;
    void symbols_of(std::string_view word, std::vector<TokenId>& out) const;

    KeyHash digest_{};
    Alphabet alphabet_ = Alphabet::bytes;
    Prefix prefix_ = Prefix::none;
    bool prefix_first_only_ = false;  // only where the text begins
    bool splits_at_spaces_ = false;   // metaspace: each space begins a word
    bool strips_leading_space_ = false;
    bool ignores_merges_ = false;  // a word that is a token as it is needs no merging
    bool fuses_unknown_ = false;
    std::vector<WordRule> rules_;  // one within the other

    std::vector<Token> tokens_;                       // by id
    std::unordered_map<std::string, TokenId> words_;  // by bytes; in a metaspace vocabulary without byte tokens
    std::unordered_map<uint64_t, Merge> merges_;
    std::array<std::optional<TokenId>, 256> byte_tokens_;
    std::optional<TokenId> unknown_;
    std::vector<Added> added_;
    std::vector<Node> added_tree_{1};
};

/// Text of tokens that come one by one. What it hands out is UTF-8 and never ends amid a character; bytes that are no
/// character become U+FFFD. One stream has one owner.
class TextStream {
  public:
    explicit TextStream(std::shared_ptr<const Tokenizer> tokenizer);
    std::string push(TokenId token);
    /// What was held back.
    std::string finish();

  private:
    std::shared_ptr<const Tokenizer> tokenizer_;
    std::string held_;
    bool at_start_ = true;
};

}  // namespace mainstay
