#pragma once
// The kinds of token devices, each over the same small model with the same shapes, for tests that hold against all of
// them: the simulated NeuronCore, free and strict, and the Neuron runtime over its stub (nrt_stub.cpp), in this process
// and in a worker. All but the last compute in F32 with the same kernels, so they agree to the bit.

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "runtime/inference/neuron_core_sim.h"
#include "runtime/inference/nrt_device.h"
#include "runtime/inference/nrt_process.h"
#include "tests/support/nrt_stub_folder.h"
#include "tests/support/random_llama.h"

namespace mainstay {

/// A directory that is gone when its owner is.
struct TestFolder {
    std::filesystem::path path;
    TestFolder() {
        std::string name = (std::filesystem::temp_directory_path() / "mainstay_device_XXXXXX").string();
        REQUIRE(mkdtemp(name.data()));
        path = name;
    }
    ~TestFolder() { std::filesystem::remove_all(path); }
    TestFolder(const TestFolder&) = delete;
    TestFolder& operator=(const TestFolder&) = delete;
};

/// Two layers, grouped heads of a width that fills no register.
inline LlamaConfig contract_config() { return llama_shape(80, 112, 2, 4, 2, 150, true, 400); }
constexpr uint32_t contract_vocabulary = 150, contract_blocks = 49, contract_context = 128, contract_rows = 8,
                   contract_tokens = 64;

/// Folder of the model that all kinds run.
inline const std::filesystem::path& contract_model() {
    static TestFolder folder;
    static const bool written = [] {
        RandomLlama(contract_config(), RandomLlama::Type::f32, 5).write(folder.path / "llama");
        return true;
    }();
    static const std::filesystem::path path = folder.path / "llama";
    REQUIRE(written);
    return path;
}

/// A folder of graphs for the stub over that model, as yet unwritten.
inline StubFolder contract_graphs() {
    StubFolder out;
    out.model = contract_model().string();
    out.config = contract_config();
    out.block_count = contract_blocks;
    return out;
}
inline const std::filesystem::path& contract_graph_folder() {
    static TestFolder folder;
    static const bool written = [] {
        contract_graphs().write(folder.path);
        return true;
    }();
    REQUIRE(written);
    return folder.path;
}

inline std::string stub_library(const std::string& name = "libnrt_stub.so") {
    return std::string(MAINSTAY_NRT_STUB_DIR) + "/" + name;
}

/// The runtime of this process, as long as anybody has it.
inline std::shared_ptr<const NrtRuntime> stub_runtime(const std::string& name = "libnrt_stub.so") {
    static std::map<std::string, std::weak_ptr<const NrtRuntime>> runtimes;
    if (auto there = runtimes[name].lock()) return there;
    auto library = NrtLibrary::open(stub_library(name));
    REQUIRE_MESSAGE(library.ok(), (library.ok() ? "" : library.error().message));
    auto runtime = NrtRuntime::start(*library);
    REQUIRE_MESSAGE(runtime.ok(), (runtime.ok() ? "" : runtime.error().message));
    runtimes[name] = *runtime;
    return *runtime;
}

template <class T>
std::unique_ptr<Device> required(Result<T> device) {
    REQUIRE_MESSAGE(device.ok(), (device.ok() ? "" : device.error().message));
    return std::move(*device);
}

inline NrtOptions stub_options(const std::filesystem::path& directory) {
    NrtOptions options;
    options.directory = directory.string();
    options.library = stub_library();
    options.visible_cores = "0";
    options.worker_program = MAINSTAY_NRT_WORKER;
    options.start_timeout_ms = 60'000;
    return options;
}

struct DeviceKind {
    const char* name;
    size_t reference;  // index of the kind whose bits it has
    std::function<std::unique_ptr<Device>()> open;
};

inline const std::vector<DeviceKind>& device_kinds() {
    const auto sim = [](bool strict, Precision precision) {
        return [strict, precision] {
            NeuronCoreSimOptions options;
            options.block_count = contract_blocks;
            options.rows_max = contract_rows;
            options.tokens_max = contract_tokens;
            options.context_max = contract_context;
            options.strict = strict;
            options.threads = 1;
            if (strict) options.context_buckets = {32, 64, 128};
            return required(open_neuron_core_sim(contract_model().string(), precision, options));
        };
    };
    static const std::vector<DeviceKind> kinds{
        {"neuron_core_sim", 0, sim(false, Precision::f32)},
        {"neuron_core_sim, strict", 0, sim(true, Precision::f32)},
        {"nrt, in this process", 0,
         [] { return required(make_nrt_device(stub_runtime(), contract_graph_folder().string())); }},
        {"nrt, a worker", 0, [] { return required(open_nrt_device(stub_options(contract_graph_folder()))); }},
        {"neuron_core_sim, bf16", 4, sim(false, Precision::bf16)},
    };
    return kinds;
}

// --- steps ------------------------------------------------------------------------------------------------------

using Logits = std::vector<float>;

inline bool same_bits(std::span<const float> a, const Logits& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

inline std::vector<TokenId> random_tokens(size_t n, std::mt19937& random) {
    std::vector<TokenId> out(n);
    for (TokenId& token : out) token = random() % contract_vocabulary;
    return out;
}

inline std::vector<BlockId> blocks_from(BlockId first, size_t count) {
    std::vector<BlockId> out(count);
    for (size_t i = 0; i < count; ++i) out[i] = first + BlockId(i);
    return out;
}

inline StepRow row_of(std::vector<TokenId> tokens, uint32_t position, std::vector<BlockId> table) {
    StepRow row;
    row.tokens = std::move(tokens);
    row.position = position;
    row.block_table = std::move(table);
    row.want_logits = true;
    return row;
}

inline uint32_t bucket_for(const std::vector<uint32_t>& buckets, uint64_t n) {
    const auto found = std::lower_bound(buckets.begin(), buckets.end(), n);
    return found == buckets.end() ? buckets.back() : *found;
}

/// A step of these rows as the device takes it: in its smallest buckets, tables filled up with block_none.
inline Step step_on(const Device& device, std::vector<StepRow> rows) {
    const DeviceCaps& caps = device.caps();
    Step step;
    step.id = 7;
    step.rows = std::move(rows);
    if (!caps.strict) return step;
    uint64_t context = 0, tokens = 0;
    for (const StepRow& row : step.rows) {
        context = std::max(context, uint64_t(row.position) + row.tokens.size());
        tokens = std::max(tokens, uint64_t(row.tokens.size()));
    }
    step.kind = tokens > 1 ? StepKind::prefill : StepKind::decode;
    step.token_bucket = bucket_for(caps.prefill_buckets, tokens);
    step.row_bucket = bucket_for(caps.decode_buckets, step.rows.size());
    step.context_bucket = bucket_for(caps.context_buckets, context);
    for (StepRow& row : step.rows) {
        const size_t size = step.context_bucket / caps.block_tokens;
        const size_t used = (row.position + row.tokens.size() + caps.block_tokens - 1) / caps.block_tokens;
        // What a table has beyond its use may be cut; what it lacks is block_none.
        if (row.block_table.size() > size && used <= size) row.block_table.resize(size);
        for (size_t i = used; i < row.block_table.size() && used <= size; ++i) row.block_table[i] = block_none;
        while (row.block_table.size() < size) row.block_table.push_back(block_none);
    }
    return step;
}

struct RanRow {
    std::optional<TokenId> token;
    Logits logits;
    SequenceHandle sequence = 0;
    uint64_t epoch = 0;
};

/// Runs the rows in as few steps as the device takes: one, or the decodes and then each prefill.
inline std::vector<RanRow> run_rows(Device& device, const std::vector<StepRow>& rows) {
    std::vector<std::vector<size_t>> steps(1);
    for (size_t r = 0; r < rows.size(); ++r)
        if (!device.caps().strict || rows[r].tokens.size() == 1)
            steps[0].push_back(r);
        else
            steps.push_back({r});
    std::vector<RanRow> out(rows.size());
    for (const std::vector<size_t>& which : steps) {
        if (which.empty()) continue;
        std::vector<StepRow> some;
        for (const size_t r : which) some.push_back(rows[r]);
        auto result = device.run(step_on(device, some));
        REQUIRE_MESSAGE(result.ok(), (result.ok() ? "" : result.error().message));
        REQUIRE(result->rows.size() == which.size());
        CHECK(result->step == 7);
        for (size_t i = 0; i < which.size(); ++i) {
            const RowResult& row = result->rows[i];
            out[which[i]] = {row.token, {row.logits.begin(), row.logits.end()}, row.sequence, row.epoch};
        }
    }
    return out;
}

/// The logits after each of `tokens`, fed one by one, alone.
inline std::vector<Logits> run_alone(Device& device, const std::vector<TokenId>& tokens,
                                     const std::vector<BlockId>& table) {
    std::vector<Logits> out;
    for (uint32_t i = 0; i < tokens.size(); ++i)
        out.push_back(run_rows(device, {row_of({tokens[i]}, i, table)})[0].logits);
    return out;
}

}  // namespace mainstay
