#pragma once
// The closed list of error codes that a user can meet. Each has a page docs/errors/<name>.md, an HTTP status and an
// OpenAI error type; a test holds list and pages together. Codes are only added, never renamed.

#include <cstdint>
#include <string_view>

namespace mainstay {

// clang-format off
// X(enumerator, HTTP status, OpenAI error type, retryable by the client as it is)
#define MAINSTAY_ERROR_CODES(X) \
    /* the request */ \
    X(malformed_http,              400, "invalid_request_error", false) \
    X(malformed_json,              400, "invalid_request_error", false) \
    X(invalid_request,             400, "invalid_request_error", false) \
    X(unknown_field,               400, "invalid_request_error", false) \
    X(unsupported_value,           400, "invalid_request_error", false) \
    X(invalid_utf8,                400, "invalid_request_error", false) \
    X(unsupported_encoding,        415, "invalid_request_error", false) \
    X(header_too_large,            431, "invalid_request_error", false) \
    X(body_too_large,              413, "invalid_request_error", false) \
    X(json_too_deep,               400, "invalid_request_error", false) \
    X(uri_too_long,                414, "invalid_request_error", false) \
    X(request_timeout,             408, "invalid_request_error", true) \
    X(unauthenticated,             401, "authentication_error",  false) \
    X(forbidden,                   403, "permission_error",      false) \
    X(not_found,                   404, "invalid_request_error", false) \
    X(method_not_allowed,          405, "invalid_request_error", false) \
    X(model_not_found,             404, "invalid_request_error", false) \
    X(session_not_found,           404, "invalid_request_error", false) \
    X(response_not_found,          404, "invalid_request_error", false) \
    X(item_not_found,              404, "invalid_request_error", false) \
    X(call_not_found,              404, "invalid_request_error", false) \
    X(wait_not_found,              404, "invalid_request_error", false) \
    X(previous_response_not_found, 400, "invalid_request_error", false) \
    X(idempotency_key_reused,      422, "invalid_request_error", false) \
    X(conflict,                    409, "invalid_request_error", false) \
    X(not_yet,                     400, "invalid_request_error", false) \
    /* bounds and states of the node */ \
    X(input_queue_full,            429, "rate_limit_error",      true) \
    X(session_busy,                429, "rate_limit_error",      true) \
    X(too_many_connections,        503, "overloaded_error",      true) \
    X(too_many_sessions,           503, "overloaded_error",      true) \
    X(journal_backlog_full,        503, "overloaded_error",      true) \
    X(apply_backlog_full,          503, "overloaded_error",      true) \
    X(draining,                    503, "overloaded_error",      true) \
    X(starting,                    503, "overloaded_error",      true) \
    X(storage_full,                507, "storage_error",         true) \
    X(state_damaged,               500, "storage_error",         false) \
    X(journal_damaged,             500, "storage_error",         false) \
    X(session_quarantined,         503, "session_error",         false) \
    X(internal,                    500, "server_error",          true) \
    /* how a turn can fail */ \
    X(turn_deadline_exceeded,      504, "turn_error",            false) \
    X(turn_cancelled,              409, "turn_error",            false) \
    X(step_limit_reached,          422, "turn_error",            false) \
    X(token_limit_reached,         422, "turn_error",            false) \
    X(context_overflow,            422, "turn_error",            false) \
    X(content_filtered,            422, "turn_error",            false) \
    X(model_unavailable,           502, "turn_error",            true) \
    X(model_rate_limited,          429, "turn_error",            true) \
    X(model_rejected_request,      502, "turn_error",            false) \
    X(model_auth_failed,           502, "turn_error",            false) \
    X(model_protocol_error,        502, "turn_error",            true) \
    X(model_timeout,               504, "turn_error",            true) \
    X(tool_not_allowed,            422, "turn_error",            false) \
    X(tool_unavailable,            502, "turn_error",            true) \
    X(tool_timeout,                504, "turn_error",            true) \
    X(tool_protocol_error,         502, "turn_error",            true) \
    X(tool_result_too_large,       422, "turn_error",            false) \
    X(tool_outcome_unknown,        409, "turn_error",            false) \
    /* models of our own */ \
    X(model_not_loadable,          503, "server_error",          false) \
    X(device_absent,               503, "server_error",          false) \
    /* the cluster */ \
    X(misdirected,                 421, "overloaded_error",      true) \
    X(shard_unavailable,           503, "overloaded_error",      true) \
    X(under_replicated,            503, "overloaded_error",      true) \
    X(coordinator_unavailable,     503, "overloaded_error",      true) \
    X(node_not_found,              404, "invalid_request_error", false) \
    X(shard_not_found,             404, "invalid_request_error", false) \
    X(peer_refused,                502, "server_error",          false)
// clang-format on

enum class ErrorCode : uint16_t {
#define MAINSTAY_X(name, status, type, retry) name,
    MAINSTAY_ERROR_CODES(MAINSTAY_X)
#undef MAINSTAY_X
};

struct ErrorInfo {
    ErrorCode code;
    std::string_view name;
    uint16_t http_status;
    std::string_view type;
    bool retryable;
};

/// Never fails: each enumerator has a row.
const ErrorInfo& error_info(ErrorCode code);
inline std::string_view error_name(ErrorCode code) { return error_info(code).name; }
/// Null for a name that is not in the list.
const ErrorInfo* find_error(std::string_view name);
/// All rows, in order.
const ErrorInfo* error_table(size_t& count);

}  // namespace mainstay
