#include "runtime/tool/registry.h"

#include <doctest/doctest.h>
#include <signal.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "runtime/tool/planner.h"
#include "support/tool_calls.h"

// The registry against servers as they are published (npm), and against the ledger server of these tests.

using namespace mainstay;
namespace json = boost::json;
using Kind = ToolOutcome::Kind;

namespace {

/// The program of an npm server. Absent is a failure: a suite without real servers proves nothing about them.
std::string program(const std::string& name) {
    const char* modules = std::getenv("MAINSTAY_E2E_MODULES");
    const std::string path =
        (modules ? std::string(modules) : MAINSTAY_SOURCE_DIR "/tests/e2e/node_modules") + "/.bin/" + name;
    CAPTURE(path);
    REQUIRE_MESSAGE(std::filesystem::exists(path), "install tests/e2e first (tools/deps)");
    return path;
}

ToolsetSpec server(std::string label, std::vector<std::string> command) {
    ToolsetSpec toolset;
    toolset.type = ToolsetType::mcp;
    toolset.server_label = std::move(label);
    toolset.command = std::move(command);
    return toolset;
}

ToolsetSpec everything() { return server("everything", {program("mcp-server-everything")}); }

struct Directory {
    std::string path;
    Directory() {
        char name[] = "/tmp/mainstay_tool_test_XXXXXX";
        REQUIRE(::mkdtemp(name));
        path = name;
    }
    ~Directory() { std::filesystem::remove_all(path); }
};

ToolsetSpec ledger(const Directory& directory) {
    auto toolset = server("ledger", {"node", MAINSTAY_SOURCE_DIR "/tests/support/ledger_server.mjs"});
    toolset.env["LEDGER_FILE"] = directory.path + "/ledger";
    return toolset;
}

std::vector<json::object> entries(const std::string& path) {
    std::vector<json::object> found;
    std::ifstream in(path);
    for (std::string line; std::getline(in, line);) found.push_back(json::parse(line).as_object());
    return found;
}

struct Host {
    ToolLog log;
    std::unique_ptr<ToolRegistry> registry;
    TenantId tenant{1};
    SessionKey session{TenantId(1), SessionId{FamilyId(1), 1, 1}};
    uint64_t next_call = 1;

    Host() {
        McpStdio::Options options;
        options.log = log.sink();
        registry = std::make_unique<ToolRegistry>(std::move(options));
    }
    using Listed = std::pair<std::shared_ptr<const std::vector<ToolInfo>>, std::string>;
    Listed list(const AgentSpec& agent) {
        auto promise = std::make_shared<std::promise<Listed>>();
        auto future = promise->get_future();
        registry->list(tenant, session, std::make_shared<AgentSpec>(agent), [promise](auto tools, std::string failure) {
            promise->set_value({std::move(tools), std::move(failure)});
        });
        return await(future);
    }
    std::future<ToolOutcome> begin(const AgentSpec& agent, std::string label, std::string tool,
                                   std::string arguments = "{}", uint32_t timeout_ms = 0) {
        ToolCall call;
        call.call_id = next_call++;
        call.tenant = tenant;
        call.session = session;
        call.agent = std::make_shared<AgentSpec>(agent);
        call.server_label = std::move(label);
        call.name = std::move(tool);
        call.arguments = std::move(arguments);
        call.idempotency_key = "key-" + std::to_string(call.call_id);
        call.timeout_ms = timeout_ms;
        auto [done, future] = expect_call();
        registry->call(std::move(call), std::move(done));
        return std::move(future);
    }
    ToolOutcome call(const AgentSpec& agent, std::string label, std::string tool, std::string arguments = "{}",
                     uint32_t timeout_ms = 0) {
        auto future = begin(agent, std::move(label), std::move(tool), std::move(arguments), timeout_ms);
        return await(future);
    }
};

const ToolInfo* find(const Host::Listed& listed, std::string_view name) {
    for (const auto& info : *listed.first) {
        if (info.name == name) return &info;
    }
    return nullptr;
}

}  // namespace

TEST_CASE("registry: server-everything lists its tools, with classes from its annotations") {
    Host host;
    AgentSpec agent;
    agent.tools = {everything()};
    const auto listed = host.list(agent);
    CHECK(listed.second.empty());
    const auto* echo = find(listed, "echo");
    REQUIRE(echo);
    CHECK(echo->server_label == "everything");
    CHECK(echo->effect == EffectClass::read);
    CHECK_FALSE(echo->description.empty());
    CHECK(json::parse(echo->input_schema).at("properties").as_object().contains("message"));
    CHECK(listed.first->size() >= 8);
    // It announces changes while it starts; the next list asks again and gives the same.
    CHECK(host.list(agent).first->size() == listed.first->size());
    CHECK(host.registry->figures().starts == 1);

    const auto planned = plan_call(agent, *listed.first, {}, {"c", "echo", "{}"});
    CHECK(planned.disposition == PlannedCall::Disposition::refuse);
    CHECK(planned.refusal_message.find("message") != std::string::npos);
}

