#include "runtime/inference/chat_request.h"

#include <doctest/doctest.h>

#include <boost/json.hpp>

using namespace mainstay;

namespace {

Item base(ItemKind kind) {
    Item item;
    item.kind = kind;
    return item;
}

Item said(Role role, std::string text, ItemStatus status = ItemStatus::completed) {
    Item item = base(ItemKind::message);
    item.role = role;
    item.text = std::move(text);
    item.status = status;
    return item;
}

Item called(std::string id, std::string output, uint16_t step = 0, ItemStatus status = ItemStatus::completed) {
    Item item = base(ItemKind::tool_call);
    item.call_id = std::move(id);
    item.name = "read";
    item.server_label = "files";
    item.arguments = "{\"p\":1}";
    item.text = std::move(output);
    item.step = step;
    item.status = status;
    return item;
}

Item asked_client(std::string id, uint16_t step = 0) {
    Item item = base(ItemKind::function_call);
    item.call_id = std::move(id);
    item.name = "ask";
    item.arguments = "{}";
    item.step = step;
    return item;
}

Item client_answered(std::string id, std::string output) {
    Item item = base(ItemKind::function_call_output);
    item.call_id = std::move(id);
    item.text = std::move(output);
    return item;
}

std::vector<ItemPtr> items_of(std::vector<Item> items) {
    std::vector<ItemPtr> out;
    for (auto& item : items) out.push_back(std::make_shared<const Item>(std::move(item)));
    return out;
}

ModelRequest request_of(std::vector<Item> open, std::vector<std::vector<Item>> settled = {}) {
    ModelSpec model;
    model.name = "qwen";
    ModelRequest request;
    request.model = std::make_shared<const ModelSpec>(std::move(model));
    request.prompt.open = items_of(std::move(open));
    TurnRun::Turns turns;
    for (auto& turn : settled) turns.push_back(std::make_shared<const std::vector<ItemPtr>>(items_of(std::move(turn))));
    request.prompt.settled = TurnRun(std::move(turns));
    return request;
}

const std::string ending = R"(,"stream":true,"stream_options":{"include_usage":true}})";

std::string body_of(const ModelRequest& request) {
    auto body = render_chat_request(request);
    REQUIRE(body.ok());
    boost::json::error_code failed;
    const auto parsed = boost::json::parse(*body, failed);
    REQUIRE_MESSAGE(!failed, *body);
    REQUIRE(body->ends_with(ending));
    return body->substr(0, body->size() - ending.size());
}

/// The messages array alone.
std::string messages_of(const ModelRequest& request) {
    const std::string body = body_of(request), front = R"({"model":"qwen","messages":[)";
    REQUIRE(body.starts_with(front));
    const size_t end = body.rfind(']');
    return body.substr(front.size(), end - front.size());
}

std::string call_json(const std::string& id, const std::string& name = "read",
                      const std::string& arguments = R"({\"p\":1})") {
    return R"({"id":")" + id + R"(","type":"function","function":{"name":")" + name + R"(","arguments":")" + arguments +
           R"("}})";
}

std::string tool_json(const std::string& id, const std::string& output) {
    return R"({"role":"tool","tool_call_id":")" + id + R"(","content":")" + output + R"("})";
}

const std::string assistant_calls = R"({"role":"assistant","content":null,"tool_calls":[)";

}  // namespace

TEST_CASE("chat request: messages of all roles, instructions first, several parts as an array") {
    auto parts = said(Role::user, "one");
    parts.more_parts = {"two", "three"};
    auto request = request_of({parts}, {{said(Role::system, "s"), said(Role::developer, "d"), said(Role::user, "hi"),
                                         said(Role::assistant, "hello")}});
    request.instructions = "Be \"brief\".";
    CHECK(
        messages_of(request) ==
        R"({"role":"system","content":"Be \"brief\"."},{"role":"system","content":"s"},{"role":"system","content":"d"},)"
        R"({"role":"user","content":"hi"},{"role":"assistant","content":"hello"},)"
        R"({"role":"user","content":[{"type":"text","text":"one"},{"type":"text","text":"two"},{"type":"text","text":"three"}]})");
}

