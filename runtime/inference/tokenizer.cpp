#include "runtime/inference/tokenizer.h"

#include <algorithm>
#include <queue>

#include "runtime/base/utf8.h"
#include "runtime/inference/unicode_classes.h"

namespace mainstay {

namespace {

constexpr std::string_view metaspace = "\xe2\x96\x81";  // U+2581

bool is_word_char(char32_t point) { return point == '_' || is_unicode_letter(point) || is_unicode_number(point); }

bool word_char_before(std::string_view text, size_t at) {
    size_t begin = at;
    while (begin > 0 && at - begin < 4 && (text[begin - 1] & 0xc0) == 0x80) --begin;
    if (begin > 0) --begin;
    if (begin == at) return false;
    const Utf8Step step = utf8_next(text.substr(begin));
    return step.valid && begin + step.bytes == at && is_word_char(step.point);
}

bool word_char_after(std::string_view text, size_t at) {
    if (at >= text.size()) return false;
    const Utf8Step step = utf8_next(text.substr(at));
    return step.valid && is_word_char(step.point);
}

}  // namespace

/// Byte pair merging of one word: a list of symbols and a heap of the pairs that may be merged, the pair of the lowest
/// rank first and among equals the leftmost. An entry of the heap whose pair has changed meanwhile is passed over.
class Tokenizer::Merger {
  public:
    Merger(const Tokenizer& tokenizer, const std::vector<TokenId>& symbols) : tokenizer_(tokenizer) {
        const auto count = static_cast<int32_t>(symbols.size());
        for (int32_t i = 0; i < count; ++i) parts_.push_back({symbols[size_t(i)], i - 1, i + 1 < count ? i + 1 : -1});
        for (int32_t i = 0; i + 1 < count; ++i) offer(i);
    }

    void run(std::vector<TokenId>& out) {
        while (!heap_.empty()) {
            const Entry best = heap_.top();
            heap_.pop();
            Part& left = parts_[size_t(best.at)];
            if (left.gone || left.next < 0) continue;
            Part& right = parts_[size_t(left.next)];
            if (left.token != best.left || right.token != best.right) continue;
            left.token = best.merged;
            right.gone = true;
            left.next = right.next;
            if (left.next >= 0) parts_[size_t(left.next)].previous = best.at;
            if (left.previous >= 0) offer(left.previous);
            offer(best.at);
        }
        for (const Part& part : parts_)
            if (!part.gone) out.push_back(part.token);
    }

  private:
    struct Part {
        TokenId token;
        int32_t previous, next;
        bool gone = false;
    };
    struct Entry {
        uint32_t rank;
        int32_t at;
        TokenId left, right, merged;
        bool operator<(const Entry& other) const {  // the heap's top is the greatest
            return rank != other.rank ? rank > other.rank : at > other.at;
        }
    };

    void offer(int32_t at) {
        const Part& left = parts_[size_t(at)];
        if (left.next < 0) return;
        const TokenId right = parts_[size_t(left.next)].token;
        const auto found = tokenizer_.merges_.find(pair_key(left.token, right));
        if (found != tokenizer_.merges_.end())
            heap_.push({found->second.rank, at, left.token, right, found->second.token});
    }

