#pragma once
// What a model may call, and what becomes of a call that it asks for. The verdict is made here, outside the session,
// from the agent's specification, the listed tools and the functions of the request; the session journals it and never
// looks a tool up. Pure; any thread.
//
// Names: a function of the request keeps its name, because the client knows no other. A builtin tool keeps its name
// unless such a function has it. An MCP tool keeps its name unless a function, a builtin tool or a tool of another
// server has it. What cannot keep its name is shown as "<server_label>__<tool>". Characters that the OpenAI API refuses
// in names become "_", names are cut at tool_name_bytes_max with a digest at the end, and where two are still equal
// the later gets a digest of label and tool. The names of one list are unique, and the same inputs give the same list.
// Plan with the list that the model was shown: with another list a name may mean another tool.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/agent_spec.h"
#include "runtime/base/limits.h"
#include "runtime/base/tool_plan.h"
#include "runtime/tool/tool.h"

namespace mainstay {

/// One of the agent's own tools, as the model is shown it (name, description, parameters) and as a call needs it.
struct ExposedTool {
    std::string name;
    std::string description;
    std::string parameters;  // JSON Schema text
    std::string server_label, tool;
    EffectClass effect = EffectClass::once;
    uint32_t timeout_ms = 0;
    std::shared_ptr<const PriceList> prices;  // of the builtin tool price
    bool of_user = false;                     // the builtin tool memory, on the user's memory: its calls are dispatched
};

/// A call as the model wrote it.
struct RequestedCall {
    std::string call_id;
    std::string name;
    std::string arguments;  // JSON text, or anything else
};

/// True where the agent has a toolset that only a ToolHost can list; otherwise `infos` may be empty.
bool needs_listing(const AgentSpec& agent);
/// The agent's MCP toolset of that label, or null.
const ToolsetSpec* find_toolset(const AgentSpec& agent, std::string_view server_label);
/// allowed_tools of the toolset: empty allows all.
bool allows(const ToolsetSpec& toolset, std::string_view tool);
/// The author's word, else what the server hinted.
EffectClass effect_of(const ToolsetSpec& toolset, std::string_view tool, EffectClass hinted);

/// The agent's tools: toolsets in the author's order, tools of an MCP server by name, builtin tools in their own
/// order. Infos of servers that the agent does not name, and tools that allowed_tools leaves out, do not appear.
/// Builtin tools come from the agent's specification; infos labelled "builtin" are passed over.
std::vector<ExposedTool> exposed_tools(const AgentSpec& agent, const std::vector<ToolInfo>& infos,
                                       const std::vector<std::string>& client_functions,
                                       uint32_t timeout_ms_default = limits::tool_call_timeout_ms_default);

/// The verdict on one call. `exposed` is the list that the model was shown. Besides an exposed name,
/// "<server_label>__<tool>" and "<server_label>/<tool>" are understood for any tool in the list.
PlannedCall plan_call(const std::vector<ExposedTool>& exposed, const std::vector<std::string>& client_functions,
                      RequestedCall call);
/// The same from the parts, for who keeps no list.
PlannedCall plan_call(const AgentSpec& agent, const std::vector<ToolInfo>& infos,
                      const std::vector<std::string>& client_functions, RequestedCall call);

}  // namespace mainstay
