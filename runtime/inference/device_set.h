#pragma once
// From a model's specification to the device that runs it. A text device serves any number of models of its kind, so
// the wiring may make one for each model or share; what it must share is the HTTP client, which owns a thread. Devices
// of our own, which need the model's files first, are made by own_device.h.

#include <memory>
#include <string>

#include "runtime/base/agent_spec.h"
#include "runtime/base/http_client.h"
#include "runtime/base/limits.h"
#include "runtime/base/result.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

/// Whether the model's device is one of ours, "neuron_core_sim" or "nrt" (own_device.h).
bool runs_on_own_device(const ModelSpec& model);

/// Whether some device can run the model: one of our own or "scripted" where device says so, "openai" where it says so
/// or base_url is given. `models_directory` is the folder that the path of a model of our own is relative to. Errors:
/// unsupported_value; model_not_loadable as in check_own_model.
Result<void> check_model(const ModelSpec& model, const std::string& models_directory);

/// A device for an upstream's or a scripted model, after a check of its file. Without `http` an upstream's device gets
/// a client of its own. `stall_timeout_ms` as in OpenAiDevice. Errors: unsupported_value, also for devices of our own.
Result<std::unique_ptr<TextDevice>> make_text_device(const ModelSpec& model, std::shared_ptr<HttpClient> http = nullptr,
                                                     uint32_t stall_timeout_ms = limits::upstream_stall_timeout_ms);

}  // namespace mainstay
