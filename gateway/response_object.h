#pragma once
// The Response object: every key of OpenAI's schema, appended to one string. The keys that only an agent and the
// request's options decide are rendered once per agent and kept, because most requests set none of them. Door thread
// only.

#include <string>
#include <string_view>
#include <unordered_map>

#include "gateway/bridge.h"

namespace mainstay {

class ResponseObject {
  public:
    /// As GET shows it.
    void append(std::string& out, const TurnAnswer& answer);
    /// As a stream shows it at its beginning: in_progress (or queued), nothing put out yet.
    void append_started(std::string& out, const TurnAnswer& answer, std::string_view status);

  private:
    struct Constant {
        AgentPtr agent;  // keeps the address that is the key
        std::string text;
    };
    void append(std::string& out, const TurnAnswer& answer, std::string_view status, bool with_output);
    const std::string& constant_of(const AgentPtr& agent);

    std::unordered_map<const AgentSpec*, Constant> constants_;
};

/// "queued" "in_progress" "completed" "failed" "incomplete" "cancelled".
std::string_view response_status(TurnStatus status);
ResponseId response_id(const TurnAnswer& answer);

}  // namespace mainstay
