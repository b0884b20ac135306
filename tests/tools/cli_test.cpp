#include <doctest/doctest.h>

#include <atomic>
#include <boost/json/parse.hpp>

#include "tools/cli_commands.h"
#include "tools/cli_completion.h"
#include "tools/cli_fixture.h"
#include "tools/cli_output.h"

using namespace mainstay;

TEST_CASE("cli: the address comes from flags, else the environment, else the data directory") {
    const StubDoor door([](const Seen&) { return answer(200, R"({"data":[]})"); });
    const Folder folder;
    folder.write("listen", door.address() + "\n");
    folder.write("admin.key", "from-file\n");
    CHECK(run({"--data", folder.path(), "agent", "list"}).status == 0);
    CHECK(run({"agent", "list", "--data", folder.path()}, {}, {"", "from-environment"}).status == 0);
    CHECK(run({"agent", "list"}, {}, {door.url() + "/", "from-environment"}).status == 0);
    CHECK(run({"agent", "list", "--url", door.url(), "--key", "from-flag"}, {}, {"http://127.0.0.1:1", "x"}).status ==
          0);
    const auto seen = door.seen();
    REQUIRE(seen.size() == 4);
    CHECK(seen[0].line == "GET /v1/agents HTTP/1.1");
    CHECK(seen[0].head.find("Bearer from-file") != std::string::npos);
    CHECK(seen[1].head.find("Bearer from-environment") != std::string::npos);
    CHECK(seen[2].head.find("Bearer from-environment") != std::string::npos);
    CHECK(seen[3].head.find("Bearer from-flag") != std::string::npos);
}

TEST_CASE("cli: the key of a data directory goes to no other machine") {
    const Folder folder;
    folder.write("admin.key", "secret\n");
    CliAddressOptions options;
    options.data = folder.path();
    for (const auto* url : {"https://example.com", "http://localhost.example.com", "http://10.0.0.1"}) {
        options.url = url;
        CHECK(find_address(options).key.empty());
    }
    for (const auto* url : {"http://127.0.0.1:80", "http://localhost:80", "http://[::1]:80"}) {
        options.url = url;
        CHECK(find_address(options).key == "secret");
    }
}

TEST_CASE("cli: exit statuses say what kind of failure it was") {
    const std::pair<int, int> rows[] = {{400, 1}, {401, 4}, {403, 4}, {404, 3}, {409, 1}, {422, 1},
                                        {429, 5}, {500, 1}, {503, 5}, {504, 5}, {507, 5}};
    for (const auto& [http, status] : rows) {
        CAPTURE(http);
        const StubDoor door([http = http](const Seen&) {
            return answer(http, R"({"error":{"message":"it \"failed\"","code":"some_code"}})");
        });
        const auto ran = run_at(door, {"agent", "list"});
        CHECK(ran.status == status);
        CHECK(ran.error.find("it \"failed\" (some_code)") != std::string::npos);
        CHECK(ran.out.empty());
    }
    const StubDoor html([](const Seen&) { return answer(200, "<html>", "text/html"); });
    CHECK(run_at(html, {"agent", "list"}).status == 1);
    CHECK(run({"agent", "list", "--url", "http://127.0.0.1:1"}).status == 5);
    CHECK(run({"agent", "list", "--data", "no/such/directory"}).status == 5);
    for (const std::vector<std::string>& words :
         {std::vector<std::string>{},
          {"agent"},
          {"nonsense"},
          {"agent", "show"},
          {"agent", "list", "-o", "yaml"},
          {"agent", "list", "--url", "ftp://x"},
          {"session", "resolve", "s", "c", "--as", "maybe"},
          {"agent", "apply", "no/such/file.toml", "--url", "http://127.0.0.1:1"}})
        CHECK(run(words).status == 2);
    CHECK(run({"--help"}).status == 0);
    CHECK(run({"version"}).out.starts_with("mainstay 0."));
}

