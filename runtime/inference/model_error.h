#pragma once
// How the failure of a model step is named: the class decides what the supervisor does about it, the code is what the
// user reads. Pure functions; every device goes through them, so that one failure has one name whoever met it.

#include <optional>
#include <string>
#include <string_view>

#include "runtime/base/clock.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

/// The user's code for a failed model step of this class.
ErrorCode model_error_code(ErrorClass error_class);
/// The inverse of to_word(ErrorClass); nothing for a word that is not in the list.
std::optional<ErrorClass> parse_error_class(std::string_view word);
ModelError make_model_error(ErrorClass error_class, std::string message, uint32_t retry_after_ms = 0);

}  // namespace mainstay
