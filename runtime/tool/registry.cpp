#include "runtime/tool/registry.h"

#include "runtime/tool/builtin.h"
#include "runtime/tool/planner.h"

namespace mainstay {

namespace {

McpServer server_of(const ToolsetSpec& toolset, TenantId tenant, const SessionKey& session) {
    McpServer server;
    server.label = toolset.server_label;
    server.tenant = tenant;
    if (toolset.per_session) server.session = session;
    server.command = toolset.command;
    server.env = toolset.env;
    return server;
}

/// The lists of one agent's servers, until the last has answered. Used on the I/O thread only.
struct Gathering {
    AgentPtr agent;
    ToolsListed done;
    std::vector<McpTools> tools;  // by position of the toolset; null: builtin, or failed
    std::string failure;
    size_t open = 0;

    void finish() {
        auto infos = std::make_shared<std::vector<ToolInfo>>();
        for (size_t i = 0; i < agent->tools.size(); ++i) {
            const auto& toolset = agent->tools[i];
            if (!tools[i]) continue;
            for (const auto& tool : *tools[i]) {
                if (!allows(toolset, tool.name)) continue;
                infos->push_back({toolset.server_label, tool.name, tool.description, tool.input_schema,
                                  effect_of(toolset, tool.name, tool.hint)});
            }
        }
        // The planner knows which of these the agent named; the others would only be passed over.
        for (const auto& exposed : exposed_tools(*agent, {}, {})) {
            infos->push_back(
                {exposed.server_label, exposed.tool, exposed.description, exposed.parameters, exposed.effect});
        }
        done(std::move(infos), std::move(failure));
    }
};

ToolOutcome not_allowed(std::string message) {
    ToolOutcome outcome;
    outcome.kind = ToolOutcome::Kind::failed;
    outcome.error_class = ErrorClass::invalid;
    outcome.code = ErrorCode::tool_not_allowed;
    outcome.message = std::move(message);
    return outcome;
}

}  // namespace

void ToolRegistry::list(TenantId tenant, const SessionKey& session, AgentPtr agent, ToolsListed done) {
    auto gathering = std::make_shared<Gathering>();
    gathering->done = std::move(done);
    gathering->tools.resize(agent->tools.size());
    gathering->agent = agent;
    std::vector<size_t> servers;
    for (size_t i = 0; i < agent->tools.size(); ++i) {
        // Where two toolsets have one label the first is meant, as everywhere.
        if (find_toolset(*agent, agent->tools[i].server_label) == &agent->tools[i]) servers.push_back(i);
    }
    gathering->open = servers.size();
    if (servers.empty()) return servers_.post([gathering] { gathering->finish(); });
    for (const size_t i : servers) {
        servers_.list(server_of(agent->tools[i], tenant, session),
                      [gathering, i](const McpTools& tools, const std::string& failure) {
                          gathering->tools[i] = tools;
                          if (!tools) {
                              if (!gathering->failure.empty()) gathering->failure += "; ";
                              gathering->failure += gathering->agent->tools[i].server_label + ": " + failure;
                          }
                          if (--gathering->open == 0) gathering->finish();
                      });
    }
}

void ToolRegistry::call(ToolCall call, ToolDone done) {
    const ToolsetSpec* toolset = find_toolset(*call.agent, call.server_label);
    std::string problem;
    if (call.server_label == builtin_label) {
        problem = "Builtin tools are answered by the session, not by a tool host.";
    } else if (!toolset) {
        problem = "The agent has no tool server \"" + call.server_label + "\".";
    } else if (!allows(*toolset, call.name)) {
        problem = "allowed_tools of \"" + call.server_label + "\" leaves out \"" + call.name + "\".";
    }
    if (!problem.empty()) {
        return servers_.post([id = call.call_id, problem = std::move(problem), done = std::move(done)] {
            done(id, not_allowed(problem));
        });
    }
    uint32_t timeout_ms = call.timeout_ms;
    if (timeout_ms == 0) timeout_ms = toolset->timeout_ms;
    if (timeout_ms == 0) timeout_ms = limits::tool_call_timeout_ms_default;
    McpCall request;
    request.call_id = call.call_id;
    request.name = std::move(call.name);
    request.arguments = std::move(call.arguments);
    request.idempotency_key = std::move(call.idempotency_key);
    servers_.call(server_of(*toolset, call.tenant, call.session), std::move(request), timeout_ms, std::move(done));
}

}  // namespace mainstay
