// The raw device: tokens per second of decode steps and of prefill, with attention, norms and greedy choice, beside
// what the matrix products alone take in the same run. No scheduler, no sessions.
//   bench_decode                      15M and 110M shapes, BF16, two threads: table, and JSON to --json
//   bench_decode --write DIR          leaves the random models there (for peer_llama_cpp.py)
#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>

#include "runtime/inference/llama.h"
#include "runtime/inference/neuron_core_sim.h"
#include "tests/support/random_llama.h"

using namespace mainstay;

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Times {
    double best = 0;  // seconds
    double median = 0;
};

/// Repeats for `seconds`, at least five times.
Times measure(double seconds, const std::function<double()>& once) {
    std::vector<double> all;
    for (const double end = now() + seconds; all.size() < 5 || now() < end;) all.push_back(once());
    std::sort(all.begin(), all.end());
    return {all.front(), all[all.size() / 2]};
}

double timed(const std::function<void()>& act) {
    const double start = now();
    act();
    return now() - start;
}

/// Rows that each have a context of their own, in blocks of their own.
class Batch {
  public:
    Batch(Device& device, uint32_t rows, uint32_t prompt) : device_(device), rows_(rows), prompt_(prompt) {
        prefill(0);
    }

    /// All rows' prompts from nothing; returns seconds. Up to `only` rows (0: all).
    double prefill(uint32_t only) {
        const uint32_t chunk = device_.caps().tokens_max;
        double seconds = 0;
        for (uint32_t r = 0; r < (only ? only : rows_); ++r)
            for (uint32_t at = 0; at < prompt_; at += chunk) {
                Step step;
                step.rows.push_back(row(r, at, std::min(chunk, prompt_ - at)));
                step.rows[0].want_token = at + chunk >= prompt_;
                seconds += timed([&] { check(device_.run(step)); });
            }
        position_ = prompt_;
        return seconds;
    }

    double decode() {
        Step step;
        step.kind = StepKind::decode;
        if (position_ + 1 >= context()) position_ = prompt_;
        for (uint32_t r = 0; r < rows_; ++r) step.rows.push_back(row(r, position_, 1));
        const double seconds = timed([&] { check(device_.run(step)); });
        ++position_;
        return seconds;
    }

  private:
    uint32_t context() const { return std::min(device_.caps().context_max, prompt_ + 64); }

    StepRow row(uint32_t r, uint32_t position, uint32_t count) const {
        StepRow out;
        out.sequence = r;
        out.position = position;
        for (uint32_t i = 0; i < count; ++i)
            out.tokens.push_back((r * 7919 + (position + i) * 104729) % device_.caps().vocabulary);
        const uint32_t blocks = (context() + device_.caps().block_tokens - 1) / device_.caps().block_tokens;
        for (uint32_t b = 0; b < blocks; ++b) out.block_table.push_back(BlockId(1 + r * blocks + b));
        return out;
    }

    static void check(const DeviceResult<StepResult>& result) {
        if (result) return;
        std::fprintf(stderr, "step failed: %s\n", result.error().message.c_str());
        std::exit(1);
    }

    Device& device_;
    uint32_t rows_, prompt_, position_ = 0;
};

struct Shape {
    const char* name;
    LlamaConfig config;
    uint32_t prompt;
};

}  // namespace

