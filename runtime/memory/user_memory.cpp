#include "runtime/memory/user_memory.h"

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <cstring>

#include "runtime/base/digest.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

namespace json = boost::json;
using Kind = BuiltinAction::Kind;

constexpr std::string_view nothing = "nothing is remembered under this key";
constexpr size_t digits = 16;

uint64_t word_of(const KeyHash& hash) {
    uint64_t word = 0;
    for (size_t i = 0; i < sizeof word; ++i) word = word << 8 | hash[i];
    return word;
}

MemoryAnswer refused(std::string_view what, size_t max) {
    return {std::string(what) + ": at most " + std::to_string(max), true, std::nullopt};
}

std::string hex(uint64_t value) {
    std::string text(digits, '0');
    for (size_t i = digits; i > 0; --i, value >>= 4) text[i - 1] = "0123456789abcdef"[value & 15];
    return text;
}

std::optional<uint64_t> from_hex(std::string_view text) {
    uint64_t value = 0;
    const auto read = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    if (text.size() != digits || read.ec != std::errc() || read.ptr != text.data() + text.size()) return std::nullopt;
    return value;
}

Error damaged(const char* what) { return {ErrorCode::state_damaged, std::string("a user's memory: ") + what, {}}; }

}  // namespace

SessionKey memory_key(TenantId tenant, std::string_view user, std::string_view memory) {
    SessionKey key{tenant, {}};
    // 0 names no entity of its own; one digest in 2^64 has to give way.
    key.session.high = std::max<uint64_t>(word_of(key_hash("user of a memory", user)), 1);
    key.session.low = word_of(key_hash(std::string("memory of ").append(user), memory));
    return key;
}

bool UserMemory::was_applied(uint64_t call) const {
    return std::find(applied_.begin(), applied_.end(), call) != applied_.end();
}

MemoryAnswer UserMemory::decide(const BuiltinAction& action, std::string_view idempotency_key, size_t bytes_max) const {
    const auto found = entries_.find(action.key);
    switch (action.kind) {
        case Kind::memory_get:
            if (found == entries_.end()) return {std::string(nothing), true, std::nullopt};
            return {found->second, false, std::nullopt};
        case Kind::memory_list: {
            json::array keys;
            for (const auto& entry : entries_) keys.emplace_back(entry.first);
            return {json::serialize(keys), false, std::nullopt};
        }
        case Kind::memory_set: return set(action, digest64(idempotency_key), bytes_max);
        case Kind::memory_delete: {
            const uint64_t call = digest64(idempotency_key);
            if (was_applied(call)) return {"forgotten", false, std::nullopt};
            if (found == entries_.end()) return {std::string(nothing), true, std::nullopt};
            return {"forgotten", false, MemoryChange{action.key, std::nullopt, call}};
        }
        case Kind::answer:
        case Kind::sleep: break;
    }
    INVARIANT(false, "only calls of the tool memory come here");
}

MemoryAnswer UserMemory::set(const BuiltinAction& action, uint64_t call, size_t bytes_max) const {
    if (was_applied(call)) return {"remembered", false, std::nullopt};
    if (action.key.size() > limits::memory_key_bytes_max)
        return refused("bytes of a key", limits::memory_key_bytes_max);
    if (action.value.size() > limits::memory_value_bytes_max)
        return refused("bytes of a value", limits::memory_value_bytes_max);
    const auto old = entries_.find(action.key);
    const bool is_new = old == entries_.end();
    if (entries_.size() + (is_new ? 1 : 0) > limits::memory_entries_max)
        return refused("entries of memory", limits::memory_entries_max);
    const size_t kept = bytes_ - (is_new ? 0 : old->first.size() + old->second.size());
    if (kept + action.key.size() + action.value.size() > bytes_max) return refused("bytes of memory", bytes_max);
    return {"remembered", false, MemoryChange{action.key, action.value, call}};
}

void UserMemory::apply(MemoryChange change) {
    if (const auto old = entries_.find(change.key); old != entries_.end()) {
        bytes_ -= old->first.size() + old->second.size();
        entries_.erase(old);
    }
    if (change.value) {
        bytes_ += change.key.size() + change.value->size();
        entries_.emplace(std::move(change.key), std::move(*change.value));
    }
    if (applied_.size() >= limits::user_memory_calls_kept) applied_.erase(applied_.begin());
    applied_.push_back(change.call);
    ++revision_;
}

std::string UserMemory::to_body() const {
    json::object body, entries;
    json::array applied;
    for (const uint64_t call : applied_) applied.emplace_back(hex(call));
    for (const auto& [key, value] : entries_) entries[key] = value;
    body["applied"] = std::move(applied);
    body["entries"] = std::move(entries);
    body["revision"] = revision_;
    return json::serialize(body);
}

Result<UserMemory> UserMemory::from_body(std::string_view body) {
    json::error_code failed;
    const auto parsed = json::parse(body, failed);
    if (failed || !parsed.is_object()) return damaged("the body is no JSON object");
    const auto* applied = parsed.get_object().if_contains("applied");
    const auto* entries = parsed.get_object().if_contains("entries");
    const auto* revision = parsed.get_object().if_contains("revision");
    if (!applied || !applied->is_array() || !entries || !entries->is_object() || !revision || !revision->is_number())
        return damaged("the body lacks a field");
    UserMemory memory;
    memory.revision_ = revision->to_number<uint64_t>(failed);
    if (failed) return damaged("the revision is no number");
    for (const auto& call : applied->get_array()) {
        const auto value = call.is_string() ? from_hex(call.get_string()) : std::nullopt;
        if (!value) return damaged("a call is not 16 hexadecimal digits");
        memory.applied_.push_back(*value);
    }
    for (const auto& [key, value] : entries->get_object()) {
        if (!value.is_string()) return damaged("a value is no text");
        memory.bytes_ += key.size() + value.get_string().size();
        memory.entries_.emplace(key, value.get_string());
    }
    if (memory.applied_.size() > limits::user_memory_calls_kept ||
        memory.entries_.size() > limits::memory_entries_max || memory.bytes_ > limits::memory_bytes_max)
        return damaged("the body is beyond its bounds");
    return memory;
}

}  // namespace mainstay
