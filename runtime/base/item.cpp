#include "runtime/base/item.h"

#include "runtime/base/invariant.h"

namespace mainstay {

size_t Item::bytes() const {
    size_t total = text.size() + call_id.size() + name.size() + server_label.size() + arguments.size() + error.size();
    for (const auto& part : more_parts) total += part.size();
    if (tokens) total += tokens->ids.size() * sizeof(uint32_t);
    return total;
}

bool operator==(const Item& a, const Item& b) {
    if (a.tokens != b.tokens && (!a.tokens || !b.tokens || !(*a.tokens == *b.tokens))) return false;
    return a.kind == b.kind && a.role == b.role && a.status == b.status && a.text == b.text &&
           a.more_parts == b.more_parts && a.call_id == b.call_id && a.name == b.name &&
           a.server_label == b.server_label && a.arguments == b.arguments && a.error == b.error && a.step == b.step;
}

Usage& Usage::operator+=(const Usage& other) {
    input_tokens += other.input_tokens;
    cached_tokens += other.cached_tokens;
    output_tokens += other.output_tokens;
    reasoning_tokens += other.reasoning_tokens;
    device_micros += other.device_micros;
    micro_joules += other.micro_joules;
    simulated = simulated || other.simulated;
    return *this;
}

std::string_view item_id_prefix(ItemKind kind) {
    switch (kind) {
        case ItemKind::message: return "msg";
        case ItemKind::function_call: return "fc";
        case ItemKind::function_call_output: return "fco";
        case ItemKind::tool_call: return "mcp";
        case ItemKind::compaction: return "cmp";
        case ItemKind::approval_request: return "mcpr";
        case ItemKind::approval_response: return "mcpa";
    }
    INVARIANT(false, "every kind has a prefix");
}

std::string_view to_word(ItemStatus status) {
    switch (status) {
        case ItemStatus::in_progress: return "in_progress";
        case ItemStatus::completed: return "completed";
        case ItemStatus::incomplete: return "incomplete";
        case ItemStatus::failed: return "failed";
        case ItemStatus::unknown: return "unknown";
    }
    INVARIANT(false, "every status has a word");
}

std::string_view to_word(Role role) {
    switch (role) {
        case Role::user: return "user";
        case Role::assistant: return "assistant";
        case Role::system: return "system";
        case Role::developer: return "developer";
    }
    INVARIANT(false, "every role has a word");
}

std::string_view to_word(EffectClass effect) {
    switch (effect) {
        case EffectClass::read: return "read";
        case EffectClass::idempotent: return "idempotent";
        case EffectClass::once: return "once";
    }
    INVARIANT(false, "every effect class has a word");
}

std::string_view to_word(ErrorClass error) {
    switch (error) {
        case ErrorClass::transient: return "transient";
        case ErrorClass::rate_limited: return "rate_limited";
        case ErrorClass::overloaded: return "overloaded";
        case ErrorClass::invalid: return "invalid";
        case ErrorClass::auth: return "auth";
        case ErrorClass::context_overflow: return "context_overflow";
        case ErrorClass::content_filter: return "content_filter";
        case ErrorClass::protocol: return "protocol";
        case ErrorClass::timeout: return "timeout";
        case ErrorClass::lost: return "lost";
    }
    INVARIANT(false, "every error class has a word");
}

}  // namespace mainstay