TEST_CASE("cli: a table for people, the door's own objects for scripts") {
    const StubDoor door([](const Seen&) {
        return answer(200, R"({"object":"list","data":[{"name":"a","version":"01","model":"m"},
                                                       {"name":"longer\u001b[31m","version":"02","model":"n"}]})");
    });
    CHECK(run_at(door, {"agents", "list"}).out ==
          "NAME        VERSION  MODEL\na           01       m\nlonger[31m  02       n\n");
    const auto json = boost::json::parse(run_at(door, {"agent", "list", "-o", "json"}).out);
    CHECK(json.as_array().size() == 2);
    CHECK(json.as_array()[0].at("name").as_string() == "a");
}

TEST_CASE("cli: apply sends the file as it is and shows the difference") {
    const Folder folder;
    const auto toml = folder.write("a.toml", "name = \"a\"\n"), json = folder.write("a.json", "{\"name\":\"a\"}");
    const StubDoor door([](const Seen& request) {
        const bool dry = request.line.find("dry_run=true") != std::string::npos;
        return answer(200, std::string(R"({"changed":true,"dry_run":)") + (dry ? "true" : "false") +
                               R"(,"difference":"~ model = \"x\" -> \"y\"\n","agent":{"name":"a","version":"0f"}})");
    });
    const auto dry = run_at(door, {"agent", "apply", toml, "--dry-run"});
    CHECK(dry.status == 0);
    CHECK(dry.out == "~ model = \"x\" -> \"y\"\n");
    CHECK(dry.error == "agent a version 0f would change\n");
    CHECK(run_at(door, {"agent", "apply", json}).error == "agent a version 0f applied\n");
    const auto seen = door.seen();
    CHECK(seen[0].line == "POST /v1/agents?dry_run=true HTTP/1.1");
    CHECK(seen[0].head.find("Content-Type: application/toml") != std::string::npos);
    CHECK(seen[0].body == "name = \"a\"\n");
    CHECK(seen[1].line == "POST /v1/agents HTTP/1.1");
    CHECK(seen[1].head.find("Content-Type: application/json") != std::string::npos);
}

TEST_CASE("cli: pages are followed to the end, or to the limit") {
    const StubDoor door([](const Seen& request) {
        if (request.line.find("after=5") != std::string::npos)
            return answer(
                200,
                R"({"data":[{"sequence":6,"at_ms":0,"turn":1,"name":"TurnSettled","event":{}}],"has_more":false})");
        return answer(200, R"({"data":[{"sequence":5,"at_ms":1700000000123,"turn":1,"name":"Decision",
                               "event":{"code":"c","reason":"why"},"id":"5"}],"has_more":true})");
    });
    const auto ran = run_at(door, {"session", "events", "conv_x"});
    CHECK(ran.status == 0);
    CHECK(ran.out ==
          "SEQUENCE  AT                        TURN  EVENT        WHAT\n"
          "5         2023-11-14 22:13:20.123Z  1     Decision     code=c reason=why\n"
          "6                                   1     TurnSettled  \n");
    CHECK(door.seen().size() == 2);
    CHECK(run_at(door, {"session", "list", "--limit", "1"}).status == 0);
    CHECK(door.seen().size() == 3);
}

