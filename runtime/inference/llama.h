#pragma once
// The forward pass of a Llama over a batch of rows: embeddings, per layer RMSNorm, attention over paged keys and
// values, SwiGLU, and the head for the rows that want logits. The residual stream is F32 throughout; products take rows
// in the model's precision where the kernels do.
//
// One job on all threads, with barriers between phases; which thread computes an element never matters (kernels.h). A
// row of the batch meets the others nowhere: same tokens, positions and blocks, same bits. Owned by the device's
// thread.

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/inference/device.h"
#include "runtime/inference/kernels.h"
#include "runtime/inference/kv_pages.h"
#include "runtime/inference/llama_model.h"
#include "runtime/inference/worker_threads.h"

namespace mainstay {

/// One sequence's tokens, checked by the caller: ids below the vocabulary, positions below the context, each position's
/// block in the table a real one.
struct LlamaRow {
    std::span<const TokenId> tokens;
    uint32_t position = 0;
    const BlockId* block_table = nullptr;
    bool want_logits = false;  // of the last token: scan()
    bool keep_logits = false;  // and logits(); a step in which no row keeps them does not write them to memory
};

struct LlamaSizes {
    uint32_t rows_max = 0;     // that want logits
    uint32_t tokens_max = 0;   // of one batch
    uint32_t context_max = 0;  // tokens of one sequence
};

class Llama {
  public:
    /// All of these outlive it.
    Llama(const LlamaModel& model, const Kernels& kernels, WorkerThreads& threads, KvPages& pages,
          const LlamaSizes& sizes);

    /// Computes the batch and writes its keys and values. Rows must not share a position's slot.
    void forward(std::span<const LlamaRow> rows);

    /// After forward(): of the i-th row that wanted logits, if a row of the batch was to keep them. Writable, for
    /// masks; valid until the next forward().
    std::span<float> logits(uint32_t i) {
        return {logits_.get() + size_t(i) * logits_stride_, model_.config().vocab_size};
    }
    /// After forward(): the largest logit of the same row.
    const LogitScan& scan(uint32_t i) const { return scans_[i]; }

    /// What forward() needs beside weights and blocks.
    static uint64_t memory_bytes(const LlamaConfig& config, const LlamaSizes& sizes, unsigned threads);

    /// Only the products of a step of `tokens` tokens, `rows` of which want logits: the bound that benchmarks compare
    /// with.
    void products_only(uint32_t tokens, uint32_t rows);

  private:
    struct Deleter {
        void operator()(void* memory) const;
    };
    template <class T>
    using Buffer = std::unique_ptr<T[], Deleter>;
    template <class T>
    static Buffer<T> buffer(size_t elements);

    struct Token {
        uint32_t row;
        uint32_t position;
    };

    void run_thread(unsigned thread, std::span<const LlamaRow> rows);
    void score(unsigned thread, uint32_t wanted);
    void normalise(unsigned thread, uint32_t begin, uint32_t end, const std::vector<float>& weight);
    void attend(unsigned thread, uint32_t layer, std::span<const LlamaRow> rows);
    void write_tokens(uint32_t layer, uint32_t head, std::span<const LlamaRow> rows, uint32_t begin, uint32_t end);
    void attend_row(unsigned thread, uint32_t layer, uint32_t head, const LlamaRow& row, uint32_t first, uint32_t from,
                    uint32_t count);
    void gate_and_up(unsigned thread, const LlamaLayer& layer, uint32_t pair, uint32_t rows);
    void feed_forward(unsigned thread, const LlamaLayer& layer, uint32_t rows);
    void product(const PackedMatrix& matrix, const void* x, size_t x_stride, float* y, size_t y_stride, uint32_t rows,
                 uint32_t panel_begin, uint32_t panel_end, bool accumulate) const;
    void product_share(unsigned thread, const PackedMatrix& matrix, const void* x, size_t x_stride, float* y,
                       size_t y_stride, uint32_t rows, bool accumulate) const;
    /// `n` floats to a row of inputs of a product.
    void store_input(void* to, const float* from, uint32_t n) const;
    uint8_t* input_row(const Buffer<uint8_t>& inputs, size_t stride, uint32_t row) const {
        return inputs.get() + size_t(row) * stride * input_bytes_;
    }

    const LlamaModel& model_;
    const LlamaConfig& config_;
    const Kernels& kernels_;
    WorkerThreads& threads_;
    KvPages& pages_;
    const LlamaSizes sizes_;
    const bool narrow_inputs_;  // products take BF16 rows
    const size_t input_bytes_;  // of one element of them
    const float attention_scale_;

    // Strides in elements; each an odd number of cache lines, so that sixteen rows do not fall into one set.
    size_t hidden_stride_ = 0, qkv_stride_ = 0, heads_stride_ = 0, logits_stride_ = 0;
    size_t hidden_in_stride_ = 0, heads_in_stride_ = 0, ff_in_stride_ = 0;
    Buffer<float> residual_, qkv_, heads_out_, logits_, scratch_;
    Buffer<uint8_t> hidden_in_, heads_in_, ff_in_, head_in_;
    size_t scratch_stride_ = 0;         // floats of one thread
    std::vector<float> cosine_, sine_;  // [position][head_dim / 2]

    std::vector<Token> tokens_;
    std::vector<uint32_t> row_begin_;  // first token of each row
    std::vector<uint32_t> wanted_;     // token index of each row that wants logits
    bool keep_logits_ = false;
    std::vector<LogitScan> scans_, scan_parts_;  // of all columns; of each thread's, [thread][row]
    std::atomic<uint32_t> next_task_{0};
};

}  // namespace mainstay