TEST_CASE("chat request: calls of one step share a message, calls of two steps do not") {
    struct Row {
        const char* name;
        std::vector<Item> items;
        std::string messages;
    };
    const std::vector<Row> rows = {
        {"parallel",
         {called("a", "A"), called("b", "B")},
         assistant_calls + call_json("a") + "," + call_json("b") + "]}," + tool_json("a", "A") + "," +
             tool_json("b", "B")},
        {"one after the other",
         {called("a", "A", 0), called("b", "B", 1)},
         assistant_calls + call_json("a") + "]}," + tool_json("a", "A") + "," + assistant_calls + call_json("b") +
             "]}," + tool_json("b", "B")},
        {"with text of the same step",
         {said(Role::assistant, "look"), called("a", "A")},
         R"({"role":"assistant","content":"look","tool_calls":[)" + call_json("a") + "]}," + tool_json("a", "A")},
        {"failed",
         {[] {
             auto item = called("a", "", 0, ItemStatus::failed);
             item.error = "no such file";
             return item;
         }()},
         assistant_calls + call_json("a") + "]}," + tool_json("a", "Error: no such file")},
        {"unknown",
         {called("a", "", 0, ItemStatus::unknown)},
         assistant_calls + call_json("a") + "]}," +
             tool_json("a", "The outcome of this call is unknown: it may or may not have taken effect.")},
        {"not yet answered",
         {called("a", "", 0, ItemStatus::in_progress), called("b", "B")},
         assistant_calls + call_json("b") + "]}," + tool_json("b", "B")},
        {"text whose call has no answer",
         {said(Role::assistant, "look"), called("a", "", 0, ItemStatus::in_progress)},
         R"({"role":"assistant","content":"look"})"},
        {"server and client calls of one step",
         {called("a", "A"), asked_client("f"), client_answered("f", "F")},
         assistant_calls + call_json("a") + "," + call_json("f", "ask", "{}") + "]}," + tool_json("a", "A") + "," +
             tool_json("f", "F")},
    };
    for (const auto& row : rows) {
        CAPTURE(row.name);
        CHECK(messages_of(request_of(row.items)) == row.messages);
    }
}

TEST_CASE("chat request: a client's output stands after its call, whichever turn brought it; orphans are left out") {
    const auto hello = R"({"role":"user","content":"hello"})";
    CHECK(messages_of(request_of({said(Role::user, "hello"), client_answered("f", "F")}, {{asked_client("f")}})) ==
          assistant_calls + call_json("f", "ask", "{}") + "]}," + tool_json("f", "F") + "," + hello);
    CHECK(messages_of(request_of({said(Role::user, "hello")}, {{asked_client("f")}})) == hello);
    CHECK(messages_of(request_of({client_answered("gone", "F"), said(Role::user, "hello")})) == hello);
    // One id used twice: the outputs are given out in order.
    CHECK(messages_of(request_of({client_answered("f", "2")},
                                 {{asked_client("f")}, {client_answered("f", "1"), asked_client("f")}})) ==
          assistant_calls + call_json("f", "ask", "{}") + "]}," + tool_json("f", "1") + "," + assistant_calls +
              call_json("f", "ask", "{}") + "]}," + tool_json("f", "2"));
}

TEST_CASE("chat request: approvals are left out, a cut answer is shown, a summary is told as such") {
    CHECK(messages_of(request_of({said(Role::user, "hi"), said(Role::assistant, "half", ItemStatus::incomplete),
                                  said(Role::assistant, "half", ItemStatus::in_progress),
                                  base(ItemKind::approval_request), base(ItemKind::approval_response)})) ==
          R"({"role":"user","content":"hi"},{"role":"assistant","content":"half"})");
    auto summary = base(ItemKind::compaction);
    summary.text = "They met.";
    CHECK(
        messages_of(request_of({summary, said(Role::user, "hi")})) ==
        R"({"role":"system","content":"Summary of the earlier conversation:\nThey met."},{"role":"user","content":"hi"})");
}

TEST_CASE("chat request: a longer conversation only appends") {
    std::vector<Item> open = {said(Role::user, "hi"), called("a", "A", 0)};
    auto before = messages_of(request_of(open));
    for (uint16_t step = 1; step < 5; ++step) {
        open.push_back(called("c" + std::to_string(step), "out", step));
        const auto after = messages_of(request_of(open));
        CHECK(after.starts_with(before));
        before = after;
    }
    const auto settled = messages_of(request_of({said(Role::user, "next")}, {open}));
    CHECK(settled.starts_with(before));
}

TEST_CASE("chat request: text is escaped, and bytes that are no UTF-8 are replaced") {
    struct Row {
        std::string text, json;
    };
    using namespace std::string_literals;
    const std::vector<Row> rows = {
        {"a\"b\\c\n\r\t\x01\x1f\x7f", "\"a\\\"b\\\\c\\n\\r\\t\\u0001\\u001f\x7f\""},
        {"a\0b"s, "\"a\\u0000b\""},
        {"\u00e9\u4e16\U0001F600", "\"\u00e9\u4e16\U0001F600\""},
        {"\xff", "\"\ufffd\""},
        {"\xc3", "\"\ufffd\""},
        {"\xc0\xaf", "\"\ufffd\ufffd\""},
        {"\xed\xa0\x80x", "\"\ufffd\ufffd\ufffdx\""},
        {"\xf4\x90\x80\x80", "\"\ufffd\ufffd\ufffd\ufffd\""},
        {"\xe4\xb8", "\"\ufffd\ufffd\""},
    };
    for (const auto& row : rows) {
        std::string out;
        append_json_string(out, row.text);
        CHECK(out == row.json);
    }
}

