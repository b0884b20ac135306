#pragma once
// Agents and models as their authors write them, in TOML or JSON, read by one reader: the same keys, the same bounds,
// the same result. An unknown key is refused with its place; a reserved word that is not built yet is refused by name.
// The version of a spec is the digest of its canonical JSON, which leaves defaults out and can be read back.
//
// Pure, any thread. Errors name "file:line: path" (TOML) or "path" (JSON); Error::param is the path of the key.

#include <string>
#include <string_view>

#include "runtime/agent/tree.h"
#include "runtime/base/agent_spec.h"
#include "runtime/base/result.h"

namespace mainstay {

/// `source` names the file in messages; empty for a request body.
Result<AgentPtr> parse_agent(std::string_view text, Syntax syntax, std::string_view source = {});
Result<ModelPtr> parse_model(std::string_view text, Syntax syntax, std::string_view source = {});

/// The canonical JSON of a spec's own fields (not what its `canonical_json` says).
std::string canonical_json(const AgentSpec& agent);
std::string canonical_json(const ModelSpec& model);

/// digest64 of the text; never 0, which stands for no version.
uint64_t version_of(std::string_view canonical);

/// What changes from `before` (null: there was none) to `now`, one key a line: "+ path = value", "- path = value",
/// "~ path = value -> value". Empty if nothing changes.
std::string difference(const AgentSpec* before, const AgentSpec& now);
std::string difference(const ModelSpec* before, const ModelSpec& now);

}  // namespace mainstay