TEST_CASE("registry: server-everything answers calls, errors and content of all kinds") {
    Host host;
    AgentSpec agent;
    agent.tools = {everything()};
    CHECK(host.call(agent, "everything", "echo", R"({"message":"hello \u00e9"})").output == "Echo: hello \xc3\xa9");
    CHECK(host.call(agent, "everything", "get-sum", R"({"a":2,"b":40})").output.find("42") != std::string::npos);

    const auto image = host.call(agent, "everything", "get-tiny-image");
    CHECK(image.kind == Kind::result);
    CHECK(image.output.find("[image: image/png, ") != std::string::npos);

    const auto structured = host.call(agent, "everything", "get-structured-content", R"({"location":"Chicago"})");
    CHECK(structured.kind == Kind::result);
    CHECK(json::parse(structured.output).as_object().contains("temperature"));

    const auto links = host.call(agent, "everything", "get-resource-links", R"({"count":2})");
    CHECK(links.output.find("[resource link: ") != std::string::npos);
    const auto resource = host.call(agent, "everything", "get-resource-reference");
    CHECK(resource.output.find("[resource: ") != std::string::npos);

    // Wrong arguments and an unknown tool: however a server says it, it is no success and the server lives on.
    for (const auto& wrong :
         {host.call(agent, "everything", "get-sum", R"({"a":"x"})"), host.call(agent, "everything", "no-such-tool")}) {
        const bool refused = wrong.kind == Kind::failed || wrong.is_error;
        CHECK(refused);
        CHECK(wrong.kind != Kind::lost);
    }
    CHECK(host.registry->figures().starts == 1);
    CHECK(host.registry->figures().counters.unknown_answers == 0);
}

TEST_CASE("registry: a long call of server-everything survives its progress, times out, and is cancelled") {
    Host host;
    AgentSpec agent;
    agent.tools = {everything()};
    const auto done = host.call(agent, "everything", "trigger-long-running-operation", R"({"duration":0.2,"steps":4})");
    CHECK(done.kind == Kind::result);
    CHECK(done.output.find("completed") != std::string::npos);

    const std::string minute = R"({"duration":60,"steps":2})";
    const auto late = host.call(agent, "everything", "trigger-long-running-operation", minute, 100);
    CHECK(late.kind == Kind::lost);
    CHECK(late.code == ErrorCode::tool_timeout);

    auto open = host.begin(agent, "everything", "trigger-long-running-operation", minute);
    CHECK(host.call(agent, "everything", "echo", R"({"message":"x"})").output == "Echo: x");
    host.registry->cancel(host.next_call - 2);
    CHECK(await(open).kind == Kind::lost);
    CHECK(host.call(agent, "everything", "echo", R"({"message":"y"})").output == "Echo: y");
    CHECK(host.registry->figures().starts == 1);
}

TEST_CASE("registry: killing server-everything within a call loses it, and the next call finds a new one") {
    Host host;
    AgentSpec agent;
    agent.tools = {everything()};
    host.list(agent);
    const int pid = host.log.last_pid();
    auto open = host.begin(agent, "everything", "trigger-long-running-operation", R"({"duration":60,"steps":1})");
    CHECK(host.call(agent, "everything", "echo", R"({"message":"x"})").output == "Echo: x");  // so it was read
    ::kill(pid, SIGKILL);
    CHECK(await(open).kind == Kind::lost);
    CHECK(host.call(agent, "everything", "echo", R"({"message":"again"})").output == "Echo: again");
    CHECK(host.log.last_pid() != pid);
}

TEST_CASE("registry: server-filesystem gets its answer to roots/list and keeps its directory") {
    Host host;
    Directory directory;
    std::ofstream(directory.path + "/note.txt") << "forty-two";
    AgentSpec agent;
    agent.tools = {server("files", {program("mcp-server-filesystem"), directory.path})};
    agent.tools[0].allowed_tools = {"read_text_file", "write_file"};
    agent.tools[0].effects = {{"write_file", EffectClass::once}};
    const auto listed = host.list(agent);
    CHECK(listed.second.empty());
    REQUIRE(listed.first->size() == 2);
    CHECK(find(listed, "read_text_file")->effect == EffectClass::read);
    CHECK(find(listed, "write_file")->effect == EffectClass::once);

    const auto path = json::serialize(json::string(directory.path + "/note.txt"));
    CHECK(host.call(agent, "files", "read_text_file", R"({"path":)" + path + "}").output == "forty-two");
    const auto outside = host.call(agent, "files", "read_text_file", R"({"path":"/etc/hostname"})");
    CHECK(outside.kind == Kind::result);
    CHECK(outside.is_error);
    const auto hidden = host.call(agent, "files", "list_directory", R"({"path":"/"})");
    CHECK(hidden.kind == Kind::failed);
    CHECK(hidden.code == ErrorCode::tool_not_allowed);
}

