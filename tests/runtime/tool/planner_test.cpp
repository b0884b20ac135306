#include "runtime/tool/planner.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "runtime/base/limits.h"

using namespace mainstay;
using Disposition = PlannedCall::Disposition;

namespace {

constexpr const char* amount_schema = R"({"type":"object","properties":{"amount":{"type":"number"}},)"
                                      R"("required":["amount"]})";

ToolsetSpec server(std::string label) {
    ToolsetSpec toolset;
    toolset.type = ToolsetType::mcp;
    toolset.server_label = std::move(label);
    toolset.command = {"server"};
    return toolset;
}

ToolsetSpec builtins(std::vector<std::string> names) {
    ToolsetSpec toolset;
    toolset.names = std::move(names);
    return toolset;
}

ToolInfo info(std::string label, std::string name, EffectClass effect = EffectClass::once) {
    return {std::move(label), name, "does " + name, amount_schema, effect};
}

std::vector<std::string> names_of(const std::vector<ExposedTool>& tools) {
    std::vector<std::string> names;
    for (const auto& tool : tools) names.push_back(tool.name);
    return names;
}

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("planner: tools keep their names where no other has them, in a stable order") {
    AgentSpec agent;
    agent.tools = {server("shop"), builtins({"memory", "echo"}), server("bank")};
    std::vector<ToolInfo> infos = {info("shop", "refund"), info("bank", "pay"), info("shop", "find"),
                                   info("bank", "balance")};
    const Names expected = {"find",        "refund", "memory_get", "memory_set", "memory_delete",
                            "memory_list", "echo",   "balance",    "pay"};
    CHECK(names_of(exposed_tools(agent, infos, {})) == expected);
    std::reverse(infos.begin(), infos.end());
    CHECK(names_of(exposed_tools(agent, infos, {})) == expected);
}

TEST_CASE("planner: the builtin price looks into the list of the agent that called it") {
    AgentSpec agent;
    agent.tools = {builtins({"calc", "price"})};
    agent.tools[0].prices = std::make_shared<const PriceList>(PriceList{{"tozek", "2.50"}});
    CHECK(names_of(exposed_tools(agent, {}, {})) == Names{"calc", "price"});
    const auto planned = plan_call(agent, {}, {}, {"c1", "price", R"({"item":"tozek"})"});
    CHECK(planned.disposition == PlannedCall::Disposition::builtin);
    CHECK(planned.action.text == "2.50");
    CHECK(plan_call(agent, {}, {}, {"c2", "price", R"({"item":"apple"})"}).action.is_error);
}

TEST_CASE("planner: a shared name is qualified by the server") {
    AgentSpec agent;
    agent.tools = {server("a"), server("b"), builtins({"echo"})};
    const std::vector<ToolInfo> infos = {info("a", "find"), info("b", "find"), info("a", "echo"), info("b", "ask")};

    CHECK(names_of(exposed_tools(agent, infos, {})) == Names{"a__echo", "a__find", "ask", "b__find", "echo"});
    // The client's names are its own, so ours give way.
    CHECK(names_of(exposed_tools(agent, infos, {"echo", "ask"})) ==
          Names{"a__echo", "a__find", "b__ask", "b__find", "builtin__echo"});

    const auto call = plan_call(agent, infos, {}, {"c1", "b__find", R"({"amount":1})"});
    CHECK(call.disposition == Disposition::run);
    CHECK(call.server_label == "b");
    CHECK(call.tool == "find");
    CHECK(call.name == "b__find");
    CHECK(plan_call(agent, infos, {}, {"c1", "a__echo", R"({"amount":1})"}).server_label == "a");
    CHECK(plan_call(agent, infos, {}, {"c1", "echo", R"({"text":"x"})"}).disposition == Disposition::builtin);
    CHECK(plan_call(agent, infos, {"echo"}, {"c1", "echo", "{}"}).disposition == Disposition::client);
    CHECK(plan_call(agent, infos, {"echo"}, {"c1", "builtin__echo", R"({"text":"x"})"}).disposition ==
          Disposition::builtin);
}

TEST_CASE("planner: a qualified name is understood even where the plain one would do") {
    AgentSpec agent;
    agent.tools = {server("shop"), builtins({"echo"})};
    const std::vector<ToolInfo> infos = {info("shop", "refund")};
    for (const char* name : {"refund", "shop__refund", "shop/refund"}) {
        CAPTURE(name);
        const auto call = plan_call(agent, infos, {}, {"c", name, R"({"amount":2})"});
        CHECK(call.disposition == Disposition::run);
        CHECK(call.tool == "refund");
        CHECK(call.name == name);
    }
    CHECK(plan_call(agent, infos, {}, {"c", "builtin/echo", R"({"text":"x"})"}).action.text == "x");
}

TEST_CASE("planner: names that the API refuses are made plain, unique and bounded, and still resolve") {
    AgentSpec agent;
    agent.tools = {server("s")};
    const std::string long_a = std::string(100, 'x') + "a", long_b = std::string(100, 'x') + "b";
    const std::vector<ToolInfo> infos = {info("s", "files.read"), info("s", "files/read"), info("s", long_a),
                                         info("s", long_b)};
    const auto tools = exposed_tools(agent, infos, {});
    REQUIRE(tools.size() == 4);
    std::set<std::string> unique;
    for (const auto& tool : tools) {
        CAPTURE(tool.name);
        CHECK(tool.name.size() <= limits::tool_name_bytes_max);
        CHECK(tool.name.find_first_of("./") == std::string::npos);
        unique.insert(tool.name);
        CHECK(plan_call(tools, {}, {"c", tool.name, R"({"amount":1})"}).tool == tool.tool);
    }
    CHECK(unique.size() == 4);
}

TEST_CASE("planner: allowed_tools and the agent's own list of servers bound what exists") {
    AgentSpec agent;
    agent.tools = {server("shop"), builtins({"memory"})};
    agent.tools[0].allowed_tools = {"find"};
    agent.tools[1].allowed_tools = {"memory_get"};
    const std::vector<ToolInfo> infos = {info("shop", "find"), info("shop", "refund"), info("other", "steal"),
                                         info("builtin", "echo")};
    CHECK(names_of(exposed_tools(agent, infos, {})) == Names{"find", "memory_get"});
    for (const char* name : {"refund", "shop__refund", "steal", "memory_set", "echo", "", "find "}) {
        CAPTURE(name);
        const auto call = plan_call(agent, infos, {}, {"c", name, "{}"});
        CHECK(call.disposition == Disposition::refuse);
        CHECK(call.refusal == ErrorCode::tool_not_allowed);
        CHECK(call.refusal_message.find("Available: find, memory_get.") != std::string::npos);
    }
    CHECK(plan_call(AgentSpec{}, {}, {}, {"c", "x", "{}"}).refusal_message ==
          "There is no tool \"x\". No tools are available.");
}

TEST_CASE("planner: the list of names in a refusal is bounded") {
    AgentSpec agent;
    agent.tools = {server("s")};
    std::vector<ToolInfo> infos;
    for (int i = 0; i < 500; ++i) infos.push_back(info("s", "tool_with_a_rather_long_name_" + std::to_string(i)));
    const auto call = plan_call(agent, infos, {}, {"c", std::string(100'000, 'n'), "{}"});
    CHECK(call.refusal_message.size() < 5000);
    CHECK(call.refusal_message.find(" more.") != std::string::npos);
}

TEST_CASE("planner: arguments are checked before a call leaves") {
    AgentSpec agent;
    agent.tools = {server("shop")};
    const std::vector<ToolInfo> infos = {info("shop", "refund")};
    struct Row {
        std::string arguments;
        const char* said;
    };
    const Row rows[] = {
        {"{", "not valid JSON"},
        {"3", "must be a JSON object"},
        {"{}", "\"amount\" is missing"},
        {R"({"amount":"3"})", "must be of type number"},
        {R"({"amount":1,"x":")" + std::string(limits::tool_arguments_bytes_max, 'x') + "\"}",
         "tool_arguments_bytes_max"},
    };
    for (const auto& row : rows) {
        const auto call = plan_call(agent, infos, {}, {"c", "refund", row.arguments});
        CAPTURE(row.arguments.substr(0, 40));
        CHECK(call.disposition == Disposition::refuse);
        CHECK(call.refusal == ErrorCode::invalid_request);
        CHECK(call.refusal_message.find(row.said) != std::string::npos);
        CHECK(call.call_id == "c");
        CHECK(call.arguments.size() <= limits::tool_arguments_bytes_max);
    }
    const auto good = plan_call(agent, infos, {}, {"c", "refund", R"( {"amount":3} )"});
    CHECK(good.disposition == Disposition::run);
    CHECK(good.arguments == R"( {"amount":3} )");
}

TEST_CASE("planner: the author's effect class and timeout come first") {
    AgentSpec agent;
    agent.tools = {server("shop"), server("slow")};
    agent.tools[0].effects = {{"refund", EffectClass::idempotent}};
    agent.tools[1].timeout_ms = 5'000;
    const std::vector<ToolInfo> infos = {info("shop", "refund"), info("shop", "find", EffectClass::read),
                                         info("slow", "wait")};
    const auto refund = plan_call(agent, infos, {}, {"c", "refund", R"({"amount":1})"});
    CHECK(refund.effect == EffectClass::idempotent);
    CHECK(refund.timeout_ms == limits::tool_call_timeout_ms_default);
    CHECK(plan_call(agent, infos, {}, {"c", "find", R"({"amount":1})"}).effect == EffectClass::read);
    const auto wait = plan_call(agent, infos, {}, {"c", "wait", R"({"amount":1})"});
    CHECK(wait.effect == EffectClass::once);
    CHECK(wait.timeout_ms == 5'000);
    const auto tools = exposed_tools(agent, infos, {}, 7'000);  // the node's setting
    CHECK(plan_call(tools, {}, {"c", "refund", R"({"amount":1})"}).timeout_ms == 7'000);
    CHECK(plan_call(tools, {}, {"c", "wait", R"({"amount":1})"}).timeout_ms == 5'000);
}

TEST_CASE("planner: a builtin call carries its action, bad arguments included") {
    AgentSpec agent;
    agent.tools = {builtins({"memory", "clock"}), builtins({"memory"})};
    CHECK_FALSE(needs_listing(agent));
    CHECK(exposed_tools(agent, {}, {}).size() == 6);
    const auto set = plan_call(agent, {}, {}, {"c", "memory_set", R"({"key":"a","value":"b"})"});
    CHECK(set.disposition == Disposition::builtin);
    CHECK(set.server_label == "builtin");
    CHECK(set.action.kind == BuiltinAction::Kind::memory_set);
    const auto bad = plan_call(agent, {}, {}, {"c", "memory_set", "{}"});
    CHECK(bad.disposition == Disposition::builtin);
    CHECK(bad.action.is_error);
    agent.tools.push_back(server("s"));
    CHECK(needs_listing(agent));
}

TEST_CASE("planner: calls on a user's memory are dispatched, those on a session's are not") {
    AgentSpec agent;
    agent.tools = {builtins({"memory", "echo"})};
    const std::pair<std::string, EffectClass> calls[] = {{"memory_get", EffectClass::read},
                                                         {"memory_set", EffectClass::idempotent},
                                                         {"memory_delete", EffectClass::idempotent},
                                                         {"memory_list", EffectClass::read}};
    const auto arguments = [](const std::string& name) {
        return name == "memory_list" ? "{}" : name == "memory_set" ? R"({"key":"a","value":"b"})" : R"({"key":"a"})";
    };
    for (const auto& [name, effect] : calls) {
        CAPTURE(name);
        agent.memory.reset();
        CHECK(plan_call(agent, {}, {}, {"c", name, arguments(name)}).disposition == Disposition::builtin);
        agent.memory = MemorySpec{"customer", MemoryScope::session, 1000};
        CHECK(plan_call(agent, {}, {}, {"c", name, arguments(name)}).disposition == Disposition::builtin);
        agent.memory = MemorySpec{"customer", MemoryScope::user, 1000};
        const auto call = plan_call(agent, {}, {}, {"c", name, arguments(name)});
        CHECK(call.disposition == Disposition::run);
        CHECK(call.effect == effect);
        CHECK(call.server_label == "builtin");
        CHECK(call.tool == name);
        CHECK(call.timeout_ms > 0);
    }
    // What the arguments decide needs nobody else.
    CHECK(plan_call(agent, {}, {}, {"c", "memory_get", "{}"}).disposition == Disposition::builtin);
    CHECK(plan_call(agent, {}, {}, {"c", "echo", R"({"text":"a"})"}).disposition == Disposition::builtin);
    // The model is told whose memory it is.
    for (const auto& tool : exposed_tools(agent, {}, {}))
        if (tool.of_user) CHECK(tool.description.find("user") != std::string::npos);
    agent.memory.reset();
    for (const auto& tool : exposed_tools(agent, {}, {})) CHECK_FALSE(tool.of_user);
}