TEST_CASE("cli: explain tells decisions, failures and retries, and leaves out what was only said") {
    const StubDoor door([](const Seen&) {
        return answer(200, R"({"has_more":false,"data":[
            {"sequence":1,"at_ms":1000,"turn":1,"name":"InputAccepted","event":{"agent":"a"}},
            {"sequence":2,"at_ms":1001,"turn":1,"name":"ModelStepSettled","event":{"text":"not told"}},
            {"sequence":3,"at_ms":1002,"turn":1,"name":"ToolReceipt","event":{"status":"completed"}},
            {"sequence":4,"at_ms":1003,"turn":1,"name":"ToolReceipt",
             "event":{"event":"ToolReceipt","sequence":4,"turn":1,"at":1003,"status":"unknown"}},
            {"sequence":4,"at_ms":1003,"turn":0,"name":"Decision","event":{"event":"Decision","code":"conflict"}},
            {"sequence":5,"at_ms":1004,"turn":1,"name":"RetryScheduled","event":{"attempt":1,"reason":"overloaded: attempt 2"}},
            {"sequence":6,"at_ms":1005,"turn":2,"name":"TurnSettled","event":{"status":"failed","code":"model_timeout"}}]})");
    });
    const auto ran = run_at(door, {"explain", "conv_x"});
    CHECK(ran.out ==
          "turn 1\n"
          "  1970-01-01 00:00:01.000Z  InputAccepted  agent=a\n"
          "  1970-01-01 00:00:01.003Z  ToolReceipt  status=unknown\n"
          "  1970-01-01 00:00:01.003Z  Decision  code=conflict\n"
          "  1970-01-01 00:00:01.004Z  RetryScheduled  attempt=1 reason=overloaded: attempt 2\n"
          "turn 2\n"
          "  1970-01-01 00:00:01.005Z  TurnSettled  status=failed code=model_timeout\n");
    CHECK(boost::json::parse(run_at(door, {"explain", "conv_x", "-o", "json"}).out).as_array().size() == 5);
}

TEST_CASE("cli: explain tells where the session was placed, and why, among what it decided") {
    const StubDoor door([](const Seen& seen) {
        if (seen.line.find("/place") != std::string::npos) return answer(200, R"({"shard":7,"epoch":3})");
        if (seen.line.starts_with("GET /v1/cluster/decisions"))
            return seen.line.find("shard=7") == std::string::npos
                       ? answer(404, "{}")
                       : answer(200, R"({"data":[{"at_ms":1002,"shard":7,"what":"target b2","why":"asked for"},
                                                 {"at_ms":900,"shard":7,"what":"born on a1","why":"emptiest"}]})");
        return answer(200, R"({"has_more":false,"data":[
            {"sequence":1,"at_ms":1000,"turn":1,"name":"InputAccepted","event":{"agent":"a"}},
            {"sequence":6,"at_ms":1005,"turn":1,"name":"TurnSettled","event":{"status":"failed","code":"model_timeout"}}]})");
    });
    CHECK(run_at(door, {"explain", "conv_x"}).out ==
          "  1970-01-01 00:00:00.900Z  Placed  shard=7 what=born on a1 why=emptiest\n"
          "turn 1\n"
          "  1970-01-01 00:00:01.000Z  InputAccepted  agent=a\n"
          "  1970-01-01 00:00:01.002Z  Placed  shard=7 what=target b2 why=asked for\n"
          "  1970-01-01 00:00:01.005Z  TurnSettled  status=failed code=model_timeout\n");
    CHECK(boost::json::parse(run_at(door, {"explain", "conv_x", "-o", "json"}).out).as_array().size() == 4);
}

TEST_CASE("cli: deleting asks, and without a terminal refuses to guess") {
    const StubDoor door([](const Seen&) { return answer(200, R"({"deleted":true})"); });
    CHECK(run_at(door, {"session", "delete", "conv_x"}).status == 2);
    CHECK(run_at(door, {"session", "delete", "conv_x"}, "n\n", true).status == 1);
    CHECK(run_at(door, {"session", "delete", "conv_x"}, "", true).status == 1);
    CHECK(door.seen().empty());
    CHECK(run_at(door, {"session", "delete", "conv_x"}, "y\n", true).status == 0);
    CHECK(run_at(door, {"session", "delete", "a/../b", "--yes"}).status == 0);
    CHECK(door.seen()[0].line == "DELETE /v1/sessions/conv_x HTTP/1.1");
    CHECK(door.seen()[1].line == "DELETE /v1/sessions/a%2F..%2Fb HTTP/1.1");
}

