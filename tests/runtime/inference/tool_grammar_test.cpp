#include "runtime/inference/tool_grammar.h"

#include <doctest/doctest.h>

#include <boost/json.hpp>
#include <random>

#include "runtime/base/limits.h"
#include "tests/runtime/inference/byte_tokenizer.h"

using namespace mainstay;
namespace json = boost::json;

namespace {

const std::vector<std::string> tiny_marks{"<|bos|>", "<|user|>", "<|assistant|>", "<|tool|>",
                                          "<|end|>", "<|call|>", "<|pad|>"};
const std::vector<std::string> chatml_marks{"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
// Tokens that begin, end and cross the parts of a call, as merged tokens of a real vocabulary do.
const std::vector<std::string> texts{"{\"",
                                     "{\"name\": \"",
                                     "\", \"",
                                     "\": ",
                                     "\"}}",
                                     "}}",
                                     "e\"",
                                     "true",
                                     "tru",
                                     "e, \"",
                                     "12",
                                     "345",
                                     ", ",
                                     "[1, ",
                                     "]}",
                                     "null",
                                     "calc",
                                     "ca",
                                     "\\u",
                                     "00",
                                     "d8",

                                     "red",
                                     "</tool_call>",
                                     "<tool_call>\n{\"",
                                     "\"x\": {\"",
                                     "1.5",

                                     "e+",
                                     "price\", \"arguments\": {\"item\": \""};

struct Model {
    std::shared_ptr<const ChatTemplate> how;
    std::shared_ptr<const GrammarVocabulary> vocabulary;
};

Model model_of(const char* name, const std::vector<std::string>& marks) {
    const auto tokenizer = byte_tokenizer(marks, texts);
    return {*ChatTemplate::make(name, tokenizer),
            std::make_shared<const GrammarVocabulary>(tokenizer, tokenizer->size() + 5)};
}
Model tiny() { return model_of("mainstay-tiny", tiny_marks); }
Model chatml() { return model_of("chatml", chatml_marks); }

ToolDefinitions tools_of(std::vector<std::pair<std::string, std::string>> named) {
    std::vector<ToolDefinition> tools;
    for (auto& [name, parameters] : named) tools.push_back({name, "", parameters, false});
    return std::make_shared<const std::vector<ToolDefinition>>(std::move(tools));
}

const std::string calc = R"({"type":"object","properties":{"expression":{"type":"string"}},"required":["expression"]})";

bool allows(const std::vector<uint64_t>& mask, TokenId token) { return mask[token / 64] >> (token % 64) & 1; }

/// Takes a text byte by byte; the number of bytes that were allowed.
size_t take(GrammarCursor& cursor, std::string_view text) {
    for (size_t i = 0; i < text.size(); ++i) {
        const TokenId token = static_cast<unsigned char>(text[i]);
        const bool masked = allows(cursor.allowed(), token);
        CHECK(masked == cursor.advance(token));
        if (!masked) return i;
    }
    return text.size();
}

/// Whether a whole JSON text is what the schema allows.
bool accepts(const Model& model, const std::string& schema, const std::string& text) {
    const auto grammar = ToolGrammar::for_json(model.how, model.vocabulary, schema);
    REQUIRE_MESSAGE(grammar.ok(), (grammar.ok() ? "" : grammar.error().message));
    GrammarCursor cursor(*grammar);
    return take(cursor, text) == text.size() && cursor.complete();
}

/// A checker of its own for the keywords that bind.
bool valid(const json::value& value, const json::object& schema) {
    if (const auto* list = schema.if_contains("enum")) {
        for (const auto& choice : list->as_array())
            if (choice == value) return true;
        return false;
    }
    const auto is = [&](std::string_view type) {
        if (type == "object") return value.is_object();
        if (type == "array") return value.is_array();
        if (type == "string") return value.is_string();
        if (type == "number") return value.is_number();
        if (type == "integer") return value.is_int64() || value.is_uint64() || value.is_double();  // large ones
        if (type == "boolean") return value.is_bool();
        return value.is_null();
    };
    if (const auto* type = schema.if_contains("type")) {
        bool some = false;
        if (type->is_string()) some = is(type->as_string());
        if (type->is_array())
            for (const auto& entry : type->as_array()) some |= is(entry.as_string());
        if (!some) return false;
    }
    if (const auto* object = value.if_object(); object && schema.contains("properties")) {
        const auto& properties = schema.at("properties").as_object();
        for (const auto& [key, inside] : *object)
            if (!properties.contains(key) || !valid(inside, properties.at(key).as_object())) return false;
        if (const auto* required = schema.if_contains("required"))
            for (const auto& key : required->as_array())
                if (!object->contains(key.as_string())) return false;
    }
    if (const auto* array = value.if_array(); array && schema.contains("items"))
        for (const auto& entry : *array)
            if (!valid(entry, schema.at("items").as_object())) return false;
    return true;
}

}  // namespace

TEST_CASE("tool grammar: a call of each template, byte by byte, and nothing else") {
    const auto small = tiny();
    const auto tools =
        tools_of({{"calc", calc},
                  {"price", R"({"type":"object","properties":{"item":{"type":"string"}},"required":["item"]})"}});
    const TokenId call = *small.how->tokenizer()->find_added("<|call|>"),
                  end = *small.how->tokenizer()->find_added("<|end|>");
    {
        GrammarCursor cursor(*ToolGrammar::for_calls(small.how, small.vocabulary, tools));
        CHECK(cursor.allowed()[call / 64] == uint64_t{1} << call % 64);  // and no other
        CHECK_FALSE(cursor.advance('{'));
        CHECK_FALSE(cursor.advance(end));
        REQUIRE(cursor.advance(call));
        CHECK_FALSE(cursor.advance(call));
        CHECK(take(cursor, R"({"name":"calc","arguments":{"expression":"17+25"}})") == 50);
        CHECK(cursor.complete());
        CHECK(allows(cursor.allowed(), end));
        CHECK_FALSE(allows(cursor.allowed(), call));
        CHECK_FALSE(cursor.advance(call));
        CHECK(cursor.advance(end));
        CHECK(cursor.finished());
        CHECK_FALSE(cursor.advance(end));
    }
    {
        GrammarCursor cursor(*ToolGrammar::for_calls(small.how, small.vocabulary, tools, "price", true));
        REQUIRE(cursor.advance(call));
        CHECK(take(cursor, R"({"name":"calc)") == 9);
        CHECK(take(cursor, R"(price","arguments":{"item":"x"}})") == 32);
        REQUIRE(cursor.advance(call));
        CHECK(take(cursor, R"({"name":"price","arguments":{}})") == 29);  // item is required
    }
    const auto qwen = chatml();
    GrammarCursor cursor(*ToolGrammar::for_calls(qwen.how, qwen.vocabulary, tools, "", true));
    const std::string one = "<tool_call>\n{\"name\": \"calc\", \"arguments\": {\"expression\": \"1\"}}\n</tool_call>";
    CHECK(take(cursor, one + "\n" + one) == 2 * one.size() + 1);
    CHECK(cursor.complete());
    CHECK(cursor.advance(*qwen.how->tokenizer()->find_added("<|im_end|>")));
    // Tokens of more bytes than one part of the call.
    GrammarCursor merged(*ToolGrammar::for_calls(qwen.how, qwen.vocabulary, tools));
    const auto token = [&](const char* content) { return *qwen.how->tokenizer()->find_added(content); };
    CHECK(merged.advance(token("<tool_call>\n{\"")));
    CHECK(take(merged, "name\": \"") == 8);
    CHECK(allows(merged.allowed(), token("price\", \"arguments\": {\"item\": \"")));
    CHECK(merged.advance(token("price\", \"arguments\": {\"item\": \"")));
    CHECK(merged.advance(token("red")));
    CHECK(merged.advance(token("\"}}")));
    CHECK(take(merged, "\n</tool_call>") == 13);
}

TEST_CASE("tool grammar: what a schema allows and what not") {
    const auto model = chatml();
    const auto yes = [&](const std::string& schema, const std::string& text) {
        CAPTURE(schema);
        CAPTURE(text);
        CHECK(accepts(model, schema, text));
    };
    const auto no = [&](const std::string& schema, const std::string& text) {
        CAPTURE(schema);
        CAPTURE(text);
        CHECK_FALSE(accepts(model, schema, text));
    };
    const std::string number = R"({"type":"number"})", integer = R"({"type":"integer"})";
    for (const char* text : {"0", "-0", "12", "-1.5", "0.25", "1e9", "1.5E-10", "2e+3"}) yes(number, text);
    for (const char* text : {"01", "1.", ".5", "+1", "1e", "1e+", "0x1", "--1", "1 ", "1e100"}) no(number, text);
    for (const char* text : {"0", "-7", "120"}) yes(integer, text);
    for (const char* text : {"1.0", "1e3", "00"}) no(integer, text);
    no(number, std::string(limits::grammar_number_bytes_max + 1, '1'));

    const std::string string = R"({"type":"string"})";
    for (const char* text :
         {"\"\"", "\"a b\"", "\"\\n\\\"\\\\\\/\"", "\"\\u00e4\\uD7ff\"", "\"\xc3\xbc\xf0\x9f\x98\x80\""})
        yes(string, text);
    for (const char* text : {"\"", "\"a\nb\"", "\"\\x\"", "\"\\uD800\"", "\"\\udfff\"", "\"\\u12g4\"", "\"\xc3(\"",
                             "\"\xed\xa0\x80\"", "\"\xff\"", "a"})
        no(string, text);

    yes(R"({"type":["string","null"]})", "null");
    no(R"({"type":["string","null"]})", "true");
    yes(R"({"type":"boolean"})", "false");
    no(R"({"type":"boolean"})", "falsy");
    const std::string choice = R"({"enum":["red","redder",1,12,true,null,"a\"b"]})";
    for (const char* text : {"\"red\"", "\"redder\"", "1", "12", "true", "null", "\"a\\\"b\""}) yes(choice, text);
    for (const char* text : {"\"re\"", "\"reddest\"", "2", "123", "false"}) no(choice, text);
    yes(R"({"const":"x"})", "\"x\"");
    no(R"({"const":"x"})", "\"y\"");

    const std::string array = R"({"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":3})";
    for (const char* text : {"[1]", "[1, 2]", "[1,2,3]"}) yes(array, text);
    for (const char* text : {"[]", "[1,2,3,4]", "[1,]", "[,1]", "[ 1]", "[1 ]", "[\"a\"]", "[1,  2]"}) no(array, text);
    yes(R"({"type":"array","items":{"type":"integer"}})", "[]");
    yes(R"({"type":"array","items":{"enum":[1,12]}})", "[1,12,1]");

    const std::string object =
        R"({"type":"object","properties":{"a":{"type":"integer"},"ab":{"type":"string"},"b":{"type":"object","properties":{"c":{"type":"boolean"}},"required":["c"]}},"required":["a"]})";
    for (const char* text : {"{\"a\": 1}", "{\"ab\": \"x\", \"a\": 2}", "{\"b\":{\"c\":true},\"a\":1}",
                             "{\"a\":1,\"b\":{\"c\":false},\"ab\":\"\"}"})
        yes(object, text);
    for (const char* text :
         {"{}", "{\"ab\": \"x\"}", "{\"a\":1,\"a\":2}", "{\"a\":1,}", "{\"x\":1,\"a\":1}", "{\"a\":\"1\"}",
          "{\"a\":1,\"b\":{}}", "{ \"a\":1}", "{\"a\" :1}", "{\"a\":1 }", "[1]", "{\"a\":1}}"})
        no(object, text);
    yes(R"({"type":"object","properties":{},"additionalProperties":false})", "{}");
    no(R"({"type":"object","properties":{},"additionalProperties":false})", "{\"a\":1}");
    yes(R"({"type":"object"})", "{\"any\": [1, {\"x\": null}], \"any\": \"\"}");
    yes(R"({"required":["q"],"properties":{}})", "{\"q\":[{}]}");
    yes("", "{\"free\":{}}");
    no("", "[]");
    yes(R"({"$ref":"#/x"})", "[1,\"a\",{}]");
    // As deep as the bound, no deeper.
    const std::string deep(limits::grammar_depth_max, '['), close(limits::grammar_depth_max, ']');
    yes("{}", deep + close);
    no("{}", "[" + deep + close + "]");
    // The small model writes no spaces.
    CHECK_FALSE(accepts(tiny(), object, "{\"a\": 1}"));
    CHECK(accepts(tiny(), object, "{\"a\":1}"));
}

