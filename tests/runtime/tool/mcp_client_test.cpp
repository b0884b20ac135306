#include "runtime/tool/mcp_client.h"

#include <doctest/doctest.h>

#include <boost/json.hpp>

#include "runtime/base/limits.h"
#include "runtime/tool/mcp_content.h"

using namespace mainstay;
namespace json = boost::json;
using Kind = ToolOutcome::Kind;

namespace {

constexpr uint64_t start_deadline = 1'000'000, far = 100'000'000;

/// A client and the other end of its line: what it said is read as JSON, what the peer says is text.
struct Line {
    McpClient client{start_deadline};
    uint64_t now = 0;

    /// Takes all that the client has to say.
    std::vector<json::object> said() {
        std::string text;
        for (auto bytes = client.output(); !bytes.empty(); bytes = client.output()) {
            text += bytes;
            client.wrote(bytes.size());
        }
        std::vector<json::object> messages;
        size_t begin = 0;
        for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
            messages.push_back(json::parse(std::string_view(text).substr(begin, end - begin)).as_object());
        }
        REQUIRE(begin == text.size());
        return messages;
    }
    McpOutputs says(std::string_view line) {
        McpOutputs out;
        client.receive(std::string(line) + "\n", now, out);
        return out;
    }
    McpOutputs answers(int64_t id, std::string_view result) {
        return says(R"({"jsonrpc":"2.0","id":)" + std::to_string(id) + R"(,"result":)" + std::string(result) + "}");
    }
    void start(std::string_view version = "2025-11-25") {
        const auto hello = said();
        REQUIRE(hello.size() == 1);
        answers(hello[0].at("id").as_int64(),
                R"({"capabilities":{"tools":{}},"serverInfo":{"name":"t","version":"1"},"protocolVersion":")" +
                    std::string(version) + R"("})");
        REQUIRE(client.ready());
        const auto ready = said();
        REQUIRE(ready.size() == 1);
        REQUIRE(ready[0].at("method").as_string() == "notifications/initialized");
    }
    McpOutputs call(uint64_t call_id, std::string arguments = "{}", uint64_t deadline = far) {
        McpOutputs out;
        client.call({call_id, "tool", std::move(arguments), "key-" + std::to_string(call_id), deadline}, now, out);
        return out;
    }
    McpOutputs list() {
        McpOutputs out;
        client.list(far, out);
        return out;
    }
    McpOutputs expire(uint64_t at) {
        now = at;
        McpOutputs out;
        client.expire(at, out);
        return out;
    }
    McpOutputs close(size_t unread = 0) {
        McpOutputs out;
        client.close("The tool server exited.", ErrorClass::transient, ErrorCode::tool_unavailable, unread, now, out);
        return out;
    }
};

int64_t id_of(const json::object& message) { return message.at("id").as_int64(); }

}  // namespace

TEST_CASE("mcp: initialize names our revision and what we offer, and nothing else is said before its answer") {
    Line line;
    CHECK(line.call(7).settled.empty());
    line.list();
    const auto hello = line.said();
    REQUIRE(hello.size() == 1);
    CHECK(hello[0].at("method").as_string() == "initialize");
    const auto& params = hello[0].at("params").as_object();
    CHECK(params.at("protocolVersion").as_string() == "2025-11-25");
    CHECK(params.at("clientInfo").at("name").as_string() == "mainstay");
    CHECK(params.at("capabilities").as_object().contains("roots"));

    line.answers(id_of(hello[0]), R"({"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":true}}})");
    const auto then = line.said();
    REQUIRE(then.size() == 3);
    CHECK(then[0].at("method").as_string() == "notifications/initialized");
    CHECK(then[1].at("method").as_string() == "tools/call");
    CHECK(then[2].at("method").as_string() == "tools/list");
}

TEST_CASE("mcp: older revisions that we know are spoken, others are refused by name") {
    for (const char* version : {"2025-06-18", "2025-03-26", "2024-11-05"}) {
        Line line;
        line.start(version);
        CHECK(line.client.protocol_version() == version);
    }
    for (const char* answer : {R"({"protocolVersion":"2026-07-28","capabilities":{}})", R"({"capabilities":{}})",
                               R"({"protocolVersion":7})", "[]", "null"}) {
        CAPTURE(answer);
        Line line;
        line.answers(id_of(line.said().at(0)), answer);
        REQUIRE(line.client.failure());
        CHECK(line.client.failure_class() == ErrorClass::protocol);
    }
    Line line;
    line.says(R"({"jsonrpc":"2.0","id":)" + std::to_string(id_of(line.said().at(0))) +
              R"(,"error":{"code":-32000,"message":"no licence"}})");
    REQUIRE(line.client.failure());
    CHECK(line.client.failure()->find("no licence") != std::string::npos);
}

