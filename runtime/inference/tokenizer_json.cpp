// Reading tokenizer.json. What the file asks for and Mainstay does not do is refused with the key that asks for it.
#include <boost/json.hpp>
#include <fstream>
#include <set>

#include "runtime/base/digest.h"
#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"
#include "runtime/inference/tokenizer.h"

namespace mainstay {

namespace {

namespace json = boost::json;

constexpr std::string_view metaspace = "\xe2\x96\x81";

/// The letters that stand for bytes in a byte-level vocabulary: printable Latin-1 for itself, the others from U+0100 on
/// in order (GPT-2's encoder.py). By letter.
std::unordered_map<std::string, unsigned char> byte_letters() {
    std::unordered_map<std::string, unsigned char> letters;
    char32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
        const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        std::string letter;
        utf8_append(letter, itself ? byte : next++);
        letters.emplace(std::move(letter), static_cast<unsigned char>(byte));
    }
    return letters;
}

/// Bytes that occur in no UTF-8: a vocabulary may do without them.
bool in_utf8(unsigned byte) { return byte < 0xc0 || (byte >= 0xc2 && byte <= 0xf4); }

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
    std::string out;
    for (size_t at = 0; at < text.size();) {
        const size_t found = std::min(text.find(from, at), text.size());
        out += text.substr(at, found - at);
        if (found < text.size()) out += to;
        at = found + from.size();
    }
    return out;
}

std::optional<unsigned char> byte_token(std::string_view text) {
    if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
    unsigned value = 0;
    for (const char c : text.substr(3, 2)) {
        const bool digit = c >= '0' && c <= '9';
        if (!digit && !(c >= 'A' && c <= 'F')) return std::nullopt;
        value = value * 16 + static_cast<unsigned>(digit ? c - '0' : c - 'A' + 10);
    }
    return static_cast<unsigned char>(value);
}

std::string_view text_in(const json::object& object, std::string_view key) {
    const json::value* value = object.if_contains(key);
    return value && value->is_string() ? std::string_view(value->get_string()) : std::string_view();
}

bool flag_in(const json::object& object, std::string_view key, bool otherwise) {
    const json::value* value = object.if_contains(key);
    return value && value->is_bool() ? value->get_bool() : otherwise;
}

bool set_in(const json::object& object, std::string_view key) {
    const json::value* value = object.if_contains(key);
    return value && !value->is_null() && !(value->is_string() && value->get_string().empty());
}

}  // namespace

/// Keeps the first complaint; every step returns false after it.
class TokenizerReader {
  public:
    Result<std::shared_ptr<const Tokenizer>> read(std::string_view text) {
        if (text.size() > limits::tokenizer_bytes_max)
            return refusal("", "has " + std::to_string(text.size()) + " bytes; tokenizer_bytes_max is " +
                                   std::to_string(limits::tokenizer_bytes_max));
        json::error_code failed;
        json::parse_options bounds;
        bounds.max_depth = limits::json_depth_max;
        json::monotonic_resource memory;
        const json::value root = json::parse(text, failed, &memory, bounds);
        if (failed) return refusal("", "is no JSON: " + failed.message());
        if (!root.is_object()) return refusal("", "is no object");
        const json::object& object = root.get_object();
        const bool done = read_normalizer(object) && read_splitting(object) && read_decoder(object) &&
                          check_alphabet() && read_model(object) && read_added(object) && check_bytes();
        if (!done) return std::move(*error_);
        made_->digest_ = key_hash("tokenizer.json", text);
        return std::shared_ptr<const Tokenizer>(std::move(made_));
    }

  private:
    static Error refusal(const std::string& key, const std::string& what) {
        return {ErrorCode::model_not_loadable, "tokenizer.json: " + (key.empty() ? what : key + " " + what), key};
    }
    bool fail(const std::string& key, const std::string& what) {
        if (!error_) error_ = refusal(key, what);
        return false;
    }

    // --- what happens to a text before pairs are merged -----------------------------------------------------------

