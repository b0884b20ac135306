#pragma once
// The arguments of a call as a model wrote them: text that may be anything. Here it becomes a JSON object within
// bounds, or a sentence that the model can act on. Pure; any thread.
//
// What of a tool's JSON Schema is checked before a call leaves, at the top level only: `required`, and for each
// property that `properties` describes: `type` (a word or a list of words) and `enum`; further
// `additionalProperties: false`. Everything else (nested objects, patterns, ranges, $ref, anyOf ...) is left to the
// server, which must check anyway. A schema that is not an object, or a keyword of a shape that we do not know, checks
// nothing: a call is never refused because of a schema that we fail to read.

#include <boost/json/object.hpp>
#include <string>
#include <string_view>

#include "runtime/base/result.h"

namespace mainstay {

/// Empty or blank text is {} (models write that for a tool without parameters). Errors: invalid_request, with a message
/// for the model: not JSON, not an object, deeper than limits::json_depth_max, longer than
/// limits::tool_arguments_bytes_max.
Result<boost::json::object> parse_arguments(std::string_view text);

/// Empty where the arguments fit the checked part of the schema, else one sentence that names the parameter.
std::string check_arguments(const boost::json::object& arguments, std::string_view schema);
std::string check_arguments(const boost::json::object& arguments, const boost::json::object& schema);

}  // namespace mainstay
