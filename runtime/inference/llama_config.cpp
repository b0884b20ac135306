#include "runtime/inference/llama_config.h"

#include <boost/json.hpp>
#include <cmath>
#include <numbers>
#include <optional>

#include "runtime/base/limits.h"

namespace mainstay {

namespace {

namespace json = boost::json;

std::optional<uint64_t> natural(const json::value& value) {
    if (value.is_uint64()) return value.get_uint64();
    if (value.is_int64() && value.get_int64() >= 0) return uint64_t(value.get_int64());
    return std::nullopt;
}

/// Reads keys and keeps the first complaint: the code below stays a list of keys.
class Reader {
  public:
    Reader(const json::object& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {}

    void number(const char* key, uint32_t& out, uint32_t least, uint32_t most, bool required) {
        const json::value* value = find(key, required);
        if (!value) return;
        const auto got = natural(*value);
        if (!got || *got < least || *got > most)
            return fail(key, "must be an integer from " + std::to_string(least) + " to " + std::to_string(most));
        out = uint32_t(*got);
    }

    void real(const char* key, double& out, bool required) {
        const json::value* value = find(key, required);
        if (!value) return;
        if (!value->is_number()) return fail(key, "must be a number");
        const double got = value->to_number<double>();
        if (!(got > 0) || !std::isfinite(got)) return fail(key, "must be a positive number");
        out = got;
    }

    void flag(const char* key, bool& out) {
        const json::value* value = find(key, false);
        if (!value) return;
        if (!value->is_bool()) return fail(key, "must be true or false");
        out = value->get_bool();
    }

    /// Null where absent; complains where it is no text.
    std::optional<std::string> text(const char* key) {
        const json::value* value = find(key, false);
        if (!value) return std::nullopt;
        if (!value->is_string()) {
            fail(key, "must be a string");
            return std::nullopt;
        }
        return std::string(value->get_string());
    }

    void tokens(const char* key, std::vector<TokenId>& out) {
        const json::value* value = find(key, false);
        if (!value) return;
        const auto add = [&](const json::value& one) {
            const auto id = natural(one);
            if (!id || *id >= limits::model_vocabulary_max) return fail(key, "must be a token id or ids");
            out.push_back(TokenId(*id));
        };
        if (!value->is_array()) return add(*value);
        if (value->get_array().size() > 64) return fail(key, "names more than 64 tokens");
        for (const json::value& one : value->get_array()) add(one);
    }

    /// The value of a key that is there and not null.
    const json::value* find(const char* key, bool required) {
        const json::value* value = object_.if_contains(key);
        if (value && !value->is_null()) return value;
        if (required) fail(key, "is missing");
        return nullptr;
    }

    void fail(const char* key, const std::string& what) {
        if (error_) return;
        const std::string name = prefix_ + key;
        error_ = Error{ErrorCode::model_not_loadable, "config.json: " + name + " " + what, name};
    }
    std::optional<Error>& error() { return error_; }

  private:
    const json::object& object_;
    std::string prefix_;
    std::optional<Error> error_;
};

std::optional<Error> read_scaling(const json::object& object, LlamaConfig& config) {
    Reader reader(object, "rope_scaling.");
    auto kind = reader.text("rope_type");
    if (!kind) kind = reader.text("type");  // the older word
    RopeScaling& scaling = config.rope_scaling;
    if (!kind) {
        reader.fail("rope_type", "is missing");
    } else if (*kind == "default") {
        scaling.kind = RopeScaling::Kind::none;
    } else if (*kind == "linear") {
        scaling.kind = RopeScaling::Kind::linear;
        reader.real("factor", scaling.factor, true);
    } else if (*kind == "llama3") {
        scaling.kind = RopeScaling::Kind::llama3;
        reader.real("factor", scaling.factor, true);
        reader.real("low_freq_factor", scaling.low_freq_factor, true);
        reader.real("high_freq_factor", scaling.high_freq_factor, true);
        reader.number("original_max_position_embeddings", scaling.original_max_position_embeddings, 1,
                      limits::model_context_max, true);
        if (!(scaling.high_freq_factor > scaling.low_freq_factor))
            reader.fail("high_freq_factor", "must be larger than low_freq_factor");
    } else {
        reader.fail("rope_type", "\"" + *kind + "\" is not built (default, linear and llama3 are)");
    }
    return std::move(reader.error());
}

/// Options that change the arithmetic in ways that are not built.
void refuse_unbuilt(Reader& reader) {
    if (const json::value* value = reader.find("architectures", true)) {
        const json::string* only = nullptr;
        if (value->is_array() && value->get_array().size() == 1) only = value->get_array()[0].if_string();
        if (!only)
            reader.fail("architectures", "must name one architecture");
        else if (*only != "LlamaForCausalLM")
            reader.fail("architectures", "\"" + std::string(*only) + "\" is not built (LlamaForCausalLM is)");
    }
    if (const auto type = reader.text("model_type"); type && *type != "llama")
        reader.fail("model_type", "\"" + *type + "\" is not built (llama is)");
    if (const auto act = reader.text("hidden_act"); act && *act != "silu")
        reader.fail("hidden_act", "\"" + *act + "\" is not built (silu is)");
    for (const char* key : {"attention_bias", "mlp_bias"}) {
        bool on = false;
        reader.flag(key, on);
        if (on) reader.fail(key, "true is not built");
    }
    if (reader.find("quantization_config", false)) reader.fail("quantization_config", "is not built");
    if (reader.find("sliding_window", false)) reader.fail("sliding_window", "is not built");
    double partial = 1;
    reader.real("partial_rotary_factor", partial, false);
    if (partial != 1) reader.fail("partial_rotary_factor", "other than 1 is not built");
}

}  // namespace

Result<LlamaConfig> parse_llama_config(std::string_view text) {
    const auto refused = [](std::string why) {
        return Error{ErrorCode::model_not_loadable, "config.json: " + why, {}};
    };
    if (text.size() > limits::model_config_bytes_max)
        return refused("larger than " + std::to_string(limits::model_config_bytes_max) + " bytes");
    json::error_code failed;
    json::parse_options options;
    options.max_depth = limits::json_depth_max;
    const json::value root = json::parse(text, failed, {}, options);
    if (failed) return refused("no valid JSON: " + failed.message());
    if (!root.is_object()) return refused("no JSON object");

    LlamaConfig config;
    Reader reader(root.get_object(), "");
    refuse_unbuilt(reader);
    reader.number("hidden_size", config.hidden_size, 1, limits::model_width_max, true);
    reader.number("intermediate_size", config.intermediate_size, 1, limits::model_feed_forward_max, true);
    reader.number("num_hidden_layers", config.num_hidden_layers, 1, limits::model_layers_max, true);
    reader.number("num_attention_heads", config.num_attention_heads, 1, limits::model_width_max, true);
    config.num_key_value_heads = config.num_attention_heads;
    reader.number("num_key_value_heads", config.num_key_value_heads, 1, limits::model_width_max, false);
    reader.number("vocab_size", config.vocab_size, 1, limits::model_vocabulary_max, true);
    reader.number("max_position_embeddings", config.max_position_embeddings, 1, limits::model_context_max, false);
    reader.real("rope_theta", config.rope_theta, false);
    reader.real("rms_norm_eps", config.rms_norm_eps, false);
    reader.flag("tie_word_embeddings", config.tie_word_embeddings);
    reader.tokens("bos_token_id", config.bos_token_ids);
    reader.tokens("eos_token_id", config.eos_token_ids);
    if (reader.error()) return std::move(*reader.error());

    if (const json::value* value = reader.find("rope_scaling", false)) {
        if (!value->is_object())
            reader.fail("rope_scaling", "must be an object or null");
        else if (auto error = read_scaling(value->get_object(), config))
            return std::move(*error);
    }
    if (config.hidden_size % config.num_attention_heads != 0 && !reader.find("head_dim", false))
        reader.fail("num_attention_heads", "must divide hidden_size where head_dim is not given");
    config.head_dim = config.hidden_size / config.num_attention_heads;
    reader.number("head_dim", config.head_dim, 2, limits::model_head_dim_max, false);
    if (config.num_attention_heads % config.num_key_value_heads != 0)
        reader.fail("num_key_value_heads", "must divide num_attention_heads");
    if (config.head_dim % 2 != 0 || config.head_dim > limits::model_head_dim_max || config.head_dim < 2)
        reader.fail("head_dim", "must be even and at most " + std::to_string(limits::model_head_dim_max));
    if (uint64_t(config.head_dim) * config.num_attention_heads > limits::model_width_max)
        reader.fail("num_attention_heads", "times head_dim is more than " + std::to_string(limits::model_width_max));
    for (const std::vector<TokenId>* ids : {&config.bos_token_ids, &config.eos_token_ids})
        for (const TokenId id : *ids)
            if (id >= config.vocab_size)
                reader.fail(ids == &config.bos_token_ids ? "bos_token_id" : "eos_token_id", "is not below vocab_size");
    if (reader.error()) return std::move(*reader.error());
    return config;
}

uint64_t LlamaConfig::parameters() const {
    const uint64_t d = hidden_size, heads = uint64_t(num_attention_heads) * head_dim,
                   kv = uint64_t(num_key_value_heads) * head_dim;
    const uint64_t layer = d * (heads + 2 * kv) + heads * d + 3 * d * intermediate_size + 2 * d;
    return num_hidden_layers * layer + d + d * vocab_size * (tie_word_embeddings ? 1 : 2);
}

std::vector<float> LlamaConfig::rope_frequencies() const {
    std::vector<float> out(head_dim / 2);
    for (uint32_t i = 0; i < head_dim / 2; ++i) {
        double frequency = std::pow(rope_theta, -2.0 * i / head_dim);
        if (rope_scaling.kind == RopeScaling::Kind::linear) {
            frequency /= rope_scaling.factor;
        } else if (rope_scaling.kind == RopeScaling::Kind::llama3) {
            // Llama 3.1's rule (Hugging Face modeling_rope_utils): long waves are slowed by `factor`, short ones are
            // kept, those between are mixed.
            const double wavelength = 2 * std::numbers::pi / frequency;
            const double original = rope_scaling.original_max_position_embeddings;
            if (wavelength > original / rope_scaling.low_freq_factor) {
                frequency /= rope_scaling.factor;
            } else if (wavelength >= original / rope_scaling.high_freq_factor) {
                const double smooth = (original / wavelength - rope_scaling.low_freq_factor) /
                                      (rope_scaling.high_freq_factor - rope_scaling.low_freq_factor);
                frequency = (1 - smooth) * frequency / rope_scaling.factor + smooth * frequency;
            }
        }
        out[i] = float(frequency);
    }
    return out;
}

}  // namespace mainstay
