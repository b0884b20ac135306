#include "runtime/inference/llama_model.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>

#include "runtime/base/digest.h"
#include "runtime/base/limits.h"
#include "runtime/inference/safetensors.h"

namespace mainstay {

namespace {

std::string megabytes(uint64_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

Result<LlamaConfig> read_config(const std::string& directory) {
    std::ifstream in(directory + "/config.json", std::ios::binary);
    if (!in) return Error{ErrorCode::model_not_loadable, "config.json: cannot be read", {}};
    std::string text(limits::model_config_bytes_max + 1, '\0');
    in.read(text.data(), std::streamsize(text.size()));
    text.resize(size_t(in.gcount()));
    return parse_llama_config(text);
}

/// A tensor that nothing asked for means arithmetic that is not built (a bias, say).
Result<void> refuse_unused(const Safetensors& files, const LlamaConfig& config,
                           const std::set<std::string, std::less<>>& used) {
    for (const std::string_view name : files.names()) {
        if (used.contains(name)) continue;
        if (name.ends_with(".rotary_emb.inv_freq")) continue;                  // computed from the configuration
        if (name == "lm_head.weight" && config.tie_word_embeddings) continue;  // a copy of the embeddings
        return Error{ErrorCode::model_not_loadable,
                     "tensor \"" + std::string(name) + "\" belongs to nothing that config.json describes",
                     std::string(name)};
    }
    return {};
}

/// Everything of the configuration that results depend on.
std::string canonical(const LlamaConfig& c) {
    std::ostringstream out;
    out.precision(17);
    out << "llama " << c.hidden_size << ' ' << c.intermediate_size << ' ' << c.num_hidden_layers << ' '
        << c.num_attention_heads << ' ' << c.num_key_value_heads << ' ' << c.head_dim << ' ' << c.vocab_size << ' '
        << c.rope_theta << ' ' << c.rms_norm_eps << ' ' << int(c.rope_scaling.kind) << ' ' << c.rope_scaling.factor
        << ' ' << c.rope_scaling.low_freq_factor << ' ' << c.rope_scaling.high_freq_factor << ' '
        << c.rope_scaling.original_max_position_embeddings << ' ' << c.tie_word_embeddings << '\n';
    return out.str();
}

}  // namespace

/// Takes tensors to their places in the arena. One use each.
class LlamaLoader {
  public:
    LlamaLoader(LlamaModel& model, const Safetensors& files) : model_(model), files_(files), config_(model.config_) {}

    Result<void> load() {
        const uint32_t heads = config_.num_attention_heads * config_.head_dim;
        const uint32_t kv = config_.num_key_value_heads * config_.head_dim;
        const uint32_t d = config_.hidden_size, ff = config_.intermediate_size;
        load_embeddings();
        for (uint32_t i = 0; i < config_.num_hidden_layers && !error_; ++i) {
            const std::string prefix = "model.layers." + std::to_string(i) + ".";
            LlamaLayer& layer = model_.layers_.emplace_back();
            layer.qkv = matrix(heads + 2 * kv, d);
            fill(layer.qkv, prefix + "self_attn.q_proj.weight", heads, d, [](uint32_t c) { return c; });
            fill(layer.qkv, prefix + "self_attn.k_proj.weight", kv, d, [=](uint32_t c) { return heads + c; });
            fill(layer.qkv, prefix + "self_attn.v_proj.weight", kv, d, [=](uint32_t c) { return heads + kv + c; });
            layer.output = matrix(d, heads);
            fill(layer.output, prefix + "self_attn.o_proj.weight", d, heads, [](uint32_t c) { return c; });
            // Panels in turn: column c of a half is in its panel c / 32, which is panel 2 * (c / 32) (+ 1) of both.
            const auto in_turn = [](uint32_t c) { return c / panel_columns * 2 * panel_columns + c % panel_columns; };
            layer.gate_up = matrix(2 * uint32_t(round_up(ff, panel_columns)), d);
            fill(layer.gate_up, prefix + "mlp.gate_proj.weight", ff, d, in_turn);
            fill(layer.gate_up, prefix + "mlp.up_proj.weight", ff, d,
                 [=](uint32_t c) { return in_turn(c) + panel_columns; });
            layer.down = matrix(d, ff);
            fill(layer.down, prefix + "mlp.down_proj.weight", d, ff, [](uint32_t c) { return c; });
            layer.attention_norm = vector(prefix + "input_layernorm.weight");
            layer.feed_forward_norm = vector(prefix + "post_attention_layernorm.weight");
        }
        model_.final_norm_ = vector("model.norm.weight");
        model_.head_ = matrix(config_.vocab_size, d);
        fill(model_.head_, config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
             config_.vocab_size, d, [](uint32_t c) { return c; });
        if (error_) return std::move(*error_);
        if (auto all_used = refuse_unused(files_, config_, used_names_); !all_used) return all_used;
        model_.hash_ = to_hex(bytes_of(key_hash("llama", canonical(config_) + digests_)));
        return {};
    }