TEST_CASE("registry: server-memory keeps what it is told, for its tenant") {
    Host host;
    Directory directory;
    AgentSpec agent;
    agent.tools = {server("graph", {program("mcp-server-memory")})};
    agent.tools[0].env["MEMORY_FILE_PATH"] = directory.path + "/memory.json";
    const auto made = host.call(agent, "graph", "create_entities",
                                R"({"entities":[{"name":"Ada","entityType":"person","observations":["likes tea"]}]})");
    CHECK(made.kind == Kind::result);
    CHECK_FALSE(made.is_error);
    CHECK(host.call(agent, "graph", "search_nodes", R"({"query":"tea"})").output.find("Ada") != std::string::npos);
}

TEST_CASE("registry: the ledger server sees the key of each call, and runs it once") {
    Host host;
    Directory directory;
    AgentSpec agent;
    agent.tools = {ledger(directory)};
    const auto listed = host.list(agent);
    REQUIRE(listed.first->size() == 4);
    CHECK(find(listed, "pay")->effect == EffectClass::once);
    CHECK(find(listed, "charge_idempotent")->effect == EffectClass::idempotent);
    CHECK(find(listed, "lookup")->effect == EffectClass::read);

    const auto paid = host.call(agent, "ledger", "pay", R"({"amount":3})");
    CHECK(paid.output == "receipt: paid 3, key key-1");
    CHECK(host.call(agent, "ledger", "pay").is_error);
    auto open = host.begin(agent, "ledger", "pay", R"({"amount":4,"delay_ms":60000})");
    const std::string started = directory.path + "/ledger.started";
    REQUIRE(eventually([&] { return entries(started).size() == 2; }));
    ::kill(host.log.last_pid(), SIGKILL);
    CHECK(await(open).kind == Kind::lost);
    const auto ran = entries(directory.path + "/ledger");
    REQUIRE(ran.size() == 1);
    CHECK(ran[0].at("tool").as_string() == "pay");
    CHECK(ran[0].at("key").as_string() == "key-1");
    CHECK(entries(started).at(1).at("key").as_string() == "key-3");

    // A cancelled payment does not happen: the server was told.
    auto cancelled = host.begin(agent, "ledger", "pay", R"({"amount":5,"delay_ms":60000})");
    REQUIRE(eventually([&] { return entries(started).size() == 3; }));
    host.registry->cancel(host.next_call - 1);
    CHECK(await(cancelled).kind == Kind::lost);
    CHECK(host.call(agent, "ledger", "lookup", R"({"name":"x"})").output == "x: found");
    CHECK(entries(directory.path + "/ledger").size() == 2);
}

TEST_CASE("registry: a server that cannot be listed is named, and the others are there") {
    Host host;
    Directory directory;
    AgentSpec agent;
    ToolsetSpec builtin;
    builtin.names = {"memory", "echo"};
    agent.tools = {server("broken", {"no-such-program-of-any-name"}), builtin, ledger(directory)};
    const auto listed = host.list(agent);
    CHECK(listed.second.find("broken: ") == 0);
    CHECK(listed.second.find("ledger") == std::string::npos);
    CHECK(find(listed, "pay"));
    REQUIRE(find(listed, "memory_set"));
    CHECK(find(listed, "memory_set")->server_label == "builtin");
    CHECK_FALSE(find(listed, "clock_now"));
}

TEST_CASE("registry: what the agent does not name, and what the session answers itself, is refused") {
    Host host;
    AgentSpec agent;
    ToolsetSpec builtin;
    builtin.names = {"echo"};
    agent.tools = {builtin};
    CHECK(host.list(agent).first->size() == 1);
    for (const char* label : {"builtin", "elsewhere", ""}) {
        CAPTURE(label);
        const auto outcome = host.call(agent, label, "echo", R"({"text":"x"})");
        CHECK(outcome.kind == Kind::failed);
        CHECK(outcome.error_class == ErrorClass::invalid);
        CHECK(outcome.code == ErrorCode::tool_not_allowed);
    }
    CHECK(host.list(AgentSpec{}).first->empty());
    CHECK(host.registry->figures().starts == 0);
}