TEST_CASE("tool grammar: the mask of all tokens is what each token alone gives") {
    std::mt19937 random(3);
    for (const auto& model : {tiny(), chatml()}) {
        const auto tools = tools_of(
            {{"calc", calc},
             {"cats", ""},
             {"set",
              R"({"type":"object","properties":{"x":{"type":"object"},"y":{"enum":["red","reed",true]},"z":{"type":"array","items":{"type":"number"}}}})"}});
        const auto grammar = *ToolGrammar::for_calls(model.how, model.vocabulary, tools, "", true);
        for (int round = 0; round < 30; ++round) {
            GrammarCursor cursor(grammar);
            for (int i = 0; i < 80 && !cursor.finished(); ++i) {
                const auto mask = cursor.allowed();
                std::vector<TokenId> possible;
                for (TokenId token = 0; token < mask.size() * 64; ++token) {
                    GrammarCursor trial = cursor;
                    const bool taken = trial.advance(token);
                    if (taken != allows(mask, token)) FAIL_CHECK("token " << token << " in round " << round);
                    if (taken) possible.push_back(token);
                }
                REQUIRE_FALSE(possible.empty());
                REQUIRE(cursor.advance(possible[random() % possible.size()]));
            }
        }
    }
}

TEST_CASE("tool grammar: whatever a model prefers, the call that it writes can be read and keeps to the schema") {
    const std::string schema =
        R"({"type":"object","properties":{"n":{"type":"integer"},"t":{"type":["string","null"]},"e":{"enum":["red","blue",3]},"l":{"type":"array","items":{"type":"boolean"}},"o":{"type":"object","properties":{"x":{"type":"number"}},"required":["x"]}},"required":["n","e"]})";
    std::mt19937 random(17);
    for (const auto& model : {tiny(), chatml()}) {
        const auto grammar =
            *ToolGrammar::for_calls(model.how, model.vocabulary, tools_of({{"one", schema}, {"other", schema}}));
        int finished = 0;
        for (int round = 0; round < 300; ++round) {
            GrammarCursor cursor(grammar);
            ReplyReader reader(model.how, true, "r");
            for (int i = 0; i < 400 && !cursor.finished(); ++i) {
                const auto& mask = cursor.allowed();
                std::vector<TokenId> possible;
                for (TokenId token = 0; token < mask.size() * 64; ++token)
                    // A text would rarely end by chance: quotes and brackets are liked.
                    if (allows(mask, token))
                        possible.insert(possible.end(),
                                        token == '"' || token == '}' || token == ']' || token > 255 ? 40 : 1, token);
                REQUIRE_FALSE(possible.empty());
                const TokenId token = possible[random() % possible.size()];
                REQUIRE(cursor.advance(token));
                reader.push(token);
            }
            if (!cursor.finished()) continue;
            ++finished;
            std::string tail;
            const auto outcome = reader.finish(tail);
            REQUIRE(std::holds_alternative<ModelResult>(outcome));
            const auto& calls = std::get<ModelResult>(outcome).calls;
            REQUIRE(calls.size() == 1);
            CAPTURE(calls[0].arguments);
            json::error_code failed;
            const auto arguments = json::parse(calls[0].arguments, failed);
            REQUIRE_FALSE(failed);
            CHECK(valid(arguments, json::parse(schema).as_object()));
        }
        CHECK(finished > 200);
    }
}

