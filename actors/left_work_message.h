#pragma once
// What nodes say to each other about work that went on where a session was led before: docs/formats/left_work.md. Pure;
// bytes of any origin are refused with words or give values within their bounds.

#include <string>
#include <string_view>
#include <variant>

#include "runtime/base/result.h"
#include "runtime/inference/text_device.h"
#include "runtime/tool/tool.h"

namespace mainstay {

/// A model step or tool call by its place in the session's journal.
struct LeftName {
    bool is_tool = false;
    TurnNo turn;
    uint32_t number = 0, attempt = 0;  // number: of the step, or of the call's item
    friend bool operator==(const LeftName&, const LeftName&) = default;
};

/// Of the node that leads the session's shard in `epoch`: what of the session goes on there? The answer lasts until all
/// of it has ended.
struct ClaimLeftWork {
    SessionKey session;
    Epoch epoch;
};
/// Nobody wants it any more.
struct CancelLeftWork {
    SessionKey session;
    Epoch epoch;
    LeftName work;
};
using LeftRequest = std::variant<ClaimLeftWork, CancelLeftWork>;

struct LeftHere {
    LeftName work;
};
/// Everything that is there was named.
struct LeftListed {};
struct LeftDelta {
    LeftName work;
    std::string text;
};
struct LeftModelEnded {
    LeftName work;
    std::variant<ModelResult, ModelError> outcome;
};
struct LeftToolEnded {
    LeftName work;
    ToolOutcome outcome;
};
using LeftPart = std::variant<LeftHere, LeftListed, LeftDelta, LeftModelEnded, LeftToolEnded>;

/// How work ended whose outcome does not come.
LeftPart lost_left_work(const LeftName& work, std::string why);

std::string encode_left_request(const LeftRequest& request);
/// May be larger than a message may be; a delta has at most limits::model_step_part_bytes_max.
std::string encode_left_part(const LeftPart& part);

/// Refuse with peer_refused.
Result<LeftRequest> decode_left_request(std::string_view bytes);
Result<LeftPart> decode_left_part(std::string_view bytes);

}  // namespace mainstay
