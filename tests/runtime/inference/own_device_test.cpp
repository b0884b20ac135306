// Models on devices of our own, from their files: what config/models ships, what is refused before weights are loaded,
// and what a device gets.
#include "runtime/inference/own_device.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "runtime/agent/agent_file.h"
#include "runtime/agent/catalogue.h"
#include "runtime/agent/device_keys.h"
#include "runtime/inference/device_clock.h"
#include "runtime/inference/device_set.h"
#include "runtime/inference/neuron_core_sim.h"
#include "tests/support/device_kinds.h"
#include "tests/support/random_llama.h"

using namespace mainstay;
namespace fs = std::filesystem;

namespace {

const std::string shipped = MAINSTAY_SOURCE_DIR "/config/models";

std::string read_file(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    REQUIRE_MESSAGE(in, path);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
}

void write_file(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

ModelSpec model_of(const std::string& path, const std::string& more = {}) {
    const auto parsed =
        parse_model("name=\"m\"\ndevice=\"neuron_core_sim\"\npath=\"" + path + "\"\n" + more, Syntax::toml);
    REQUIRE_MESSAGE(parsed.ok(), (parsed.ok() ? "" : parsed.error().message));
    return **parsed;
}

/// A folder with random weights and the shipped tokenizer, made anew for each test.
class Folder {
  public:
    explicit Folder(const std::string& name) : path_(fs::path(MAINSTAY_BINARY_DIR) / "own_device_test" / name) {
        fs::remove_all(path_);
        shape = llama_shape(64, 96, 2, 4, 2, 272, false, 100);
        shape.eos_token_ids = {260};
        RandomLlama(shape, RandomLlama::Type::bf16, 7).write(path_);
        for (const char* file : {"tokenizer.json", "tokenizer_config.json"})
            fs::copy_file(fs::path(shipped) / "mainstay_tiny" / file, path_ / file);
    }
    ~Folder() { fs::remove_all(path_); }

    const fs::path& path() const { return path_; }
    /// The first `from` in a file becomes `to`, of the same length.
    void change(const char* file, const std::string& from, const std::string& to) {
        std::string text = read_file(path_ / file);
        const size_t at = text.find(from);
        REQUIRE_MESSAGE(at != std::string::npos, from);
        write_file(path_ / file, text.replace(at, from.size(), to));
    }

    LlamaConfig shape;

  private:
    fs::path path_;
};

/// A variable of the environment that this process's only child was started with.
std::string worker_variable(const std::string& name) {
    std::ifstream children("/proc/self/task/" + std::to_string(gettid()) + "/children");
    std::string pid;
    children >> pid;
    REQUIRE_FALSE(pid.empty());
    const std::string all = '\0' + read_file("/proc/" + pid + "/environ");
    const size_t at = all.find('\0' + name + "=");
    REQUIRE(at != std::string::npos);
    return all.c_str() + at + name.size() + 2;
}

}  // namespace

TEST_CASE("models: every file of config/models is read and passes its check") {
    const auto models = read_models(shipped);
    REQUIRE_MESSAGE(models.ok(), (models.ok() ? "" : models.error().message));
    bool own = false;
    for (const auto& model : *models) {
        CAPTURE(model->name);
        const auto checked = check_model(*model, shipped);
        CHECK_MESSAGE(checked.ok(), (checked.ok() ? "" : checked.error().message));
        own = own || runs_on_own_device(*model);
    }
    CHECK(own);
}

TEST_CASE("models: the shipped small model loads, and its device is what its file says") {
    const auto text = read_file(fs::path(shipped) / "mainstay_tiny.toml");
    const auto parsed = parse_model(text, Syntax::toml);
    REQUIRE_MESSAGE(parsed.ok(), (parsed.ok() ? "" : parsed.error().message));
    const ModelSpec& model = **parsed;
    CHECK(model.name == "mainstay_tiny");
    const auto loaded = load_model(model, shipped);
    REQUIRE_MESSAGE(loaded.ok(), (loaded.ok() ? "" : loaded.error().message));
    CHECK(loaded->context_window == 768);
    CHECK(loaded->chat_template->name() == "mainstay-tiny");
    CHECK(loaded->stops == std::vector<TokenId>{260});
    CHECK(loaded->weights->config().num_hidden_layers == 4);
    auto device = open_device(model, *loaded, 0);
    REQUIRE_MESSAGE(device.ok(), (device.ok() ? "" : device.error().message));
    const DeviceCaps& caps = (*device)->caps();
    CHECK(caps.kind == "neuron_core_sim");
    CHECK(caps.hardware == "trn2");
    CHECK(caps.simulated);
    CHECK(caps.context_max == 768);
    CHECK(caps.block_tokens == 16);
    CHECK(caps.rows_max == 32);
    CHECK(caps.tokens_max == 256);
    // 4 layers, 2 heads of keys and of values, 16 tokens of 32 numbers in BF16; and the null block.
    CHECK(caps.block_count == (64 << 20) / (4 * 2 * 2 * 16 * 32 * 2) + 1);
}

TEST_CASE("models: options of the file reach the device") {
    Folder folder("options");
    const std::string path = folder.path().string();
    const auto caps_of = [&](const std::string& more) {
        const ModelSpec model = model_of(path, more);
        const auto loaded = load_model(model, "/nonexistent");  // the path is absolute
        REQUIRE_MESSAGE(loaded.ok(), (loaded.ok() ? "" : loaded.error().message));
        auto device = open_device(model, *loaded, model.own.devices - 1);
        REQUIRE_MESSAGE(device.ok(), (device.ok() ? "" : device.error().message));
        return (*device)->caps();
    };
    // The model's context where the file allows more; as many blocks as one context needs where it pays for fewer.
    DeviceCaps caps = caps_of("[kv]\ndevice=1\n");
    CHECK(caps.context_max == 100);
    CHECK(caps.block_count == 7 + 1);
    CHECK(caps.kernel_id.ends_with("bf16"));
    CHECK_FALSE(caps.strict);

    caps = caps_of(
        "precision=\"f32\"\nhardware=\"none\"\nstrict=true\ncontext_window=70\nthreads=1\ndevices=2\n"
        "[kv]\nblock_tokens=32\ndevice=\"1MB\"\n[batch]\nsequences=3\ntokens=48\n");
    CHECK(caps.kernel_id.ends_with("f32"));
    CHECK(caps.hardware.empty());
    CHECK(caps.strict);
    CHECK(caps.context_max == 64);  // strict: whole blocks
    CHECK(caps.block_tokens == 32);
    CHECK(caps.block_count == (1 << 20) / (2 * 2 * 2 * 32 * 16 * 4) + 1);
    CHECK(caps.rows_max == 3);
    CHECK(caps.tokens_max == 48);

    const auto watts = model_of(path, "hardware=\"inf2\"\nbusy_watts=123\n");
    const auto loaded = load_model(watts, {});
    REQUIRE(loaded.ok());
    CHECK(open_device(watts, *loaded, 0).value()->caps().hardware == "inf2");

    // The tokenizer's own words for another template.
    const auto other = check_model(model_of(path, "chat_template=\"chatml\"\n"), {});
    CHECK(other.error().code == ErrorCode::model_not_loadable);
    const auto unknown = check_model(model_of(path, "chat_template=\"nonsense\"\n"), {});
    CHECK_MESSAGE(unknown.error().message.find("mainstay-tiny") != std::string::npos, unknown.error().message);
}

TEST_CASE("models: a relative path starts at the folder of models") {
    Folder folder("relative");
    const std::string parent = folder.path().parent_path().string();
    CHECK(check_model(model_of("relative"), parent).ok());
    CHECK(check_model(model_of("./relative/"), parent + "/").ok());
    const auto missing = check_model(model_of("elsewhere"), parent);
    REQUIRE_FALSE(missing.ok());
    CHECK(missing.error().code == ErrorCode::model_not_loadable);
    CHECK(missing.error().param == "path");
    CHECK(missing.error().message == "model m: " + parent + "/elsewhere: there is no such folder");
}

TEST_CASE("models: what does not fit together is refused with file and tensor or key, before weights are loaded") {
    struct Row {
        const char* name;
        std::function<void(Folder&)> harm;
        std::string param, words;
        bool weights = false;  // LlamaModel::load() says the same
    };
    const auto drop = [](const char* file) { return [file](Folder& f) { fs::remove(f.path() / file); }; };
    const auto change = [](const char* file, std::string from, std::string to) {
        return [=](Folder& f) { f.change(file, from, to); };
    };
    const std::string o_proj = "model.layers.1.self_attn.o_proj.weight";
    const Row rows[] = {
        {"no config", drop("config.json"), "", "config.json: cannot be read", true},
        {"no JSON", [](Folder& f) { write_file(f.path() / "config.json", "{"); }, "", "config.json: ", true},
        {"architecture", change("config.json", "\"llama\"", "\"gpt_9\""), "model_type", "config.json: model_type",
         true},
        {"no weights", drop("model.safetensors"), "", "model.safetensors: ", true},
        {"truncated", [](Folder& f) { fs::resize_file(f.path() / "model.safetensors", 20'000); },
         "model.embed_tokens.weight", "model.safetensors: truncated", true},
        {"tensor gone", change("model.safetensors", o_proj, "model.layers.1.self_attn.x_proj.weight"), o_proj,
         "tensor \"" + o_proj + "\" is missing", true},
        {"tensor shaped otherwise", change("config.json", "\"intermediate_size\": 96", "\"intermediate_size\": 64"),
         "model.layers.0.mlp.gate_proj.weight", "[96 x 64], and config.json asks for [64 x 64]", true},
        {"tensor of another type", change("model.safetensors", "{\"dtype\":\"BF16\"", "{\"dtype\":\"I16\" "),
         "model.embed_tokens.weight", "I16 is not built", true},
        {"layer too many", change("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
         "model.layers.2.self_attn.q_proj.weight", "is missing", true},
        {"layer unused", change("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"),
         "model.layers.1.input_layernorm.weight", "belongs to nothing", true},
        {"no tokenizer", drop("tokenizer.json"), "tokenizer.json", "tokenizer.json cannot be read"},
        {"tokenizer of another kind", change("tokenizer.json", "\"BPE\"", "\"WPC\""), "model.type", "tokenizer.json"},
        {"tokenizer larger than the model",
         [](Folder& f) {
             RandomLlama(llama_shape(64, 96, 2, 4, 2, 200, false, 100), RandomLlama::Type::bf16, 7).write(f.path());
         },
         "vocab_size", "200"},
        {"no template", drop("tokenizer_config.json"), "chat_template", "tokenizer_config.json cannot be read"},
        {"template of nobody", change("tokenizer_config.json", "\"mainstay-tiny\"", "\"{{ messages }}\""),
         "chat_template", "chat_template"},
    };
    for (const auto& row : rows) {
        CAPTURE(std::string(row.name));
        Folder folder("harmed");
        const ModelSpec model = model_of("harmed");
        const std::string models = folder.path().parent_path().string();
        REQUIRE(check_model(model, models).ok());
        row.harm(folder);
        const auto checked = check_model(model, models);
        REQUIRE_FALSE(checked.ok());
        const Error& error = checked.error();
        CHECK(error.code == ErrorCode::model_not_loadable);
        CHECK(error.param == row.param);
        CHECK_MESSAGE(error.message.find(row.words) != std::string::npos, error.message);
        CHECK(error.message.starts_with("model m: " + folder.path().string()));
        const auto loaded = load_model(model, models);
        REQUIRE_FALSE(loaded.ok());
        CHECK(loaded.error().message == error.message);
        if (!row.weights) continue;
        const auto weights = LlamaModel::load(folder.path().string(), Precision::f32, UINT64_MAX);
        REQUIRE_FALSE(weights.ok());
        CHECK("model m: " + folder.path().string() + ": " + weights.error().message == error.message);
        CHECK(weights.error().param == error.param);
    }
}

TEST_CASE("models: compiled graphs are checked, and opened in a worker on the cores that fall to the device") {
    // The shipped tokenizer over a model of its size, as graphs for the stub of the Neuron runtime.
    Folder llama("nrt_llama");
    TestFolder folder;
    StubFolder graphs;
    graphs.model = llama.path().string();
    graphs.config = llama.shape;
    graphs.write(folder.path);
    for (const char* file : {"tokenizer.json", "tokenizer_config.json"})
        fs::copy_file(fs::path(shipped) / "mainstay_tiny" / file, folder.path / file);
    const auto nrt_model = [&](const std::string& more) {
        const auto parsed = parse_model("name=\"m\"\ndevice=\"nrt\"\npath=\"" + folder.path.string() +
                                            "\"\nlibrary=\"" + stub_library() + "\"\n" + more,
                                        Syntax::toml);
        REQUIRE_MESSAGE(parsed.ok(), (parsed.ok() ? "" : parsed.error().message));
        return **parsed;
    };
    const ModelSpec model = nrt_model("devices=2\nvisible_cores=\"2,4\"\ncontext_window=100\n");
    CHECK(check_model(model, {}).ok());
    const auto loaded = load_model(model, {});
    REQUIRE_MESSAGE(loaded.ok(), (loaded.ok() ? "" : loaded.error().message));
    CHECK(loaded->weights == nullptr);
    CHECK(loaded->context_window == 100);
    CHECK(loaded->chat_template->name() == "mainstay-tiny");
    CHECK(load_model(nrt_model(""), {}).value().context_window == 128);  // the largest bucket
    auto device = open_device(model, *loaded, 1);
    REQUIRE_MESSAGE(device.ok(), (device.ok() ? "" : device.error().message));
    CHECK((*device)->caps().kind == "nrt");
    CHECK((*device)->caps().vocabulary == 272);
    CHECK(worker_variable("NEURON_RT_VISIBLE_CORES") == "4");
    device->reset();

    const auto error_of = [](const ModelSpec& wrong) {
        const auto checked = check_model(wrong, {});
        REQUIRE_FALSE(checked.ok());
        return checked.error();
    };
    for (const char* cores : {"2,4,6", "3-2", "1"}) {
        CAPTURE(std::string(cores));
        const Error error = error_of(nrt_model("devices=2\nvisible_cores=\"" + std::string(cores) + "\"\n"));
        CHECK(error.code == ErrorCode::unsupported_value);
        CHECK(error.param == "visible_cores");
    }
    // No library: known when the device is opened, since a machine may get one while the daemon runs.
    ModelSpec bare = model;
    bare.own.library = "/nonexistent/libnrt.so.1";
    CHECK(check_model(bare, {}).ok());
    const auto absent = open_device(bare, *loaded, 0);
    REQUIRE_FALSE(absent.ok());
    CHECK(absent.error().code == ErrorCode::device_absent);
    CHECK(absent.error().message.starts_with("model m: "));

    fs::remove(folder.path / "nrt_model.json");
    const Error error = error_of(model);
    CHECK(error.code == ErrorCode::model_not_loadable);
    CHECK_MESSAGE(error.message.find("nrt_model.json") != std::string::npos, error.message);
}

TEST_CASE("models: words and defaults of the file are those of the devices") {
    for (const auto& hardware : device_hardware())
        CHECK(model_of("x", "hardware=\"" + std::string(hardware.name) + "\"\n").own.hardware == hardware.name);
    const DeviceSpec spec = default_device_spec("neuron_core_sim");
    const NeuronCoreSimOptions options;
    CHECK(spec.block_tokens == options.block_tokens);
    CHECK(spec.rows_max == options.rows_max);
    CHECK(spec.tokens_max == options.tokens_max);
    CHECK(find_device_hardware(spec.hardware).ok());
}
