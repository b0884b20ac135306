#include "runtime/tool/builtin.h"

#include <array>
#include <boost/json/parse.hpp>
#include <cmath>

#include "runtime/base/limits.h"
#include "runtime/tool/arguments.h"
#include "runtime/tool/calculator.h"

namespace mainstay {

namespace json = boost::json;

namespace {

constexpr std::array<BuiltinTool, 9> tools{{
    {"memory", "memory_get", "Read one value from this session's memory.",
     R"({"type":"object","properties":{"key":{"type":"string","description":"Name of the value."}},)"
     R"("required":["key"],"additionalProperties":false})",
     EffectClass::read, "Read one value that was remembered for this user, in this session or an earlier one."},
    {"memory", "memory_set", "Keep a value in this session's memory under a name; replaces an earlier value.",
     R"({"type":"object","properties":{"key":{"type":"string","description":"Name of the value, at most 256 bytes."},)"
     R"("value":{"type":"string","description":"The value, at most 8192 bytes."}},)"
     R"("required":["key","value"],"additionalProperties":false})",
     EffectClass::idempotent,
     "Remember a value for this user under a name, also for later sessions; replaces an earlier value."},
    {"memory", "memory_delete", "Forget one value of this session's memory.",
     R"({"type":"object","properties":{"key":{"type":"string","description":"Name of the value."}},)"
     R"("required":["key"],"additionalProperties":false})",
     EffectClass::idempotent, "Forget one value that was remembered for this user."},
    {"memory", "memory_list", "List the names of the values in this session's memory.",
     R"({"type":"object","properties":{},"additionalProperties":false})", EffectClass::read,
     "List the names of the values that were remembered for this user."},
    {"clock", "clock_now", "The present time in UTC, RFC 3339.",
     R"({"type":"object","properties":{},"additionalProperties":false})", EffectClass::read},
    {"clock", "clock_sleep", "Wait for a time, even across restarts of the server, then go on.",
     R"({"type":"object","properties":{"seconds":{"type":"number","minimum":0,"maximum":31622400,)"
     R"("description":"How long to wait, in seconds."}},"required":["seconds"],"additionalProperties":false})",
     EffectClass::idempotent},
    {"echo", "echo", "Returns the text as it is.",
     R"({"type":"object","properties":{"text":{"type":"string","description":"Text to return."}},)"
     R"("required":["text"],"additionalProperties":false})",
     EffectClass::read},
    {"calc", "calc", "Calculate with + - * / and parentheses; the result has at most six decimals.",
     R"({"type":"object","properties":{"expression":{"type":"string","description":"For example 12*(3+4.5)."}},)"
     R"("required":["expression"],"additionalProperties":false})",
     EffectClass::read},
    {"price", "price", "Look up the price of one piece of an item.",
     R"({"type":"object","properties":{"item":{"type":"string","description":"Name of the item."}},)"
     R"("required":["item"],"additionalProperties":false})",
     EffectClass::read},
}};
static_assert(limits::memory_key_bytes_max == 256 && limits::memory_value_bytes_max == 8192 &&
                  limits::wait_duration_ms_max == 31'622'400'000,
              "the schemas above say these bounds to the model");

BuiltinAction refuse(std::string text) {
    BuiltinAction action;
    action.text = std::move(text);
    action.is_error = true;
    return action;
}

BuiltinAction memory_action(BuiltinAction::Kind kind, json::object& arguments) {
    BuiltinAction action;
    action.kind = kind;
    if (kind == BuiltinAction::Kind::memory_list) return action;
    action.key = arguments.at("key").as_string();
    if (action.key.empty()) return refuse("The parameter \"key\" must not be empty.");
    if (action.key.size() > limits::memory_key_bytes_max) {
        return refuse("The parameter \"key\" is longer than memory_key_bytes_max = " +
                      std::to_string(limits::memory_key_bytes_max) + " bytes.");
    }
    if (kind != BuiltinAction::Kind::memory_set) return action;
    action.value = arguments.at("value").as_string();
    if (action.value.size() > limits::memory_value_bytes_max) {
        return refuse("The parameter \"value\" is longer than memory_value_bytes_max = " +
                      std::to_string(limits::memory_value_bytes_max) + " bytes.");
    }
    return action;
}

BuiltinAction sleep_action(json::object& arguments) {
    const double ms = arguments.at("seconds").to_number<double>() * 1000.0;
    // Written so that a NaN would be refused too.
    if (!(ms >= 0.0 && ms <= static_cast<double>(limits::wait_duration_ms_max))) {
        return refuse("The parameter \"seconds\" must be between 0 and " +
                      std::to_string(limits::wait_duration_ms_max / 1000) + " (wait_duration_ms_max).");
    }
    BuiltinAction action;
    action.kind = BuiltinAction::Kind::sleep;
    action.duration_ms = static_cast<uint64_t>(std::llround(ms));
    return action;
}

BuiltinAction calc_action(std::string_view expression) {
    auto result = calculate(expression);
    if (!result) return refuse(result.error().message);
    BuiltinAction action;
    action.text = std::move(*result);
    return action;
}

/// People write "Apples" where the list has "apple": the case and a plural s make no difference.
BuiltinAction price_action(std::string_view item, const PriceList* prices) {
    std::string name(item);
    while (!name.empty() && name.back() == ' ') name.pop_back();
    for (char& c : name)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c | 0x20);
    std::vector<std::string> spellings{name, name + "s"};
    if (name.ends_with('s')) spellings.push_back(name.substr(0, name.size() - 1));
    if (name.ends_with("es")) spellings.push_back(name.substr(0, name.size() - 2));
    if (name.ends_with("ies")) spellings.push_back(name.substr(0, name.size() - 3) + "y");
    if (prices) {
        for (const auto& spelling : spellings) {
            const auto found = prices->find(spelling);
            if (found == prices->end()) continue;
            BuiltinAction action;
            action.text = found->second;
            return action;
        }
    }
    return refuse("no price is known for this item");
}

}  // namespace