TEST_CASE("chat request: tools, and the fields that a request may set") {
    auto request = request_of({said(Role::user, "hi")});
    request.tools = std::make_shared<const std::vector<ToolDefinition>>(
        std::vector<ToolDefinition>{{"files__read", "Reads.", R"({"type":"object"})", true}, {"ask", "", "", false}});
    const std::string front =
        R"({"model":"qwen","messages":[{"role":"user","content":"hi"}],"tools":[)"
        R"({"type":"function","function":{"name":"files__read","description":"Reads.","parameters":{"type":"object"},"strict":true}},)"
        R"({"type":"function","function":{"name":"ask","parameters":{"type":"object","properties":{}}}}])";
    struct Row {
        std::string options, rendered;
        uint32_t step = 0, max_tokens = 0;
    };
    const std::vector<Row> rows = {
        {"", ""},
        {"{}", ""},
        {R"({"temperature":0.5,"top_p":1,"metadata":{"a":"b"},"instructions":"x","unknown":1})",
         R"(,"temperature":5E-1,"top_p":1)"},
        {R"({"temperature":null,"tool_choice":null,"max_output_tokens":null})", ""},
        {R"({"seed":7,"presence_penalty":0,"stop":["a"]})", R"(,"presence_penalty":0,"seed":7,"stop":["a"])"},
        {"", R"(,"max_tokens":100)", 0, 100},
        {R"({"max_output_tokens":50})", R"(,"max_tokens":50)", 0, 100},
        {R"({"max_output_tokens":500})", R"(,"max_tokens":100)", 0, 100},
        {R"({"max_output_tokens":500})", R"(,"max_tokens":500)", 0, 0},
        {R"({"tool_choice":"auto"})", ""},
        {R"({"tool_choice":"none"})", R"(,"tool_choice":"none")", 3},
        {R"({"tool_choice":"required"})", R"(,"tool_choice":"required")"},
        {R"({"tool_choice":"required"})", "", 1},
        {R"({"tool_choice":{"type":"function","name":"ask"}})",
         R"(,"tool_choice":{"type":"function","function":{"name":"ask"}})"},
        {R"({"tool_choice":{"type":"mcp","server_label":"files","name":"read"}})",
         R"(,"tool_choice":{"type":"function","function":{"name":"files__read"}})"},
        {R"({"parallel_tool_calls":false})", R"(,"parallel_tool_calls":false)"},
        {R"({"reasoning":{"effort":"low"}})", R"(,"reasoning_effort":"low")"},
        {R"({"text":{"format":{"type":"text"}}})", ""},
        {R"({"text":{"format":{"type":"json_object"}}})", R"(,"response_format":{"type":"json_object"})"},
        {R"({"text":{"format":{"type":"json_schema","name":"n","strict":true,"schema":{"type":"object"}}}})",
         R"(,"response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type":"object"}}})"},
    };
    for (const auto& row : rows) {
        CAPTURE(row.options);
        request.options = row.options;
        request.step = row.step;
        request.max_output_tokens = row.max_tokens;
        CHECK(body_of(request) == front + row.rendered);
    }
    for (const std::string bad : {"[]", "{", R"({"temperature":"hot"})", R"({"tool_choice":"maybe"})",
                                  R"({"tool_choice":7})", R"({"tool_choice":{"type":"function"}})",
                                  R"({"text":{"format":{"type":"xml"}}})", R"({"text":{"format":{}}})"}) {
        CAPTURE(bad);
        request.options = bad;
        CHECK_FALSE(render_chat_request(request).ok());
    }
    request.tools = nullptr;
    request.step = 0;
    request.options = R"({"tool_choice":"required","parallel_tool_calls":true})";
    CHECK(body_of(request) == R"({"model":"qwen","messages":[{"role":"user","content":"hi"}])");
}

TEST_CASE("chat request: history names a tool as it is offered now") {
    auto request = request_of({called("a", "A")});
    request.tools = std::make_shared<const std::vector<ToolDefinition>>(
        std::vector<ToolDefinition>{{"files__read", "", "{}", false}});
    CHECK(messages_of(request_of({called("a", "A")})).find(R"("name":"read")") != std::string::npos);
    CHECK(body_of(request).find(R"("id":"a","type":"function","function":{"name":"files__read")") != std::string::npos);
}

TEST_CASE(
    "chat request: a cache key goes along where it is given, and only OpenAI's own addresses are known to take one") {
    const auto request = request_of({said(Role::user, "hi")});
    CHECK(render_chat_request(request).value().find("prompt_cache_key") == std::string::npos);
    const auto body = boost::json::parse(render_chat_request(request, "d1\"2").value());
    CHECK(body.at("prompt_cache_key") == "d1\"2");
    for (const char* url : {"https://api.openai.com/v1", "https://api.openai.com", "https://api.openai.com:443/v1",
                            "https://eu.api.openai.com/v1"})
        CHECK_MESSAGE(takes_prompt_cache_key(url), std::string(url));
    for (const char* url :
         {"http://api.openai.com/v1", "https://api.openai.com.example.org/v1", "https://notapi.openai.com/v1",
          "https://openai.com/v1", "https://x/api.openai.com", "http://127.0.0.1:8000/v1", ""})
        CHECK_FALSE_MESSAGE(takes_prompt_cache_key(url), std::string(url));
}
