#pragma once
// The tool host of a node: routes an agent's lists and calls to the MCP servers of its toolsets, and applies what the
// author wrote over what a server says (allowed_tools, effects). Builtin tools are listed as "builtin"; their calls are
// the session's and are refused here. Keeps no state of its own: it may be called from any thread, and every callback
// comes on the I/O thread of McpStdio, exactly once, at the latest while the destructor runs.

#include <memory>

#include "runtime/tool/mcp_stdio.h"
#include "runtime/tool/tool.h"

namespace mainstay {

class ToolRegistry final : public ToolHost {
  public:
    explicit ToolRegistry(McpStdio::Options options) : servers_(std::move(options)) {}

    void list(TenantId tenant, const SessionKey& session, AgentPtr agent, ToolsListed done) override;
    /// A timeout_ms of 0 means the toolset's, else tool_call_timeout_ms_default.
    void call(ToolCall call, ToolDone done) override;
    void cancel(uint64_t call_id) override { servers_.cancel(call_id); }

    McpStdio::Figures figures() const { return servers_.figures(); }

  private:
    McpStdio servers_;
};

}  // namespace mainstay
