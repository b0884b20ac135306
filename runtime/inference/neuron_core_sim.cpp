#include "runtime/inference/neuron_core_sim.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "runtime/base/limits.h"
#include "runtime/inference/llama.h"
#include "runtime/inference/sampler.h"
#include "runtime/inference/step_check.h"

namespace mainstay {

namespace {

/// Changes whenever an element's arithmetic does: with the table's name it is the kernel id.
constexpr const char* arithmetic = "llama1";

class NeuronCoreSim final : public Device {
  public:
    NeuronCoreSim(std::shared_ptr<const LlamaModel> model, const Kernels& kernels, DeviceCaps caps,
                  std::optional<DeviceHardware> hardware, unsigned threads, std::unique_ptr<KvPages> pages)
        : model_(std::move(model)),
          kernels_(kernels),
          caps_(std::move(caps)),
          hardware_(hardware),
          threads_(threads),
          pages_(std::move(pages)),
          llama_(*model_, kernels_, threads_, *pages_, {caps_.rows_max, caps_.tokens_max, caps_.context_max}),
          check_(caps_) {}

    const DeviceCaps& caps() const override { return caps_; }

    DeviceResult<StepResult> run(const Step& step) override {
        const auto start = std::chrono::steady_clock::now();
        if (auto checked = check_.check(step); !checked) return checked.error();
        rows_.clear();
        for (const StepRow& row : step.rows)
            rows_.push_back({row.tokens, row.position, row.block_table.data(), row.want_token || row.want_logits,
                             row.want_logits || !row.sampling.greedy() || !row.allowed.empty()});
        llama_.forward(rows_);
        StepResult result;
        result.step = step.id;
        result.cost = cost(step);
        if (auto chosen = choose(step, result); !chosen) return chosen.error();
        result.cost.wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        return result;
    }

    DeviceResult<> copy_blocks(std::span<const BlockCopy> copies) override {
        if (auto checked = check_.check_copies(copies); !checked) return checked;
        for (const BlockCopy& copy : copies) pages_->copy(copy.from, copy.to);
        return {};
    }

    DeviceResult<std::string> export_block(BlockId block, uint32_t tokens) const override {
        if (auto checked = check_.check_export(block, tokens); !checked) return checked.error();
        return pages_->export_block(block, tokens);
    }

    DeviceResult<uint32_t> import_block(BlockId block, std::string_view bytes) override {
        if (auto checked = check_.check_block(block); !checked) return checked.error();
        return pages_->import_block(block, bytes);
    }

  private:
    DeviceResult<> choose(const Step& step, StepResult& result) {
        uint32_t wanted = 0;
        bool draws = false;
        for (uint32_t r = 0; r < step.rows.size(); ++r) {
            const StepRow& row = step.rows[r];
            RowResult& out = result.rows.emplace_back();
            out.sequence = row.sequence;
            out.epoch = row.epoch;
            if (!row.want_token && !row.want_logits) continue;
            const uint32_t i = wanted++;
            if (!llama_.scan(i).finite)
                return refused_step(DeviceFault::numeric, "logits that are no finite numbers", r);
            const std::span<float> logits = llama_.logits(i);
            TokenId best = llama_.scan(i).best;
            if (!row.allowed.empty()) {
                for (TokenId token = 0; token < caps_.vocabulary; ++token)
                    if (!mask_allows(row.allowed, token)) logits[token] = -std::numeric_limits<float>::infinity();
                best = kernels_.scan_logits(logits.data(), caps_.vocabulary).best;
            }
            if (row.want_logits) out.logits = logits;
            if (!row.want_token) continue;
            out.token = best;
            draws = draws || !row.sampling.greedy();
        }
        if (draws) draw(step, result);
        return {};
    }

    /// Rows that are not greedy, dealt out to the threads: sampling over a large vocabulary takes as long as a layer.
    void draw(const Step& step, StepResult& result) {
        threads_.run([&](unsigned thread) {
            uint32_t wanted = 0, nth = 0;
            for (uint32_t r = 0; r < step.rows.size(); ++r) {
                const StepRow& row = step.rows[r];
                if (!row.want_token && !row.want_logits) continue;
                const uint32_t i = wanted++;
                if (!row.want_token || row.sampling.greedy() || nth++ % threads_.count() != thread) continue;
                result.rows[r].token =
                    sample(llama_.logits(i), row.sampling, row.seed, row.position + row.tokens.size());
            }
        });
    }

