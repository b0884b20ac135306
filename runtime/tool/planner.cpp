#include "runtime/tool/planner.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "runtime/base/digest.h"
#include "runtime/base/limits.h"
#include "runtime/tool/arguments.h"
#include "runtime/tool/builtin.h"

namespace mainstay {

namespace {

bool contains(const std::vector<std::string>& list, std::string_view name) {
    return std::find(list.begin(), list.end(), name) != list.end();
}

/// Only what the OpenAI API takes in a function name: letters, digits, underscore, hyphen.
std::string plain(std::string_view name) {
    std::string text(name);
    for (char& c : text) {
        const bool kept =
            (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
        if (!kept) c = '_';
    }
    return text;
}

std::string with_digest(std::string name, std::string_view of) {
    const uint64_t digest = xxh64(of);
    const std::string tail =
        "_" + to_hex(std::string_view(reinterpret_cast<const char*>(&digest), sizeof digest)).substr(0, 8);
    name.resize(std::min(name.size(), limits::tool_name_bytes_max - tail.size()));
    return name + tail;
}

std::string qualified(const ExposedTool& tool) { return tool.server_label + "__" + tool.tool; }

uint32_t timeout_of(const ToolsetSpec& toolset, uint32_t otherwise) {
    return toolset.timeout_ms != 0 ? toolset.timeout_ms : otherwise;
}

void add_builtin(const ToolsetSpec& toolset, bool memory_of_user, uint32_t timeout_ms_default,
                 std::vector<ExposedTool>& tools) {
    for (const auto& tool : builtin_tools()) {
        if (!contains(toolset.names, tool.group) || !allows(toolset, tool.name)) continue;
        const bool twice = std::any_of(tools.begin(), tools.end(), [&](const ExposedTool& other) {
            return other.server_label == builtin_label && other.tool == tool.name;
        });
        if (twice) continue;  // two builtin toolsets may name the same group
        ExposedTool exposed;
        exposed.description = tool.description;
        exposed.parameters = tool.input_schema;
        exposed.server_label = builtin_label;
        exposed.tool = tool.name;
        exposed.effect = tool.effect;
        exposed.timeout_ms = timeout_of(toolset, timeout_ms_default);
        exposed.prices = toolset.prices;
        exposed.of_user = memory_of_user && is_memory_tool(tool.name);
        if (exposed.of_user) exposed.description = tool.description_of_user;
        tools.push_back(std::move(exposed));
    }
}

void add_server(const ToolsetSpec& toolset, const std::vector<ToolInfo>& infos, uint32_t timeout_ms_default,
                std::vector<ExposedTool>& tools) {
    const size_t first = tools.size();
    for (const auto& info : infos) {
        if (info.server_label != toolset.server_label || !allows(toolset, info.name)) continue;
        ExposedTool exposed;
        exposed.description = info.description;
        exposed.parameters = info.input_schema;
        exposed.server_label = info.server_label;
        exposed.tool = info.name;
        exposed.effect = effect_of(toolset, info.name, info.effect);
        exposed.timeout_ms = timeout_of(toolset, timeout_ms_default);
        tools.push_back(std::move(exposed));
    }
    const auto begin = tools.begin() + static_cast<ptrdiff_t>(first);
    std::stable_sort(begin, tools.end(), [](const ExposedTool& a, const ExposedTool& b) { return a.tool < b.tool; });
    tools.erase(
        std::unique(begin, tools.end(), [](const ExposedTool& a, const ExposedTool& b) { return a.tool == b.tool; }),
        tools.end());
}

void give_names(std::vector<ExposedTool>& tools, const std::vector<std::string>& client_functions) {
    struct Claims {
        bool builtin = false;
        size_t servers = 0;
    };
    std::unordered_map<std::string, Claims> claims;
    for (const auto& tool : tools) {
        auto& claim = claims[plain(tool.tool)];
        if (tool.server_label == builtin_label) {
            claim.builtin = true;
        } else {
            ++claim.servers;
        }
    }
    std::unordered_set<std::string> taken(client_functions.begin(), client_functions.end());
    for (auto& tool : tools) {
        const std::string own = plain(tool.tool);
        const auto& claim = claims[own];
        const bool builtin = tool.server_label == builtin_label;
        const bool shared = contains(client_functions, own) || (!builtin && (claim.builtin || claim.servers > 1));
        tool.name = shared ? plain(qualified(tool)) : own;
        if (tool.name.size() > limits::tool_name_bytes_max) tool.name = with_digest(tool.name, qualified(tool));
        if (taken.contains(tool.name)) tool.name = with_digest(tool.name, qualified(tool));
        taken.insert(tool.name);
    }
}

const ExposedTool* resolve(const std::vector<ExposedTool>& exposed, std::string_view name) {
    for (const auto& tool : exposed) {
        if (tool.name == name) return &tool;
    }
    for (const auto& tool : exposed) {
        if (!name.starts_with(tool.server_label)) continue;
        const std::string_view rest = name.substr(tool.server_label.size());
        if ((rest.starts_with("__") && rest.substr(2) == tool.tool) ||
            (rest.starts_with("/") && rest.substr(1) == tool.tool)) {
            return &tool;
        }
    }
    return nullptr;
}

/// The model is told what there is, so that its next step can be right.
std::string unknown_tool(const std::vector<ExposedTool>& exposed, const std::vector<std::string>& client_functions,
                         std::string_view name) {
    constexpr size_t text_bytes_max = 4096;
    std::string text = "There is no tool \"" + std::string(name.substr(0, limits::tool_name_bytes_max)) + "\".";
    if (exposed.empty() && client_functions.empty()) return text + " No tools are available.";
    text += " Available:";
    size_t left = exposed.size() + client_functions.size();
    auto add = [&](const std::string& one) {
        if (text.size() + one.size() > text_bytes_max) return;
        text += (text.back() == ':' ? " " : ", ") + one;
        --left;
    };
    for (const auto& tool : exposed) add(tool.name);
    for (const auto& function : client_functions) add(function);
    if (left > 0) text += " and " + std::to_string(left) + " more";
    return text + ".";
}

PlannedCall refuse(PlannedCall planned, ErrorCode code, std::string message) {
    planned.disposition = PlannedCall::Disposition::refuse;
    planned.refusal = code;
    planned.refusal_message = std::move(message);
    return planned;
}

}  // namespace

bool needs_listing(const AgentSpec& agent) {
    return std::any_of(agent.tools.begin(), agent.tools.end(),
                       [](const ToolsetSpec& toolset) { return toolset.type == ToolsetType::mcp; });
}

const ToolsetSpec* find_toolset(const AgentSpec& agent, std::string_view server_label) {
    for (const auto& toolset : agent.tools) {
        if (toolset.type == ToolsetType::mcp && toolset.server_label == server_label) return &toolset;
    }
    return nullptr;
}

bool allows(const ToolsetSpec& toolset, std::string_view tool) {
    return toolset.allowed_tools.empty() || contains(toolset.allowed_tools, tool);
}

EffectClass effect_of(const ToolsetSpec& toolset, std::string_view tool, EffectClass hinted) {
    const auto found = toolset.effects.find(std::string(tool));
    return found == toolset.effects.end() ? hinted : found->second;
}

std::vector<ExposedTool> exposed_tools(const AgentSpec& agent, const std::vector<ToolInfo>& infos,
                                       const std::vector<std::string>& client_functions, uint32_t timeout_ms_default) {
    std::vector<ExposedTool> tools;
    for (const auto& toolset : agent.tools) {
        if (toolset.type == ToolsetType::builtin) {
            add_builtin(toolset, agent.memory && agent.memory->scope == MemoryScope::user, timeout_ms_default, tools);
        } else if (find_toolset(agent, toolset.server_label) == &toolset && toolset.server_label != builtin_label) {
            add_server(toolset, infos, timeout_ms_default, tools);
        }
    }
    give_names(tools, client_functions);
    return tools;
}

PlannedCall plan_call(const std::vector<ExposedTool>& exposed, const std::vector<std::string>& client_functions,
                      RequestedCall call) {
    PlannedCall planned;
    planned.call_id = std::move(call.call_id);
    planned.name = std::move(call.name);
    planned.arguments = std::move(call.arguments);

    if (contains(client_functions, planned.name)) {
        // The client parses its own function's arguments, as with any OpenAI server; only the size is ours.
        if (planned.arguments.size() > limits::tool_arguments_bytes_max) {
            planned.arguments.clear();  // an item must stay within its bound
            return refuse(std::move(planned), ErrorCode::invalid_request,
                          "The arguments are longer than tool_arguments_bytes_max = " +
                              std::to_string(limits::tool_arguments_bytes_max) + " bytes.");
        }
        planned.disposition = PlannedCall::Disposition::client;
        return planned;
    }
    const ExposedTool* tool = resolve(exposed, planned.name);
    if (!tool) {
        std::string message = unknown_tool(exposed, client_functions, planned.name);
        if (planned.arguments.size() > limits::tool_arguments_bytes_max) planned.arguments.clear();
        return refuse(std::move(planned), ErrorCode::tool_not_allowed, std::move(message));
    }
    planned.server_label = tool->server_label;
    planned.tool = tool->tool;
    planned.effect = tool->effect;
    planned.timeout_ms = tool->timeout_ms;
    if (tool->server_label == builtin_label) {
        planned.disposition = PlannedCall::Disposition::builtin;
        planned.action = plan_builtin(tool->tool, planned.arguments, tool->prices.get());
        // What the arguments already decide needs nobody else; a memory that sessions share does.
        if (tool->of_user && planned.action.kind != BuiltinAction::Kind::answer)
            planned.disposition = PlannedCall::Disposition::run;
        if (planned.arguments.size() > limits::tool_arguments_bytes_max) planned.arguments.clear();
        return planned;
    }
    auto arguments = parse_arguments(planned.arguments);
    if (!arguments) {
        if (planned.arguments.size() > limits::tool_arguments_bytes_max) planned.arguments.clear();
        return refuse(std::move(planned), ErrorCode::invalid_request, arguments.error().message);
    }
    if (auto wrong = check_arguments(*arguments, tool->parameters); !wrong.empty()) {
        return refuse(std::move(planned), ErrorCode::invalid_request, std::move(wrong));
    }
    planned.disposition = PlannedCall::Disposition::run;
    return planned;
}

PlannedCall plan_call(const AgentSpec& agent, const std::vector<ToolInfo>& infos,
                      const std::vector<std::string>& client_functions, RequestedCall call) {
    return plan_call(exposed_tools(agent, infos, client_functions), client_functions, std::move(call));
}

}  // namespace mainstay
