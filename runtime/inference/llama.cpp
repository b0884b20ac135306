#include "runtime/inference/llama.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "runtime/base/invariant.h"

namespace mainstay {

namespace {

constexpr uint32_t attention_chunk = 16;  // query tokens of one task, of a prompt
constexpr uint32_t head_panels = 16;      // of the head's product before its logits are looked at
constexpr size_t head_stride = head_panels * panel_columns + 16;  // floats of a thread's row of those
constexpr size_t pair_stride = 80;  // floats of a thread's row of one gate and one up panel: five cache lines

/// Elements of a row that begins on a cache line and whose length is an odd number of them.
size_t odd_stride(size_t elements, size_t bytes) {
    const size_t lines = round_up(elements * bytes, 64) / 64;
    return (lines | 1) * 64 / bytes;
}

/// The part of n that is this thread's.
struct Share {
    uint32_t begin, end;
    Share(uint32_t n, unsigned thread, unsigned threads)
        : begin(uint32_t(uint64_t(n) * thread / threads)), end(uint32_t(uint64_t(n) * (thread + 1) / threads)) {}
};

/// `more` is of later columns: of equals the lower one stays.
void merge(LogitScan& scan, const LogitScan& more) {
    if (more.largest > scan.largest) {
        scan.best = more.best;
        scan.largest = more.largest;
    }
    scan.finite = scan.finite && more.finite;
}

size_t scratch_floats(const LlamaConfig& config, const LlamaSizes& sizes) {
    const size_t rows = round_up(sizes.tokens_max, row_granule);
    return round_up(std::max({size_t(config.hidden_size) + attention_scratch_floats(config.head_dim),
                              rows * pair_stride, round_up(sizes.rows_max, row_granule) * head_stride}),
                    16);
}

}  // namespace

void Llama::Deleter::operator()(void* memory) const { std::free(memory); }

template <class T>
Llama::Buffer<T> Llama::buffer(size_t elements) {
    const size_t bytes = round_up(std::max<size_t>(elements * sizeof(T), 64), 64);
    void* memory = std::aligned_alloc(64, bytes);
    INVARIANT(memory, "memory that was asked for beforehand");
    std::memset(memory, 0, bytes);  // what pads k stays zero for ever
    return Buffer<T>(static_cast<T*>(memory));
}

Llama::Llama(const LlamaModel& model, const Kernels& kernels, WorkerThreads& threads, KvPages& pages,
             const LlamaSizes& sizes)
    : model_(model),
      config_(model.config()),
      kernels_(kernels),
      threads_(threads),
      pages_(pages),
      sizes_(sizes),
      narrow_inputs_(kernels.bf16_rows && model.precision() == Precision::bf16),
      input_bytes_(narrow_inputs_ ? 2 : 4),
      attention_scale_(1.0f / std::sqrt(float(config_.head_dim))) {
    const uint32_t heads = config_.num_attention_heads * config_.head_dim;
    const uint32_t kv = config_.num_key_value_heads * config_.head_dim;
    hidden_stride_ = odd_stride(round_up(config_.hidden_size, panel_columns), 4);
    qkv_stride_ = odd_stride(round_up(heads + 2 * kv, panel_columns), 4);
    heads_stride_ = odd_stride(heads, 4);
    logits_stride_ = odd_stride(round_up(config_.vocab_size, panel_columns), 4);
    hidden_in_stride_ = odd_stride(round_up(config_.hidden_size, k_granule), input_bytes_);
    heads_in_stride_ = odd_stride(round_up(heads, k_granule), input_bytes_);
    ff_in_stride_ = odd_stride(round_up(config_.intermediate_size, panel_columns), input_bytes_);
    const size_t tokens = round_up(sizes.tokens_max, row_granule), rows = round_up(sizes.rows_max, row_granule);
    residual_ = buffer<float>(tokens * hidden_stride_);
    qkv_ = buffer<float>(tokens * qkv_stride_);
    heads_out_ = buffer<float>(tokens * heads_stride_);
    logits_ = buffer<float>(rows * logits_stride_);
    hidden_in_ = buffer<uint8_t>(tokens * hidden_in_stride_ * input_bytes_);
    heads_in_ = buffer<uint8_t>(tokens * heads_in_stride_ * input_bytes_);
    ff_in_ = buffer<uint8_t>(tokens * ff_in_stride_ * input_bytes_);
    head_in_ = buffer<uint8_t>(rows * hidden_in_stride_ * input_bytes_);
    scratch_stride_ = scratch_floats(config_, sizes);
    scratch_ = buffer<float>(scratch_stride_ * threads.count());

    const std::vector<float> frequencies = config_.rope_frequencies();
    const size_t half = frequencies.size();
    cosine_.resize(size_t(sizes.context_max) * half);
    sine_.resize(cosine_.size());
    for (size_t position = 0; position < sizes.context_max; ++position)
        for (size_t i = 0; i < half; ++i) {
            // The angle is rounded to a float first, as the model's authors did when they trained it.
            const float angle = float(position) * frequencies[i];
            cosine_[position * half + i] = float(std::cos(double(angle)));
            sine_[position * half + i] = float(std::sin(double(angle)));
        }
    scans_.resize(sizes.rows_max);
    scan_parts_.resize(size_t(sizes.rows_max) * threads.count());
}

uint64_t Llama::memory_bytes(const LlamaConfig& config, const LlamaSizes& sizes, unsigned threads) {
    const uint64_t heads = uint64_t(config.num_attention_heads) * config.head_dim;
    const uint64_t kv = uint64_t(config.num_key_value_heads) * config.head_dim;
    const uint64_t per_token = 2 * config.hidden_size + 2 * kv + 3 * heads + config.intermediate_size + 256;
    const uint64_t tokens = round_up(sizes.tokens_max, row_granule), rows = round_up(sizes.rows_max, row_granule);
    return 4 * (tokens * per_token + rows * (uint64_t(config.vocab_size) + config.hidden_size + 128) +
                scratch_floats(config, sizes) * threads + uint64_t(sizes.context_max) * config.head_dim);
}

void Llama::store_input(void* to, const float* from, uint32_t n) const {
    if (narrow_inputs_)
        kernels_.to_bf16(from, n, static_cast<uint16_t*>(to));
    else
        std::memcpy(to, from, size_t(n) * sizeof(float));
}

void Llama::product(const PackedMatrix& matrix, const void* x, size_t x_stride, float* y, size_t y_stride,
                    uint32_t rows, uint32_t panel_begin, uint32_t panel_end, bool accumulate) const {
    const Product p{matrix.data, x, x_stride, y, y_stride, rows, matrix.k, panel_begin, panel_end, accumulate};
    if (model_.precision() == Precision::bf16)
        kernels_.product_bf16(p);
    else
        kernels_.product_f32(p);
}

void Llama::product_share(unsigned thread, const PackedMatrix& matrix, const void* x, size_t x_stride, float* y,
                          size_t y_stride, uint32_t rows, bool accumulate) const {
    const Share panels(matrix.panels(), thread, threads_.count());
    product(matrix, x, x_stride, y, y_stride, rows, panels.begin, panels.end, accumulate);
}

void Llama::forward(std::span<const LlamaRow> rows) {
    tokens_.clear();
    row_begin_.clear();
    wanted_.clear();
    keep_logits_ = false;
    for (const LlamaRow& row : rows) {
        row_begin_.push_back(uint32_t(tokens_.size()));
        for (size_t i = 0; i < row.tokens.size(); ++i)
            tokens_.push_back({uint32_t(row_begin_.size() - 1), row.position + uint32_t(i)});
        if (row.want_logits) wanted_.push_back(uint32_t(tokens_.size() - 1));
        keep_logits_ = keep_logits_ || (row.want_logits && row.keep_logits);
    }
    INVARIANT(tokens_.size() <= sizes_.tokens_max, "tokens of a batch");
    INVARIANT(wanted_.size() <= sizes_.rows_max, "rows of a batch that want logits");
    if (tokens_.empty()) return;
    threads_.run([&](unsigned thread) { run_thread(thread, rows); });
}

void Llama::run_thread(unsigned thread, std::span<const LlamaRow> rows) {
    const uint32_t count = uint32_t(tokens_.size());
    const Share mine(count, thread, threads_.count());
    kernels_.begin();
    for (uint32_t t = mine.begin; t < mine.end; ++t) {
        const Token& token = tokens_[t];
        model_.embed(rows[token.row].tokens[token.position - rows[token.row].position],
                     residual_.get() + t * hidden_stride_);
    }
    for (uint32_t l = 0; l < config_.num_hidden_layers; ++l) {
        const LlamaLayer& layer = model_.layers()[l];
        if (thread == 0) next_task_.store(0, std::memory_order_relaxed);  // the barrier before last made it idle
        normalise(thread, mine.begin, mine.end, layer.attention_norm);
        threads_.barrier();
        product_share(thread, layer.qkv, hidden_in_.get(), hidden_in_stride_, qkv_.get(), qkv_stride_, count, false);
        threads_.barrier();
        attend(thread, l, rows);
        threads_.barrier();
        product_share(thread, layer.output, heads_in_.get(), heads_in_stride_, residual_.get(), hidden_stride_, count,
                      true);
        threads_.barrier();
        normalise(thread, mine.begin, mine.end, layer.feed_forward_norm);
        threads_.barrier();
        feed_forward(thread, layer, count);
        threads_.barrier();
        product_share(thread, layer.down, ff_in_.get(), ff_in_stride_, residual_.get(), hidden_stride_, count, true);
        threads_.barrier();
    }
    const uint32_t wanted = uint32_t(wanted_.size());
    const Share heads(wanted, thread, threads_.count());
    float* row = scratch_.get() + thread * scratch_stride_;
    for (uint32_t i = heads.begin; i < heads.end; ++i) {
        kernels_.rms_norm(residual_.get() + wanted_[i] * hidden_stride_, model_.final_norm().data(),
                          float(config_.rms_norm_eps), config_.hidden_size, row);
        store_input(input_row(head_in_, hidden_in_stride_, i), row, config_.hidden_size);
    }
    threads_.barrier();
    score(thread, wanted);
    threads_.barrier();
    for (uint32_t i = heads.begin; i < heads.end; ++i) {
        scans_[i] = scan_parts_[i];
        for (unsigned part = 1; part < threads_.count(); ++part)
            merge(scans_[i], scan_parts_[part * sizes_.rows_max + i]);
    }
    kernels_.end();
}

/// The head's product and the largest logit of each row among this thread's columns, some panels at a time, so that
/// logits are looked at while they are in the cache.
void Llama::score(unsigned thread, uint32_t wanted) {
    const Share panels(model_.head().panels(), thread, threads_.count());
    LogitScan* scans = scan_parts_.data() + thread * sizes_.rows_max;
    for (uint32_t i = 0; i < wanted; ++i) scans[i] = {0, -std::numeric_limits<float>::infinity(), true};
    for (uint32_t begin = panels.begin; begin < panels.end; begin += head_panels) {
        const uint32_t end = std::min(begin + head_panels, panels.end), column = begin * panel_columns;
        PackedMatrix part = model_.head();
        part.data =
            static_cast<const uint8_t*>(part.data) + size_t(column) * part.k * element_bytes(model_.precision());
        float* y = keep_logits_ ? logits_.get() + column : scratch_.get() + thread * scratch_stride_;
        const size_t stride = keep_logits_ ? logits_stride_ : head_stride;
        product(part, head_in_.get(), hidden_in_stride_, y, stride, wanted, 0, end - begin, false);
        for (uint32_t i = 0; i < wanted; ++i) {
            LogitScan more =
                kernels_.scan_logits(y + i * stride, std::min(end * panel_columns, config_.vocab_size) - column);
            more.best += column;
            merge(scans[i], more);
        }
    }
}

void Llama::normalise(unsigned thread, uint32_t begin, uint32_t end, const std::vector<float>& weight) {
    float* row = scratch_.get() + thread * scratch_stride_;
    for (uint32_t t = begin; t < end; ++t) {
        kernels_.rms_norm(residual_.get() + t * hidden_stride_, weight.data(), float(config_.rms_norm_eps),
                          config_.hidden_size, row);
        store_input(input_row(hidden_in_, hidden_in_stride_, t), row, config_.hidden_size);
    }
}

/// Keys turned and written for tokens [begin, end) of the batch, and their queries turned.
void Llama::write_tokens(uint32_t layer, uint32_t head, std::span<const LlamaRow> rows, uint32_t begin, uint32_t end) {
    const uint32_t dim = config_.head_dim, half = dim / 2;
    const uint32_t heads = config_.num_attention_heads, kv = config_.num_key_value_heads, group = heads / kv;
    const uint32_t block_tokens = pages_.shape().block_tokens;
    for (uint32_t t = begin; t < end; ++t) {
        const Token& token = tokens_[t];
        const float* cosine = cosine_.data() + size_t(token.position) * half;
        const float* sine = sine_.data() + size_t(token.position) * half;
        float* line = qkv_.get() + t * qkv_stride_;
        for (uint32_t g = 0; g < group; ++g) kernels_.rotate(line + (head * group + g) * dim, cosine, sine, half);
        float* key = line + (heads + head) * dim;
        kernels_.rotate(key, cosine, sine, half);
        const BlockId block = rows[token.row].block_table[token.position / block_tokens];
        const int64_t slot = int64_t(block) * block_tokens + token.position % block_tokens;
        pages_.write(slot, layer, head, key, line + (heads + kv + head) * dim, kernels_);
    }
}

/// Tokens [from, from + count) of a row whose first token in the batch is `first`.
void Llama::attend_row(unsigned thread, uint32_t layer, uint32_t head, const LlamaRow& row, uint32_t first,
                       uint32_t from, uint32_t count) {
    const uint32_t dim = config_.head_dim, group = config_.num_attention_heads / config_.num_key_value_heads;
    const uint32_t begin = first + from, column = head * group * dim;
    Attention a;
    a.q = qkv_.get() + begin * qkv_stride_ + column;
    a.q_stride = qkv_stride_;
    a.out = heads_out_.get() + begin * heads_stride_ + column;
    a.out_stride = heads_stride_;
    a.pages = pages_.data();
    a.page_stride = pages_.shape().block_bytes();
    a.key_offset = pages_.key_offset(layer, head);
    a.value_offset = pages_.value_offset(layer, head);
    a.next_head_offset = head + 1 < config_.num_key_value_heads ? pages_.key_offset(0, 1) : 0;
    a.block_table = row.block_table;
    a.block_tokens = pages_.shape().block_tokens;
    a.position = row.position + from;
    a.tokens = count;
    a.group = group;
    a.head_dim = dim;
    a.scale = attention_scale_;
    a.scratch = scratch_.get() + thread * scratch_stride_;
    if (model_.precision() == Precision::bf16)
        kernels_.attend_bf16(a);
    else
        kernels_.attend_f32(a);
    for (uint32_t t = begin; t < begin + count; ++t)
        store_input(input_row(heads_in_, heads_in_stride_, t) + column * input_bytes_,
                    heads_out_.get() + t * heads_stride_ + column, group * dim);
}

void Llama::attend(unsigned thread, uint32_t layer, std::span<const LlamaRow> rows) {
    const uint32_t kv = config_.num_key_value_heads, count = uint32_t(tokens_.size());
    if (count == rows.size()) {
        // One token each: what a task reads of this step, it wrote itself. A task is a row, or part of its heads where
        // there are few rows.
        const uint32_t parts = std::min((4 * threads_.count() + count - 1) / count, kv);
        for (uint32_t task; (task = next_task_.fetch_add(1, std::memory_order_relaxed)) < count * parts;) {
            const uint32_t t = task / parts;
            const Share heads(kv, task % parts, parts);
            for (uint32_t head = heads.begin; head < heads.end; ++head) {
                write_tokens(layer, head, rows, t, t + 1);
                attend_row(thread, layer, head, rows[t], t, 0, 1);
            }
        }
        return;
    }
    const Share mine(count, thread, threads_.count());
    for (uint32_t head = 0; head < kv; ++head) write_tokens(layer, head, rows, mine.begin, mine.end);
    threads_.barrier();
    uint32_t before = 0;  // tasks of the rows before
    uint32_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
    for (size_t r = 0; r < rows.size(); ++r) {
        const uint32_t tokens = uint32_t(rows[r].tokens.size());
        const uint32_t tasks = (tokens + attention_chunk - 1) / attention_chunk * kv;
        for (; task < before + tasks; task = next_task_.fetch_add(1, std::memory_order_relaxed)) {
            const uint32_t from = (task - before) / kv * attention_chunk;
            attend_row(thread, layer, (task - before) % kv, rows[r], row_begin_[r], from,
                       std::min(attention_chunk, tokens - from));
        }
        before += tasks;
    }
}

/// One panel of gate and the same one of up, for all rows, into the thread's scratch.
void Llama::gate_and_up(unsigned thread, const LlamaLayer& layer, uint32_t pair, uint32_t rows) {
    PackedMatrix matrix = layer.gate_up;
    const size_t panel_bytes = size_t(matrix.k) * panel_columns * element_bytes(model_.precision());
    matrix.data = static_cast<const uint8_t*>(matrix.data) + 2 * pair * panel_bytes;
    product(matrix, hidden_in_.get(), hidden_in_stride_, scratch_.get() + thread * scratch_stride_, pair_stride, rows,
            0, 2, false);
}

/// A thread's pairs of panels one by one: both halves are still in its cache when they are multiplied.
void Llama::feed_forward(unsigned thread, const LlamaLayer& layer, uint32_t rows) {
    const Share pairs(layer.gate_up.panels() / 2, thread, threads_.count());
    const float* both = scratch_.get() + thread * scratch_stride_;
    float out[panel_columns];
    for (uint32_t pair = pairs.begin; pair < pairs.end; ++pair) {
        gate_and_up(thread, layer, pair, rows);
        for (uint32_t r = 0; r < rows; ++r) {
            const float* gate = both + r * pair_stride;
            kernels_.swiglu(gate, gate + panel_columns, panel_columns, out);
            store_input(input_row(ff_in_, ff_in_stride_, r) + size_t(pair) * panel_columns * input_bytes_, out,
                        panel_columns);
        }
    }
}

void Llama::products_only(uint32_t tokens, uint32_t rows) {
    INVARIANT(rows <= sizes_.rows_max && tokens <= sizes_.tokens_max, "size of a step");
    threads_.run([&](unsigned thread) {
        kernels_.begin();
        for (const LlamaLayer& layer : model_.layers()) {
            product_share(thread, layer.qkv, hidden_in_.get(), hidden_in_stride_, qkv_.get(), qkv_stride_, tokens,
                          false);
            threads_.barrier();
            product_share(thread, layer.output, heads_in_.get(), heads_in_stride_, residual_.get(), hidden_stride_,
                          tokens, false);
            threads_.barrier();
            const Share pairs(layer.gate_up.panels() / 2, thread, threads_.count());
            for (uint32_t pair = pairs.begin; pair < pairs.end; ++pair) gate_and_up(thread, layer, pair, tokens);
            threads_.barrier();
            product_share(thread, layer.down, ff_in_.get(), ff_in_stride_, residual_.get(), hidden_stride_, tokens,
                          false);
            threads_.barrier();
        }
        product_share(thread, model_.head(), head_in_.get(), hidden_in_stride_, logits_.get(), logits_stride_, rows,
                      false);
        threads_.barrier();
        kernels_.end();
    });
}

}  // namespace mainstay
