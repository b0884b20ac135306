#pragma once
// What an agent's model is shown and what its calls are planned against: the list made of the agent's specification and
// of what its tool servers offer. Agents without tool servers need no listing and share one entry per version.
// Thread-safe; entries are immutable.

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/base/agent_spec.h"
#include "runtime/inference/text_device.h"
#include "runtime/tool/planner.h"

namespace mainstay {

struct AgentTools {
    std::vector<std::string> client_functions;  // of the request
    std::vector<ExposedTool> exposed;
    ToolDefinitions definitions;
};
using AgentToolsPtr = std::shared_ptr<const AgentTools>;

/// `options` is the request's JSON: its function tools join the agent's own.
/// `timeout_ms_default`: of one call, where the toolset says nothing.
AgentToolsPtr make_agent_tools(const AgentSpec& agent, const std::vector<ToolInfo>& infos, const std::string& options,
                               uint32_t timeout_ms_default);

/// A string field of a request's options; empty if it is absent, null or of another type.
std::string option_text(const std::string& options, const char* field);

/// `options` with temperature and top_p where it has none of its own.
std::string with_sampling(const std::string& options, std::optional<double> temperature, std::optional<double> top_p);

class AgentToolsCache {
  public:
    /// The entry of an agent that needs no tool server, for requests without functions of their own.
    AgentToolsPtr builtin_only(const AgentSpec& agent, uint32_t timeout_ms_default);

  private:
    std::mutex mutex_;
    std::unordered_map<uint64_t, AgentToolsPtr> by_version_;
};

}  // namespace mainstay
