#include "runtime/inference/model_error.h"

#include <utility>

#include "runtime/base/invariant.h"

namespace mainstay {

ErrorCode model_error_code(ErrorClass error_class) {
    switch (error_class) {
        case ErrorClass::transient:
        case ErrorClass::overloaded:
        case ErrorClass::lost: return ErrorCode::model_unavailable;
        case ErrorClass::rate_limited: return ErrorCode::model_rate_limited;
        case ErrorClass::invalid: return ErrorCode::model_rejected_request;
        case ErrorClass::auth: return ErrorCode::model_auth_failed;
        case ErrorClass::context_overflow: return ErrorCode::context_overflow;
        case ErrorClass::content_filter: return ErrorCode::content_filtered;
        case ErrorClass::protocol: return ErrorCode::model_protocol_error;
        case ErrorClass::timeout: return ErrorCode::model_timeout;
    }
    INVARIANT(false, "every error class has a code");
}

std::optional<ErrorClass> parse_error_class(std::string_view word) {
    for (int i = 0; i <= static_cast<int>(ErrorClass::lost); ++i)
        if (to_word(static_cast<ErrorClass>(i)) == word) return static_cast<ErrorClass>(i);
    return std::nullopt;
}

ModelError make_model_error(ErrorClass error_class, std::string message, uint32_t retry_after_ms) {
    return {error_class, model_error_code(error_class), std::move(message), retry_after_ms};
}

}  // namespace mainstay
