#pragma once
// From the file of a model that runs on devices of our own to its tokenizer, its chat template, its weights and its
// devices. What is read of a model's folder is read here, so that what check_own_model() lets pass is what loads.
//
// load_model() may take minutes and allocates the weights; everything that it returns is immutable and shared by the
// model's devices. A device belongs to the thread that opens it.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/agent_spec.h"
#include "runtime/base/result.h"
#include "runtime/inference/chat_template.h"
#include "runtime/inference/device.h"
#include "runtime/inference/device_set.h"
#include "runtime/inference/llama_model.h"
#include "runtime/inference/tokenizer.h"

namespace mainstay {

/// The folder of the model's files: own.path, from `models_directory` on where it is relative.
std::string model_folder(const ModelSpec& model, const std::string& models_directory);

struct LoadedModel {
    std::string folder;
    std::shared_ptr<const Tokenizer> tokenizer;
    std::shared_ptr<const ChatTemplate> chat_template;
    std::shared_ptr<const LlamaModel> weights;  // null for nrt: its graphs hold them
    std::vector<TokenId> stops;                 // of the template and of config.json; a step ends at the first
    uint32_t context_window = 0;  // tokens; what the author allows, at most what the model was trained for
};

/// Whether the model would load, but for memory, at the cost of reading headers: the folder, config.json against the
/// tensors of the weights (for nrt: nrt_model.json), tokenizer.json, the chat template. Errors: model_not_loadable, the
/// message naming the folder and the file, `param` the tensor or key; unsupported_value for cores that cannot be shared
/// out over the devices.
Result<void> check_own_model(const ModelSpec& model, const std::string& models_directory);

/// Everything that the devices of a model share. Errors as of check_own_model, and where the weights do not fit memory.
Result<LoadedModel> load_model(const ModelSpec& model, const std::string& models_directory);

/// Device `index` (below own.devices) of a model that load_model() loaded. KV blocks as own.kv_device_bytes pays for,
/// and at least those of one whole context. Errors: model_not_loadable (memory), unsupported_value (an option), for nrt
/// device_absent.
Result<std::unique_ptr<Device>> open_device(const ModelSpec& model, const LoadedModel& loaded, uint32_t index);

}  // namespace mainstay