TEST_CASE("tool grammar: what cannot be required is refused") {
    const auto model = tiny();
    const auto refusal = [&](const ToolDefinitions& tools, std::string_view only = {}) {
        const auto made = ToolGrammar::for_calls(model.how, model.vocabulary, tools, only);
        REQUIRE_FALSE(made.ok());
        CHECK(made.error().code == ErrorCode::invalid_request);
        return made.error().message;
    };
    CHECK(refusal(nullptr) == "a call is required, but no tool is offered");
    CHECK(refusal(tools_of({{"a", ""}}), "b") == "a call of \"b\" is required, which is not offered");
    CHECK(refusal(tools_of({{"a", "[]"}})) == "tool \"a\": a schema is no JSON object");
    CHECK(refusal(tools_of({{"a", std::string(limits::grammar_schema_bytes_max + 1, ' ')}}))
              .find("grammar_schema_bytes_max") != std::string::npos);
    std::string many = R"({"properties":{)";
    for (int i = 0; i < 40; ++i) {
        many += (i ? ",\"p" : "\"p") + std::to_string(i) + "\":{\"properties\":{";
        for (int j = 0; j < 40; ++j) {
            many += (j ? ",\"q" : "\"q") + std::to_string(j) + "\":{\"properties\":{";
            for (int k = 0; k < 12; ++k) many += (k ? ",\"r" : "\"r") + std::to_string(k) + "\":{}";
            many += "}}";
        }
        many += "}}";
    }
    CHECK(refusal(tools_of({{"a", many + "}}"}})).find("grammar_nodes_max") != std::string::npos);
    CHECK(ToolGrammar::for_json(model.how, model.vocabulary, "{").error().param == "text.format");
    // More properties than can be followed: JSON it stays.
    std::string wide = R"({"type":"object","properties":{)";
    for (size_t i = 0; i <= limits::grammar_properties_max; ++i)
        wide += (i ? ",\"p" : "\"p") + std::to_string(i) + "\":{}";
    CHECK(accepts(model, wide + "}}", "{\"elsewhere\":1}"));
}
