#pragma once
// The builtin groups `memory`, `clock`, `echo`, `calc` and `price`: what the model is shown of them, and what a call
// asks of the session. They have no server: the session answers in the same batch as the model step, so a builtin call
// costs no dispatch and cannot be lost. A memory of scope user is the exception: it belongs to no session, so its calls
// are dispatched (actors/user_memories). Pure; any thread; the table is static.

#include <span>
#include <string_view>

#include "runtime/base/agent_spec.h"
#include "runtime/base/item.h"
#include "runtime/base/tool_plan.h"

namespace mainstay {

inline constexpr std::string_view builtin_label = "builtin";

struct BuiltinTool {
    std::string_view group;  // the word in names = [...]
    std::string_view name;
    std::string_view description;
    std::string_view input_schema;  // JSON Schema text
    EffectClass effect;
    std::string_view description_of_user = {};  // of `memory`, where the memory is the user's
};

/// All builtin tools, groups together, in the order in which a model is shown them.
std::span<const BuiltinTool> builtin_tools();
/// Null where the name is not a builtin tool.
const BuiltinTool* find_builtin(std::string_view name);
/// True for memory, clock, echo, calc and price.
bool is_builtin_group(std::string_view group);

/// True for the tools of the group `memory`.
bool is_memory_tool(std::string_view name);

/// What a call of the builtin tool `name` asks of the session. Bad arguments, an unknown name included, give an
/// `answer` with is_error and a text that tells the model what to mend; nothing throws. memory_get leaves a missing
/// key, and memory_set a full memory, to the session. `prices` is what price looks into: the agent's list; null: none.
BuiltinAction plan_builtin(std::string_view name, std::string_view arguments, const PriceList* prices = nullptr);

}  // namespace mainstay
