#pragma once
// Looks across sessions: lists them from the heads in the store, on a thread of its own, without waking any.

#include <caf/event_based_actor.hpp>

#include "actors/messages.h"
#include "actors/node_context.h"

namespace mainstay {

struct ListSessions {
    Principal principal;
    std::optional<SessionId> after;
    size_t limit = 100;
    ReplyTo<std::vector<SessionInfo>> done;
};
using ListSessionsPtr = std::shared_ptr<ListSessions>;

/// What a session tells of itself, asleep or awake; the caller adds `updated_at` and `active`.
SessionInfo describe(const Session& session);

caf::behavior session_inspector(caf::event_based_actor* self, NodeContext* node);

}  // namespace mainstay

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ListSessionsPtr)
