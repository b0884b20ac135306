#include "runtime/agent/agent_file.h"

#include <algorithm>

#include "runtime/agent/canonical.h"
#include "runtime/agent/device_keys.h"
#include "runtime/agent/tree_reader.h"
#include "runtime/agent/units.h"
#include "runtime/base/digest.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

using namespace limits;

std::string lower_case(std::string text) {
    for (char& c : text)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c | 0x20);
    return text;
}

bool all_of(std::string_view text, std::string_view extra) {
    return std::all_of(text.begin(), text.end(), [&](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               extra.find(c) != std::string_view::npos;
    });
}

/// Agents are addressed in URLs; models also carry the names that their makers gave them ("Qwen/Qwen3-8B").
std::string read_name(TableReader& reader, std::string_view extra) {
    if (!reader.has("name")) {
        reader.refuse(ErrorCode::invalid_request, {}, "\"name\" is missing");
        return {};
    }
    std::string name = reader.text("name", agent_name_bytes_max, 1);
    if (!all_of(name, extra))
        reader.refuse(ErrorCode::invalid_request, "name",
                      "may contain letters, digits and " + std::string(extra) + " only");
    return name;
}

// --- agents -----------------------------------------------------------------------------------------------------

EffectClass effect_from(size_t choice) {
    return choice == 0 ? EffectClass::read : choice == 1 ? EffectClass::idempotent : EffectClass::once;
}

void read_effects(TableReader& tool, Problem& problem, ToolsetSpec& spec) {
    const Node* node = tool.table("effects");
    if (!node) return;
    TableReader effects(*node, tool.path_of("effects"), problem);
    if (node->table.size() > tools_per_server_max)
        effects.refuse(ErrorCode::invalid_request, {},
                       "has more than " + std::to_string(tools_per_server_max) + " entries");
    for (const auto& [name, value] : node->table) {
        if (problem.any()) return;
        spec.effects[name] = effect_from(effects.choice(name, {"read", "idempotent", "once"}, 2));
    }
}

void read_mcp(TableReader& tool, Problem& problem, ToolsetSpec& spec) {
    spec.type = ToolsetType::mcp;
    tool.not_yet("server_url", "a server is started with `command` and spoken to over stdio");
    tool.not_yet("authorization");
    tool.not_yet("sandbox");
    if (!tool.has("server_label")) tool.refuse(ErrorCode::invalid_request, {}, "\"server_label\" is missing");
    spec.server_label = tool.text("server_label", agent_name_bytes_max, 1);
    if (!all_of(spec.server_label, "_-") || spec.server_label == "builtin")
        tool.refuse(ErrorCode::invalid_request, "server_label",
                    "may contain letters, digits, _ and - only, and is not \"builtin\"");
    spec.command = tool.texts("command", tool_command_words_max, agent_text_bytes_max);
    if (spec.command.empty() || spec.command[0].empty())
        tool.refuse(ErrorCode::invalid_request, tool.has("command") ? "command" : "",
                    "\"command\" must name the program of the server");
    spec.env = tool.text_map("env", tool_env_max, agent_text_bytes_max);
    for (const auto& [name, value] : spec.env)
        if (!all_of(name, "_")) tool.refuse(ErrorCode::invalid_request, "env", "has a key that no environment takes");
    spec.allowed_tools = tool.texts("allowed_tools", tools_per_server_max, agent_name_bytes_max);
    read_effects(tool, problem, spec);
    spec.per_session = tool.choice("instance", {"tenant", "session"}, 0) == 1;
    spec.timeout_ms = static_cast<uint32_t>(tool.duration_ms("timeout", 0, 1, tool_call_timeout_ms_max));
}

/// As calc takes it: digits, at most 15, with or without decimals.
bool is_price(std::string_view text) {
    const size_t point = std::min(text.find('.'), text.size());
    const auto digits = [](std::string_view part) {
        return !part.empty() && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    };
    return text.size() <= 16 && digits(text.substr(0, point)) &&
           (point == text.size() || digits(text.substr(point + 1)));
}