    /// The parts of a section that may be one object, a Sequence of them, or null.
    template <class Read>
    bool each(const json::object& root, const std::string& key, std::string_view list, Read&& read) {
        const json::value* value = root.if_contains(key);
        if (!value || value->is_null()) return true;
        if (!value->is_object()) return fail(key, "is no object");
        const json::object& object = value->get_object();
        if (text_in(object, "type") != "Sequence") return read(key, object);
        const json::value* parts = object.if_contains(list);
        if (!parts || !parts->is_array()) return fail(key + "." + std::string(list), "is no array");
        size_t i = 0;
        for (const json::value& part : parts->get_array()) {
            const std::string name = key + "." + std::string(list) + "[" + std::to_string(i++) + "]";
            if (!part.is_object()) return fail(name, "is no object");
            if (!read(name, part.get_object())) return false;
        }
        return true;
    }

    bool unknown_type(const std::string& key, const json::object& part) {
        return fail(key + ".type", "is \"" + std::string(text_in(part, "type")) + "\", which is not supported");
    }

    /// The text that a Replace or Split looks for: a String, or a Regex that is one.
    static std::string_view pattern_of(const json::object& part, std::string_view kind) {
        const json::value* pattern = part.if_contains("pattern");
        return pattern && pattern->is_object() ? text_in(pattern->get_object(), kind) : std::string_view();
    }

    bool read_normalizer(const json::object& root) {
        return each(root, "normalizer", "normalizers", [&](const std::string& key, const json::object& part) {
            const std::string_view type = text_in(part, "type");
            if (type == "NFC") return true;  // texts are taken to be composed already, as keyboards and models write
            if (type == "Prepend") {
                if (text_in(part, "prepend") != metaspace) return fail(key + ".prepend", "is not U+2581");
                made_->prefix_ = Tokenizer::Prefix::always;
                return true;
            }
            if (type == "Replace") {
                if (pattern_of(part, "String") != " " || text_in(part, "content") != metaspace)
                    return fail(key, "replaces something else than spaces by U+2581, which is not supported");
                spaces_marked_ = true;
                return true;
            }
            return unknown_type(key, part);
        });
    }

    bool read_splitting(const json::object& root) {
        return each(root, "pre_tokenizer", "pretokenizers", [&](const std::string& key, const json::object& part) {
            const std::string_view type = text_in(part, "type");
            if (type == "ByteLevel") {
                byte_level_ = true;
                if (flag_in(part, "add_prefix_space", true)) made_->prefix_ = Tokenizer::Prefix::where_missing;
                if (flag_in(part, "use_regex", true)) made_->rules_.push_back(WordRule::gpt2);
                return true;
            }
            if (type == "Split") return read_split(key, part);
            if (type == "Digits") {
                if (!flag_in(part, "individual_digits", false))
                    return fail(key + ".individual_digits", "is not true, which is not supported");
                made_->rules_.push_back(WordRule::single_digits);
                return true;
            }
            if (type == "Metaspace") return read_metaspace(key, part);
            return unknown_type(key, part);
        });
    }

    bool read_split(const std::string& key, const json::object& part) {
        if (text_in(part, "behavior") != "Isolated") return fail(key + ".behavior", "is not \"Isolated\"");
        if (flag_in(part, "invert", false)) return fail(key + ".invert", "is true, which is not supported");
        const auto rule = find_word_rule(pattern_of(part, "Regex"));
        if (!rule) return fail(key + ".pattern", "is none of the expressions of GPT-2, Llama 3 and Qwen 2");
        made_->rules_.push_back(*rule);
        return true;
    }

    bool read_metaspace(const std::string& key, const json::object& part) {
        if (text_in(part, "replacement") != metaspace) return fail(key + ".replacement", "is not U+2581");
        spaces_marked_ = true;
        made_->splits_at_spaces_ = flag_in(part, "split", true);
        std::string_view scheme = text_in(part, "prepend_scheme");
        if (scheme.empty()) scheme = flag_in(part, "add_prefix_space", true) ? "always" : "never";
        if (scheme != "always" && scheme != "first" && scheme != "never")
            return fail(key + ".prepend_scheme", "is none of always, first, never");
        made_->prefix_ = scheme == "never" ? Tokenizer::Prefix::none : Tokenizer::Prefix::where_missing;
        made_->prefix_first_only_ = scheme == "first";
        return true;
    }