TEST_CASE("cli: an unknown outcome is closed with what happened") {
    const StubDoor door([](const Seen&) { return answer(200, "{}"); });
    CHECK(run_at(door, {"session", "resolve", "conv_x", "mcp_y", "--as", "done", "--result", R"({"id":7})"}).status ==
          0);
    CHECK(run_at(door, {"session", "resolve", "conv_x", "mcp_y", "--as", "retry"}).status == 0);
    CHECK(run_at(door, {"session", "resolve", "conv_x", "mcp_y", "--as", "done", "--result", "{"}).status == 2);
    const auto seen = door.seen();
    REQUIRE(seen.size() == 2);
    CHECK(seen[0].line == "POST /v1/sessions/conv_x/calls/mcp_y/resolve HTTP/1.1");
    CHECK(boost::json::parse(seen[0].body) == boost::json::parse(R"({"as":"done","result":{"id":7}})"));
    CHECK(boost::json::parse(seen[1].body) == boost::json::parse(R"({"as":"retry"})"));
}

namespace {

const std::string worker_object =
    R"({"object":"worker","name":"a/b/1","model":"a/b","index":1,"state":"draining","problem":"pulled\u001b[31m out",
    "losses":2,"device":{"kind":"neuron_core_sim","hardware":"trn2","kernel":"k1","simulated":true},
    "batch":{"running":3,"rows_max":16,"busy":true},
    "totals":{"steps":10,"rows":25,"tokens":90,"padded_tokens":10,"busy_seconds":0.5},
    "accelerator":{"seconds":1.25,"joules":300.5,"simulated":true,"power":"assumed"},
    "kv_blocks":{"total":64,"free":20,"cached":30})";
const std::string worker_shown = worker_object + R"(,"model_figures":{"state":"ready","problem":null,"context_max":768,
    "sequences":{"waiting":4,"running":3,"submitted":9,"refused":1,"placed":8,"ended":5,"preempted":0,"requeued":0,"stale_results":0},
    "tokens":{"prefilled":70,"cached":30,"generated":20},
    "kv":{"block_tokens":16,"block_bytes":4096,"tiers":[{"tier":"device","blocks":44,"blocks_max":64,"hit_blocks":30},
      {"tier":"host","blocks":8,"blocks_max":0,"hit_blocks":10}]}},
    "decisions":[{"at_ms":1700000000123,"decision":"requeued","session":"conv_x","worker":"a/b/1","reason":"was lost"}]})";

}  // namespace

TEST_CASE("cli: workers are listed and shown, and what is simulated or assumed says so beside the figure") {
    const StubDoor door([](const Seen& request) {
        if (request.line.starts_with("GET /v1/workers HTTP"))
            return answer(200, R"({"object":"list","data":[)" + worker_object + "}]}");
        return answer(200, worker_shown);
    });
    const auto list = run_at(door, {"worker", "list"});
    CHECK(list.status == 0);
    CHECK(list.out.find("1.250 simulated") != std::string::npos);
    CHECK(list.out.find("300.500 simulated, power assumed") != std::string::npos);
    for (const auto* text : {"a/b/1", "draining", "neuron_core_sim (trn2)", "3/16", "10.0%", "44/64", "pulled[31m out"})
        CHECK(list.out.find(text) != std::string::npos);
    CHECK(boost::json::parse(run_at(door, {"workers", "list", "-o", "json"}).out).as_array().size() == 1);

    const auto shown = run_at(door, {"worker", "show", "a/b/1"});
    CHECK(shown.status == 0);
    for (const std::string text :
         {"1.250 simulated", "300.500 simulated, power assumed", "0.500 s measured", "rows per step:  2.500",
          "10 of padding (10.0%)", "device   44/64   68.8%  30    75.0%", "host     8/0     -      10    25.0%",
          "2023-11-14 22:13:20.123Z  requeued  conv_x   was lost"}) {
        CAPTURE(text);
        CHECK(shown.out.find(text) != std::string::npos);
    }
    CHECK(boost::json::parse(run_at(door, {"worker", "show", "a/b/1", "-o", "json"}).out).at("index") == 1);
    // The model's name has a slash: only the last one parts it from the index.
    CHECK(door.seen()[2].line == "GET /v1/workers/a%2Fb/1 HTTP/1.1");
}