std::span<const BuiltinTool> builtin_tools() { return tools; }

const BuiltinTool* find_builtin(std::string_view name) {
    for (const auto& tool : tools) {
        if (tool.name == name) return &tool;
    }
    return nullptr;
}

bool is_builtin_group(std::string_view group) {
    for (const auto& tool : tools) {
        if (tool.group == group) return true;
    }
    return false;
}

bool is_memory_tool(std::string_view name) {
    const BuiltinTool* tool = find_builtin(name);
    return tool && tool->group == "memory";
}

BuiltinAction plan_builtin(std::string_view name, std::string_view arguments_text, const PriceList* prices) {
    const BuiltinTool* tool = find_builtin(name);
    if (!tool) return refuse("There is no builtin tool of this name.");
    auto arguments = parse_arguments(arguments_text);
    if (!arguments) return refuse(arguments.error().message);
    // A builtin call is on the path of a durable turn: its schema is parsed once in a process.
    static const auto schemas = [] {
        std::array<json::object, tools.size()> parsed;
        for (size_t i = 0; i < tools.size(); ++i) parsed[i] = json::parse(tools[i].input_schema).as_object();
        return parsed;
    }();
    const auto& schema = schemas[static_cast<size_t>(tool - tools.data())];
    if (auto wrong = check_arguments(*arguments, schema); !wrong.empty()) return refuse(std::move(wrong));

    using Kind = BuiltinAction::Kind;
    if (name == "memory_get") return memory_action(Kind::memory_get, *arguments);
    if (name == "memory_set") return memory_action(Kind::memory_set, *arguments);
    if (name == "memory_delete") return memory_action(Kind::memory_delete, *arguments);
    if (name == "memory_list") return memory_action(Kind::memory_list, *arguments);
    if (name == "clock_sleep") return sleep_action(*arguments);
    if (name == "calc") return calc_action(arguments->at("expression").as_string());
    if (name == "price") return price_action(arguments->at("item").as_string(), prices);
    BuiltinAction action;
    if (name == "clock_now") {
        action.now = true;
    } else {
        INVARIANT(name == "echo", "each builtin tool has its action");
        action.text = arguments->at("text").as_string();
    }
    return action;
}

}  // namespace mainstay
