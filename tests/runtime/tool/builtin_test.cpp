#include "runtime/tool/builtin.h"

#include <doctest/doctest.h>

#include <boost/json/parse.hpp>
#include <string>

#include "runtime/base/limits.h"
#include "runtime/tool/arguments.h"

using namespace mainstay;
using Kind = BuiltinAction::Kind;

TEST_CASE("builtin: every tool has a schema that is a JSON object and a group that authors can name") {
    for (const auto& tool : builtin_tools()) {
        CAPTURE(tool.name);
        const auto schema = boost::json::parse(tool.input_schema);
        CHECK(schema.at("type").as_string() == "object");
        CHECK(is_builtin_group(tool.group));
        CHECK(find_builtin(tool.name) == &tool);
        CHECK_FALSE(tool.description.empty());
    }
    CHECK(find_builtin("memory") == nullptr);
    CHECK_FALSE(is_builtin_group("memory_get"));
}

TEST_CASE("builtin: good arguments become the session's action") {
    const auto set = plan_builtin("memory_set", R"({"key":"name","value":"Ada \u00e9"})");
    CHECK(set.kind == Kind::memory_set);
    CHECK(set.key == "name");
    CHECK(set.value == "Ada \xc3\xa9");
    CHECK_FALSE(set.is_error);

    const auto get = plan_builtin("memory_get", R"({"key":"name"})");
    CHECK(get.kind == Kind::memory_get);
    CHECK(get.key == "name");
    CHECK(plan_builtin("memory_delete", R"({"key":"name"})").kind == Kind::memory_delete);
    CHECK(plan_builtin("memory_list", "").kind == Kind::memory_list);

    const auto now = plan_builtin("clock_now", " {} ");
    CHECK(now.kind == Kind::answer);
    CHECK(now.now);
    CHECK_FALSE(now.is_error);

    const auto sleep = plan_builtin("clock_sleep", R"({"seconds":1.5})");
    CHECK(sleep.kind == Kind::sleep);
    CHECK(sleep.duration_ms == 1500);
    CHECK(plan_builtin("clock_sleep", R"({"seconds":0})").kind == Kind::sleep);
    CHECK(plan_builtin("clock_sleep", R"({"seconds":31622400})").duration_ms == limits::wait_duration_ms_max);

    const auto echo = plan_builtin("echo", R"({"text":"line\none"})");
    CHECK(echo.kind == Kind::answer);
    CHECK(echo.text == "line\none");
    CHECK_FALSE(echo.now);
    CHECK_FALSE(echo.is_error);
}

TEST_CASE("builtin: calc calculates, and says why where it cannot") {
    const auto sum = plan_builtin("calc", R"({"expression":"17 + 25"})");
    CHECK(sum.kind == Kind::answer);
    CHECK(sum.text == "42");
    CHECK_FALSE(sum.is_error);
    const auto zero = plan_builtin("calc", R"({"expression":"1/0"})");
    CHECK(zero.is_error);
    CHECK(zero.text == "division by zero");
}

TEST_CASE("builtin: price looks into the agent's list, whatever the case and with or without a plural s") {
    const PriceList prices{{"tozek", "2.50"}, {"apple", "0.40"}, {"cherry", "0.05"}, {"box", "3"}, {"nails", "0.01"}};
    const auto price = [&](const std::string& item, const PriceList* list) {
        const auto action = plan_builtin("price", R"({"item":")" + item + R"("})", list);
        CHECK(action.kind == Kind::answer);
        return (action.is_error ? "! " : "") + action.text;
    };
    CHECK(price("tozek", &prices) == "2.50");
    CHECK(price("Apples ", &prices) == "0.40");
    CHECK(price("cherries", &prices) == "0.05");
    CHECK(price("boxes", &prices) == "3");
    CHECK(price("nail", &prices) == "0.01");
    CHECK(price("pear", &prices) == "! no price is known for this item");
    CHECK(price("", &prices) == "! no price is known for this item");
    CHECK(price("tozek", nullptr) == "! no price is known for this item");
}

