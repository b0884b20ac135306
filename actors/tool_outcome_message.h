#pragma once
// How a tool call ended, as nodes tell each other: schema/peer.capnp, PeerAnswer. Pure; bytes of any origin.

#include <string>
#include <string_view>

#include "runtime/base/result.h"
#include "runtime/tool/tool.h"

namespace mainstay {

std::string encode_outcome(const ToolOutcome& outcome);
/// Refuses with peer_refused what is damaged, no outcome, or no UTF-8 where that must be.
Result<ToolOutcome> decode_outcome(std::string_view bytes);

}  // namespace mainstay
