#pragma once
// The verdict on a tool call that a model asked for, made outside the session (agent specification, listed tools,
// policy) and journalled with the step: the session never looks a tool up.

#include <cstdint>
#include <string>

#include "runtime/base/error_code.h"
#include "runtime/base/item.h"

namespace mainstay {

/// What a builtin tool asks of the session itself. Its answer is recorded in the same batch as the step.
struct BuiltinAction {
    enum class Kind : uint8_t { answer, memory_get, memory_set, memory_delete, memory_list, sleep };
    Kind kind = Kind::answer;
    std::string key, value;    // memory
    std::string text;          // answer: the output as it is
    bool is_error = false;     // answer: the tool refuses its arguments
    bool now = false;          // answer: the recorded time of the command in RFC 3339 instead of `text`
    uint64_t duration_ms = 0;  // sleep: a durable timer; the call's output comes when it fired
};

struct PlannedCall {
    enum class Disposition : uint8_t {
        run,      // dispatch to a tool host after the intent is committed
        client,   // a function of the request: ends the turn with a function_call item
        builtin,  // answered by the session
        refuse,   // not allowed or not known: the model is told so, and a decision record says why
    };
    Disposition disposition = Disposition::refuse;
    std::string call_id, name, arguments;  // as the model wrote them
    std::string server_label, tool;        // resolved
    EffectClass effect = EffectClass::once;
    uint32_t timeout_ms = 0;
    BuiltinAction action;
    ErrorCode refusal = ErrorCode::tool_not_allowed;
    std::string refusal_message;
};

}  // namespace mainstay