    StepCost cost(const Step& step) const {
        const LlamaConfig& c = model_->config();
        const uint64_t width = uint64_t(c.num_attention_heads) * c.head_dim;
        const uint64_t element = element_bytes(model_->precision());
        StepShape shape;
        shape.head_parameters = uint64_t(c.vocab_size) * c.hidden_size;
        shape.body_parameters =
            c.parameters() - shape.head_parameters * (c.tie_word_embeddings ? 1 : 2);  // embeddings are looked up
        shape.weight_bytes = (shape.body_parameters + shape.head_parameters) * element;
        shape.kv_token_bytes = uint64_t(c.num_hidden_layers) * c.num_key_value_heads * c.head_dim * 2 * element;
        shape.attention_flops = 4 * c.num_hidden_layers * width;
        shape.activation_bytes =
            uint64_t(c.num_hidden_layers) * (2 * c.hidden_size + width + c.intermediate_size) * element;
        shape.bf16 = model_->precision() == Precision::bf16;

        StepCost out;
        uint64_t pairs = 0, head_rows = 0;
        for (const StepRow& row : step.rows) {
            const uint64_t n = row.tokens.size(), end = row.position + n;
            out.tokens += uint32_t(n);
            out.context_tokens += end;
            pairs += n * row.position + n * (n + 1) / 2;
            head_rows += row.want_token || row.want_logits;
        }
        shape.tokens = out.tokens;
        shape.head_rows = head_rows;
        shape.context_pairs = pairs;
        shape.context_read = out.context_tokens;
        if (caps_.strict) {
            // What a compiled graph computes: its bucket, whatever it holds.
            const bool prefill = step.kind == StepKind::prefill;
            shape.tokens = prefill ? step.token_bucket : step.row_bucket;
            shape.head_rows = prefill ? 1 : step.row_bucket;
            shape.context_read = uint64_t(prefill ? 1 : step.row_bucket) * step.context_bucket;
            shape.context_pairs = shape.tokens * step.context_bucket;
            out.padded_tokens = uint32_t(shape.tokens) - out.tokens;
            out.padded_context = shape.context_read - out.context_tokens;
        }
        const StepTime time = device_time(hardware_.value_or(DeviceHardware{"", 1, 1, 1}), shape);
        out.flops = time.flops;
        out.bytes = time.bytes;
        if (hardware_) {
            out.device_s = time.seconds;
            out.joules = time.joules;
        }
        return out;
    }

