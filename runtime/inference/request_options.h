#pragma once
// The options of a request as every device reads them: one parser, one reading of tool_choice. Pure.

#include <boost/json/object.hpp>
#include <string>

#include "runtime/base/result.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

/// The fields; none where the request has no options. Fails with invalid_request where they are no JSON object.
Result<boost::json::object> request_options(const ModelRequest& request);

/// Null stands for absent, as in the API.
const boost::json::value* option(const boost::json::object& fields, std::string_view name);
/// A field's text; empty where it is absent or something else.
std::string_view text_option(const boost::json::object& fields, std::string_view name);

/// Which calls a step may or must make.
enum class ToolUse : uint8_t { optional, none, required };

struct ToolChoice {
    ToolUse use = ToolUse::optional;
    std::string only;  // required: this one, by the name that the model is shown; empty: any
};

/// A choice that requires a call is meant for the turn and holds for its first step only: a model that must always call
/// never answers. Fails with invalid_request.
Result<ToolChoice> tool_choice(const ModelRequest& request, const boost::json::object& fields);

}  // namespace mainstay
