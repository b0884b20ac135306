#include "runtime/inference/tokenizer.h"

#include <doctest/doctest.h>

#include <boost/json.hpp>
#include <fstream>
#include <sstream>

#include "runtime/base/limits.h"

using namespace mainstay;
namespace json = boost::json;

namespace {

std::string file(const std::string& name) {
    std::ifstream in(std::string(MAINSTAY_SOURCE_DIR "/") + name, std::ios::binary);
    REQUIRE_MESSAGE(in, name);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
}

json::object golden(const std::string& kind) {
    return json::parse(file("tests/golden/inference/tokenizer_" + kind + ".json")).as_object();
}

std::shared_ptr<const Tokenizer> made(const json::value& specification) {
    auto read = Tokenizer::parse(json::serialize(specification));
    REQUIRE_MESSAGE(read.ok(), (read.ok() ? "" : read.error().message));
    return *read;
}

/// The smallest byte-level tokenizer: 256 bytes in order, then what `more` adds.
json::object byte_tokenizer(json::array merges = {}, std::vector<std::string> more = {}) {
    json::object vocabulary;
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
        const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        const unsigned point = itself ? byte : next++;
        std::string letter;
        if (point < 0x80) {
            letter += static_cast<char>(point);
        } else {
            letter += static_cast<char>(0xc0 | point >> 6);
            letter += static_cast<char>(0x80 | (point & 0x3f));
        }
        vocabulary[letter] = byte;
    }
    for (const auto& text : more) vocabulary[text] = vocabulary.size();
    return {{"added_tokens", json::array{}},
            {"normalizer", nullptr},
            {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
            {"decoder", {{"type", "ByteLevel"}}},
            {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}}}};
}

json::object added(unsigned id, std::string content, bool special) {
    return {{"id", id}, {"content", content}, {"special", special}};
}

std::string refused(const json::value& specification) {
    const auto read = Tokenizer::parse(json::serialize(specification));
    REQUIRE_FALSE(read.ok());
    CHECK(read.error().code == ErrorCode::model_not_loadable);
    return read.error().message;
}

}  // namespace

TEST_CASE("tokenizer: five kinds give what an independent implementation gives") {
    for (const std::string kind : {"gpt2", "llama3", "qwen2", "llama2", "metaspace"}) {
        CAPTURE(kind);
        const auto data = golden(kind);
        const auto tokenizer = made(data.at("tokenizer"));
        for (const auto& entry : data.at("cases").as_array()) {
            const std::string text(entry.as_array().at(0).as_string());
            CAPTURE(text);
            CHECK(tokenizer->encode(text) == json::value_to<std::vector<TokenId>>(entry.as_array().at(1)));
        }
    }
}

TEST_CASE("tokenizer: decoding gives the text back, at once and token by token") {
    for (const std::string kind : {"gpt2", "llama3", "qwen2", "llama2", "metaspace"}) {
        CAPTURE(kind);
        const auto data = golden(kind);
        const auto tokenizer = made(data.at("tokenizer"));
        for (const auto& entry : data.at("cases").as_array()) {
            std::string text(entry.as_array().at(0).as_string());
            CAPTURE(text);
            const auto tokens = tokenizer->encode(text);
            // Metaspace cannot tell a leading space from the one that it adds, nor its mark from a space.
            if (kind == "metaspace" && text.starts_with(' ')) text.erase(0, 1);
            if (kind.starts_with("llama2") || kind == "metaspace") {
                if (text.find("\xe2\x96\x81") != std::string::npos || text.find("tool_call>") != std::string::npos)
                    continue;
            }
            CHECK(tokenizer->decode(tokens) == text);
            TextStream stream(tokenizer);
            std::string streamed;
            for (const TokenId token : tokens) {
                const std::string part = stream.push(token);
                json::error_code failed;
                json::parse(json::serialize(json::value(part)), failed);
                CHECK_FALSE(failed);
                streamed += part;
            }
            CHECK(streamed + stream.finish() == text);
        }
    }
}

TEST_CASE("tokenizer: a stream holds a character back until it is whole, and mends what is none") {
    const auto tokenizer = made(byte_tokenizer());
    TextStream stream(tokenizer);
    CHECK(stream.push(0xf0) == "");
    CHECK(stream.push(0x9f) == "");
    CHECK(stream.push(0x98) == "");
    CHECK(stream.push(0x80) == "\xf0\x9f\x98\x80");
    CHECK(stream.push(0xc3) == "");
    CHECK(stream.push('a') ==
          "\xef\xbf\xbd"
          "a");
    CHECK(stream.push(0xff) == "\xef\xbf\xbd");
    CHECK(stream.push(0xe2) == "");
    CHECK(stream.push(0x82) == "");
    CHECK(stream.finish() == "\xef\xbf\xbd\xef\xbf\xbd");
    CHECK(stream.finish() == "");
}