void read_prices(TableReader& tool, ToolsetSpec& spec) {
    if (!tool.has("prices")) return;
    if (std::find(spec.names.begin(), spec.names.end(), "price") == spec.names.end())
        return tool.refuse(ErrorCode::invalid_request, "prices",
                           "is for the builtin tool \"price\", which names leaves out");
    PriceList prices;
    for (const auto& [item, price] : tool.text_map("prices", price_list_entries_max, price_item_bytes_max)) {
        if (item.empty() || item.size() > price_item_bytes_max)
            return tool.refuse(ErrorCode::invalid_request, "prices",
                               "has an empty item, or one longer than price_item_bytes_max");
        if (!is_price(price))
            return tool.refuse(
                ErrorCode::invalid_request, "prices",
                "has for \"" + item + "\" the price \"" + price + "\", which is no number such as \"2.50\"");
        prices[lower_case(item)] = price;
    }
    if (!prices.empty()) spec.prices = std::make_shared<const PriceList>(std::move(prices));
}

void read_builtin(TableReader& tool, ToolsetSpec& spec) {
    spec.type = ToolsetType::builtin;
    spec.names = tool.texts("names", 16, agent_name_bytes_max);
    if (spec.names.empty()) tool.refuse(ErrorCode::invalid_request, "names", "must name at least one builtin tool");
    for (const auto& name : spec.names)
        if (name != "memory" && name != "clock" && name != "echo" && name != "calc" && name != "price")
            tool.refuse(ErrorCode::unsupported_value, "names",
                        "knows memory, clock, echo, calc and price, not \"" + name + "\"");
    read_prices(tool, spec);
}

ToolsetSpec read_toolset(const Node& node, std::string path, Problem& problem) {
    ToolsetSpec spec;
    TableReader tool(node, std::move(path), problem);
    if (!tool.has("type")) tool.refuse(ErrorCode::invalid_request, {}, "\"type\" is missing (mcp or builtin)");
    const size_t type = tool.choice("type", {"mcp", "builtin", "agent"}, 1);
    if (problem.any()) return spec;
    if (type == 2) tool.refuse(ErrorCode::not_yet, "type", "\"agent\" (an agent as a tool) is not built yet");
    if (type == 0) read_mcp(tool, problem, spec);
    if (type == 1) read_builtin(tool, spec);
    tool.finish();
    return spec;
}

void read_tools(TableReader& root, Problem& problem, AgentSpec& agent) {
    const auto* list = root.tables("tools", toolsets_max);
    if (!list) return;
    for (size_t i = 0; i < list->size() && !problem.any(); ++i) {
        const std::string path = "tools[" + std::to_string(i) + "]";
        ToolsetSpec spec = read_toolset((*list)[i], path, problem);
        for (const auto& other : agent.tools) {
            if (other.type == ToolsetType::mcp && other.server_label == spec.server_label)
                problem.report(ErrorCode::invalid_request, (*list)[i], path + ".server_label",
                               "\"" + spec.server_label + "\" stands twice");
            if (other.type == ToolsetType::builtin && spec.type == ToolsetType::builtin)
                problem.report(ErrorCode::invalid_request, (*list)[i], path, "builtin tools belong in one entry");
        }
        agent.tools.push_back(std::move(spec));
    }
}

MemorySpec read_memory(const Node& node, Problem& problem) {
    MemorySpec spec;
    TableReader memory(node, "memory[0]", problem);
    spec.name = read_name(memory, "._-");
    const size_t scope = memory.choice("scope", {"session", "user", "agent", "tenant"}, 0);
    if (scope > 1)
        memory.refuse(ErrorCode::not_yet, "scope", "only \"session\" and \"user\" are built");
    else
        spec.scope = scope == 1 ? MemoryScope::user : MemoryScope::session;
    if (spec.scope == MemoryScope::user)
        spec.bytes_max = memory.size_bytes("max_size", spec.bytes_max, user_memory_bytes_min, memory_bytes_max);
    else
        memory.not_yet("max_size", "a session's own memory takes memory_bytes_max");
    memory.not_yet("write", "the last write wins");
    memory.not_yet("retain", "entries stay until they are forgotten");
    memory.finish();
    return spec;
}

