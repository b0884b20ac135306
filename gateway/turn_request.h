#pragma once
// The JSON body of POST /v1/responses turned into a TurnRequest. Documented OpenAI fields are accepted; one that is not
// known is refused by name, because a misspelt field that is silently ignored is a wrong answer later. No sockets: the
// fuzz target feeds it bytes.

#include <string>
#include <string_view>

#include "gateway/bridge.h"
#include "runtime/base/result.h"

namespace mainstay {

struct ResponsesRequest {
    TurnRequest turn;  // principal and timeout are the caller's to fill in
    bool stream = false;
};

/// `idempotency_key`: the header's value, empty if absent. The digest is taken only when there is a key: it exists to
/// tell a repeated request from another one under the same key.
Result<ResponsesRequest> parse_responses_request(std::string_view body, std::string_view idempotency_key);

/// Printable ASCII, at most limits::idempotency_key_bytes_max.
Result<void> check_idempotency_key(std::string_view key);

}  // namespace mainstay
