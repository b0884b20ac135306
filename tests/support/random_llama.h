#pragma once
// Writes a Llama of random weights in the usual layout (config.json, model.safetensors), for tests and benchmarks. The
// same arguments give the same bytes. Weights are uniform with variance 1/k, so activations stay in range at any depth.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "runtime/inference/kernels.h"
#include "runtime/inference/llama_config.h"

namespace mainstay {

inline LlamaConfig llama_shape(uint32_t hidden, uint32_t feed_forward, uint32_t layers, uint32_t heads,
                               uint32_t kv_heads, uint32_t vocabulary, bool tied, uint32_t context = 2048) {
    LlamaConfig c;
    c.hidden_size = hidden;
    c.intermediate_size = feed_forward;
    c.num_hidden_layers = layers;
    c.num_attention_heads = heads;
    c.num_key_value_heads = kv_heads;
    c.head_dim = hidden / heads;
    c.vocab_size = vocabulary;
    c.max_position_embeddings = context;
    c.tie_word_embeddings = tied;
    return c;
}

class RandomLlama {
  public:
    enum class Type { f32, bf16, f16 };

    RandomLlama(const LlamaConfig& config, Type type, uint64_t seed) : config_(config), type_(type), state_(seed) {}

    void write(const std::filesystem::path& directory) {
        std::filesystem::create_directories(directory);
        std::ofstream(directory / "config.json") << config_json();
        const uint64_t d = config_.hidden_size, ff = config_.intermediate_size;
        const uint64_t heads = uint64_t(config_.num_attention_heads) * config_.head_dim;
        const uint64_t kv = uint64_t(config_.num_key_value_heads) * config_.head_dim;
        matrix("model.embed_tokens.weight", config_.vocab_size, d);
        for (uint32_t l = 0; l < config_.num_hidden_layers; ++l) {
            const std::string at = "model.layers." + std::to_string(l) + ".";
            matrix(at + "self_attn.q_proj.weight", heads, d);
            matrix(at + "self_attn.k_proj.weight", kv, d);
            matrix(at + "self_attn.v_proj.weight", kv, d);
            matrix(at + "self_attn.o_proj.weight", d, heads);
            matrix(at + "mlp.gate_proj.weight", ff, d);
            matrix(at + "mlp.up_proj.weight", ff, d);
            matrix(at + "mlp.down_proj.weight", d, ff);
            vector(at + "input_layernorm.weight", d);
            vector(at + "post_attention_layernorm.weight", d);
        }
        vector("model.norm.weight", d);
        if (!config_.tie_word_embeddings) matrix("lm_head.weight", config_.vocab_size, d);
        header_ += "}";
        while (header_.size() % 8 != 0) header_ += ' ';
        std::ofstream out(directory / "model.safetensors", std::ios::binary);
        const uint64_t length = header_.size();
        out.write(reinterpret_cast<const char*>(&length), 8);  // little-endian machines only, as all that we build for
        out << header_;
        out.write(data_.data(), std::streamsize(data_.size()));
    }

    std::string config_json() const {
        const auto number = [](const char* key, auto value) {
            return "\"" + std::string(key) + "\": " + std::to_string(value) + ", ";
        };
        return "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": \"silu\", " +
               number("hidden_size", config_.hidden_size) + number("intermediate_size", config_.intermediate_size) +
               number("num_hidden_layers", config_.num_hidden_layers) +
               number("num_attention_heads", config_.num_attention_heads) +
               number("num_key_value_heads", config_.num_key_value_heads) + number("head_dim", config_.head_dim) +
               number("max_position_embeddings", config_.max_position_embeddings) +
               number("vocab_size", config_.vocab_size) +
               "\"rms_norm_eps\": 1e-6, \"rope_theta\": " + std::to_string(config_.rope_theta) +
               ", \"tie_word_embeddings\": " + (config_.tie_word_embeddings ? "true" : "false") + "}\n";
    }

  private:
    float next() {  // splitmix64, in [-1, 1)
        state_ += 0x9e3779b97f4a7c15;
        uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return float(int64_t(z ^ (z >> 31)) >> 40) * 0x1p-23f;
    }

    void add(float value) {
        char bytes[4];
        if (type_ == Type::f32) {
            std::memcpy(bytes, &value, 4);
            data_.append(bytes, 4);
            return;
        }
        uint16_t narrow = bf16_of(value);
        if (type_ == Type::f16) {  // magnitudes here are normal in F16
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            narrow = value == 0 ? 0
                                : uint16_t((bits >> 16 & 0x8000) | (((bits >> 23 & 0xff) - 112) << 10 & 0x7c00) |
                                           (bits >> 13 & 0x3ff));
        }
        std::memcpy(bytes, &narrow, 2);
        data_.append(bytes, 2);
    }

    void entry(const std::string& name, const std::string& shape, size_t begin) {
        const char* type = type_ == Type::f32 ? "F32" : type_ == Type::bf16 ? "BF16" : "F16";
        header_ += std::string(header_.size() > 1 ? "," : "") + "\"" + name + "\":{\"dtype\":\"" + type +
                   "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(begin) + "," +
                   std::to_string(data_.size()) + "]}";
    }

    void matrix(const std::string& name, uint64_t rows, uint64_t columns) {
        const size_t begin = data_.size();
        const float scale = std::sqrt(3.0f / float(columns));
        for (uint64_t i = 0; i < rows * columns; ++i) {
            float value = next() * scale;
            if (std::fabs(value) < 1e-4f) value = 1e-4f;
            add(value);
        }
        entry(name, std::to_string(rows) + "," + std::to_string(columns), begin);
    }

    void vector(const std::string& name, uint64_t n) {
        const size_t begin = data_.size();
        for (uint64_t i = 0; i < n; ++i) add(1 + 0.25f * next());
        entry(name, std::to_string(n), begin);
    }

    LlamaConfig config_;
    Type type_;
    uint64_t state_;
    std::string header_ = "{";
    std::string data_;
};

}  // namespace mainstay
