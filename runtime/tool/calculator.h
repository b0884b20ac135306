#pragma once
// What the builtin tool `calc` calculates: + - * / with the usual precedence, parentheses and signs over decimal
// numbers, exactly, as fractions of 128-bit integers. Models are given sums to calculate because they cannot; so no
// result is rounded before it is written, and one that does not fit is refused instead of being nearly right. Pure; any
// thread.

#include <string>
#include <string_view>

#include "runtime/base/result.h"

namespace mainstay {

/// The value with at most six decimals, rounded half away from zero, without zeros at its end: "42", "-0.333333".
/// Errors: invalid_request, with a message for the model: "division by zero", "this is not a calculation with numbers
/// and + - * / ( )", "the numbers are too large", or the bound that the expression breaks.
Result<std::string> calculate(std::string_view expression);

}  // namespace mainstay