    bool read_decoder(const json::object& root) {
        return each(root, "decoder", "decoders", [&](const std::string& key, const json::object& part) {
            const std::string_view type = text_in(part, "type");
            if (type == "ByteLevel") {
                byte_level_ = true;
                return true;
            }
            if (type == "Metaspace") {
                made_->strips_leading_space_ = text_in(part, "prepend_scheme") != "never";
                return true;
            }
            if (type == "Strip") {
                made_->strips_leading_space_ = text_in(part, "content") == " ";
                return true;
            }
            if (type == "Replace" || type == "ByteFallback" || type == "Fuse")
                return true;  // as the vocabulary implies
            return unknown_type(key, part);
        });
    }

    bool check_alphabet() {
        if (byte_level_ == spaces_marked_)
            return fail("pre_tokenizer", byte_level_
                                             ? "is byte-level and marks spaces by U+2581, which is not supported"
                                             : "is neither byte-level nor marks spaces by U+2581");
        made_->alphabet_ = byte_level_ ? Tokenizer::Alphabet::bytes : Tokenizer::Alphabet::metaspace;
        return true;
    }

    // --- the vocabulary -------------------------------------------------------------------------------------------

    bool read_model(const json::object& root) {
        const json::value* value = root.if_contains("model");
        if (!value || !value->is_object()) return fail("model", "is no object");
        const json::object& model = value->get_object();
        // Older files name no type where it is BPE.
        if (set_in(model, "type") && text_in(model, "type") != "BPE")
            return fail("model.type", "is \"" + std::string(text_in(model, "type")) + "\"; only BPE is supported");
        for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
            if (set_in(model, key)) return fail(std::string("model.") + key, "is not supported");
        made_->ignores_merges_ = flag_in(model, "ignore_merges", false);
        made_->fuses_unknown_ = flag_in(model, "fuse_unk", false);
        byte_fallback_ = flag_in(model, "byte_fallback", false);
        if (!read_vocabulary(model) || !read_merges(model)) return false;
        if (set_in(model, "unk_token")) {
            const auto found = ids_.find(text_in(model, "unk_token"));
            if (found == ids_.end()) return fail("model.unk_token", "is not in model.vocab");
            made_->unknown_ = found->second;
        }
        return true;
    }

    bool read_vocabulary(const json::object& model) {
        const json::value* value = model.if_contains("vocab");
        if (!value || !value->is_object()) return fail("model.vocab", "is no object");
        const json::object& vocabulary = value->get_object();
        if (vocabulary.empty()) return fail("model.vocab", "is empty");
        if (vocabulary.size() > limits::vocabulary_max)
            return fail("model.vocab", "has " + std::to_string(vocabulary.size()) + " entries; vocabulary_max is " +
                                           std::to_string(limits::vocabulary_max));
        for (const auto& [text, id] : vocabulary) {
            const auto token = id_of("model.vocab[\"" + std::string(text) + "\"]", id);
            if (!token || !add_token(*token, text)) return false;
        }
        return true;
    }

    std::optional<TokenId> id_of(const std::string& key, const json::value& value) {
        json::error_code failed;
        const auto id = value.is_number() ? value.to_number<uint64_t>(failed) : UINT64_MAX;
        if (failed || !value.is_number() || id >= limits::vocabulary_max) {
            fail(key, "is no id below vocabulary_max = " + std::to_string(limits::vocabulary_max));
            return std::nullopt;
        }
        return static_cast<TokenId>(id);
    }

