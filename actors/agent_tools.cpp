#include "actors/agent_tools.h"

#include <boost/json.hpp>

namespace mainstay {
namespace {

namespace json = boost::json;

std::string text_of(const json::object& object, const char* key) {
    const auto* value = object.if_contains(key);
    return value && value->is_string() ? std::string(value->get_string()) : std::string();
}

/// The function tools of a request, as the client sent them (the door has checked their shape).
std::vector<ToolDefinition> client_definitions(const std::string& options) {
    std::vector<ToolDefinition> found;
    if (options.find("\"tools\"") == std::string::npos) return found;
    json::error_code failed;
    const auto parsed = json::parse(options, failed);
    if (failed || !parsed.is_object()) return found;
    const auto* tools = parsed.get_object().if_contains("tools");
    if (!tools || !tools->is_array()) return found;
    for (const auto& tool : tools->get_array()) {
        if (!tool.is_object() || text_of(tool.get_object(), "type") != "function") continue;
        const auto& object = tool.get_object();
        const auto* parameters = object.if_contains("parameters");
        const auto* strict = object.if_contains("strict");
        found.push_back({text_of(object, "name"), text_of(object, "description"),
                         parameters && parameters->is_object() ? json::serialize(*parameters) : std::string("{}"),
                         strict && strict->is_bool() && strict->get_bool()});
    }
    return found;
}

}  // namespace

AgentToolsPtr make_agent_tools(const AgentSpec& agent, const std::vector<ToolInfo>& infos, const std::string& options,
                               uint32_t timeout_ms_default) {
    auto made = std::make_shared<AgentTools>();
    auto definitions = client_definitions(options);
    for (const auto& definition : definitions) made->client_functions.push_back(definition.name);
    made->exposed = exposed_tools(agent, infos, made->client_functions, timeout_ms_default);
    for (const auto& tool : made->exposed) definitions.push_back({tool.name, tool.description, tool.parameters, false});
    made->definitions = std::make_shared<const std::vector<ToolDefinition>>(std::move(definitions));
    return made;
}

std::string option_text(const std::string& options, const char* field) {
    json::error_code failed;
    const auto parsed = json::parse(options, failed);
    return failed || !parsed.is_object() ? std::string() : text_of(parsed.get_object(), field);
}

std::string with_sampling(const std::string& options, std::optional<double> temperature, std::optional<double> top_p) {
    json::error_code failed;
    auto parsed = json::parse(options, failed);
    if (failed || !parsed.is_object()) return options;
    auto& object = parsed.get_object();
    auto fill = [&](const char* name, std::optional<double> value) {
        const auto* present = object.if_contains(name);
        if (value && (!present || present->is_null())) object[name] = *value;
    };
    fill("temperature", temperature);
    fill("top_p", top_p);
    return json::serialize(parsed);
}

AgentToolsPtr AgentToolsCache::builtin_only(const AgentSpec& agent, uint32_t timeout_ms_default) {
    std::lock_guard lock(mutex_);
    auto& entry = by_version_[agent.version];
    if (!entry) entry = make_agent_tools(agent, {}, {}, timeout_ms_default);
    return entry;
}

}  // namespace mainstay