void read_memories(TableReader& root, Problem& problem, AgentSpec& agent) {
    const auto* list = root.tables("memory", toolsets_max);
    if (!list || list->empty()) return;
    if (list->size() > agent_memories_max)
        problem.report(ErrorCode::not_yet, (*list)[agent_memories_max], "memory",
                       "an agent has one memory today (agent_memories_max)");
    agent.memory = read_memory(list->front(), problem);
    const bool has_tool = std::any_of(agent.tools.begin(), agent.tools.end(), [](const ToolsetSpec& tool) {
        return std::find(tool.names.begin(), tool.names.end(), "memory") != tool.names.end();
    });
    if (!has_tool && !problem.any())
        problem.report(ErrorCode::invalid_request, list->front(), "memory",
                       "is for the builtin tool \"memory\", which no entry of [[tools]] names");
}

void read_context(TableReader& root, Problem& problem, AgentSpec& agent) {
    const Node* node = root.table("context");
    if (!node) return;
    TableReader context(*node, "context", problem);
    agent.truncate_history = context.choice("truncation", {"auto", "disabled"}, 0) == 0;
    agent.compact_at = context.real("compact_at", 0, 1).value_or(0);
    if (agent.compact_at != 0)
        context.refuse(ErrorCode::not_yet, "compact_at", "compaction is not built yet; 0 turns it off");
    context.finish();
}

void read_retry(TableReader& root, Problem& problem, AgentSpec& agent) {
    const Node* node = root.table("retry");
    if (!node) return;
    TableReader retry(*node, "retry", problem);
    agent.retry.max_attempts =
        static_cast<uint32_t>(retry.number("max_attempts", agent.retry.max_attempts, 1, retry_attempts_max));
    const std::string range = retry.text("backoff", 64);
    if (retry.has("backoff") && !problem.any()) {
        const size_t dots = range.find("..");
        const auto min = parse_duration_ms(std::string_view(range).substr(0, std::min(dots, range.size())));
        const auto max = dots == std::string::npos ? min : parse_duration_ms(std::string_view(range).substr(dots + 2));
        if (!min || !max || *min > *max || *min < retry_backoff_ms_min || *max > retry_backoff_ms_max)
            retry.refuse(ErrorCode::invalid_request, "backoff",
                         "must be a range such as \"1s..1m\", from 1ms to " + format_duration_ms(retry_backoff_ms_max));
        agent.retry.backoff_min_ms = min.value_or(0);
        agent.retry.backoff_max_ms = max.value_or(0);
    }
    retry.finish();
}

void read_budget(TableReader& root, Problem& problem, AgentSpec& agent) {
    const Node* node = root.table("budget");
    if (!node) return;
    TableReader budget(*node, "budget", problem);
    agent.tokens_per_turn = static_cast<uint32_t>(budget.number("tokens_per_turn", 0, 0, tokens_per_turn_max));
    agent.steps_per_turn =
        static_cast<uint32_t>(budget.number("steps_per_turn", agent.steps_per_turn, 1, steps_per_turn_max));
    budget.not_yet("usd_per_session");
    budget.not_yet("on_breach", "a turn that reaches its bound fails");
    budget.finish();
}

