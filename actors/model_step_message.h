#pragma once
// What nodes say to each other about model steps that one computes for the other, as bytes: docs/formats/model_step.md.
// A prompt travels whole and as items, not as tokens (docs/decisions/0023). Pure; bytes of any origin are refused with
// words or give values within their bounds.

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/base/limits.h"
#include "runtime/base/result.h"
#include "runtime/base/utf8.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

/// A step that the receiver is to compute. Of `request`, model and deadline are empty: the model is looked up by name
/// and version there, and clocks of nodes differ.
struct RunRemoteStep {
    ModelRequest request;
    std::string model;
    uint64_t model_version = 0;
    uint64_t timeout_ms = 0;  // until the deadline; 0: none
};
/// A step that the same caller asked for, by its request_id, is to end between two tokens.
struct PauseRemoteStep {
    uint64_t request_id = 0;
};
/// The session sleeps.
struct RestRemoteSession {
    SessionKey session;
};
using ModelStepCall = std::variant<RunRemoteStep, PauseRemoteStep, RestRemoteSession>;

/// How busy a host is with a model, beside what the asking node has there.
struct HostLoad {
    uint32_t steps = 0, devices = 1;
    friend bool operator==(const HostLoad&, const HostLoad&) = default;
};

struct StepDelta {
    std::string text;
};
/// The last part of an answer.
struct StepEnded {
    std::variant<ModelResult, ModelError, StepTokens> outcome;  // tokens: it was paused
    HostLoad load;
};
using ModelStepPart = std::variant<StepDelta, StepEnded>;

/// May be larger than a message may be: whoever sends it looks.
std::string encode_step(const RunRemoteStep& step);
std::string encode_pause(const PauseRemoteStep& pause);
std::string encode_rest(const RestRemoteSession& rest);
std::string encode_delta(std::string_view text);
/// Gives the text to `put` in pieces that a delta may have, none of which ends within a character.
template <class Put>
void in_deltas(std::string_view text, Put put) {
    while (!text.empty()) {
        const size_t size = utf8_floor(text, limits::model_step_part_bytes_max);
        put(text.substr(0, size));
        text.remove_prefix(size);
    }
}
std::string encode_ended(const StepEnded& ended);

/// Refuse with peer_refused what is damaged, beyond a bound, unknown to this release or, where it must be, no UTF-8.
Result<ModelStepCall> decode_step_call(std::string_view bytes);
Result<ModelStepPart> decode_step_part(std::string_view bytes);

}  // namespace mainstay