  private:
    static std::string_view bytes_of(const KeyHash& hash) {
        return {reinterpret_cast<const char*>(hash.data()), hash.size()};
    }

    uint8_t* take(size_t bytes) {
        uint8_t* at = model_.arena_.data() + used_;
        used_ += round_up(bytes, 64);
        INVARIANT(used_ <= model_.arena_.size(), "an arena that bytes_needed() measured");
        return at;
    }

    PackedMatrix matrix(uint32_t n, uint32_t k) {
        const size_t bytes = packed_elements(n, k) * element_bytes(model_.precision_);
        model_.matrix_bytes_ += bytes;
        return {take(bytes), n, uint32_t(round_up(k, k_granule))};
    }

    std::optional<Tensor> find(const std::string& name, uint64_t rows, uint64_t columns) {
        if (error_) return std::nullopt;
        auto tensor = files_.find(name, rows, columns);
        if (!tensor) {
            error_ = tensor.error();
            return std::nullopt;
        }
        if (used_names_.insert(name).second) {
            std::ostringstream line;
            line << name << ' ' << tensor->info->type_name << ' ' << std::hex << xxh64(tensor->bytes()) << '\n';
            digests_ += line.str();
        }
        return *tensor;
    }

    template <class Column>
    void fill(const PackedMatrix& to, const std::string& name, uint32_t rows, uint32_t columns, Column column) {
        const auto tensor = find(name, rows, columns);
        if (!tensor) return;
        std::vector<float> row(columns);
        for (uint32_t r = 0; r < rows; ++r) {
            tensor->read_row(r, row.data());
            void* data = const_cast<void*>(to.data);
            if (model_.precision_ == Precision::bf16)
                pack_column_bf16(static_cast<uint16_t*>(data), to.k, column(r), row.data(), columns);
            else
                pack_column_f32(static_cast<float*>(data), to.k, column(r), row.data(), columns);
        }
    }

    std::vector<float> vector(const std::string& name) {
        std::vector<float> out(config_.hidden_size);
        if (const auto tensor = find(name, 0, config_.hidden_size)) tensor->read_row(0, out.data());
        return out;
    }

    void load_embeddings() {
        const uint32_t d = config_.hidden_size;
        const auto tensor = find("model.embed_tokens.weight", config_.vocab_size, d);
        if (!tensor) return;
        uint8_t* to = take(size_t(config_.vocab_size) * d * element_bytes(model_.precision_));
        model_.embeddings_ = to;
        std::vector<float> row(d);
        for (uint32_t r = 0; r < config_.vocab_size; ++r) {
            tensor->read_row(r, row.data());
            if (model_.precision_ == Precision::f32) {
                std::memcpy(to + size_t(r) * d * 4, row.data(), size_t(d) * 4);
            } else {
                uint16_t* narrow = reinterpret_cast<uint16_t*>(to) + size_t(r) * d;
                for (uint32_t i = 0; i < d; ++i) narrow[i] = bf16_of(row[i]);
            }
        }
    }