TEST_CASE("tokenizer: a special token comes from its id alone, an added one also from text") {
    auto specification = byte_tokenizer();
    specification["added_tokens"] =
        json::array{added(256, "<|end|>", true), added(257, "<tool>", false), added(258, "<tool>x", false)};
    const auto tokenizer = made(specification);
    CHECK(tokenizer->size() == 259);
    CHECK(tokenizer->encode("<|end|>") == std::vector<TokenId>{'<', '|', 'e', 'n', 'd', '|', '>'});
    CHECK(tokenizer->encode("a<tool><tool>xb") == std::vector<TokenId>{'a', 257, 258, 'b'});
    CHECK(tokenizer->find_added("<|end|>") == 256u);
    CHECK_FALSE(tokenizer->find_added("<|en"));
    CHECK(tokenizer->special(256));
    CHECK_FALSE(tokenizer->special(257));
    const std::vector<TokenId> tokens{'a', 256, 257};
    CHECK(tokenizer->decode(tokens) == "a<tool>");
    CHECK(tokenizer->bytes(4'000'000) == "");

    // Also where the vocabulary holds it as a word that needs no merging.
    auto& model = specification["model"].as_object();
    model["vocab"].as_object()["<|end|>"] = 256;
    model["ignore_merges"] = true;
    CHECK(made(specification)->encode("<|end|>") == std::vector<TokenId>{'<', '|', 'e', 'n', 'd', '|', '>'});
}

TEST_CASE("tokenizer: an added token as a single word, and the white space that it takes") {
    auto specification = byte_tokenizer();
    auto word = added(256, "cat", false);
    word["single_word"] = true;
    auto mask = added(257, "[m]", false);
    mask["lstrip"] = mask["rstrip"] = true;
    specification["added_tokens"] = json::array{word, mask};
    const auto tokenizer = made(specification);
    CHECK(tokenizer->encode("cat") == std::vector<TokenId>{256});
    CHECK(tokenizer->encode(" cat.") == std::vector<TokenId>{' ', 256, '.'});
    CHECK(tokenizer->encode("cats") == std::vector<TokenId>{'c', 'a', 't', 's'});
    CHECK(tokenizer->encode("\xc3\xa4"
                            "cat") == std::vector<TokenId>{0xc3, 0xa4, 'c', 'a', 't'});
    CHECK(tokenizer->encode("a  [m] \nb") == std::vector<TokenId>{'a', 257, 'b'});
}

TEST_CASE("tokenizer: pairs merge by rank, then from the left") {
    const auto tokenizer = made(byte_tokenizer({"b c", "a b", "a a", "aa a"}, {"bc", "ab", "aa", "aaa"}));
    CHECK(tokenizer->encode("abc") == std::vector<TokenId>{'a', 256});
    CHECK(tokenizer->encode("abab") == std::vector<TokenId>{257, 257});
    CHECK(tokenizer->encode("aaaaa") == std::vector<TokenId>{258, 259});
    CHECK(tokenizer->encode("aab") == std::vector<TokenId>{'a', 257});
}

TEST_CASE("tokenizer: cost grows with the text, not with its square") {
    // Merges that chain: every merge makes the next one possible, over one word of a million bytes.
    json::array merges;
    std::vector<std::string> more;
    std::string longer = "a";
    for (int i = 0; i < 10; ++i) {
        merges.emplace_back(longer + " " + longer);
        longer += longer;
        more.push_back(longer);
    }
    const auto tokenizer = made(byte_tokenizer(merges, more));
    const size_t doublings = 20;
    const auto tokens = tokenizer->encode(std::string(size_t{1} << doublings, 'a'));
    CHECK(tokens == std::vector<TokenId>(size_t{1} << (doublings - 10), 256 + 9));
    // White space of any length before a word: each pattern looks ahead once, not once for each space.
    for (const std::string kind : {"gpt2", "llama3"}) {
        const auto split = made(golden(kind).at("tokenizer"));
        const std::string text =
            std::string(1 << 20, ' ') + "x" + std::string(1 << 20, '\n') + "'" + std::string(1 << 20, '\'');
        CHECK(split->decode(split->encode(text)) == text);
    }
}

TEST_CASE("tokenizer: bytes that are no UTF-8 have tokens too") {
    const auto bytes = made(golden("llama3").at("tokenizer"));
    const std::string broken = "a\xff\xfe \xc3(\xe2\x82";
    CHECK(bytes->decode(bytes->encode(broken)) == broken);
    const auto marked = made(golden("llama2").at("tokenizer"));
    CHECK(marked->decode(marked->encode("a\xff")) == "a\xef\xbf\xbd");
}