AgentSpec read_agent(const Node& tree, Problem& problem) {
    AgentSpec agent;
    TableReader root(tree, {}, problem);
    agent.name = read_name(root, "._-");
    if (!root.has("model")) root.refuse(ErrorCode::invalid_request, {}, "\"model\" is missing");
    agent.model = root.text("model", agent_name_bytes_max, 1);
    agent.instructions = root.text("instructions", agent_instructions_bytes_max);
    agent.temperature = root.real("temperature", 0, 2);
    agent.top_p = root.real("top_p", 0, 1);
    agent.max_output_tokens = static_cast<uint32_t>(root.number("max_output_tokens", 0, 0, tokens_per_turn_max));
    read_context(root, problem, agent);
    read_tools(root, problem, agent);
    read_memories(root, problem, agent);
    read_retry(root, problem, agent);
    read_budget(root, problem, agent);
    root.not_yet("permissions", "`allowed_tools` of a toolset grants tools");
    root.not_yet("lead");
    root.not_yet("members");
    root.not_yet("supervision");
    root.not_yet("teams");
    root.not_yet("workflows");
    root.finish();
    return agent;
}

CanonicalObject canonical_toolset(const ToolsetSpec& tool) {
    CanonicalObject out;
    out.put_text("type", tool.type == ToolsetType::mcp ? "mcp" : "builtin");
    if (!tool.server_label.empty()) out.put_text("server_label", tool.server_label);
    if (!tool.command.empty()) out.put_texts("command", tool.command);
    if (!tool.env.empty()) out.put_text_map("env", tool.env);
    if (!tool.allowed_tools.empty()) out.put_texts("allowed_tools", tool.allowed_tools);
    if (!tool.effects.empty()) {
        CanonicalObject effects;
        for (const auto& [name, effect] : tool.effects) effects.put_text(name, to_word(effect));
        out.put_object("effects", effects);
    }
    if (tool.per_session) out.put_text("instance", "session");
    if (!tool.names.empty()) out.put_texts("names", tool.names);
    if (tool.prices) out.put_text_map("prices", *tool.prices);
    if (tool.timeout_ms != 0) out.put_text("timeout", format_duration_ms(tool.timeout_ms));
    return out;
}

CanonicalObject canonical_memory(const MemorySpec& memory) {
    CanonicalObject out;
    out.put_text("name", memory.name);
    if (memory.scope == MemoryScope::user) out.put_text("scope", "user");
    if (memory.bytes_max != MemorySpec{}.bytes_max) out.put_number("max_size", memory.bytes_max);
    return out;
}

// --- models -----------------------------------------------------------------------------------------------------

void read_api_key(TableReader& root, Problem& problem, ModelSpec& model) {
    const Node* node = root.node().find("api_key");
    if (node && node->kind == Node::Kind::text)
        root.refuse(ErrorCode::invalid_request, "api_key",
                    "a key is never written in a file; name the variable that holds it: { env = \"NAME\" }");
    node = root.table("api_key");
    if (!node) return;
    TableReader key(*node, "api_key", problem);
    model.api_key_env = key.text("env", agent_name_bytes_max, 1);
    key.not_yet("secret");
    key.not_yet("file");
    if (model.api_key_env.empty() || !all_of(model.api_key_env, "_"))
        key.refuse(ErrorCode::invalid_request, "env", "must name an environment variable");
    key.finish();
}

void read_price(TableReader& root, Problem& problem, ModelSpec& model) {
    const Node* node = root.table("price");
    if (!node) return;
    TableReader price(*node, "price", problem);
    model.price_input = price.real("input", 0, 1e6);
    model.price_cached = price.real("cached", 0, 1e6);
    model.price_output = price.real("output", 0, 1e6);
    price.finish();
}

// `when` is an optional field of ScriptStep: the reader follows the struct.
template <class Step>
void read_when(TableReader& reader, Step& step) {
    if constexpr (requires { step.when = std::string(); }) step.when = reader.text("when", agent_text_bytes_max);
}
template <class Step>
void put_when(CanonicalObject& out, const Step& step) {
    if constexpr (requires { std::string(step.when); })
        if (!step.when.empty()) out.put_text("when", step.when);
}