TEST_CASE("cli: a worker is drained and undone, and its name has two parts") {
    const StubDoor door([](const Seen&) { return answer(200, worker_shown); });
    CHECK(run_at(door, {"worker", "drain", "tiny/0"}).error == "worker a/b/1 is draining: 3 still running there\n");
    CHECK(run_at(door, {"worker", "drain", "tiny/0", "--undo"}).status == 0);
    for (const auto* name : {"tiny", "tiny/", "/0"}) CHECK(run_at(door, {"worker", "drain", name}).status == 2);
    const auto seen = door.seen();
    REQUIRE(seen.size() == 2);
    CHECK(seen[0].line == "POST /v1/workers/tiny/0/drain HTTP/1.1");
    CHECK(seen[0].body == "{}");
    CHECK(seen[1].body == R"({"undo":true})");
}

TEST_CASE("cli: status says alive, ready and why not") {
    std::atomic<bool> ready{true};
    const StubDoor door([&](const Seen& request) {
        if (request.line.starts_with("GET /readyz") && !ready)
            return answer(503, R"({"error":{"message":"Not ready: draining.","code":"draining"}})");
        if (request.line.starts_with("GET / ")) return answer(200, R"({"version":"9.9.9"})");
        return answer(200, "ok\n", "text/plain");
    });
    auto ran = run_at(door, {"status"});
    CHECK(ran.status == 0);
    CHECK(ran.out.find("version: 9.9.9\n") != std::string::npos);
    CHECK(ran.out.find("ready:   yes\n") != std::string::npos);
    ready = false;
    ran = run_at(door, {"status", "-o", "json"});
    CHECK(ran.status == 5);
    CHECK(boost::json::parse(ran.out).at("ready").as_bool() == false);
    CHECK(ran.out.find("draining") != std::string::npos);
}