TEST_CASE("mcp: a server that does not start in time fails") {
    Line line;
    CHECK(line.client.next_deadline_us() == start_deadline);
    line.expire(start_deadline - 1);
    CHECK_FALSE(line.client.failure());
    line.expire(start_deadline);
    REQUIRE(line.client.failure());
    CHECK(line.client.failure_class() == ErrorClass::timeout);
}

TEST_CASE("mcp: a call carries its key and a progress token, and its answer is the outcome") {
    Line line;
    line.start();
    line.call(41, R"({"text":"a\nb"})");
    const auto said = line.said();
    REQUIRE(said.size() == 1);
    const auto& params = said[0].at("params").as_object();
    CHECK(params.at("name").as_string() == "tool");
    CHECK(params.at("arguments").at("text").as_string() == "a\nb");
    CHECK(params.at("_meta").at("mainstay/idempotencyKey").as_string() == "key-41");
    CHECK(params.at("_meta").at("progressToken") == said[0].at("id"));
    line.says(R"({"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}})");

    line.now = 250;
    const auto out = line.answers(id_of(said[0]), R"({"content":[{"type":"text","text":"done"}]})");
    REQUIRE(out.settled.size() == 1);
    CHECK(out.settled[0].call_id == 41);
    CHECK(out.settled[0].outcome.kind == Kind::result);
    CHECK(out.settled[0].outcome.output == "done");
    CHECK_FALSE(out.settled[0].outcome.is_error);
    CHECK(out.settled[0].outcome.duration_micros == 250);
    CHECK(line.client.idle());
}

TEST_CASE("mcp: a tool that failed is told from a server that refused") {
    Line line;
    line.start();
    line.call(1);
    line.call(2);
    line.call(3);
    const auto said = line.said();
    auto out = line.answers(id_of(said.at(0)), R"({"content":[{"type":"text","text":"no such file"}],"isError":true})");
    REQUIRE(out.settled.size() == 1);
    CHECK(out.settled[0].outcome.kind == Kind::result);
    CHECK(out.settled[0].outcome.is_error);

    auto error = [&](int64_t id, int code) {
        return line.says(R"({"jsonrpc":"2.0","id":)" + std::to_string(id) + R"(,"error":{"code":)" +
                         std::to_string(code) + R"(,"message":"because"}})");
    };
    out = error(id_of(said.at(1)), -32602);
    REQUIRE(out.settled.size() == 1);
    CHECK(out.settled[0].outcome.kind == Kind::failed);
    CHECK(out.settled[0].outcome.error_class == ErrorClass::invalid);
    CHECK(out.settled[0].outcome.code == ErrorCode::tool_protocol_error);
    CHECK(out.settled[0].outcome.message.find("because") != std::string::npos);
    // From within the tool, perhaps: it may have had its effect.
    out = error(id_of(said.at(2)), -32603);
    REQUIRE(out.settled.size() == 1);
    CHECK(out.settled[0].outcome.kind == Kind::lost);
    CHECK(out.settled[0].outcome.error_class == ErrorClass::protocol);
    CHECK(out.settled[0].outcome.code == ErrorCode::tool_protocol_error);
    uint64_t call = 4;
    for (const int code : {-32700, -32604, -32599, -32000, -1, 0, 1}) {
        CAPTURE(code);
        line.call(call++);
        out = error(id_of(line.said().at(0)), code);
        REQUIRE(out.settled.size() == 1);
        CHECK(out.settled[0].outcome.kind == Kind::lost);
    }
}

TEST_CASE("mcp: a deadline or a cancel after the call was sent is lost, and the server is told") {
    for (const bool cancelled : {false, true}) {
        Line line;
        line.start();
        line.call(1, "{}", 5'000'000);
        const auto said = line.said();
        McpOutputs out;
        if (cancelled) {
            line.client.cancel(1, 10, out);
        } else {
            CHECK(line.client.next_deadline_us() == 5'000'000);
            out = line.expire(5'000'000);
        }
        REQUIRE(out.settled.size() == 1);
        CHECK(out.settled[0].outcome.kind == Kind::lost);
        CHECK(out.settled[0].outcome.error_class == (cancelled ? ErrorClass::lost : ErrorClass::timeout));
        const auto told = line.said();
        REQUIRE(told.size() == 1);
        CHECK(told[0].at("method").as_string() == "notifications/cancelled");
        CHECK(told[0].at("params").at("requestId") == said[0].at("id"));
        // The answer that comes all the same is nobody's.
        CHECK(line.answers(id_of(said[0]), R"({"content":[]})").settled.empty());
        CHECK(line.client.counters().late_answers == 1);
        CHECK(line.client.counters().unknown_answers == 0);
    }
}

