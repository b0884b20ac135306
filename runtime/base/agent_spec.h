#pragma once
// What an author wrote, checked and bound: agents and models. Parsing (TOML, JSON) and versions live in runtime/agent;
// these values cross rooms. A spec is immutable; its version is the digest of its canonical JSON, so applying the same
// text twice changes nothing, and a turn names the version that it was bound to.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/base/item.h"
#include "runtime/base/limits.h"

namespace mainstay {

/// What the builtin tool `price` knows: item in lower case -> price, a decimal number.
using PriceList = std::map<std::string, std::string>;

enum class ToolsetType : uint8_t { mcp, builtin };

/// One [[tools]] entry: an MCP server over stdio, or a group of builtin tools.
struct ToolsetSpec {
    ToolsetType type = ToolsetType::builtin;
    std::string server_label;                    // MCP; unique within the agent
    std::vector<std::string> command;            // argv of the stdio server
    std::map<std::string, std::string> env;      // added to a minimal environment
    std::vector<std::string> allowed_tools;      // empty: all that the server lists
    std::map<std::string, EffectClass> effects;  // by tool; else the MCP annotations, else once
    bool per_session = false;                    // instance = "session"; else one per tenant
    std::vector<std::string> names;              // builtin: memory, clock, echo, calc, price
    std::shared_ptr<const PriceList> prices;     // builtin price; null: none
    uint32_t timeout_ms = 0;                     // of one call; 0: the node's default
};

/// Whose memory the builtin tool `memory` is: the session's own, or the user's, which all sessions of the user share.
enum class MemoryScope : uint8_t { session, user };

/// The [[memory]] entry of an agent.
struct MemorySpec {
    std::string name;  // of a user's memory; agents that name the same one share it
    MemoryScope scope = MemoryScope::session;
    uint64_t bytes_max = limits::memory_bytes_max;  // names and values together; scope user
};

struct RetrySpec {
    uint32_t max_attempts = 5;                                // of one step, the first included
    uint64_t backoff_min_ms = 1000, backoff_max_ms = 60'000;  // exponential, full jitter
};

struct AgentSpec {
    std::string name;
    uint64_t version = 0;
    std::string model;
    std::string instructions;
    bool truncate_history = true;  // context.truncation = "auto"; false: "disabled", a full context fails the turn
    double compact_at = 0.0;       // share of the context window; 0: never
    std::vector<ToolsetSpec> tools;
    std::optional<MemorySpec> memory;  // none: the session's own
    RetrySpec retry;
    uint32_t steps_per_turn = 32;
    uint32_t tokens_per_turn = 0;  // 0: no bound
    std::optional<double> temperature, top_p;
    uint32_t max_output_tokens = 0;  // of one model step; 0: the model's
    std::string canonical_json;      // what the version is the digest of
};
using AgentPtr = std::shared_ptr<const AgentSpec>;

struct ScriptStep {
    uint32_t text_bytes = 0;     // size of the text of this model step
    std::string text;            // or the text itself; {input} stands for the last user message (see docs/MODELS.md)
    std::string when;            // skip this step unless the last user message contains this
    std::string call_tool;       // tool to call, as "server/tool"; empty: answer
    std::string call_arguments;  // JSON; {input} as above
    std::string fail_class;      // an ErrorClass word: the step fails so
    uint32_t fail_times = 0;     // this many attempts, then it works
    uint32_t delay_ms = 0;
};

/// A model that runs on devices of our own. Zero or empty: the default of the device or of runtime/base/limits.h.
struct DeviceSpec {
    std::string path;                // folder of the model, as it was written: relative to the folder of models
    std::string precision = "bf16";  // "bf16" or "f32"
    uint32_t devices = 1;            // that share this model's work
    uint32_t threads = 0;            // of one device; 0: the machine's cores over the devices
    std::string hardware = "trn2";   // whose clock a simulator tells: "inf2", "trn1", "trn2", "trn3" or "none"
    double busy_watts = 0;           // of that hardware; 0: as assumed (facts of device_clock.h)
    bool strict = false;             // the constraints of a compiled graph
    uint32_t block_tokens = 0;       // of one KV block
    uint64_t kv_device_bytes = 0, kv_host_bytes = 0, kv_disk_bytes = 0;  // KV blocks; host, disk: 0 none
    uint32_t rows_max = 0;                                               // sequences of one step
    uint32_t tokens_max = 0;                                             // tokens of one step
    uint32_t running_max = 0;                                            // sequences that run at once; 1: one by one
    std::string chat_template;  // a name of docs/MODELS.md; empty: recognised from the model's files
    std::string library;        // nrt: libnrt to load; empty: where it is usually installed
    std::string visible_cores;  // nrt: "0-3", shared out over the devices in order
    friend bool operator==(const DeviceSpec&, const DeviceSpec&) = default;
};

struct ModelSpec {
    std::string name;
    uint64_t version = 0;
    std::vector<std::string> base_url;  // OpenAI-compatible upstreams, in order of preference
    std::string upstream_model;         // name sent upstream; default: name
    std::string api_key_env;            // environment variable that holds the key
    std::string device;                 // "openai", "neuron_core_sim", "nrt" or "scripted"
    DeviceSpec own;                     // neuron_core_sim and nrt only
    uint32_t context_window = 32768;    // tokens; a device of our own: at most what the model's files say
    std::vector<ScriptStep> script;     // scripted only: steps of a turn, the last repeated
    std::optional<double> price_input, price_cached, price_output;  // per million tokens
    std::string canonical_json;
};
using ModelPtr = std::shared_ptr<const ModelSpec>;

}  // namespace mainstay
