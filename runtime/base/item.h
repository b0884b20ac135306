#pragma once
// What crosses rooms: items of history, usage and the classes of effects and errors. Plain immutable values; the wire
// form is schema/session.capnp. Items are shared by pointer between session, prompt, door and device; nobody changes
// one after it was published.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/id.h"

namespace mainstay {

// The enumerators of these five have the numbers of schema/session.capnp (asserted in the codec).
enum class Role : uint8_t { user, assistant, system, developer };
enum class ItemKind : uint8_t {
    message,
    function_call,         // run by the client
    function_call_output,  // answered by the client
    tool_call,             // run by Mainstay (MCP, builtin); holds its output when settled
    compaction,
    approval_request,
    approval_response,
};
enum class ItemStatus : uint8_t { in_progress, completed, incomplete, failed, unknown };
enum class EffectClass : uint8_t { read, idempotent, once };
enum class ErrorClass : uint8_t {
    transient,
    rate_limited,
    overloaded,
    invalid,
    auth,
    context_overflow,
    content_filter,
    protocol,
    timeout,
    lost,  // the outcome is not known (connection lost after the request was sent, worker died)
};

/// What a token device sampled in one step, kept where the step's text would not be tokenized to the same tokens again:
/// tokens are what attention state is computed from, text is what people see (DECISIONS 13).
struct StepTokens {
    KeyHash tokenizer{};            // digest of its file; with another tokenizer or template the text counts
    uint32_t template_version = 0;  // which chat template, in which version
    std::vector<uint32_t> ids;      // as sampled, a stop token included
    friend bool operator==(const StepTokens&, const StepTokens&) = default;
};

struct Item {
    ItemKind kind = ItemKind::message;
    Role role = Role::user;
    ItemStatus status = ItemStatus::completed;
    std::string text;                     // message text, or output of a call
    std::vector<std::string> more_parts;  // further text parts, where a message came in several
    std::string call_id;                  // the model's or client's name of a call
    std::string name;                     // tool or function
    std::string server_label;             // MCP server, or "builtin"
    std::string arguments;                // JSON text
    std::string error;
    uint16_t step = 0;  // model step of the turn that made it; calls of one step are shown to a model as one message
    std::shared_ptr<const StepTokens> tokens;  // of that step, in its first item; null: the text says them

    size_t bytes() const;  // text and tokens held, for bounds and windows
    friend bool operator==(const Item& a, const Item& b);
};
using ItemPtr = std::shared_ptr<const Item>;

struct Usage {
    uint32_t input_tokens = 0, cached_tokens = 0, output_tokens = 0, reasoning_tokens = 0;
    uint64_t device_micros = 0, micro_joules = 0;
    bool simulated = false;  // a figure of a simulated device is labelled wherever it is printed

    Usage& operator+=(const Usage& other);
    friend bool operator==(const Usage&, const Usage&) = default;
};

/// Prefix of an item's id as OpenAI's clients expect it: msg, fc, fco, mcp, cmp, mcpr, mcpa.
std::string_view item_id_prefix(ItemKind kind);
/// Word used by the API: "in_progress", "completed", "incomplete", "failed", "unknown".
std::string_view to_word(ItemStatus status);
std::string_view to_word(Role role);
std::string_view to_word(EffectClass effect);
std::string_view to_word(ErrorClass error);

}  // namespace mainstay