TEST_CASE("builtin: bad arguments are answered with an error that names what to mend") {
    struct Row {
        const char* tool;
        std::string arguments;
        const char* said;
    };
    const Row rows[] = {
        {"memory_get", "{}", "\"key\" is missing"},
        {"memory_get", "{\"key\":7}", "\"key\" must be of type string"},
        {"memory_get", "{\"key\":\"\"}", "must not be empty"},
        {"memory_get", "{\"key\":\"a\",\"extra\":1}", "\"extra\" is not known"},
        {"memory_set", "{\"key\":\"a\"}", "\"value\" is missing"},
        {"memory_set", "{\"key\":\"a\",\"value\":null}", "\"value\" must be of type string"},
        {"memory_set", "{\"key\":\"" + std::string(257, 'k') + "\",\"value\":\"\"}", "memory_key_bytes_max = 256"},
        {"memory_set", "{\"key\":\"a\",\"value\":\"" + std::string(8193, 'v') + "\"}", "memory_value_bytes_max = 8192"},
        {"memory_list", "[]", "must be a JSON object"},
        {"memory_list", "{\"a\":1", "not valid JSON"},
        {"clock_sleep", "{\"seconds\":-1}", "between 0 and 31622400"},
        {"clock_sleep", "{\"seconds\":31622401}", "between 0 and 31622400"},
        {"clock_sleep", "{\"seconds\":1e300}", "between 0 and 31622400"},
        {"clock_sleep", "{\"seconds\":\"5\"}", "must be of type number"},
        {"echo", "nonsense", "not valid JSON"},
        {"echo", "{\"text\":\"\xff\"}", "not valid JSON"},
        {"echo", std::string(100, '['), "not valid JSON"},
        {"format_disk", "{}", "no builtin tool"},
    };
    for (const auto& row : rows) {
        CAPTURE(row.tool);
        CAPTURE(row.arguments.substr(0, 60));
        const auto action = plan_builtin(row.tool, row.arguments);
        CHECK(action.kind == Kind::answer);
        CHECK(action.is_error);
        CAPTURE(action.text);
        CHECK(action.text.find(row.said) != std::string::npos);
    }
}

TEST_CASE("arguments: the checked part of a schema") {
    struct Row {
        const char* schema;
        const char* arguments;
        const char* said;  // empty: fits
    };
    const Row rows[] = {
        {R"({"properties":{"n":{"type":"integer"}}})", R"({"n":3})", ""},
        {R"({"properties":{"n":{"type":"integer"}}})", R"({"n":3.0})", ""},
        {R"({"properties":{"n":{"type":"integer"}}})", R"({"n":3.5})", "of type integer"},
        {R"({"properties":{"n":{"type":"number"}}})", R"({"n":18446744073709551615})", ""},
        {R"({"properties":{"n":{"type":["string","null"]}}})", R"({"n":null})", ""},
        {R"({"properties":{"n":{"type":["string","null"]}}})", R"({"n":true})", "of type string or null"},
        {R"({"properties":{"n":{"type":"array"}}})", R"({"n":{}})", "of type array"},
        {R"({"properties":{"n":{"type":"boolean"}}})", R"({"n":0})", "of type boolean"},
        {R"({"properties":{"n":{"type":"object"}}})", R"({"n":[]})", "of type object"},
        {R"({"properties":{"n":{"enum":["a",2]}}})", R"({"n":2})", ""},
        {R"({"properties":{"n":{"enum":["a",2]}}})", R"({"n":"b"})", "one of \"a\", 2"},
        {R"({"required":["a","b"]})", R"({"a":1})", "\"b\" is missing"},
        {R"({"additionalProperties":false,"properties":{"a":{}}})", R"({"a":1})", ""},
        {R"({"additionalProperties":false,"properties":{"a":{}}})", R"({"b":1})", "\"b\" is not known"},
        {R"({"additionalProperties":false,"patternProperties":{"^x":{}}})", R"({"xa":1})", ""},
        {R"({"additionalProperties":true})", R"({"b":1})", ""},
        // What we do not read checks nothing.
        {R"({"properties":{"n":{"type":"decimal"}}})", R"({"n":"x"})", ""},
        {R"({"properties":{"n":{"type":7}}})", R"({"n":"x"})", ""},
        {R"({"properties":{"n":true}})", R"({"n":"x"})", ""},
        {R"({"properties":[],"required":"a"})", R"({"n":"x"})", ""},
        {"true", R"({"n":"x"})", ""},
        {"not a schema", R"({"n":"x"})", ""},
        {"", R"({"n":"x"})", ""},
    };
    for (const auto& row : rows) {
        CAPTURE(row.schema);
        CAPTURE(row.arguments);
        const auto arguments = parse_arguments(row.arguments);
        REQUIRE(arguments.ok());
        const auto said = check_arguments(*arguments, row.schema);
        CAPTURE(said);
        if (*row.said == '\0') {
            CHECK(said.empty());
        } else {
            CHECK(said.find(row.said) != std::string::npos);
        }
    }
}
