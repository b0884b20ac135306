#pragma once
// Runs tool calls whose intents are committed. The builtin `echo` is answered here (it is a real dispatch, so that a
// benchmark's tool step costs what a tool step costs); calls on a user's memory go to the memories' owner, all else to
// the tool host. Never retries.

#include <caf/event_based_actor.hpp>

#include "actors/messages.h"
#include "actors/node_context.h"

namespace mainstay {

caf::behavior tool_worker(caf::event_based_actor* self, NodeContext* node);

}  // namespace mainstay
