#pragma once
// The arithmetic of a decoder on one thread, once per instruction set. A table of plain functions is chosen at run time
// (best_kernels); each table is compiled in a file of its own with that file's flags (CMakeLists.txt), and those files
// use nothing inline from outside, so that no instruction of theirs can leak into code that runs everywhere.
//
// Invariant that DECISIONS 20 rests on: what one output element is made of, and in which order it is summed, depends on
// that element only. Not on the number of rows, on which rows come together, on the split over threads or on how a
// prompt was cut into chunks. Each function says its order. Two tables may differ in bits; the table's name is part of
// the kernel id.
//
// Weights are packed in panels of 32 output columns, so that a panel streams through the cache once for all rows:
//   F32:  [panel][k][32]         BF16: [panel][k / 2][32][2]
// k is padded with zeros to a multiple of 32, the last panel with zero columns. The BF16 layout serves pairwise dot
// products, tile registers and widening loads alike, so every table reads the same packed weights.
//
// Keys and values of 16 tokens form a tile, and a KV block holds whole tiles:
//   keys BF16 [head_dim / 2][16][2], F32 [head_dim][16]: one vector of 16 tokens per dimension, no horizontal sums
//   values F32 [16][padded], BF16 [8][padded][2] (two tokens side by side), padded: head_dim up to a multiple of 16

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mainstay {

constexpr uint32_t panel_columns = 32;
constexpr uint32_t k_granule = 32;       // k is padded to a multiple
constexpr uint32_t row_granule = 16;     // rows of inputs and outputs exist, as padding, up to a multiple
constexpr uint32_t kv_tile_tokens = 16;  // tokens of one tile of keys or values
constexpr uint32_t kv_span_tokens = 64;  // keys that attention takes in one step of its online softmax, by position

constexpr size_t round_up(size_t n, size_t granule) { return (n + granule - 1) / granule * granule; }

/// One product of rows with panels [panel_begin, panel_end) of a packed matrix: y[r][c] (+)= sum over k of x[r][k]
/// w[k][c], summed by rising k. Only those panels' columns of y are touched; rows beyond `rows`, up to row_granule, are
/// undefined afterwards.
struct Product {
    const void* weights = nullptr;  // 64-byte aligned
    const void* x = nullptr;        // floats, or BF16 where the table says so
    size_t x_stride = 0;            // elements; at least k
    float* y = nullptr;
    size_t y_stride = 0;  // at least the padded number of columns
    uint32_t rows = 0;
    uint32_t k = 0;  // padded
    uint32_t panel_begin = 0;
    uint32_t panel_end = 0;
    bool accumulate = false;
};

/// Attention of consecutive query tokens of one sequence, for one head of keys and values and the heads of queries that
/// share it. The token at `position + t` sees positions up to its own. Softmax runs online over spans of 64 positions
/// in rising order, each span aligned by position, so chunking cannot be seen.
struct Attention {
    const float* q = nullptr;  // [tokens][...]: query head h of the group at q + t * q_stride + h * head_dim
    size_t q_stride = 0;
    float* out = nullptr;  // same shape
    size_t out_stride = 0;
    const uint8_t* pages = nullptr;        // block b begins at pages + b * page_stride
    size_t page_stride = 0;                // bytes
    size_t key_offset = 0;                 // bytes in a block: first tile of keys of this layer and head
    size_t value_offset = 0;               // the same for values
    size_t next_head_offset = 0;           // bytes to what is likely asked for next: fetched early, never read
    const int32_t* block_table = nullptr;  // of the sequence
    uint32_t block_tokens = 0;             // multiple of 16
    uint32_t position = 0;
    uint32_t tokens = 0;
    uint32_t group = 0;  // query heads of this head of keys
    uint32_t head_dim = 0;
    float scale = 0;
    float* scratch = nullptr;  // attention_scratch_floats(head_dim)
};
constexpr size_t attention_queries_max = 4;  // taken together
constexpr size_t attention_scratch_floats(size_t head_dim) {
    return attention_queries_max * (kv_span_tokens + round_up(head_dim, 16)) + 64;
}

struct LogitScan {
    uint32_t best = 0;   // index of the largest, the lowest of equals
    float largest = 0;   // its value
    bool finite = true;  // all are
};

struct Kernels {
    const char* name;
    bool bf16_rows;  // products with BF16 weights take BF16 rows; else, as with F32 weights, floats

    void (*product_bf16)(const Product&);
    void (*product_f32)(const Product&);
    void (*attend_bf16)(const Attention&);
    void (*attend_f32)(const Attention&);
    /// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]
    void (*rms_norm)(const float* x, const float* weight, float eps, uint32_t n, float* out);
    /// out[i] = silu(gate[i]) * up[i]; n a multiple of 16
    void (*swiglu)(const float* gate, const float* up, uint32_t n, float* out);
    /// Halves (x[i], x[i + half]) turned by (cosine[i], sine[i]): the order of Hugging Face's Llama.
    void (*rotate)(float* x, const float* cosine, const float* sine, uint32_t half);
    void (*to_bf16)(const float* x, uint32_t n, uint16_t* out);  // nearest, ties to even
    LogitScan (*scan_logits)(const float* logits, uint32_t n);
    /// Called by each thread before and after its products of one step: tile registers are configured and released.
    void (*begin)();
    void (*end)();
};

/// Tables that this machine can run, best first. Never empty: "portable" is last.
const std::vector<const Kernels*>& runnable_kernels();
/// Null: unknown, or this machine cannot run it.
const Kernels* find_kernels(const char* name);
inline const Kernels& best_kernels() { return *runnable_kernels().front(); }

/// Packing. `source` gives row-major [n][k] floats of output column n, as Hugging Face stores linear layers.
size_t packed_elements(size_t n, size_t k);  // padded
/// Packs row `column` of a matrix; `interleave` as packed columns are counted by the caller.
void pack_column_bf16(uint16_t* panels, size_t k_padded, size_t column, const float* row, size_t k);
void pack_column_f32(float* panels, size_t k_padded, size_t column, const float* row, size_t k);

uint16_t bf16_of(float value);
float float_of_bf16(uint16_t value);
float float_of_f16(uint16_t value);

}  // namespace mainstay