TEST_CASE("tokenizer: a metaspace prefix only where the text begins") {
    auto specification = golden("metaspace").at("tokenizer").as_object();
    specification["pre_tokenizer"].as_object()["prepend_scheme"] = "first";
    const auto tokenizer = made(specification);
    CHECK(tokenizer->encode("the", true) == made(golden("metaspace").at("tokenizer"))->encode("the"));
    CHECK(tokenizer->bytes(tokenizer->encode("the", false).front()).front() == 't');
}

TEST_CASE("tokenizer: what is wrong or not supported is named") {
    const auto without = [](auto&& change) {
        auto specification = byte_tokenizer({"a b"}, {"ab"});
        change(specification);
        return refused(specification);
    };
    const auto contains = [](const std::string& text, std::string_view part) {
        CAPTURE(text);
        CHECK(text.find(part) != std::string::npos);
    };
    using Object = json::object&;
    contains(without([](Object o) { o["model"].as_object()["type"] = "Unigram"; }), "model.type is \"Unigram\"");
    contains(without([](Object o) { o.erase("model"); }), "model is no object");
    contains(without([](Object o) { o["model"].as_object()["vocab"] = json::object{}; }), "model.vocab is empty");
    contains(without([](Object o) { o["model"].as_object()["vocab"].as_object()["zz"] = 3; }),
             "has an id that another token has");
    contains(without([](Object o) { o["model"].as_object()["vocab"].as_object()["zz"] = -1; }),
             "model.vocab[\"zz\"] is no id");
    contains(without([](Object o) { o["model"].as_object()["vocab"].as_object()["zz"] = 1e99; }), "vocabulary_max");
    contains(without([](Object o) { o["model"].as_object()["vocab"].as_object().erase("a"); }),
             "model.merges[0] names a token");
    contains(without([](Object o) { o["model"].as_object()["vocab"].as_object().erase("q"); }),
             "no token for byte 113");
    contains(without([](Object o) { o["model"].as_object()["merges"] = json::array{"a b c"}; }),
             "model.merges[0] is no pair");
    contains(without([](Object o) { o["model"].as_object()["merges"] = json::array{7}; }),
             "model.merges[0] is no pair");
    contains(without([](Object o) { o["model"].as_object()["end_of_word_suffix"] = "</w>"; }),
             "model.end_of_word_suffix");
    contains(without([](Object o) { o["model"].as_object()["unk_token"] = "?!"; }),
             "model.unk_token is not in model.vocab");
    contains(without([](Object o) { o["normalizer"] = {{"type", "Lowercase"}}; }), "normalizer.type is \"Lowercase\"");
    contains(without([](Object o) {
                 o["pre_tokenizer"] = nullptr;
                 o["decoder"] = nullptr;
             }),
             "pre_tokenizer is neither");
    contains(without([](Object o) {
                 o["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(a+)+b"}}}, {"behavior", "Isolated"}};
             }),
             "pre_tokenizer.pattern is none of");
    contains(without([](Object o) {
                 o["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", json::array{1}}};
             }),
             "pre_tokenizer.pretokenizers[0] is no object");
    contains(without([](Object o) { o["added_tokens"] = json::array{added(3, "<x>", true)}; }),
             "added_tokens[0].id belongs to another");
    contains(without([](Object o) {
                 o["added_tokens"] = json::array{added(300, "<x>", true), added(301, "<x>", true)};
             }),
             "added_tokens[1].id is not the id");
    contains(without([](Object o) {
                 o["added_tokens"] = json::array{json::object{{"content", "x"}}};
             }),
             "added_tokens[0].id is missing");

    CHECK(Tokenizer::parse("{").error().message.find("is no JSON") != std::string::npos);
    CHECK(Tokenizer::parse(std::string(limits::json_depth_max + 1, '[')).error().message.find("is no JSON") !=
          std::string::npos);
    CHECK(Tokenizer::parse(std::string(limits::tokenizer_bytes_max + 1, ' '))
              .error()
              .message.find("tokenizer_bytes_max") != std::string::npos);
    CHECK(Tokenizer::load("/nowhere").error().message.find("/nowhere/tokenizer.json") != std::string::npos);
}

TEST_CASE("tokenizer: a model without a row for each token is refused") {
    const auto tokenizer = made(byte_tokenizer({"a b"}, {"ab"}));
    CHECK(tokenizer->check_vocabulary(257).ok());
    CHECK(tokenizer->check_vocabulary(300).ok());
    const auto refusal = tokenizer->check_vocabulary(256);
    REQUIRE_FALSE(refusal.ok());
    CHECK(refusal.error().message == "tokenizer.json has token 256, but vocab_size of the model is 256");
}