    const Tokenizer& tokenizer_;
    std::vector<Part> parts_;
    std::priority_queue<Entry> heap_;
};

Result<void> Tokenizer::check_vocabulary(size_t vocabulary) const {
    if (size() <= vocabulary) return {};
    return Error{ErrorCode::model_not_loadable,
                 "tokenizer.json has token " + std::to_string(size() - 1) + ", but vocab_size of the model is " +
                     std::to_string(vocabulary),
                 "vocab_size"};
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool begins) const {
    std::vector<TokenId> out;
    encode(text, out, begins);
    return out;
}

void Tokenizer::encode(std::string_view text, std::vector<TokenId>& out, bool begins) const {
    size_t at = 0;
    while (at < text.size()) {
        const auto found = next_added(text, at);
        const size_t end = found ? found->at : text.size();
        if (end > at) encode_plain(text.substr(at, end - at), begins && at == 0, out);
        if (!found) break;
        out.push_back(found->added->id);
        at = end + found->bytes;
    }
}

/// The leftmost added token from `from` on, the longest of those that begin there. White space that the token takes
/// with it belongs to the found bytes.
std::optional<Tokenizer::Found> Tokenizer::next_added(std::string_view text, size_t from) const {
    if (added_.empty()) return std::nullopt;
    for (size_t at = from; at < text.size(); ++at) {
        uint32_t node = 0;
        std::optional<Found> best;
        for (size_t i = at; i < text.size(); ++i) {
            const auto& next = added_tree_[node].next;
            const auto child = std::lower_bound(next.begin(), next.end(), text[i],
                                                [](const auto& entry, char byte) { return entry.first < byte; });
            if (child == next.end() || child->first != text[i]) break;
            node = child->second;
            if (!added_tree_[node].added) continue;
            const Added& added = added_[*added_tree_[node].added];
            if (added.special) continue;
            if (added.single_word && (word_char_before(text, at) || word_char_after(text, i + 1))) continue;
            best = Found{at, i + 1 - at, &added};
        }
        if (!best) continue;
        if (best->added->strips_left) {
            while (best->at > from && is_unicode_space(static_cast<unsigned char>(text[best->at - 1]))) {
                --best->at;
                ++best->bytes;
            }
        }
        if (best->added->strips_right) {
            size_t end = best->at + best->bytes;
            while (end < text.size() && static_cast<unsigned char>(text[end]) < 0x80 &&
                   is_unicode_space(static_cast<unsigned char>(text[end])))
                ++end;
            best->bytes = end - best->at;
        }
        return best;
    }
    return std::nullopt;
}

void Tokenizer::encode_plain(std::string_view text, bool begins, std::vector<TokenId>& out) const {
    const auto marked_already = [&](std::string_view front) {
        return alphabet_ == Alphabet::metaspace && front.starts_with(metaspace);
    };
    const bool prefixed = prefix_ != Prefix::none && (!prefix_first_only_ || begins) &&
                          (prefix_ == Prefix::always || !(text.starts_with(' ') || marked_already(text)));
    if (alphabet_ == Alphabet::bytes) {
        if (!prefixed) return encode_words(text, 0, out);
        return encode_words(" " + std::string(text), 0, out);
    }
    std::string marked;
    marked.reserve(text.size() + text.size() / 2 + metaspace.size());
    if (prefixed) marked += metaspace;
    for (size_t at = 0; at < text.size();) {
        const Utf8Step step = utf8_next(text.substr(at));
        marked += !step.valid ? utf8_replacement : text[at] == ' ' ? metaspace : text.substr(at, step.bytes);
        at += step.bytes;
    }
    if (!splits_at_spaces_) return encode_words(marked, 0, out);
    const std::string_view all = marked;
    for (size_t at = 0; at < all.size();) {
        const size_t end = std::min(all.find(metaspace, at + 1), all.size());
        encode_words(all.substr(at, end - at), 0, out);
        at = end;
    }
}

void Tokenizer::encode_words(std::string_view text, size_t step, std::vector<TokenId>& out) const {
    if (step == rules_.size()) return encode_word(text, out);
    while (!text.empty()) {
        const size_t bytes = first_word(text, rules_[step]);
        encode_words(text.substr(0, bytes), step + 1, out);
        text.remove_prefix(bytes);
    }
}

void Tokenizer::encode_word(std::string_view word, std::vector<TokenId>& out) const {
    if (ignores_merges_) {
        if (const auto found = words_.find(std::string(word)); found != words_.end())
            return out.push_back(found->second);
    }
    std::vector<TokenId> symbols;
    symbols_of(word, symbols);
    if (symbols.size() < 2) {
        out.insert(out.end(), symbols.begin(), symbols.end());
        return;
    }
    Merger(*this, symbols).run(out);
}

void Tokenizer::symbols_of(std::string_view word, std::vector<TokenId>& out) const {
    const size_t before = out.size();
    bool unknown_before = false;
    const auto unknown = [&] {
        if (unknown_ && !(fuses_unknown_ && unknown_before)) out.push_back(*unknown_);
        unknown_before = true;
    };
    out.reserve(before + word.size());
    if (alphabet_ == Alphabet::bytes) {
        for (const char c : word) {
            const auto& token = byte_tokens_[static_cast<unsigned char>(c)];
            if (!token) {
                unknown();
                continue;
            }
            out.push_back(*token);
            unknown_before = false;
        }
        return;
    }
    for (size_t at = 0; at < word.size();) {
        const std::string_view character = word.substr(at, utf8_next(word.substr(at)).bytes);
        at += character.size();
        const auto found = words_.find(std::string(character));
        if (found != words_.end()) {
            out.push_back(found->second);
            unknown_before = false;
            continue;
        }
        const bool fallback = std::all_of(character.begin(), character.end(), [&](char c) {
            return byte_tokens_[static_cast<unsigned char>(c)].has_value();
        });
        if (!fallback) {
            unknown();
            continue;
        }
        for (const char c : character) out.push_back(*byte_tokens_[static_cast<unsigned char>(c)]);
        unknown_before = false;
    }
}

std::string Tokenizer::decode(std::span<const TokenId> tokens) const {
    std::string text;
    for (const TokenId token : tokens) text += bytes(token);
    if (strips_leading_space_ && text.starts_with(' ')) text.erase(0, 1);
    return text;
}

const std::string& Tokenizer::bytes(TokenId token) const {
    static const std::string none;
    return token < tokens_.size() && !tokens_[token].special ? tokens_[token].bytes : none;
}

bool Tokenizer::special(TokenId token) const { return token < tokens_.size() && tokens_[token].special; }

std::optional<TokenId> Tokenizer::find_added(std::string_view content) const {
    uint32_t node = 0;
    for (const char c : content) {
        const auto& next = added_tree_[node].next;
        const auto child = std::lower_bound(next.begin(), next.end(), c,
                                            [](const auto& entry, char byte) { return entry.first < byte; });
        if (child == next.end() || child->first != c) return std::nullopt;
        node = child->second;
    }
    const auto& added = added_tree_[node].added;
    return added ? std::optional(added_[*added].id) : std::nullopt;
}

TextStream::TextStream(std::shared_ptr<const Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {}

std::string TextStream::push(TokenId token) {
    const std::string& bytes = tokenizer_->bytes(token);
    if (bytes.empty()) return {};
    held_ += bytes;
    if (at_start_ && tokenizer_->strips_leading_space() && held_.front() == ' ') held_.erase(0, 1);
    at_start_ = false;
    std::string text;
    size_t at = 0;
    while (at < held_.size()) {
        const Utf8Step step = utf8_next(std::string_view(held_).substr(at));
        if (step.cut) break;
        text += step.valid ? std::string_view(held_).substr(at, step.bytes) : utf8_replacement;
        at += step.bytes;
    }
    held_.erase(0, at);
    return text;
}

std::string TextStream::finish() {
    std::string text;
    for (size_t i = 0; i < held_.size(); ++i) text += utf8_replacement;
    held_.clear();
    at_start_ = true;
    return text;
}

}  // namespace mainstay
