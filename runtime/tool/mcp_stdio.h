#pragma once
// Runs MCP servers as child processes and speaks to all of them from one thread. A server is one instance per tenant,
// or per session where its toolset says so; agents of a tenant that name the same command and environment share it. It
// starts at its first use, is stopped after an idle time, and is started again at the next use after it ended, with
// back-off from the second failure in a row.
//
// Invariants: nothing is ever sent twice; each callback comes exactly once, on the I/O thread, at the latest while the
// destructor runs; a call that the server cannot have read is `failed`, one that it may have read and did not answer is
// `lost`; no child outlives this object, and none the daemon. The public functions may be called from any thread, the
// destructor from any but the I/O thread. Callbacks must not block.

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/agent_spec.h"
#include "runtime/base/limits.h"
#include "runtime/tool/mcp_client.h"

namespace mainstay {

/// Which server: whose, and what runs.
struct McpServer {
    std::string label;  // for messages; no part of the identity
    TenantId tenant;
    std::optional<SessionKey> session;  // set: this session's own instance
    std::vector<std::string> command;
    std::map<std::string, std::string> env;
};

class McpStdio {
  public:
    struct Options {
        uint32_t start_timeout_ms = limits::tool_start_timeout_ms;
        uint32_t list_timeout_ms = limits::tool_start_timeout_ms;
        uint32_t idle_ms = limits::tool_server_idle_ms_default;
        uint32_t stop_ms = limits::tool_server_stop_ms;
        size_t servers_max = limits::tool_servers_max;
        /// Lines of a server's stderr, and what happens to servers; on the I/O thread. May be empty.
        std::function<void(std::string_view server, std::string_view line)> log;
    };
    /// `tools` null: `failure` says why. On the I/O thread.
    using Listed = std::function<void(McpTools tools, std::string failure)>;

    explicit McpStdio(Options options);
    ~McpStdio();
    McpStdio(const McpStdio&) = delete;
    McpStdio& operator=(const McpStdio&) = delete;

    /// The server's tools: remembered per tenant, command and environment until the server says that they changed, so
    /// a list seldom needs a running server.
    void list(McpServer server, Listed done);
    /// `call_id` names one call at a time. timeout_ms counts from now, the server's start included.
    void call(McpServer server, McpCall call, uint32_t timeout_ms, ToolDone done);
    void cancel(uint64_t call_id);
    /// Runs `task` on the I/O thread, after what was asked before.
    void post(std::function<void()> task);

    struct Figures {
        size_t servers = 0;  // processes, those that are ending included
        size_t calls = 0;    // in flight
        uint64_t starts = 0, crashes = 0;
        McpCounters counters;  // of all servers so far
    };
    /// For metrics and tests; a consistent copy, at most one I/O round old.
    Figures figures() const;

  private:
    class Loop;
    std::unique_ptr<Loop> loop_;
};

}  // namespace mainstay