    LlamaModel& model_;
    const Safetensors& files_;
    const LlamaConfig& config_;
    size_t used_ = 0;
    std::set<std::string, std::less<>> used_names_;
    std::string digests_;
    std::optional<Error> error_;
};

uint64_t LlamaModel::bytes_needed(const LlamaConfig& c, Precision precision) {
    const uint64_t heads = uint64_t(c.num_attention_heads) * c.head_dim,
                   kv = uint64_t(c.num_key_value_heads) * c.head_dim;
    const auto matrix = [&](uint64_t n, uint64_t k) {
        return round_up(packed_elements(n, k) * element_bytes(precision), 64);
    };
    const uint64_t layer = matrix(heads + 2 * kv, c.hidden_size) + matrix(c.hidden_size, heads) +
                           matrix(2 * round_up(c.intermediate_size, panel_columns), c.hidden_size) +
                           matrix(c.hidden_size, c.intermediate_size);
    return layer * c.num_hidden_layers + matrix(c.vocab_size, c.hidden_size) +
           round_up(uint64_t(c.vocab_size) * c.hidden_size * element_bytes(precision), 64);
}

Result<std::unique_ptr<LlamaModel>> LlamaModel::load(const std::string& directory, Precision precision,
                                                     uint64_t memory_bytes_max) {
    auto config = read_config(directory);
    if (!config) return config.error();
    const uint64_t needed = bytes_needed(*config, precision);
    if (needed > memory_bytes_max)
        return Error{ErrorCode::model_not_loadable,
                     "the weights need " + megabytes(needed) + " as " + to_string(precision) + ", more than the " +
                         megabytes(memory_bytes_max) + " that there are",
                     "memory"};
    auto files = Safetensors::open(directory);
    if (!files) return files.error();

    std::unique_ptr<LlamaModel> model(new LlamaModel);
    model->config_ = std::move(*config);
    model->precision_ = precision;
    auto arena = Arena::reserve(needed, "the weights");
    if (!arena) return arena.error();
    model->arena_ = std::move(*arena);
    if (auto loaded = LlamaLoader(*model, *files).load(); !loaded) return loaded.error();
    return model;
}

Result<LlamaConfig> LlamaModel::check(const std::string& directory) {
    auto config = read_config(directory);
    if (!config) return config.error();
    auto files = Safetensors::open(directory);
    if (!files) return files.error();

    const uint64_t d = config->hidden_size, ff = config->intermediate_size;
    const uint64_t heads = uint64_t(config->num_attention_heads) * config->head_dim;
    const uint64_t kv = uint64_t(config->num_key_value_heads) * config->head_dim;
    std::set<std::string, std::less<>> used;
    std::optional<Error> error;
    const auto want = [&](std::string name, uint64_t rows, uint64_t columns) {
        if (error) return;
        if (auto found = files->find(name, rows, columns); !found) error = found.error();
        used.insert(std::move(name));
    };
    want("model.embed_tokens.weight", config->vocab_size, d);
    for (uint32_t i = 0; i < config->num_hidden_layers && !error; ++i) {
        const std::string prefix = "model.layers." + std::to_string(i) + ".";
        want(prefix + "self_attn.q_proj.weight", heads, d);
        want(prefix + "self_attn.k_proj.weight", kv, d);
        want(prefix + "self_attn.v_proj.weight", kv, d);
        want(prefix + "self_attn.o_proj.weight", d, heads);
        want(prefix + "mlp.gate_proj.weight", ff, d);
        want(prefix + "mlp.up_proj.weight", ff, d);
        want(prefix + "mlp.down_proj.weight", d, ff);
        want(prefix + "input_layernorm.weight", 0, d);
        want(prefix + "post_attention_layernorm.weight", 0, d);
    }
    want("model.norm.weight", 0, d);
    if (!config->tie_word_embeddings) want("lm_head.weight", config->vocab_size, d);
    if (error) return std::move(*error);
    if (auto all_used = refuse_unused(*files, *config, used); !all_used) return all_used.error();
    return config;
}

void LlamaModel::embed(TokenId token, float* out) const {
    const uint32_t d = config_.hidden_size;
    if (precision_ == Precision::f32) {
        std::memcpy(out, embeddings_ + size_t(token) * d * 4, size_t(d) * 4);
        return;
    }
    const uint16_t* row = reinterpret_cast<const uint16_t*>(embeddings_) + size_t(token) * d;
    for (uint32_t i = 0; i < d; ++i) out[i] = float_of_bf16(row[i]);
}

uint64_t available_memory_bytes() {
    uint64_t bytes = UINT64_MAX;
    std::ifstream meminfo("/proc/meminfo");
    for (std::string line; std::getline(meminfo, line);)
        if (line.starts_with("MemAvailable:")) bytes = std::strtoull(line.c_str() + 13, nullptr, 10) * 1024;
    const auto number = [](const char* path) -> std::optional<uint64_t> {
        std::ifstream in(path);
        uint64_t value = 0;
        return in >> value ? std::optional(value) : std::nullopt;  // "max" is no number: no bound
    };
    const auto most = number("/sys/fs/cgroup/memory.max"), used = number("/sys/fs/cgroup/memory.current");
    if (most && used) bytes = std::min(bytes, *most > *used ? *most - *used : 0);
    return bytes;
}

}  // namespace mainstay