    bool add_token(TokenId id, std::string_view text) {
        const std::string key = "model.vocab[\"" + std::string(text) + "\"]";
        if (text.size() > limits::token_bytes_max)
            return fail(key, "is longer than token_bytes_max = " + std::to_string(limits::token_bytes_max));
        if (made_->tokens_.size() <= id) made_->tokens_.resize(size_t{id} + 1);
        auto& token = made_->tokens_[id];
        if (token.present) return fail(key, "has an id that another token has");
        token.present = true;
        ids_.emplace(text, id);
        if (made_->alphabet_ == Tokenizer::Alphabet::bytes) {
            token.bytes = from_letters(text);
            if (token.bytes.size() == 1) made_->byte_tokens_[static_cast<unsigned char>(token.bytes[0])] = id;
            made_->words_.emplace(token.bytes, id);
            return true;
        }
        if (const auto byte = byte_token(text); byte && byte_fallback_) {
            token.bytes = static_cast<char>(*byte);
            made_->byte_tokens_[*byte] = id;
            return true;
        }
        token.bytes = replaced(text, metaspace, " ");
        made_->words_.emplace(text, id);
        return true;
    }

    /// A text that is not all letters of bytes stands for itself: what tools add to a vocabulary by hand.
    std::string from_letters(std::string_view text) const {
        std::string bytes;
        for (size_t at = 0; at < text.size();) {
            const size_t length = utf8_next(text.substr(at)).bytes;
            const auto found = letters_.find(std::string(text.substr(at, length)));
            if (found == letters_.end()) return std::string(text);
            bytes += static_cast<char>(found->second);
            at += length;
        }
        return bytes;
    }

    bool read_merges(const json::object& model) {
        const json::value* value = model.if_contains("merges");
        if (!value || !value->is_array()) return fail("model.merges", "is no array");
        const json::array& merges = value->get_array();
        if (merges.size() > limits::tokenizer_merges_max)
            return fail("model.merges", "has " + std::to_string(merges.size()) + " entries; tokenizer_merges_max is " +
                                            std::to_string(limits::tokenizer_merges_max));
        made_->merges_.reserve(merges.size());
        uint32_t rank = 0;
        for (const json::value& merge : merges) {
            const std::string key = "model.merges[" + std::to_string(rank) + "]";
            std::string_view left, right;
            if (const json::string* text = merge.if_string()) {
                const std::string_view both = *text;
                const size_t space = both.find(' ');
                if (space == std::string_view::npos || both.find(' ', space + 1) != std::string_view::npos)
                    return fail(key, "is no pair of two texts");
                left = both.substr(0, space);
                right = both.substr(space + 1);
            } else if (const json::array* pair = merge.if_array();
                       pair && pair->size() == 2 && (*pair)[0].is_string() && (*pair)[1].is_string()) {
                left = (*pair)[0].get_string();
                right = (*pair)[1].get_string();
            } else {
                return fail(key, "is no pair of two texts");
            }
            const auto a = ids_.find(left), b = ids_.find(right),
                       both = ids_.find(std::string(left) + std::string(right));
            if (a == ids_.end() || b == ids_.end() || both == ids_.end())
                return fail(key, "names a token that is not in model.vocab");
            made_->merges_.emplace(Tokenizer::pair_key(a->second, b->second), Tokenizer::Merge{rank++, both->second});
        }
        return true;
    }

    bool read_added(const json::object& root) {
        const json::value* value = root.if_contains("added_tokens");
        if (!value || value->is_null()) return true;
        if (!value->is_array()) return fail("added_tokens", "is no array");
        if (value->get_array().size() > limits::added_tokens_max)
            return fail("added_tokens", "has more than added_tokens_max = " + std::to_string(limits::added_tokens_max));
        size_t i = 0;
        for (const json::value& entry : value->get_array()) {
            const std::string key = "added_tokens[" + std::to_string(i++) + "]";
            if (!entry.is_object()) return fail(key, "is no object");
            if (!read_added(key, entry.get_object())) return false;
        }
        return true;
    }