namespace {

std::string sse(const std::vector<std::pair<std::string, std::string>>& events) {
    std::string out;
    for (const auto& [type, data] : events) out += "event: " + type + "\ndata: " + data + "\n\n";
    return out;
}

StubDoor::Handler chat_door(std::string stream) {
    return [stream = std::move(stream)](const Seen& request) {
        if (request.line.starts_with("POST /v1/conversations")) return answer(200, R"({"id":"conv_new"})");
        return answer(200, stream, "text/event-stream");
    };
}

const std::vector<std::pair<std::string, std::string>> good_turn = {
    {"response.created", R"({"type":"response.created"})"},
    {"response.output_item.done",
     R"({"item":{"type":"mcp_call","server_label":"builtin","name":"clock","arguments":"{}","output":"noon","status":"completed"}})"},
    {"response.output_text.delta", R"({"delta":"It is "})"},
    {"response.output_text.delta", R"({"delta":"noon\u001b[2J."})"},
    {"response.output_item.done", R"({"item":{"type":"message","status":"completed"}})"},
    {"response.completed", R"({"response":{"id":"resp_1","status":"completed","error":null}})"}};

}  // namespace

TEST_CASE("cli: chat streams text to stdout and tool calls to stderr") {
    const StubDoor door(chat_door(sse(good_turn)));
    const auto ran = run_at(door, {"chat", "assistant", "--message", "what time is it?"});
    CHECK(ran.status == 0);
    CHECK(ran.out == "It is noon[2J.\n");
    CHECK(ran.error == "conversation conv_new\n[tool builtin/clock {} -> noon]\n");
    const auto seen = door.seen();
    REQUIRE(seen.size() == 2);
    CHECK(boost::json::parse(seen[1].body) ==
          boost::json::parse(
              R"({"model":"assistant","conversation":"conv_new","input":"what time is it?","stream":true})"));
}

TEST_CASE("cli: chat goes on with a conversation, line by line") {
    const StubDoor door(chat_door(sse(good_turn)));
    const auto ran = run_at(door, {"chat", "assistant", "--conversation", "conv_old"}, "one\n\n  \ntwo\n");
    CHECK(ran.status == 0);
    CHECK(ran.out == "It is noon[2J.\nIt is noon[2J.\n");
    const auto seen = door.seen();
    REQUIRE(seen.size() == 2);
    CHECK(seen[1].body.find("conv_old") != std::string::npos);
    const auto json = run_at(door, {"chat", "assistant", "--message", "x", "-o", "json"});
    CHECK(boost::json::parse(json.out).at("id").as_string() == "resp_1");
}

TEST_CASE("cli: a turn that fails, breaks off or never ends is no success") {
    const StubDoor failed(chat_door(
        sse({{"response.output_text.delta", R"({"delta":"half"})"},
             {"response.failed",
              R"({"response":{"status":"failed","error":{"code":"model_timeout","message":"too slow"}}})"}})));
    auto ran = run_at(failed, {"chat", "a", "--message", "x"});
    CHECK(ran.status == 1);
    CHECK(ran.out == "half\n");
    CHECK(ran.error.find("too slow (model_timeout)") != std::string::npos);
    const StubDoor refused(chat_door(sse({{"error", R"({"code":"draining","message":"going down"})"}})));
    CHECK(run_at(refused, {"chat", "a", "--message", "x"}).status == 1);
    const StubDoor cut(chat_door(sse({{"response.output_text.delta", R"({"delta":"half"})"}})));
    ran = run_at(cut, {"chat", "a", "--message", "x"});
    CHECK(ran.status == 5);
    CHECK(ran.error.find("goes on without us") != std::string::npos);
    const StubDoor missing(
        [](const Seen&) { return answer(404, R"({"error":{"message":"no agent","code":"model_not_found"}})"); });
    CHECK(run_at(missing, {"chat", "a", "--message", "x"}).status == 3);
}

TEST_CASE("cli: completion scripts parse and offer every command") {
    for (const std::string shell : {"bash", "zsh"}) {
        const auto ran = run({"completion", shell});
        CHECK(ran.status == 0);
        for (const auto* word :
             {"'session resolve'", "'agent apply'", "'worker drain'", "'shard force-lead'", "'cluster adopt'",
              "'node undrain'", "--accept-loss", "--undo", "--dry-run", "explain", "complete -o default"})
            CHECK(ran.out.find(word) != std::string::npos);
    }
    FILE* bash = popen("bash -n", "w");
    REQUIRE(bash != nullptr);
    const std::string script = run({"completion", "bash"}).out;
    REQUIRE(fwrite(script.data(), 1, script.size(), bash) == script.size());
    CHECK(pclose(bash) == 0);
}

TEST_CASE("cli: text is cut between characters and carries no control characters") {
    CHECK(printable("a\x1b[31mb\x07\x7f\nc\td", false) == "a[31mb c d");
    CHECK(printable("a\nb\tc\r", true) == "a\nb\tc");
    CHECK(printable("\xc2\x9b\xc3\xa9", false) == "\xc3\xa9");
    CHECK(shortened_to("abcdef", 6) == "abcdef");
    CHECK(shortened_to("abcdefg", 6) == "abcd..");
    CHECK(shortened_to("\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9", 3) == "\xc3\xa9..");
    CHECK(time_text(0).empty());
    CHECK(time_text(1'700'000'000'123, true) == "2023-11-14 22:13:20Z");
}
