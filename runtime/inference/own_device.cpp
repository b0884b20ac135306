#include "runtime/inference/own_device.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <thread>

#include "runtime/base/limits.h"
#include "runtime/inference/neuron_core_sim.h"
#include "runtime/inference/nrt_model.h"
#include "runtime/inference/nrt_process.h"

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

/// All but the weights. `vocabulary` and `context` are the model's, `stops` those of its files.
Result<LoadedModel> read_texts(const ModelSpec& model, const std::string& folder, uint32_t vocabulary, uint32_t context,
                               const std::vector<TokenId>& stops) {
    LoadedModel loaded;
    loaded.folder = folder;
    auto tokenizer = Tokenizer::load(folder);
    if (!tokenizer) return tokenizer.error();
    loaded.tokenizer = std::move(*tokenizer);
    if (auto fits = loaded.tokenizer->check_vocabulary(vocabulary); !fits) return fits.error();
    auto chat_template = find_template(model, folder, loaded.tokenizer);
    if (!chat_template) return chat_template.error();
    loaded.chat_template = std::move(*chat_template);
    loaded.stops = loaded.chat_template->stops();
    for (const TokenId token : stops)
        if (!loaded.chat_template->is_stop(token)) loaded.stops.push_back(token);
    if (auto checked = check_stops(loaded.stops); !checked) return checked.error();
    loaded.context_window = std::min(model.context_window, context);
    return loaded;
}

Result<void> check_folder(const std::string& folder) {
    std::error_code failure;
    if (std::filesystem::is_directory(folder, failure)) return {};
    return Error{ErrorCode::model_not_loadable, "there is no such folder", "path"};
}

/// "0-2,5" as 0, 1, 2, 5. Nothing where a range runs backwards.
std::optional<std::vector<uint32_t>> read_cores(std::string_view list) {
    std::vector<uint32_t> cores;
    const char* at = list.data();
    const char* const end = at + list.size();
    while (at < end) {
        uint32_t first = 0, last = 0;
        at = std::from_chars(at, end, first).ptr;
        last = first;
        if (at < end && *at == '-') at = std::from_chars(at + 1, end, last).ptr;
        if (last < first || last - first >= limits::devices_per_model_max * 64) return std::nullopt;
        for (uint32_t core = first; core <= last; ++core) cores.push_back(core);
        if (at < end && *at++ != ',') return std::nullopt;
    }
    return cores;
}

/// The cores of device `index`: those of the model, shared out in order. Where the file names none, the process's own
/// for a single device, and one core each for several.
Result<std::string> cores_of(const DeviceSpec& own, uint32_t index) {
    if (own.visible_cores.empty()) return own.devices == 1 ? std::string() : std::to_string(index);
    const auto cores = read_cores(own.visible_cores);
    if (!cores || cores->size() % own.devices != 0 || cores->empty())
        return Error{ErrorCode::unsupported_value,
                     "visible_cores \"" + own.visible_cores + "\" cannot be shared out evenly over " +
                         std::to_string(own.devices) + " devices",
                     "visible_cores"};
    const size_t each = cores->size() / own.devices;
    std::string text;
    for (size_t i = index * each; i < (index + 1) * each; ++i)
        text += (text.empty() ? "" : ",") + std::to_string((*cores)[i]);
    return text;
}

Result<LoadedModel> read_graphs(const ModelSpec& model, const std::string& folder) {
    if (auto cores = cores_of(model.own, 0); !cores) return cores.error();
    const auto graphs = read_nrt_model(folder);
    if (!graphs) return graphs.error();
    return read_texts(model, folder, graphs->vocabulary, graphs->context_buckets.back(), {});
}

/// Files that are there and fit each other; with `weights`, loaded.
Result<LoadedModel> read_model(const ModelSpec& model, const std::string& folder, bool with_weights) {
    if (auto there = check_folder(folder); !there) return there.error();
    if (model.device == "nrt") return read_graphs(model, folder);
    auto config = LlamaModel::check(folder);
    if (!config) return config.error();
    auto loaded = read_texts(model, folder, config->vocab_size, config->max_position_embeddings, config->eos_token_ids);
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

Result<std::unique_ptr<Device>> open_neuron_core(const ModelSpec& model, const LoadedModel& loaded, uint32_t index) {
    auto cores = cores_of(model.own, index);
    if (!cores) return cores.error();
    NrtOptions options;
    options.directory = loaded.folder;
    options.library = model.own.library;
    options.visible_cores = std::move(*cores);
    // Sooner than whoever waits for the device: what the worker process said last explains more than silence does.
    options.step_timeout_ms = limits::device_step_timeout_ms / 3 * 2;
    return open_nrt_device(options);
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
    const bool compiled = model.device == "nrt";
    INVARIANT(compiled || loaded.weights != nullptr, "a model that load_model() loaded");
    auto device = compiled ? open_neuron_core(model, loaded, index) : open_simulator(model, loaded);
    if (!device) return of_model(model, loaded.folder, device.error());
    return device;
}

}  // namespace mainstay