    bool read_added(const std::string& key, const json::object& entry) {
        const std::string_view content = text_in(entry, "content");
        if (content.empty()) return fail(key + ".content", "is no text");
        if (content.size() > limits::token_bytes_max)
            return fail(key + ".content",
                        "is longer than token_bytes_max = " + std::to_string(limits::token_bytes_max));
        const json::value* id_value = entry.if_contains("id");
        if (!id_value) return fail(key + ".id", "is missing");
        const auto id = id_of(key + ".id", *id_value);
        if (!id) return false;
        const auto known = ids_.find(content);
        if (known != ids_.end() && known->second != *id)
            return fail(key + ".id", "is not the id that model.vocab gives this text");
        if (made_->tokens_.size() <= *id) made_->tokens_.resize(size_t{*id} + 1);
        auto& token = made_->tokens_[*id];
        if (known == ids_.end() && token.present) return fail(key + ".id", "belongs to another token");
        ids_.emplace(content, *id);
        token.present = true;
        token.bytes = content;
        Tokenizer::Added added;
        added.id = *id;
        added.special = token.special = flag_in(entry, "special", false);
        if (added.special) {  // no word of a text may be taken for it
            made_->words_.erase(made_->alphabet_ == Tokenizer::Alphabet::bytes ? from_letters(content)
                                                                               : std::string(content));
            for (auto& byte : made_->byte_tokens_)
                if (byte == *id) byte.reset();
        }
        added.single_word = flag_in(entry, "single_word", false);
        added.strips_left = flag_in(entry, "lstrip", false);
        added.strips_right = flag_in(entry, "rstrip", false);
        uint32_t node = 0;
        for (const char c : content) {
            auto& next = made_->added_tree_[node].next;
            auto child = std::lower_bound(next.begin(), next.end(), c,
                                          [](const auto& step, char byte) { return step.first < byte; });
            if (child == next.end() || child->first != c) {
                child = next.insert(child, {c, static_cast<uint32_t>(made_->added_tree_.size())});
                node = child->second;
                made_->added_tree_.emplace_back();  // after the last use of `next`
            } else {
                node = child->second;
            }
        }
        if (made_->added_tree_[node].added) return fail(key + ".content", "was added before");
        made_->added_tree_[node].added = static_cast<uint32_t>(made_->added_.size());
        made_->added_.push_back(added);
        return true;
    }

    /// Every text must have tokens: bytes without one would vanish.
    bool check_bytes() {
        if (made_->unknown_) return true;
        if (made_->alphabet_ == Tokenizer::Alphabet::metaspace && !byte_fallback_)
            return fail("model.unk_token", "is missing, and there is no byte_fallback");
        for (unsigned byte = 0; byte < 256; ++byte)
            if (in_utf8(byte) && !made_->byte_tokens_[byte])
                return fail("model.vocab", "has no token for byte " + std::to_string(byte) + " and no unk_token");
        return true;
    }

    std::unique_ptr<Tokenizer> made_{new Tokenizer()};
    std::unordered_map<std::string, unsigned char> letters_ = byte_letters();
    struct Hash {
        using is_transparent = void;
        size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
    };
    std::unordered_map<std::string, TokenId, Hash, std::equal_to<>> ids_;  // by the text of the file
    bool byte_level_ = false, spaces_marked_ = false, byte_fallback_ = false;
    std::optional<Error> error_;
};

Result<std::shared_ptr<const Tokenizer>> Tokenizer::parse(std::string_view tokenizer_json) {
    return TokenizerReader().read(tokenizer_json);
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::load(const std::string& directory) {
    std::ifstream in(directory + "/tokenizer.json", std::ios::binary);
    if (!in)
        return Error{ErrorCode::model_not_loadable, directory + "/tokenizer.json cannot be read", "tokenizer.json"};
    std::string text;
    char chunk[64 * 1024];
    // One byte more than is allowed is enough to be refused by parse().
    while (text.size() <= limits::tokenizer_bytes_max && (in.read(chunk, sizeof chunk), in.gcount() > 0))
        text.append(chunk, static_cast<size_t>(in.gcount()));
    return parse(text);
}

}  // namespace mainstay
