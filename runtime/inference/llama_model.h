#pragma once
// The weights of a Llama, read once from safetensors and packed for the kernels (kernels.h). Immutable afterwards, so
// devices of one process may share them. Matrices that see the same input are packed as one: queries, keys and values;
// gate and up, panel by panel in turn, so that one thread has both halves of what it multiplies.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/result.h"
#include "runtime/inference/kv_pages.h"
#include "runtime/inference/llama_config.h"

namespace mainstay {

/// A packed matrix: y[n] = x[k] W.
struct PackedMatrix {
    const void* data = nullptr;
    uint32_t n = 0;  // columns
    uint32_t k = 0;  // padded to k_granule
    uint32_t panels() const { return uint32_t(round_up(n, panel_columns) / panel_columns); }
};

struct LlamaLayer {
    PackedMatrix qkv;      // columns: query heads, key heads, value heads
    PackedMatrix output;   // of attention
    PackedMatrix gate_up;  // panels: gate, up, gate, up, ...
    PackedMatrix down;
    std::vector<float> attention_norm;
    std::vector<float> feed_forward_norm;
};

class LlamaModel {
  public:
    /// Reads config.json and the weights of `directory`. Refuses, before it allocates, what needs more than
    /// `memory_bytes_max`. Fails with model_not_loadable, naming the file, key or tensor.
    static Result<std::unique_ptr<LlamaModel>> load(const std::string& directory, Precision precision,
                                                    uint64_t memory_bytes_max);
    /// Whether load() would find what it needs, but for memory: reads config.json and the headers of the weights, and
    /// fails as load() does.
    static Result<LlamaConfig> check(const std::string& directory);

    const LlamaConfig& config() const { return config_; }
    Precision precision() const { return precision_; }
    /// Hex; of the configuration and of every byte of every tensor.
    const std::string& hash() const { return hash_; }
    const std::vector<LlamaLayer>& layers() const { return layers_; }
    const PackedMatrix& head() const { return head_; }
    const std::vector<float>& final_norm() const { return final_norm_; }
    /// One row of the table of embeddings, as floats.
    void embed(TokenId token, float* out) const;
    /// Bytes of all matrices, as a step that uses them all reads them.
    uint64_t matrix_bytes() const { return matrix_bytes_; }
    uint64_t memory_bytes() const { return arena_.size(); }

  private:
    LlamaModel() = default;
    static uint64_t bytes_needed(const LlamaConfig& config, Precision precision);

    LlamaConfig config_;
    Precision precision_ = Precision::bf16;
    std::string hash_;
    Arena arena_;
    const uint8_t* embeddings_ = nullptr;  // [vocab][hidden]
    std::vector<LlamaLayer> layers_;
    PackedMatrix head_;
    std::vector<float> final_norm_;
    uint64_t matrix_bytes_ = 0;

    friend class LlamaLoader;
};

/// Bytes that the machine could give now: MemAvailable, or less where a control group allows less.
uint64_t available_memory_bytes();

}  // namespace mainstay
