#pragma once
// What config.json of a Llama model says, in Hugging Face's words. What would change the arithmetic and is not built is
// refused by name, never ignored: a model that loads computes what its author meant.

#include <cstdint>
#include <string_view>
#include <vector>

#include "runtime/base/result.h"
#include "runtime/inference/sampling_params.h"

namespace mainstay {

/// `rope_scaling`: how positions beyond those of the training are reached.
struct RopeScaling {
    enum class Kind : uint8_t { none, linear, llama3 };
    Kind kind = Kind::none;
    double factor = 1;
    double low_freq_factor = 1;  // llama3 only, as the next two
    double high_freq_factor = 4;
    uint32_t original_max_position_embeddings = 0;
};

struct LlamaConfig {
    uint32_t hidden_size = 0;
    uint32_t intermediate_size = 0;
    uint32_t num_hidden_layers = 0;
    uint32_t num_attention_heads = 0;
    uint32_t num_key_value_heads = 0;  // default: num_attention_heads
    uint32_t head_dim = 0;             // default: hidden_size / num_attention_heads
    uint32_t vocab_size = 0;
    uint32_t max_position_embeddings = 2048;
    double rope_theta = 10000;
    double rms_norm_eps = 1e-6;
    RopeScaling rope_scaling;
    bool tie_word_embeddings = false;
    std::vector<TokenId> bos_token_ids;  // one id or none
    std::vector<TokenId> eos_token_ids;  // one, several or none

    uint64_t parameters() const;  // of all weights; tied ones once
    /// Multiplied by the position: the angle of each pair of dimensions, head_dim / 2 of them, scaling applied.
    std::vector<float> rope_frequencies() const;
};

/// Fails with model_not_loadable and the key as `param`.
Result<LlamaConfig> parse_llama_config(std::string_view json);

}  // namespace mainstay