TEST_CASE("mcp: a call that was given up before it was sent surely did not run, and is not sent") {
    Line line;  // still starting
    line.call(1, "{}", 5'000);
    auto out = line.expire(5'000);
    REQUIRE(out.settled.size() == 1);
    CHECK(out.settled[0].outcome.kind == Kind::failed);
    CHECK(out.settled[0].outcome.code == ErrorCode::tool_timeout);

    line.start();
    line.call(2);
    line.call(3);
    McpOutputs cancelled;
    line.client.cancel(2, line.now, cancelled);
    REQUIRE(cancelled.settled.size() == 1);
    CHECK(cancelled.settled[0].outcome.kind == Kind::failed);
    const auto said = line.said();
    REQUIRE(said.size() == 1);
    CHECK(said[0].at("params").at("_meta").at("mainstay/idempotencyKey").as_string() == "key-3");
    line.client.cancel(2, line.now, cancelled);  // settled before: nothing
    CHECK(cancelled.settled.size() == 1);
}

TEST_CASE("mcp: when the connection ends, what was not read is failed and what may have been read is lost") {
    Line line;
    line.start();
    line.call(1);
    const size_t first = line.client.output().size();
    line.client.wrote(first);
    line.call(2);
    line.client.wrote(line.client.output().size());
    line.call(3);
    const size_t third = line.client.output().size();
    line.client.wrote(third - 5);  // begun, and not whole
    line.call(4);

    auto kinds = [](const McpOutputs& out) {
        std::map<uint64_t, Kind> kinds_of;
        for (const auto& one : out.settled) kinds_of[one.call_id] = one.outcome.kind;
        return kinds_of;
    };
    using Kinds = std::map<uint64_t, Kind>;
    SUBCASE("all that was written may have been read") {
        CHECK(kinds(line.close()) == Kinds{{1, Kind::lost}, {2, Kind::lost}, {3, Kind::failed}, {4, Kind::failed}});
    }
    SUBCASE("only the newline of a call was not read") {
        line.client.wrote(4);
        CHECK(kinds(line.close()) == Kinds{{1, Kind::lost}, {2, Kind::lost}, {3, Kind::lost}, {4, Kind::failed}});
    }
    SUBCASE("the pipe held the second call when its reader died") {
        line.client.wrote(5);
        CHECK(kinds(line.close(third + 2)) ==
              Kinds{{1, Kind::lost}, {2, Kind::failed}, {3, Kind::failed}, {4, Kind::failed}});
    }
    CHECK(line.client.idle());
}

TEST_CASE("mcp: every request of the server is answered") {
    Line line;
    line.says(R"({"jsonrpc":"2.0","id":"before","method":"ping"})");  // allowed before the handshake ends
    const auto early = line.said();
    REQUIRE(early.size() == 2);
    CHECK(early[1].at("id").as_string() == "before");
    line.answers(id_of(early[0]), R"({"protocolVersion":"2025-11-25","capabilities":{"tools":{}}})");
    line.said();

    line.says(R"({"jsonrpc":"2.0","id":0,"method":"roots/list"})");
    line.says(R"({"jsonrpc":"2.0","id":-5,"method":"sampling/createMessage","params":{}})");
    line.says(R"({"jsonrpc":"2.0","id":"e","method":"elicitation/create","params":{}})");
    line.says(R"({"jsonrpc":"2.0","id":9,"method":"ping","params":3})");
    const auto said = line.said();
    REQUIRE(said.size() == 4);
    CHECK(said[0].at("id") == 0);
    CHECK(said[0].at("result").at("roots").as_array().empty());
    CHECK(said[1].at("error").at("code") == -32601);
    CHECK(said[1].at("id") == -5);
    CHECK(said[2].at("error").at("code") == -32601);
    CHECK(said[3].at("error").at("code") == -32600);
}

TEST_CASE("mcp: what is no message, or answers nothing, is counted and dropped") {
    Line line;
    line.start();
    line.call(1);
    const auto id = id_of(line.said().at(0));
    for (const char* text :
         {"Server running on stdio", "{", "[]", "3", R"({"id":1,"result":{}})",
          R"({"jsonrpc":"1.0","id":1,"result":{}})",
          R"({"jsonrpc":"2.0","id":1,"result":{},"error":{"code":1,"message":""}})",
          R"({"jsonrpc":"2.0","id":1.0,"result":{}})", R"({"jsonrpc":"2.0","id":null,"result":{}})",
          R"({"jsonrpc":"2.0","id":null,"method":"ping"})", R"({"jsonrpc":"2.0","id":1,"error":{"code":"x"}})",
          R"({"jsonrpc":"2.0","method":3})", "\xff\xfe"}) {
        CAPTURE(text);
        const auto before = line.client.counters().bad_lines;
        CHECK(line.says(text).settled.empty());
        CHECK(line.client.counters().bad_lines == before + 1);
    }
    CHECK(line.says("").settled.empty());
    CHECK(line.answers(id + 1, "{}").settled.empty());
    CHECK(line.says(R"({"jsonrpc":"2.0","id":"1","result":{"content":[]}})").settled.empty());
    CHECK(line.says(R"({"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse"}})").settled.empty());
    CHECK(line.client.counters().unknown_answers == 3);
    CHECK(line.answers(id, R"({"content":[]})").settled.size() == 1);
    CHECK(line.answers(id, R"({"content":[]})").settled.empty());  // twice
    CHECK(line.client.counters().unknown_answers == 4);
    CHECK_FALSE(line.client.failure());
}

TEST_CASE("mcp: an answer that comes before its question was sent is no answer") {
    Line line;
    line.start();
    line.call(1);
    for (int64_t id = 1; id < 10; ++id) CHECK(line.answers(id, R"({"content":[]})").settled.empty());
    const auto said = line.said();
    CHECK(line.answers(id_of(said.at(0)), R"({"content":[]})").settled.size() == 1);
}

TEST_CASE("mcp: bytes may come in any pieces") {
    Line line;
    line.start();
    line.call(1);
    const auto id = id_of(line.said().at(0));
    const std::string text = R"({"jsonrpc":"2.0","id":)" + std::to_string(id) +
                             R"(,"result":{"content":[{"type":"text","text":"a"}]}})" + "\r\n\n";
    size_t settled = 0;
    for (const char c : text) {
        McpOutputs out;
        line.client.receive(std::string_view(&c, 1), 0, out);
        settled += out.settled.size();
    }
    CHECK(settled == 1);
    CHECK(line.client.counters().bad_lines == 0);
}

TEST_CASE("mcp: a peer that breaks a bound fails by the bound's name") {
    SUBCASE("an endless line") {
        Line line;
        McpOutputs out;
        const std::string piece(1 << 20, 'x');
        for (int i = 0; i < 9 && !line.client.failure(); ++i) line.client.receive(piece, 0, out);
        REQUIRE(line.client.failure());
        CHECK(line.client.failure()->find("tool_line_bytes_max") != std::string::npos);
    }
    SUBCASE("a stream of garbage") {
        Line line;
        McpOutputs out;
        for (size_t i = 0; i <= limits::tool_bad_lines_max; ++i) line.client.receive("garbage\n", 0, out);
        REQUIRE(line.client.failure());
        CHECK(line.client.failure()->find("tool_bad_lines_max") != std::string::npos);
    }
    SUBCASE("a flood of notifications") {
        Line line;
        line.start();
        const std::string one = R"({"jsonrpc":"2.0","method":"notifications/message"})";
        for (uint64_t i = 0; i < limits::tool_notifications_per_second_max; ++i) line.says(one);
        line.now = 1'000'001;
        for (uint64_t i = 0; i < limits::tool_notifications_per_second_max; ++i) line.says(one);
        CHECK_FALSE(line.client.failure());
        line.says(one);
        REQUIRE(line.client.failure());
        CHECK(line.client.failure()->find("tool_notifications_per_second_max") != std::string::npos);
    }
    SUBCASE("requests without end from a server that does not read") {
        Line line;
        line.start();
        const std::string one =
            R"({"jsonrpc":"2.0","id":")" + std::string(250, 'i') + R"(","method":"sampling/createMessage"})";
        size_t asked = 0;
        for (; asked < 200'000 && !line.client.failure(); ++asked) line.says(one);
        REQUIRE(line.client.failure());
        CHECK(asked < 200'000);
    }
}

TEST_CASE("mcp: calls that wait for a server that does not read are bounded") {
    Line line;
    line.start();
    const std::string arguments = R"({"text":")" + std::string(200'000, 'x') + R"("})";
    uint64_t id = 0;
    McpOutputs out;
    while (out.settled.empty() && id < 1000) out = line.call(++id, arguments);
    REQUIRE(out.settled.size() == 1);
    CHECK(out.settled[0].outcome.kind == Kind::failed);
    CHECK(out.settled[0].outcome.error_class == ErrorClass::overloaded);
    CHECK(id * arguments.size() <= limits::tool_queue_bytes_max + 2 * arguments.size());
}

TEST_CASE("mcp: tools come in pages, with their class from the annotations") {
    Line line;
    line.start();
    CHECK_FALSE(line.list().listed);
    auto said = line.said();
    REQUIRE(said.size() == 1);
    CHECK_FALSE(said[0].at("params").as_object().contains("cursor"));
    auto out = line.answers(id_of(said[0]), R"({"nextCursor":"p2","tools":[
        {"name":"a","description":"A","inputSchema":{"type":"object","required":["x"]},"annotations":{"readOnlyHint":true}},
        {"name":"b","title":"B","annotations":{"idempotentHint":true,"readOnlyHint":false}},
        {"description":"without a name"}, 7]})");
    // Lines are framed by newlines, so the text above is three bad lines and no page.
    CHECK_FALSE(out.listed);
    std::string page = R"({"nextCursor":"p2","tools":[)"
                       R"({"name":"a","description":"A","inputSchema":{"type":"object","required":["x"]},)"
                       R"("annotations":{"readOnlyHint":true}},)"
                       R"({"name":"b","title":"B","annotations":{"idempotentHint":true,"readOnlyHint":false}},)"
                       R"({"description":"without a name"},7]})";
    out = line.answers(id_of(said[0]), page);
    CHECK_FALSE(out.listed);
    said = line.said();
    REQUIRE(said.size() == 1);
    CHECK(said[0].at("params").at("cursor").as_string() == "p2");
    out = line.answers(id_of(said[0]), R"({"tools":[{"name":"c","annotations":{"destructiveHint":true}}]})");
    REQUIRE(out.listed);
    REQUIRE(out.tools);
    REQUIRE(out.tools->size() == 3);
    CHECK(out.tools->at(0).name == "a");
    CHECK(out.tools->at(0).hint == EffectClass::read);
    CHECK(json::parse(out.tools->at(0).input_schema).at("required").at(0).as_string() == "x");
    CHECK(out.tools->at(1).description == "B");
    CHECK(out.tools->at(1).hint == EffectClass::idempotent);
    CHECK(out.tools->at(2).hint == EffectClass::once);
    CHECK(line.client.idle());
}

TEST_CASE("mcp: a list without end, too long, refused or late fails with its reason, and the server lives on") {
    Line line;
    line.start();
    line.list();
    McpOutputs out;
    size_t pages = 0;
    for (auto said = line.said(); !out.listed; said = line.said()) {
        REQUIRE(++pages <= limits::tool_list_pages_max);
        out = line.answers(id_of(said.at(0)), R"({"tools":[],"nextCursor":"again"})");
    }
    CHECK_FALSE(out.tools);
    CHECK(out.list_failure.find("tool_list_pages_max") != std::string::npos);

    line.list();
    std::string many = R"({"tools":[)";
    for (size_t i = 0; i <= limits::tools_per_server_max; ++i) {
        many += (i > 0 ? "," : "") + (R"({"name":"t)" + std::to_string(i)) + "\"}";
    }
    out = line.answers(id_of(line.said().at(0)), many + "]}");
    REQUIRE(out.listed);
    CHECK(out.list_failure.find("tools_per_server_max") != std::string::npos);

    line.list();
    out = line.says(R"({"jsonrpc":"2.0","id":)" + std::to_string(id_of(line.said().at(0))) +
                    R"(,"error":{"code":-32603,"message":"broken"}})");
    REQUIRE(out.listed);
    CHECK(out.list_failure.find("broken") != std::string::npos);

    line.list();
    out = line.expire(far);
    REQUIRE(out.listed);
    CHECK(out.list_failure.find("in time") != std::string::npos);
    CHECK_FALSE(line.client.failure());
}

TEST_CASE("mcp: a changed list is announced") {
    Line line;
    line.start();
    CHECK(line.says(R"({"jsonrpc":"2.0","method":"notifications/tools/list_changed"})").tools_changed);
}

TEST_CASE("mcp: batches are read in the one revision that has them") {
    for (const bool batches : {true, false}) {
        Line line;
        line.start(batches ? "2025-03-26" : "2025-11-25");
        line.call(1);
        line.call(2);
        const auto said = line.said();
        const auto out = line.says(R"([{"jsonrpc":"2.0","id":)" + std::to_string(id_of(said[0])) +
                                   R"(,"result":{"content":[]}},7,{"jsonrpc":"2.0","id":)" +
                                   std::to_string(id_of(said[1])) + R"(,"result":{"content":[]}}])");
        CHECK(out.settled.size() == (batches ? 2 : 0));
        CHECK(line.client.counters().bad_lines == 1);
    }
}

TEST_CASE("mcp: content becomes text and nothing of it vanishes") {
    struct Row {
        const char* result;
        const char* output;
    };
    const Row rows[] = {
        {R"({"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]})", "a\nb"},
        {R"({"content":[]})", ""},
        {R"({"content":[{"type":"image","data":"AAAAAA==","mimeType":"image/png"}]})", "[image: image/png, 4 bytes]"},
        {R"({"content":[{"type":"audio","data":"AAAA","mimeType":"audio/wav"}]})", "[audio: audio/wav, 3 bytes]"},
        {R"({"content":[{"type":"image"}]})", "[image: type not given, 0 bytes]"},
        {R"({"content":[{"type":"resource","resource":{"uri":"file:///a","text":"hello"}}]})",
         "[resource: file:///a]\nhello"},
        {R"({"content":[{"type":"resource","resource":{"uri":"file:///a","blob":"AAA=","mimeType":"x/y"}}]})",
         "[resource: file:///a, x/y, 2 bytes]"},
        {R"({"content":[{"type":"resource_link","uri":"file:///a","name":"n","mimeType":"x/y","size":5}]})",
         "[resource link: file:///a, n, x/y, 5 bytes]"},
        {R"({"content":[{"type":"hologram"},3]})",
         "[content of unknown type \"hologram\"]\n[content that is no object]"},
        {R"({"structuredContent":{"a":1}})", R"({"a":1})"},
        {R"({"content":[],"structuredContent":{"a":1}})", R"({"a":1})"},
        {R"({"content":[{"type":"text","text":"{\"a\": 1}"}],"structuredContent":{"a":1}})", R"({"a": 1})"},
        {R"({"content":[{"type":"audio","data":"AAAA"}],"structuredContent":{"a":1}})",
         "{\"a\":1}\n[audio: type not given, 3 bytes]"},
    };
    for (const auto& row : rows) {
        CAPTURE(row.result);
        const auto outcome = read_tool_result(json::parse(row.result));
        CHECK(outcome.kind == Kind::result);
        CHECK(outcome.output == row.output);
    }
    for (const char* result : {"{}", "[]", "null", R"({"content":"text"})"}) {
        CAPTURE(result);
        const auto outcome = read_tool_result(json::parse(result));
        CHECK(outcome.kind == Kind::lost);  // the tool answered, so it ran
        CHECK(outcome.code == ErrorCode::tool_protocol_error);
    }
}

TEST_CASE("mcp: a result is bounded, and a result at the bound passes even when every byte is escaped") {
    Line line;
    line.start();
    line.call(1);
    line.call(2);
    const auto said = line.said();
    std::string escaped;
    for (size_t i = 0; i < limits::tool_result_bytes_max; ++i) escaped += "\\u0041";
    const std::string whole = R"({"content":[{"type":"text","text":")" + escaped + R"("}]})";
    auto out = line.answers(id_of(said.at(0)), whole);
    REQUIRE(out.settled.size() == 1);
    CHECK(out.settled[0].outcome.kind == Kind::result);
    CHECK(out.settled[0].outcome.output == std::string(limits::tool_result_bytes_max, 'A'));

    const std::string text(limits::tool_result_bytes_max + 1, 'A');
    out = line.answers(id_of(said.at(1)), R"({"content":[{"type":"text","text":")" + text + R"("}]})");
    REQUIRE(out.settled.size() == 1);
    CHECK(out.settled[0].outcome.kind == Kind::failed);
    CHECK(out.settled[0].outcome.error_class == ErrorClass::invalid);
    CHECK(out.settled[0].outcome.code == ErrorCode::tool_result_too_large);
}
