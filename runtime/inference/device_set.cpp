#include "runtime/inference/device_set.h"

#include "runtime/inference/openai_device.h"
#include "runtime/inference/own_device.h"
#include "runtime/inference/scripted_device.h"

namespace mainstay {

namespace {

bool is_openai(const ModelSpec& model) {
    return model.device == "openai" || (model.device.empty() && !model.base_url.empty());
}

Result<void> check_text_model(const ModelSpec& model) {
    if (model.device == "scripted") {
        if (!model.base_url.empty())
            return {ErrorCode::unsupported_value, "model " + model.name + ": a scripted device has no base_url",
                    "base_url"};
        return ScriptedDevice::check(model);
    }
    if (is_openai(model)) {
        if (!model.script.empty())
            return {ErrorCode::unsupported_value, "model " + model.name + ": only a scripted device has a script",
                    "script"};
        return OpenAiDevice::check(model);
    }
    if (model.device.empty())
        return {ErrorCode::unsupported_value, "model " + model.name + ": needs base_url, or device = \"scripted\"",
                "device"};
    return {ErrorCode::unsupported_value,
            "model " + model.name + ": device \"" + model.device + "\" is neither openai nor scripted", "device"};
}

}  // namespace

Result<void> check_model(const ModelSpec& model, const std::string& models_directory) {
    return runs_on_own_device(model) ? check_own_model(model, models_directory) : check_text_model(model);
}

Result<std::unique_ptr<TextDevice>> make_text_device(const ModelSpec& model, std::shared_ptr<HttpClient> http,
                                                     uint32_t stall_timeout_ms) {
    if (auto checked = check_text_model(model); !checked) return checked.error();
    if (!is_openai(model)) return std::unique_ptr<TextDevice>(std::make_unique<ScriptedDevice>());
    if (!http) http = std::make_shared<HttpClient>();
    return std::unique_ptr<TextDevice>(std::make_unique<OpenAiDevice>(std::move(http), stall_timeout_ms));
}

}  // namespace mainstay
