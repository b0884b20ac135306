#pragma once
// What the outside has been told, and what really happened outside: the client's answers and the tools' executions.
// Nothing here dies with a simulated process, so after any crash it says what must still be true. Invariant: only what
// has left a session's output gate gets in. One thread.

#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "runtime/session/session.h"

namespace mainstay::sim {

/// A guarantee that did not hold. Thrown through the simulator only, never by what it tests.
struct Violation : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void check(bool holds, const char* what) {
    if (!holds) throw Violation(what);
}

/// One session as its client knows it.
struct ClientView {
    bool ephemeral = false;
    bool acknowledged = false;  // somebody has been told that the session exists
    bool delete_asked = false, delete_acknowledged = false;
    uint64_t metadata_asked = 0, metadata_acknowledged = 0;
    std::map<uint32_t, TurnPtr> turns;                 // as last shown
    std::set<std::pair<uint32_t, uint32_t>> resolved;  // turn and call that a person has closed or had repeated

    /// A turn leaves the gate, or is read from its row: it must go on from where it was last shown.
    void show(const TurnPtr& turn);
    void compare(const Turn& before, const Turn& after) const;
};

/// The world in which tools have effects: what was asked of it by each idempotency key.
class ToolWorld {
  public:
    void dispatched(const SessionKey& session, const RunTool& tool);
    /// The effect takes place.
    void executed(const std::string& key);
    /// A person has had the call run again.
    void allow_again(const SessionKey& session, TurnNo turn, uint32_t call);
    uint64_t executions() const { return executions_; }

  private:
    using CallName = std::tuple<SessionKey, uint32_t, uint32_t>;
    struct Call {
        CallName name;
        std::string tool, arguments;
        EffectClass effect = EffectClass::once;
        uint32_t executions = 0;
    };
    std::map<std::string, Call> calls_;
    std::map<CallName, std::string> keys_;
    std::map<CallName, uint32_t> allowed_again_;
    uint64_t executions_ = 0;
};

}  // namespace mainstay::sim