int main(int argc, char** argv) {
    CLI::App app("Raw decode and prefill rates of the CPU device");
    unsigned threads = 2;
    double seconds = 0.7;
    std::string kernels, json_path, write, only;
    bool f32 = false;
    app.add_option("--threads", threads);
    app.add_option("--seconds", seconds, "of each figure");
    app.add_option("--kernels", kernels, "a table of this machine; default: the best");
    app.add_option("--json", json_path);
    app.add_option("--write", write, "keep the models in this directory");
    app.add_option("--only", only, "15M or 110M");
    app.add_flag("--f32", f32, "weights and KV in F32 instead of BF16");
    CLI11_PARSE(app, argc, argv);

    const Shape shapes[] = {{"15M", llama_shape(288, 768, 6, 6, 6, 32000, true), 128},
                            {"110M", llama_shape(768, 2048, 12, 12, 12, 32000, true), 64}};
    const auto directory =
        write.empty() ? std::filesystem::temp_directory_path() / ("mainstay_decode_" + std::to_string(getpid()))
                      : std::filesystem::path(write);
    const Precision precision = f32 ? Precision::f32 : Precision::bf16;
    boost::json::array figures;
    std::printf("%-5s %-5s %-11s %-8s %5s | %10s %10s | %10s %6s\n", "model", "prec", "kernels", "what", "batch",
                "tok/s best", "median", "products", "ratio");
    for (const Shape& shape : shapes) {
        if (!only.empty() && only != shape.name) continue;
        const auto at = directory / (std::string(shape.name) + (f32 ? "-f32" : "-bf16"));
        RandomLlama(shape.config, f32 ? RandomLlama::Type::f32 : RandomLlama::Type::bf16, 7).write(at);
        auto loaded = LlamaModel::load(at.string(), precision, available_memory_bytes());
        if (write.empty()) std::filesystem::remove_all(at);
        if (!loaded) {
            std::fprintf(stderr, "%s\n", loaded.error().message.c_str());
            return 1;
        }
        const std::shared_ptr<const LlamaModel> model(std::move(*loaded));
        const Kernels* table = kernels.empty() ? &best_kernels() : find_kernels(kernels.c_str());
        if (!table) {
            std::fprintf(stderr, "no such kernels here: %s\n", kernels.c_str());
            return 1;
        }
        const auto report = [&](const char* what, uint32_t batch, uint32_t tokens, const Times& step,
                                const Times& products) {
            const double ratio = products.best / step.best;
            std::printf("%-5s %-5s %-11s %-8s %5u | %10.0f %10.0f | %10.0f %5.0f%%\n", shape.name, to_string(precision),
                        table->name, what, batch, tokens / step.best, tokens / step.median, tokens / products.best,
                        ratio * 100);
            std::fflush(stdout);
            figures.push_back({{"model", shape.name},
                               {"precision", to_string(precision)},
                               {"kernels", table->name},
                               {"threads", threads},
                               {"what", what},
                               {"batch", batch},
                               {"tokens_per_s", tokens / step.best},
                               {"tokens_per_s_median", tokens / step.median},
                               {"products_only", tokens / products.best},
                               {"ratio", ratio}});
        };
        NeuronCoreSimOptions options;
        options.threads = threads;
        options.kernels = table->name;
        options.tokens_max = 128;
        options.block_count = 32 * (shape.prompt + 64) / options.block_tokens + 1;
        auto device = make_neuron_core_sim(model, options);
        if (!device) {
            std::fprintf(stderr, "%s\n", device.error().message.c_str());
            return 1;
        }
        // The products on threads and buffers of their own, one after the other in turn with the steps.
        WorkerThreads own(threads);
        auto pages = KvPages::create({shape.config.num_hidden_layers, 1, 16, 16, 2, precision}, "unused");
        Llama products(*model, *table, own, **pages, {128, 128, 16});
        const auto products_of = [&](uint32_t tokens, uint32_t rows) {
            return measure(seconds / 2, [&] { return timed([&] { products.products_only(tokens, rows); }); });
        };
        for (const uint32_t rows : {1u, 8u, 32u}) {
            Batch batch(**device, rows, shape.prompt);
            const Times before = products_of(rows, rows);
            const Times step = measure(seconds, [&] { return batch.decode(); });
            const Times after = products_of(rows, rows);
            report("decode", rows, rows, step, before.best < after.best ? before : after);
        }
        Batch batch(**device, 1, shape.prompt);
        const Times bound = products_of(shape.prompt, 1);
        report("prefill", 1, shape.prompt, measure(seconds, [&] { return batch.prefill(1); }), bound);
    }
    if (write.empty()) std::filesystem::remove_all(directory);
    if (!json_path.empty())
        std::ofstream(json_path) << boost::json::serialize(boost::json::object{{"decode", figures}}) << "\n";
    return 0;
}