ScriptStep read_script_step(const Node& node, std::string path, Problem& problem) {
    ScriptStep step;
    TableReader reader(node, std::move(path), problem);
    step.text_bytes = static_cast<uint32_t>(reader.number("text_bytes", 0, 0, model_text_bytes_max));
    step.text = reader.text("text", agent_instructions_bytes_max);
    step.call_tool = reader.text("call_tool", 2 * agent_name_bytes_max);
    step.call_arguments = reader.text("call_arguments", tool_arguments_bytes_max);
    const std::vector<std::string_view> classes = {
        "",         "transient", "rate_limited", "overloaded", "invalid", "auth", "context_overflow", "content_filter",
        "protocol", "timeout",   "lost"};
    step.fail_class = classes[reader.choice("fail_class", classes, 0)];
    step.fail_times = static_cast<uint32_t>(reader.number("fail_times", 0, 0, UINT32_MAX));
    step.delay_ms = static_cast<uint32_t>(reader.duration_ms("delay_ms", 0, 0, script_delay_ms_max));
    read_when(reader, step);
    if (step.text_bytes != 0 && !step.text.empty())
        reader.refuse(ErrorCode::invalid_request, "text_bytes", "either text or text_bytes");
    reader.finish();
    return step;
}

void read_script(TableReader& root, Problem& problem, ModelSpec& model) {
    const auto* list = root.tables("script", script_steps_max);
    if (!list) return;
    for (size_t i = 0; i < list->size() && !problem.any(); ++i)
        model.script.push_back(read_script_step((*list)[i], "script[" + std::to_string(i) + "]", problem));
}

void read_upstreams(TableReader& root, ModelSpec& model) {
    model.base_url = root.text_or_texts("base_url", model_upstreams_max, agent_text_bytes_max);
    for (const auto& url : model.base_url) {
        const bool known = url.starts_with("http://") || url.starts_with("https://");
        if (!known || url.find_first_of(" \t\r\n@?#") != std::string::npos)
            root.refuse(ErrorCode::invalid_request, "base_url",
                        "must begin with http:// or https:// and contain neither spaces, @, ? nor #");
    }
}

void check_device(TableReader& root, ModelSpec& model) {
    if (model.device == "openai" && model.base_url.empty())
        root.refuse(ErrorCode::invalid_request, "base_url", "\"base_url\" of an OpenAI-compatible server is missing");
    if (model.device == "openai" && !model.script.empty())
        root.refuse(ErrorCode::invalid_request, "script", "only a model with device = \"scripted\" has a script");
    if (model.device == "scripted" && model.script.empty())
        root.refuse(ErrorCode::invalid_request, "script", "a scripted model needs at least one [[script]] step");
    if (model.device == "scripted" && !model.base_url.empty())
        root.refuse(ErrorCode::invalid_request, "base_url", "a scripted model has no upstream");
}

ModelSpec read_model(const Node& tree, Problem& problem) {
    ModelSpec model;
    TableReader root(tree, {}, problem);
    model.name = read_name(root, "._-/:");
    root.not_yet("fallback");
    const std::vector<std::string_view> devices = {"openai", "scripted", "neuron_core_sim", "nrt"};
    model.device = devices[root.choice("device", devices, 0)];
    refuse_foreign_keys(root, model.device);
    if (is_own_device(model.device)) model.own = read_device_keys(root, problem, model.device);
    read_upstreams(root, model);
    model.upstream_model = root.text("upstream_model", agent_name_bytes_max);
    if (model.upstream_model.empty()) model.upstream_model = model.name;
    read_api_key(root, problem, model);
    model.context_window =
        static_cast<uint32_t>(root.number("context_window", model.context_window, 1, context_window_tokens_max));
    read_price(root, problem, model);
    read_script(root, problem, model);
    check_device(root, model);
    root.finish();
    return model;
}

