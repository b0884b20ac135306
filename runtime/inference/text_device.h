#pragma once
// Where whole-text model steps come from. A device never retries (retry has one owner, the supervisor) and never sees
// the store. submit() may be called from any thread and returns at once; the sink is called on the device's own thread,
// exactly once with done, failed or (after pause()) paused, after any number of deltas, unless the step was cancelled,
// after which it is never called again. What can be refused or answered without waiting may be told on the submitting
// thread, before submit() returns.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/agent_spec.h"
#include "runtime/base/clock.h"
#include "runtime/base/error_code.h"
#include "runtime/base/turn_run.h"

namespace mainstay {

/// A tool as the model is shown it.
struct ToolDefinition {
    std::string name;  // unique in the request; for MCP tools "<server_label>__<tool>" where two servers share a name
    std::string description;
    std::string parameters;  // JSON Schema text
    bool strict = false;
};
using ToolDefinitions = std::shared_ptr<const std::vector<ToolDefinition>>;

/// What the model is shown of the conversation, oldest first. `settled` is shared with the session and immutable.
struct PromptItems {
    TurnRun settled;
    std::vector<ItemPtr> open;  // items of the open turn
};

struct ModelRequest {
    uint64_t request_id = 0;  // unique in the process; names the request in cancel()
    ModelPtr model;
    SessionKey session;        // whose cached attention state the step may use, and where it sticks to
    SessionKey root;           // whose service it is (sub-agents: their root session's)
    std::string instructions;  // agent's, then the request's
    PromptItems prompt;
    ToolDefinitions tools;  // may be null
    std::string options;    // JSON object of the request's own fields (temperature, text.format, tool_choice ...)
    uint32_t max_output_tokens = 0;
    uint32_t step = 0;            // model step within the turn, from 0
    uint32_t attempt = 0;         // from 0
    TimeMs deadline = 0;          // wall milliseconds; 0: the device's own bound
    bool stream = false;          // deltas are wanted
    std::string idempotency_key;  // stable over attempts of one step
    /// What this very attempt had sampled when it was paused: it goes on from there, and its text comes again, from the
    /// beginning. Of another tokenizer or template it counts for nothing, as on a device that cannot go on. May be
    /// null.
    std::shared_ptr<const StepTokens> resume;
};

struct ModelToolCall {
    std::string call_id;  // the upstream's id
    std::string name;
    std::string arguments;  // JSON text as the model wrote it (may be invalid JSON: the session answers the model so)
};

/// Which node's devices a step ran on, where that is news.
struct StepPlaced {
    std::string where, why;  // "node/model", and for people
};

struct ModelResult {
    std::string text;  // may be empty when there are calls
    std::vector<ModelToolCall> calls;
    std::string finish_reason;  // "stop", "length", "tool_calls", "content_filter"
    std::string model;          // as the upstream names it
    Usage usage;
    std::shared_ptr<const StepTokens> tokens;  // where the text does not say them
    std::shared_ptr<const StepPlaced> placed;  // null: as before, or nobody's choice
};

struct ModelError {
    ErrorClass error_class = ErrorClass::transient;
    ErrorCode code = ErrorCode::model_unavailable;
    std::string message;
    uint32_t retry_after_ms = 0;  // what the upstream asked for; 0: nothing
    uint32_t context_tokens = 0,
             context_limit = 0;  // context_overflow: what the prompt has, what it may have; 0: unknown
};

class ModelSink {
  public:
    virtual ~ModelSink() = default;
    virtual void delta(uint64_t request_id, std::string text) = 0;
    virtual void done(uint64_t request_id, ModelResult result) = 0;
    virtual void failed(uint64_t request_id, ModelError error) = 0;
    /// Only after TextDevice::pause(): what was sampled so far, of this attempt; may be no token at all.
    virtual void paused(uint64_t /*request_id*/, StepTokens /*so_far*/) {}
};

class TextDevice {
  public:
    virtual ~TextDevice() = default;
    /// `sink` must outlive the step or its cancellation.
    virtual void submit(ModelRequest request, std::shared_ptr<ModelSink> sink) = 0;
    virtual void cancel(uint64_t request_id) = 0;
    /// Ends a step between two tokens, so that another node may go on with it: it settles as paused, or, if it was
    /// quicker, as done or failed. False: this device cannot, and the step runs on.
    virtual bool pause(uint64_t /*request_id*/) { return false; }
    /// The session sleeps: what memory holds of it may go to disk.
    virtual void session_idle(const SessionKey&) {}
    /// Nothing of the session may stay anywhere.
    virtual void session_deleted(const SessionKey&) {}
};

}  // namespace mainstay