    std::shared_ptr<const LlamaModel> model_;
    const Kernels& kernels_;
    const DeviceCaps caps_;
    const std::optional<DeviceHardware> hardware_;
    WorkerThreads threads_;
    std::unique_ptr<KvPages> pages_;
    Llama llama_;
    std::vector<LlamaRow> rows_;
    StepCheck check_;
};

Error unsupported(const char* option, std::string why) {
    return {ErrorCode::unsupported_value, std::string(option) + " " + std::move(why), option};
}

std::vector<uint32_t> powers_of_two(uint32_t from, uint32_t to) {
    std::vector<uint32_t> out;
    for (uint32_t n = from; n < to; n *= 2) out.push_back(n);
    out.push_back(to);
    return out;
}

Result<void> check_range(const char* option, uint64_t value, uint64_t least, uint64_t most) {
    if (value >= least && value <= most) return {};
    return unsupported(option, "must be from " + std::to_string(least) + " to " + std::to_string(most));
}

Result<void> check_options(const NeuronCoreSimOptions& o) {
    if (auto ok = check_range("threads", o.threads, 1, limits::device_threads_max); !ok) return ok;
    if (auto ok = check_range("block_tokens", o.block_tokens, kv_tile_tokens, limits::device_block_tokens_max); !ok)
        return ok;
    if (o.block_tokens % kv_tile_tokens != 0) return unsupported("block_tokens", "must be a multiple of 16");
    if (auto ok = check_range("block_count", o.block_count, 2, limits::device_blocks_max); !ok) return ok;
    if (auto ok = check_range("rows_max", o.rows_max, 1, limits::device_rows_max); !ok) return ok;
    if (auto ok = check_range("tokens_max", o.tokens_max, o.rows_max, limits::device_tokens_max); !ok) return ok;
    return check_range("context_max", o.context_max, 0, limits::model_context_max);
}

Result<void> fill_buckets(DeviceCaps& caps, const NeuronCoreSimOptions& o) {
    caps.prefill_buckets =
        o.prefill_buckets.empty() ? powers_of_two(std::min(16u, caps.tokens_max), caps.tokens_max) : o.prefill_buckets;
    caps.decode_buckets = o.decode_buckets.empty() ? powers_of_two(1, caps.rows_max) : o.decode_buckets;
    caps.context_buckets = o.context_buckets.empty() ? std::vector{caps.context_max} : o.context_buckets;
    const auto check = [](const char* name, const std::vector<uint32_t>& buckets, uint32_t most) -> Result<void> {
        if (!std::is_sorted(buckets.begin(), buckets.end()) || buckets.front() == 0 || buckets.back() > most)
            return unsupported(name, "must rise and be at most " + std::to_string(most));
        return {};
    };
    if (auto ok = check("prefill_buckets", caps.prefill_buckets, caps.tokens_max); !ok) return ok;
    if (auto ok = check("decode_buckets", caps.decode_buckets, caps.rows_max); !ok) return ok;
    if (auto ok = check("context_buckets", caps.context_buckets, caps.context_max); !ok) return ok;
    for (const uint32_t bucket : caps.context_buckets)
        if (bucket % caps.block_tokens != 0) return unsupported("context_buckets", "must be multiples of block_tokens");
    return {};
}

}  // namespace

Result<std::unique_ptr<Device>> make_neuron_core_sim(std::shared_ptr<const LlamaModel> model,
                                                     const NeuronCoreSimOptions& options) {
    if (auto checked = check_options(options); !checked) return checked.error();
    const LlamaConfig& config = model->config();
    const Kernels* kernels = options.kernels.empty() ? &best_kernels() : find_kernels(options.kernels.c_str());
    if (!kernels) return unsupported("kernels", "\"" + options.kernels + "\" are unknown or not for this machine");
    std::optional<DeviceHardware> hardware;
    if (!options.hardware.empty()) {
        auto found = find_device_hardware(options.hardware);
        if (!found) return found.error();
        hardware = *found;
        if (options.busy_watts > 0) hardware->busy_watts = options.busy_watts;
        if (options.idle_watts > 0) hardware->idle_watts = options.idle_watts;
    }

    const KvShape shape{config.num_hidden_layers, config.num_key_value_heads, config.head_dim,
                        options.block_tokens,     options.block_count,        model->precision()};
    DeviceCaps caps;
    caps.kind = "neuron_core_sim";
    caps.hardware = options.hardware;
    caps.simulated = true;
    caps.model_hash = model->hash();
    caps.kernel_id = std::string(arithmetic) + "-" + kernels->name + "-" + to_string(model->precision());
    caps.kv_format = caps.kernel_id + " " + std::to_string(shape.layers) + "x" + std::to_string(shape.heads) + "x" +
                     std::to_string(shape.head_dim) + " blocks of " + std::to_string(shape.block_tokens);
    caps.vocabulary = config.vocab_size;
    caps.block_tokens = options.block_tokens;
    caps.block_count = options.block_count;
    caps.block_bytes = KvPages::header_bytes + shape.block_bytes();
    const uint64_t held = uint64_t(options.block_count - 1) * options.block_tokens;
    caps.context_max =
        uint32_t(std::min<uint64_t>(held, options.context_max ? options.context_max : config.max_position_embeddings));
    if (options.strict) caps.context_max = std::max(caps.context_max / caps.block_tokens, 1u) * caps.block_tokens;
    caps.rows_max = options.rows_max;
    caps.tokens_max = options.tokens_max;
    caps.prefills_max = options.strict ? 1 : options.rows_max;
    caps.mixed_steps = !options.strict;
    caps.strict = options.strict;
    caps.kv_export = caps.logit_mask = caps.deterministic = true;
    if (options.strict)
        if (auto filled = fill_buckets(caps, options); !filled) return filled.error();

    const uint64_t most = options.memory_bytes_max ? options.memory_bytes_max : available_memory_bytes();
    const uint64_t needed =
        shape.total_bytes() +
        Llama::memory_bytes(config, {caps.rows_max, caps.tokens_max, caps.context_max}, options.threads);
    if (needed > most)
        return Error{ErrorCode::model_not_loadable,
                     "KV blocks and buffers need " + std::to_string(needed >> 20) + " MiB, more than the " +
                         std::to_string(most >> 20) + " MiB that there are",
                     "memory"};
    auto pages = KvPages::create(shape, kv_block_identity(caps.model_hash, caps.kv_format));
    if (!pages) return pages.error();
    return std::unique_ptr<Device>(
        new NeuronCoreSim(std::move(model), *kernels, std::move(caps), hardware, options.threads, std::move(*pages)));
}

Result<std::unique_ptr<Device>> open_neuron_core_sim(const std::string& directory, Precision precision,
                                                     const NeuronCoreSimOptions& options) {
    if (auto checked = check_options(options); !checked) return checked.error();
    const uint64_t most = options.memory_bytes_max ? options.memory_bytes_max : available_memory_bytes();
    auto model = LlamaModel::load(directory, precision, most);
    if (!model) return model.error();
    NeuronCoreSimOptions rest = options;
    if (options.memory_bytes_max) rest.memory_bytes_max = std::max<uint64_t>(most - (*model)->memory_bytes(), 1);
    return make_neuron_core_sim(std::shared_ptr<const LlamaModel>(std::move(*model)), rest);
}

}  // namespace mainstay