CanonicalObject canonical_step(const ScriptStep& step) {
    CanonicalObject out;
    if (step.text_bytes != 0) out.put_number("text_bytes", step.text_bytes);
    if (!step.text.empty()) out.put_text("text", step.text);
    if (!step.call_tool.empty()) out.put_text("call_tool", step.call_tool);
    if (!step.call_arguments.empty()) out.put_text("call_arguments", step.call_arguments);
    if (!step.fail_class.empty()) out.put_text("fail_class", step.fail_class);
    if (step.fail_times != 0) out.put_number("fail_times", step.fail_times);
    if (step.delay_ms != 0) out.put_number("delay_ms", step.delay_ms);
    put_when(out, step);
    return out;
}

// --- both -------------------------------------------------------------------------------------------------------

template <class Spec>
Result<std::shared_ptr<const Spec>> parse(std::string_view text, Syntax syntax, std::string_view source,
                                          Spec (*read)(const Node&, Problem&)) {
    const auto tree = parse_tree(text, syntax, source);
    if (!tree) return tree.error();
    Problem problem{std::string(source)};
    auto spec = std::make_shared<Spec>(read(*tree, problem));
    if (problem.any()) return problem.error();
    spec->canonical_json = canonical_json(*spec);
    if (spec->canonical_json.size() > agent_file_bytes_max)  // what was accepted must be readable when it comes back
        return {ErrorCode::body_too_large, "the canonical form is larger than " + std::to_string(agent_file_bytes_max) +
                                               " bytes (agent_file_bytes_max)"};
    spec->version = version_of(spec->canonical_json);
    return std::shared_ptr<const Spec>(std::move(spec));
}

std::string leaf_text(const Node& node) {
    switch (node.kind) {
        case Node::Kind::boolean: return node.boolean ? "true" : "false";
        case Node::Kind::integer: return std::to_string(node.integer);
        case Node::Kind::text: return quote_json(node.text);
        case Node::Kind::list: return "[]";
        case Node::Kind::table: return "{}";
        case Node::Kind::null: return "null";
        case Node::Kind::real: {
            CanonicalObject one;
            one.put_real("", node.real);
            const std::string text = one.render();  // {"":number}
            return text.substr(4, text.size() - 5);
        }
    }
    INVARIANT(false, "every kind has a text");
}

using Leaves = std::map<std::string, std::string>;

void flatten(const Node& node, const std::string& path, Leaves& out) {
    for (const auto& [key, value] : node.table) flatten(value, path.empty() ? key : path + "." + key, out);
    for (size_t i = 0; i < node.list.size(); ++i) flatten(node.list[i], path + "[" + std::to_string(i) + "]", out);
    if (node.table.empty() && node.list.empty()) out[path] = leaf_text(node);
}

Leaves leaves_of(const std::string& canonical) {
    Leaves out;
    // Ours, or checked when it came from the store; a text that no longer parses shows as one changed leaf.
    if (const auto tree = parse_tree(canonical, Syntax::json, {}))
        flatten(*tree, {}, out);
    else
        out["(unreadable)"] = quote_json(canonical);
    return out;
}

std::string shortened(const std::string& value) {
    constexpr size_t shown = 160;
    if (value.size() <= shown) return value;
    size_t cut = shown;
    while (cut > 0 && (static_cast<uint8_t>(value[cut]) >> 6) == 2) --cut;  // not within a UTF-8 sequence
    return value.substr(0, cut) + "... (" + std::to_string(value.size()) + " bytes)";
}

std::string compare(const Leaves& before, const Leaves& now) {
    std::string out;
    Leaves all = before;
    all.insert(now.begin(), now.end());
    for (const auto& [path, unused] : all) {
        const auto old_leaf = before.find(path), new_leaf = now.find(path);
        if (old_leaf == before.end())
            out += "+ " + path + " = " + shortened(new_leaf->second) + "\n";
        else if (new_leaf == now.end())
            out += "- " + path + " = " + shortened(old_leaf->second) + "\n";
        else if (old_leaf->second != new_leaf->second)
            out += "~ " + path + " = " + shortened(old_leaf->second) + " -> " + shortened(new_leaf->second) + "\n";
    }
    return out;
}

}  // namespace

