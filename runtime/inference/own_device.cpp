#include "runtime/inference/own_device.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>

#include "runtime/base/limits.h"
#include "runtime/inference/neuron_core_sim.h"

namespace mainstay {
namespace {

/// The reason with what it is the reason of: files say nothing of the model that names them.
Error of_model(const ModelSpec& model, const std::string& folder, const Error& error) {
    return {error.code, "model " + model.name + ": " + folder + ": " + error.message, error.param};
}

Result<std::string> read_tokenizer_config(const std::string& folder) {
    std::ifstream in(folder + "/tokenizer_config.json", std::ios::binary);
    if (!in)
        return Error{ErrorCode::model_not_loadable,
                     "tokenizer_config.json cannot be read, and the model's file names no chat_template",
                     "chat_template"};
    std::string text(limits::model_config_bytes_max + 1, '\0');
    in.read(text.data(), std::streamsize(text.size()));
    text.resize(size_t(in.gcount()));
    if (text.size() > limits::model_config_bytes_max)
        return Error{ErrorCode::model_not_loadable,
                     "tokenizer_config.json is larger than " + std::to_string(limits::model_config_bytes_max) +
                         " bytes (model_config_bytes_max)",
                     "tokenizer_config.json"};
    return text;
}

Result<std::shared_ptr<const ChatTemplate>> find_template(const ModelSpec& model, const std::string& folder,
                                                          std::shared_ptr<const Tokenizer> tokenizer) {
    if (!model.own.chat_template.empty()) return ChatTemplate::make(model.own.chat_template, std::move(tokenizer));
    const auto text = read_tokenizer_config(folder);
    if (!text) return text.error();
    return ChatTemplate::recognise(*text, std::move(tokenizer));
}

Result<void> check_stops(const std::vector<TokenId>& stops) {
    if (stops.size() <= limits::scheduler_stop_tokens_max) return {};
    return Error{ErrorCode::model_not_loadable,
                 "config.json: eos_token_id has more than " + std::to_string(limits::scheduler_stop_tokens_max) +
                     " tokens with those of the chat template (scheduler_stop_tokens_max)",
                 "eos_token_id"};
}

/// All but the weights. `config` is null where the folder holds compiled graphs.
Result<LoadedModel> read_texts(const ModelSpec& model, const std::string& folder, const LlamaConfig* config) {
    LoadedModel loaded;
    loaded.folder = folder;
    auto tokenizer = Tokenizer::load(folder);
    if (!tokenizer) return tokenizer.error();
    loaded.tokenizer = std::move(*tokenizer);
    if (config)
        if (auto fits = loaded.tokenizer->check_vocabulary(config->vocab_size); !fits) return fits.error();
    auto chat_template = find_template(model, folder, loaded.tokenizer);
    if (!chat_template) return chat_template.error();
    loaded.chat_template = std::move(*chat_template);
    loaded.stops = loaded.chat_template->stops();
    loaded.context_window = model.context_window;
    if (!config) return loaded;
    for (const TokenId token : config->eos_token_ids)
        if (!loaded.chat_template->is_stop(token)) loaded.stops.push_back(token);
    if (auto checked = check_stops(loaded.stops); !checked) return checked.error();
    loaded.context_window = std::min(model.context_window, config->max_position_embeddings);
    return loaded;
}

Result<void> check_folder(const std::string& folder) {
    std::error_code failure;
    if (std::filesystem::is_directory(folder, failure)) return {};
    return Error{ErrorCode::model_not_loadable, "there is no such folder", "path"};
}

/// Files that are there and fit each other; with `weights`, loaded.
Result<LoadedModel> read_model(const ModelSpec& model, const std::string& folder, bool with_weights) {
    if (auto there = check_folder(folder); !there) return there.error();
    if (model.device == "nrt") return read_texts(model, folder, nullptr);
    auto config = LlamaModel::check(folder);
    if (!config) return config.error();
    auto loaded = read_texts(model, folder, &*config);
    if (!loaded || !with_weights) return loaded;
    const Precision precision = model.own.precision == "f32" ? Precision::f32 : Precision::bf16;
    auto weights = LlamaModel::load(folder, precision, available_memory_bytes());
    if (!weights) return weights.error();
    loaded->weights = std::move(*weights);
    return loaded;
}

unsigned threads_of(const DeviceSpec& spec) {
    if (spec.threads != 0) return spec.threads;
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    return std::clamp(cores / std::max(1u, spec.devices), 1u, unsigned(limits::device_threads_max));
}

uint32_t block_count(const DeviceSpec& spec, const LlamaModel& weights, uint32_t block_tokens, uint32_t context) {
    const LlamaConfig& config = weights.config();
    const KvShape one{config.num_hidden_layers, config.num_key_value_heads, config.head_dim, block_tokens, 1,
                      weights.precision()};
    const uint64_t paid = spec.kv_device_bytes / one.block_bytes();
    const uint64_t least = (uint64_t(context) + block_tokens - 1) / block_tokens;
    return uint32_t(std::min<uint64_t>(std::max(paid, least) + 1, limits::device_blocks_max));  // and the null block
}

Result<std::unique_ptr<Device>> open_simulator(const ModelSpec& model, const LoadedModel& loaded) {
    NeuronCoreSimOptions options;
    const DeviceSpec& own = model.own;
    if (own.block_tokens != 0) options.block_tokens = own.block_tokens;
    if (own.rows_max != 0) options.rows_max = own.rows_max;
    if (own.tokens_max != 0) options.tokens_max = own.tokens_max;
    options.hardware = own.hardware == "none" ? "" : own.hardware;
    options.busy_watts = own.busy_watts;
    options.threads = threads_of(own);
    options.strict = own.strict;
    options.context_max = loaded.context_window;
    options.block_count = block_count(own, *loaded.weights, options.block_tokens, loaded.context_window);
    return make_neuron_core_sim(loaded.weights, options);
}

}  // namespace

bool runs_on_own_device(const ModelSpec& model) { return model.device == "neuron_core_sim" || model.device == "nrt"; }

std::string model_folder(const ModelSpec& model, const std::string& models_directory) {
    // An absolute path stands for itself.
    return (std::filesystem::path(models_directory) / model.own.path).string();
}

Result<void> check_own_model(const ModelSpec& model, const std::string& models_directory) {
    const std::string folder = model_folder(model, models_directory);
    if (auto read = read_model(model, folder, false); !read) return of_model(model, folder, read.error());
    return {};
}

Result<LoadedModel> load_model(const ModelSpec& model, const std::string& models_directory) {
    const std::string folder = model_folder(model, models_directory);
    auto loaded = read_model(model, folder, true);
    if (!loaded) return of_model(model, folder, loaded.error());
    return loaded;
}

Result<std::unique_ptr<Device>> open_device(const ModelSpec& model, const LoadedModel& loaded, uint32_t index) {
    INVARIANT(runs_on_own_device(model) && index < model.own.devices, "a device that the model has");
    if (model.device == "nrt")
        return Error{ErrorCode::not_yet, "model " + model.name + ": device \"nrt\" is not built yet", "device"};
    INVARIANT(loaded.weights != nullptr, "a model that load_model() loaded");
    auto device = open_simulator(model, loaded);
    if (!device) return of_model(model, loaded.folder, device.error());
    return device;
}

}  // namespace mainstay
