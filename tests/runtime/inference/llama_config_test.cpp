#include "runtime/inference/llama_config.h"

#include <doctest/doctest.h>

#include <cmath>
#include <string>

using namespace mainstay;

namespace {

const std::string good = R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "unknown_key": [1, 2]})";

/// `good` with `more` put in front of its last brace; later keys win.
std::string with(const std::string& more) { return good.substr(0, good.size() - 1) + ", " + more + "}"; }

}  // namespace

TEST_CASE("llama config: keys that are not given have Hugging Face's defaults") {
    const auto config = parse_llama_config(good);
    REQUIRE(config.ok());
    CHECK(config->num_key_value_heads == 4);
    CHECK(config->head_dim == 16);
    CHECK(config->rope_theta == 10000);
    CHECK(config->rms_norm_eps == 1e-6);
    CHECK(!config->tie_word_embeddings);
    CHECK(config->eos_token_ids.empty());
    CHECK(config->rope_frequencies().size() == 8);
    CHECK(config->rope_frequencies()[0] == 1.0f);
    CHECK(config->parameters() == 2 * (64 * 64 * 4 + 3 * 64 * 128 + 2 * 64) + 64 + 2 * 64 * 100);
}

TEST_CASE("llama config: all that is given is read") {
    const auto config = parse_llama_config(with(R"("num_key_value_heads": 2, "head_dim": 32, "rope_theta": 500000.0,
        "rms_norm_eps": 1e-05, "tie_word_embeddings": true, "max_position_embeddings": 8192, "bos_token_id": 1,
        "eos_token_id": [2, 3], "model_type": "llama", "hidden_act": "silu", "attention_bias": false, "rope_scaling": null)"));
    REQUIRE(config.ok());
    CHECK(config->num_key_value_heads == 2);
    CHECK(config->head_dim == 32);
    CHECK(config->rope_theta == 500000);
    CHECK(config->tie_word_embeddings);
    CHECK(config->max_position_embeddings == 8192);
    CHECK(config->bos_token_ids == std::vector<TokenId>{1});
    CHECK(config->eos_token_ids == std::vector<TokenId>{2, 3});
}

TEST_CASE("llama config: what is missing, malformed or not built is refused by its key") {
    const std::pair<std::string, std::string> cases[] = {
        {R"({"architectures": ["LlamaForCausalLM"]})", "hidden_size"},
        {R"({"hidden_size": 64})", "architectures"},
        {with(R"("architectures": ["MistralForCausalLM"])"), "architectures"},
        {with(R"("architectures": [])"), "architectures"},
        {with(R"("model_type": "gemma")"), "model_type"},
        {with(R"("hidden_act": "gelu")"), "hidden_act"},
        {with(R"("attention_bias": true)"), "attention_bias"},
        {with(R"("mlp_bias": true)"), "mlp_bias"},
        {with(R"("sliding_window": 4096)"), "sliding_window"},
        {with(R"("quantization_config": {})"), "quantization_config"},
        {with(R"("hidden_size": -1)"), "hidden_size"},
        {with(R"("hidden_size": 1.5)"), "hidden_size"},
        {with(R"("hidden_size": "64")"), "hidden_size"},
        {with(R"("hidden_size": 100000000)"), "hidden_size"},
        {with(R"("num_hidden_layers": 0)"), "num_hidden_layers"},
        {with(R"("num_attention_heads": 5)"), "num_attention_heads"},
        {with(R"("num_key_value_heads": 3)"), "num_key_value_heads"},
        {with(R"("head_dim": 7)"), "head_dim"},
        {with(R"("head_dim": 1024)"), "head_dim"},
        {with(R"("rms_norm_eps": 0)"), "rms_norm_eps"},
        {with(R"("rope_theta": "many")"), "rope_theta"},
        {with(R"("tie_word_embeddings": 1)"), "tie_word_embeddings"},
        {with(R"("eos_token_id": 100)"), "eos_token_id"},
        {with(R"("eos_token_id": "</s>")"), "eos_token_id"},
        {with(R"("rope_scaling": 8)"), "rope_scaling"},
        {with(R"("rope_scaling": {"rope_type": "yarn", "factor": 2.0})"), "rope_scaling.rope_type"},
        {with(R"("rope_scaling": {"factor": 2.0})"), "rope_scaling.rope_type"},
        {with(R"("rope_scaling": {"type": "linear"})"), "rope_scaling.factor"},
        {with(
             R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0})"),
         "rope_scaling.original_max_position_embeddings"},
        {with(R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64})"),
         "rope_scaling.high_freq_factor"},
        {"[1]", ""},
        {"{", ""},
        {std::string(2 << 20, ' '), ""},
    };
    for (const auto& [text, key] : cases) {
        INFO(text.substr(0, 300));
        const auto config = parse_llama_config(text);
        REQUIRE(!config.ok());
        CHECK(config.error().code == ErrorCode::model_not_loadable);
        CHECK(config.error().param == key);
        CHECK(config.error().message.find(key) != std::string::npos);
    }
}

TEST_CASE("llama config: Llama 3's scaling keeps short waves, slows long ones and mixes those between") {
    const auto config =
        parse_llama_config(with(R"("head_dim": 64, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3",
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})"));
    REQUIRE(config.ok());
    const std::vector<float> got = config->rope_frequencies();
    const auto plain = [](int i) { return std::pow(500000.0, -i / 32.0); };
    CHECK(got[0] == doctest::Approx(plain(0)));
    CHECK(got[31] == doctest::Approx(plain(31) / 8));
    bool mixed = false;
    for (int i = 0; i < 32; ++i) {
        CHECK(got[size_t(i)] <= plain(i) * 1.000001);
        CHECK(got[size_t(i)] >= plain(i) / 8 * 0.999999);
        mixed = mixed || (got[size_t(i)] < plain(i) * 0.99 && got[size_t(i)] > plain(i) / 8 * 1.01);
    }
    CHECK(mixed);
}
