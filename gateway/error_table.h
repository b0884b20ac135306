#pragma once
// From an Error to an HTTP answer: the shape of OpenAI's errors, the status and the retry advice from the closed list
// in runtime/base/error_code.h. Internal details never leave: a message is written for the client where it is made.

#include "gateway/exchange.h"
#include "runtime/base/result.h"

namespace mainstay {

/// {"error":{"message","type","param","code"}}; Retry-After where the client may try the same request again.
Answer error_answer(const Error& error);
Answer error_answer(ErrorCode code, std::string_view message, std::string_view param = {});
/// The object alone, as stream events carry it.
void append_error_object(std::string& out, const Error& error);

}  // namespace mainstay
