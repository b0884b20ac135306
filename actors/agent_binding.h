#pragma once
// The request's `model` names an agent or a model (DECISIONS 17). A bare model is an agent without instructions or
// tools, made on the spot; its version is the model's, so a turn can be bound to it again after a restart.

#include <string>

#include "runtime/agent/catalogue.h"

namespace mainstay {

/// Latest version; null if nothing has that name.
AgentPtr bind_agent(const Catalogue& catalogue, const std::string& name);
/// The version that a turn was bound to; null if it is gone.
AgentPtr bound_agent(const Catalogue& catalogue, const std::string& name, uint64_t version);

}  // namespace mainstay
