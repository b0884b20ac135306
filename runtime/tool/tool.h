#pragma once
// Tools outside the session: named side-effecting functions with a schema, run on behalf of a durable intent. A host
// never retries and never repeats; it reports what it knows. Calls come with a stable idempotency key, which an MCP
// server receives as _meta["mainstay/idempotencyKey"]. Any thread may call; callbacks come on the host's own thread,
// exactly once each, cancelled calls included.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/agent_spec.h"
#include "runtime/base/error_code.h"
#include "runtime/base/id.h"
#include "runtime/base/item.h"

namespace mainstay {

/// What a server says of one of its tools (tools/list), with the effect class resolved: author's word, else the MCP
/// annotations (readOnlyHint -> read, idempotentHint -> idempotent), else once.
struct ToolInfo {
    std::string server_label;  // "builtin" for builtin tools
    std::string name;
    std::string description;
    std::string input_schema;  // JSON text
    EffectClass effect = EffectClass::once;
};

struct ToolCall {
    uint64_t call_id = 0;  // unique in the process; names the call in cancel()
    TenantId tenant;
    SessionKey session;
    AgentPtr agent;
    std::string server_label;
    std::string name;
    std::string arguments;        // JSON object text
    std::string idempotency_key;  // stable over attempts
    uint32_t timeout_ms = 0;
    std::string principal;  // who submitted the turn
};

struct ToolOutcome {
    enum class Kind : uint8_t {
        result,  // the tool answered; is_error says how it sees itself
        failed,  // it surely did not run, or its result is longer than we take: error_class, code, message
        lost,    // dispatched, and no answer comes, or one that does not say whether it ran: the session decides by
                 // effect class
    };
    Kind kind = Kind::result;
    bool is_error = false;
    std::string output;  // text of the content, or structuredContent as JSON
    ErrorClass error_class = ErrorClass::transient;
    ErrorCode code = ErrorCode::tool_unavailable;
    std::string message;
    uint64_t duration_micros = 0;
};

using ToolDone = std::function<void(uint64_t call_id, ToolOutcome outcome)>;
using ToolsListed = std::function<void(std::shared_ptr<const std::vector<ToolInfo>> tools, std::string failure)>;

class ToolHost {
  public:
    virtual ~ToolHost() = default;
    /// Tools of the agent's toolsets that this host serves, filtered by allowed_tools. Starts servers where needed.
    /// `failure` names the servers that could not be listed (their tools are missing then); empty if all answered.
    virtual void list(TenantId tenant, const SessionKey& session, AgentPtr agent, ToolsListed done) = 0;
    virtual void call(ToolCall call, ToolDone done) = 0;
    virtual void cancel(uint64_t call_id) = 0;
};

}  // namespace mainstay
