#pragma once
// From a model's specification to the device that runs it. A device serves any number of models of its kind, so the
// wiring may make one for each model or share; what it must share is the HTTP client, which owns a thread.

#include <memory>

#include "runtime/base/agent_spec.h"
#include "runtime/base/http_client.h"
#include "runtime/base/limits.h"
#include "runtime/base/result.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

/// Whether some device can run the model: "scripted" where device says so, "openai" where it says so or base_url is
/// given. Errors: unsupported_value.
Result<void> check_model(const ModelSpec& model);

/// A device for the model, after check_model. Without `http` an upstream's device gets a client of its own.
/// `stall_timeout_ms` as in OpenAiDevice.
Result<std::unique_ptr<TextDevice>> make_text_device(const ModelSpec& model, std::shared_ptr<HttpClient> http = nullptr,
                                                     uint32_t stall_timeout_ms = limits::upstream_stall_timeout_ms);

}  // namespace mainstay
