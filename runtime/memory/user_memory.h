#pragma once
// What an agent remembers of one user, across all of the user's sessions: names and values, changed by the builtin tool
// `memory` of any agent whose file names this memory with scope "user". An entity by itself (docs/formats/state.md):
// decide() answers a call and says what it changes, apply() changes it, to_body() is what the journal and the state
// keep. A session's own memory (runtime/session) answers in the same words; a test holds both together.
//
// Kept true: a call that changed something and comes again, by its idempotency key, changes nothing and is answered as
// before, even after a newer call has changed the same entry. That holds for the newest user_memory_calls_kept calls.
//
// Pure; owned by whoever serialises the calls (actors/user_memories).

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/id.h"
#include "runtime/base/result.h"
#include "runtime/base/tool_plan.h"

namespace mainstay {

/// Where the records of a user's memory stand: family 0, then 8 bytes of a digest of the user, which decide the shard,
/// and 8 of user and memory. So no key or row key shows a name.
SessionKey memory_key(TenantId tenant, std::string_view user, std::string_view memory);

/// One change, by one call.
struct MemoryChange {
    std::string key;
    std::optional<std::string> value;  // absent: the entry goes
    uint64_t call = 0;                 // digest of the call's idempotency key
};

struct MemoryAnswer {
    std::string output;
    bool is_error = false;
    std::optional<MemoryChange> change;  // to be applied and journalled before the answer leaves
};

class UserMemory {
  public:
    /// Answers a call of memory_get, memory_set, memory_delete or memory_list. `bytes_max` bounds names and values
    /// together. What cannot be done is an answer with is_error that names its bound.
    MemoryAnswer decide(const BuiltinAction& action, std::string_view idempotency_key, size_t bytes_max) const;
    void apply(MemoryChange change);

    /// Changes so far, over all incarnations.
    uint64_t revision() const { return revision_; }
    size_t bytes() const { return bytes_; }
    const std::map<std::string, std::string>& entries() const { return entries_; }

    /// JSON: {"applied":["<16 hex digits>",...],"entries":{"<name>":"<value>",...},"revision":<number>}, the newest
    /// call last.
    std::string to_body() const;
    /// state_damaged where the text is not such a body; never throws.
    static Result<UserMemory> from_body(std::string_view body);

  private:
    MemoryAnswer set(const BuiltinAction& action, uint64_t call, size_t bytes_max) const;
    bool was_applied(uint64_t call) const;

    std::map<std::string, std::string> entries_;
    std::vector<uint64_t> applied_;  // digests of calls, the newest last, at most user_memory_calls_kept
    uint64_t revision_ = 0;
    size_t bytes_ = 0;  // of names and values
};

}  // namespace mainstay