Result<AgentPtr> parse_agent(std::string_view text, Syntax syntax, std::string_view source) {
    return parse<AgentSpec>(text, syntax, source, read_agent);
}

Result<ModelPtr> parse_model(std::string_view text, Syntax syntax, std::string_view source) {
    return parse<ModelSpec>(text, syntax, source, read_model);
}

std::string canonical_json(const AgentSpec& agent) {
    const AgentSpec defaults;
    CanonicalObject out, context, retry, budget;
    out.put_text("name", agent.name);
    out.put_text("model", agent.model);
    if (!agent.instructions.empty()) out.put_text("instructions", agent.instructions);
    if (!agent.truncate_history) context.put_text("truncation", "disabled");
    if (agent.compact_at != 0) context.put_real("compact_at", agent.compact_at);
    if (!context.empty()) out.put_object("context", context);
    if (!agent.tools.empty()) {
        std::vector<CanonicalObject> tools;
        for (const auto& tool : agent.tools) tools.push_back(canonical_toolset(tool));
        out.put_objects("tools", tools);
    }
    if (agent.memory) out.put_objects("memory", {canonical_memory(*agent.memory)});
    if (agent.retry.max_attempts != defaults.retry.max_attempts)
        retry.put_number("max_attempts", agent.retry.max_attempts);
    if (agent.retry.backoff_min_ms != defaults.retry.backoff_min_ms ||
        agent.retry.backoff_max_ms != defaults.retry.backoff_max_ms)
        retry.put_text("backoff", format_duration_ms(agent.retry.backoff_min_ms) + ".." +
                                      format_duration_ms(agent.retry.backoff_max_ms));
    if (!retry.empty()) out.put_object("retry", retry);
    if (agent.tokens_per_turn != 0) budget.put_number("tokens_per_turn", agent.tokens_per_turn);
    if (agent.steps_per_turn != defaults.steps_per_turn) budget.put_number("steps_per_turn", agent.steps_per_turn);
    if (!budget.empty()) out.put_object("budget", budget);
    if (agent.temperature) out.put_real("temperature", *agent.temperature);
    if (agent.top_p) out.put_real("top_p", *agent.top_p);
    if (agent.max_output_tokens != 0) out.put_number("max_output_tokens", agent.max_output_tokens);
    return out.render();
}

std::string canonical_json(const ModelSpec& model) {
    const ModelSpec defaults;
    CanonicalObject out, price;
    out.put_text("name", model.name);
    if (model.device != "openai") out.put_text("device", model.device);
    if (!model.base_url.empty()) out.put_texts("base_url", model.base_url);
    if (model.upstream_model != model.name) out.put_text("upstream_model", model.upstream_model);
    if (!model.api_key_env.empty()) {
        CanonicalObject key;
        key.put_text("env", model.api_key_env);
        out.put_object("api_key", key);
    }
    if (is_own_device(model.device)) put_device_keys(out, model.own, model.device);
    if (model.context_window != defaults.context_window) out.put_number("context_window", model.context_window);
    if (model.price_input) price.put_real("input", *model.price_input);
    if (model.price_cached) price.put_real("cached", *model.price_cached);
    if (model.price_output) price.put_real("output", *model.price_output);
    if (!price.empty()) out.put_object("price", price);
    if (!model.script.empty()) {
        std::vector<CanonicalObject> steps;
        for (const auto& step : model.script) steps.push_back(canonical_step(step));
        out.put_objects("script", steps);
    }
    return out.render();
}

uint64_t version_of(std::string_view canonical) {
    const uint64_t digest = digest64(canonical);
    return digest != 0 ? digest : 1;
}

std::string difference(const AgentSpec* before, const AgentSpec& now) {
    return compare(before ? leaves_of(before->canonical_json) : Leaves{}, leaves_of(now.canonical_json));
}

std::string difference(const ModelSpec* before, const ModelSpec& now) {
    return compare(before ? leaves_of(before->canonical_json) : Leaves{}, leaves_of(now.canonical_json));
}

}  // namespace mainstay
