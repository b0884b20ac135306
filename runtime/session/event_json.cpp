#include "runtime/session/event_json.h"

#include <boost/json.hpp>

#include "runtime/base/digest.h"

namespace mainstay {
namespace {

namespace json = boost::json;

std::string_view word(ItemKind kind) {
    switch (kind) {
        case ItemKind::message: return "message";
        case ItemKind::function_call: return "function_call";
        case ItemKind::function_call_output: return "function_call_output";
        case ItemKind::tool_call: return "tool_call";
        case ItemKind::compaction: return "compaction";
        case ItemKind::approval_request: return "approval_request";
        case ItemKind::approval_response: return "approval_response";
    }
    INVARIANT(false, "every kind has a word");
}

std::string_view word(WaitKind kind) {
    static constexpr std::string_view words[] = {"timer", "approval", "signal", "child"};
    return words[static_cast<size_t>(kind)];
}

std::string_view word(WaitOutcome outcome) {
    static constexpr std::string_view words[] = {"fired", "approved", "denied", "signalled", "expired", "cancelled"};
    return words[static_cast<size_t>(outcome)];
}

std::string_view word(Resolution how) {
    static constexpr std::string_view words[] = {"done", "failed", "retry"};
    return words[static_cast<size_t>(how)];
}

void put(json::object& out, std::string_view name, std::string_view text) {
    if (!text.empty()) out[name] = text;
}
void put(json::object& out, std::string_view name, uint64_t number) {
    if (number != 0) out[name] = number;
}
void put_flag(json::object& out, std::string_view name, bool flag) {
    if (flag) out[name] = true;
}
void put_session(json::object& out, std::string_view name, const SessionId& id) {
    if (id.valid()) out[name] = to_text(id);
}

json::object render(const Item& item) {
    json::object out;
    out["kind"] = word(item.kind);
    out["role"] = to_word(item.role);
    out["status"] = to_word(item.status);
    put(out, "text", item.text);
    if (!item.more_parts.empty()) out["more_parts"] = json::array(item.more_parts.begin(), item.more_parts.end());
    put(out, "call_id", item.call_id);
    put(out, "name", item.name);
    put(out, "server_label", item.server_label);
    put(out, "arguments", item.arguments);
    put(out, "error", item.error);
    put(out, "step", item.step);
    return out;
}

void put_items(json::object& out, const std::vector<ItemPtr>& items) {
    json::array& list = out["items"].emplace_array();
    for (const ItemPtr& item : items) list.push_back(render(*item));
}

void put_usage(json::object& out, const Usage& usage) {
    if (usage == Usage{}) return;
    json::object& to = out["usage"].emplace_object();
    put(to, "input_tokens", usage.input_tokens);
    put(to, "cached_tokens", usage.cached_tokens);
    put(to, "output_tokens", usage.output_tokens);
    put(to, "reasoning_tokens", usage.reasoning_tokens);
    put(to, "device_micros", usage.device_micros);
    put(to, "micro_joules", usage.micro_joules);
    put_flag(to, "simulated", usage.simulated);
}

// The number of a step, under the name that says of what.
void put_step(json::object& out, uint32_t step, bool is_tool) { out[is_tool ? "call" : "step"] = step; }

void render(json::object& out, const SessionCreated& e) {
    out["tenant"] = e.tenant.value;
    put(out, "principal", e.principal);
    put_session(out, "parent", e.parent);
    put(out, "parent_turn", e.parent_turn.value);
    put(out, "metadata", e.metadata);
    put_flag(out, "ephemeral", e.ephemeral);
    put_flag(out, "conversation", e.conversation);
}
void render(json::object& out, const InputAccepted& e) {
    put_items(out, e.items);
    put(out, "agent", e.agent);
    put(out, "agent_version", e.agent_version);
    put(out, "principal", e.principal);
    if (e.key) out["key_hash"] = to_hex({reinterpret_cast<const char*>(e.key->data()), e.key->size()});
    put(out, "request_digest", e.request_digest);
    out["steps_max"] = e.limits.steps;
    put(out, "tokens_max", e.limits.tokens);
    put(out, "duration_ms_max", e.limits.duration_ms);
    put(out, "options", e.options);
}
void render(json::object& out, const ModelStepSettled& e) {
    out["step"] = e.step;
    put_items(out, e.items);
    put_usage(out, e.usage);
    put(out, "model", e.model);
    put(out, "finish_reason", e.finish_reason);
    put(out, "token_ids", to_hex(e.token_ids));
    put(out, "tokenizer_hash", to_hex(e.tokenizer_hash));
    put(out, "template_version", e.template_version);
}
void render(json::object& out, const ToolIntent& e) {
    out["call"] = e.call;
    out["effect"] = to_word(e.effect);
    put(out, "timeout_ms", e.timeout_ms);
}
void render(json::object& out, const ToolReceipt& e) {
    out["call"] = e.call;
    out["status"] = to_word(e.status);
    put(out, "output", e.output);
    put(out, "error", e.error);
    put(out, "duration_micros", e.duration_micros);
}
void render(json::object& out, const StepFailed& e) {
    put_step(out, e.step, e.is_tool);
    out["class"] = to_word(e.error_class);
    put(out, "code", e.code);
    put(out, "message", e.message);
    put(out, "partial_text", e.partial_text);
}
void render(json::object& out, const RetryScheduled& e) {
    put_step(out, e.step, e.is_tool);
    put(out, "retry_at", e.at);
    out["attempt"] = e.attempt;
    put(out, "reason", e.reason);
}
void render(json::object& out, const TurnSettled& e) {
    out["status"] = to_word(e.status);
    put(out, "code", e.code);
    put(out, "message", e.message);
}
void render(json::object& out, const CancelRequested& e) {
    put(out, "principal", e.principal);
    put(out, "reason", e.reason);
}
void render(json::object& out, const WaitOpened& e) {
    out["wait"] = e.wait;
    out["kind"] = word(e.kind);
    put(out, "due", e.due);
    put(out, "call", e.call);
    put(out, "subject", e.subject);
}
void render(json::object& out, const WaitResolved& e) {
    out["wait"] = e.wait;
    out["outcome"] = word(e.outcome);
    put(out, "payload", e.payload);
    put(out, "principal", e.principal);
}
void render(json::object& out, const Decision& e) {
    out["code"] = e.code;
    put(out, "subject", e.subject);
    put(out, "reason", e.reason);
}
void render(json::object& out, const MemorySet& e) {
    out["key"] = e.key;
    put(out, "value", e.value);
    put_flag(out, "removed", e.removed);
}
void render(json::object& out, const UnknownResolved& e) {
    out["call"] = e.call;
    out["how"] = word(e.how);
    put(out, "output", e.output);
    put(out, "principal", e.principal);
}
void render(json::object& out, const ItemsAdded& e) {
    put_items(out, e.items);
    put(out, "principal", e.principal);
}
void render(json::object& out, const MetadataSet& e) { out["metadata"] = e.metadata; }
void render(json::object& out, const SessionDeleted& e) { put(out, "principal", e.principal); }
void render(json::object& out, const StreamReserved& e) { out["below"] = e.below; }
void render(json::object& out, const Compacted& e) {
    out["up_to_turn"] = e.up_to.value;
    put(out, "summary", e.summary);
}
void render(json::object& out, const Forked& e) {
    put_session(out, "child", e.child);
    out["at_turn"] = e.at.value;
}

void render(json::object& out, const StepProgress& e) {
    out["step"] = e.step;
    out["tokens"] = e.tokens.ids.size();
    put(out, "token_ids", to_hex(token_bytes(e.tokens.ids)));
    put(out, "tokenizer_hash",
        to_hex({reinterpret_cast<const char*>(e.tokens.tokenizer.data()), e.tokens.tokenizer.size()}));
    put(out, "template_version", e.tokens.template_version);
}

json::object object_of(const Event& event, Sequence sequence, TurnNo turn, TimeMs at) {
    json::object out;
    out["event"] = event_name(event);
    out["sequence"] = sequence.value;
    if (turn.value != 0) out["turn"] = turn.value;
    out["at"] = at;
    std::visit([&out](const auto& e) { render(out, e); }, event);
    return out;
}

}  // namespace

std::string event_json(const Event& event, Sequence sequence, TurnNo turn, TimeMs at) {
    return json::serialize(object_of(event, sequence, turn, at));
}

std::string batch_json(const EventBatch& batch, Sequence first_sequence) {
    json::array events;
    Sequence sequence = first_sequence;
    for (const Event& event : batch.events) {
        events.push_back(object_of(event, sequence, batch.turn, batch.at));
        ++sequence.value;
    }
    return json::serialize(events);
}

}  // namespace mainstay
