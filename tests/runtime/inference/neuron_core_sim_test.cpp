#include "runtime/inference/neuron_core_sim.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>

#include "runtime/inference/kernels.h"
#include "runtime/inference/safetensors.h"
#include "tests/support/device_kinds.h"

using namespace mainstay;

namespace {

std::shared_ptr<const LlamaModel> model_of(const LlamaConfig& shape, Precision precision) {
    std::string name = (std::filesystem::temp_directory_path() / "mainstay_sim_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()));
    RandomLlama(shape, RandomLlama::Type::f32, 5).write(name);
    auto model = LlamaModel::load(name, precision, 256 << 20);
    std::filesystem::remove_all(name);
    REQUIRE(model.ok());
    return std::move(*model);
}

/// Two layers, grouped heads of a width that fills no register: what most tests run.
std::shared_ptr<const LlamaModel> small_model(Precision precision = Precision::bf16) {
    static std::map<Precision, std::shared_ptr<const LlamaModel>> models;
    auto& model = models[precision];
    if (!model) model = model_of(contract_config(), precision);
    return model;
}

std::unique_ptr<Device> device_of(std::shared_ptr<const LlamaModel> model, NeuronCoreSimOptions options = {}) {
    auto device = make_neuron_core_sim(std::move(model), options);
    REQUIRE_MESSAGE(device.ok(), (device.ok() ? "" : device.error().message));
    return std::move(*device);
}

}  // namespace

TEST_CASE("neuron core sim: logits agree with an independent implementation") {
    const std::string golden = std::string(MAINSTAY_SOURCE_DIR) + "/tests/golden/inference/";
    for (const char* name : {"llama_untied", "llama_tied"}) {
        // make_llama_fixtures.py named the file like a model, so our reader reads it.
        const std::string directory = golden + name;
        std::string expected_at = (std::filesystem::temp_directory_path() / "mainstay_golden_XXXXXX").string();
        REQUIRE(mkdtemp(expected_at.data()));
        std::filesystem::copy_file(directory + "/expected.safetensors", expected_at + "/model.safetensors");
        const auto expected = Safetensors::open(expected_at);
        std::filesystem::remove_all(expected_at);
        REQUIRE(expected.ok());
        const uint32_t vocabulary = std::string(name) == "llama_untied" ? 96 : 70, count = vocabulary == 96 ? 70 : 33;
        const auto tokens_row = expected->find("tokens", 1, count),
                   logits = expected->find("logits", count, vocabulary);
        REQUIRE(tokens_row.ok());
        REQUIRE(logits.ok());
        std::vector<float> numbers(count), row(vocabulary);
        tokens_row->read_row(0, numbers.data());
        const std::vector<TokenId> tokens(numbers.begin(), numbers.end());

        for (const Kernels* kernels : runnable_kernels())
            for (const Precision precision : {Precision::f32, Precision::bf16}) {
                NeuronCoreSimOptions options;
                options.kernels = kernels->name;
                options.block_count = 10;
                auto device = open_neuron_core_sim(directory, precision, options);
                REQUIRE(device.ok());
                const std::vector<Logits> got = run_alone(**device, tokens, blocks_from(1, 8));
                double worst = 0, squares = 0, spread = 0;
                for (uint32_t t = 0; t < count; ++t) {
                    logits->read_row(t, row.data());
                    for (uint32_t i = 0; i < vocabulary; ++i) {
                        const double difference = std::abs(double(row[i]) - got[t][i]);
                        worst = std::max(worst, difference);
                        squares += difference * difference;
                        spread += double(row[i]) * row[i];
                    }
                }
                // Relative to the root mean square of the logits. F32 differs by the order of sums only; BF16 rounds
                // keys, values and (with BF16 products) every input of a product to 8 bits.
                const double relative = std::sqrt(squares / spread);
                INFO(std::string(name), ' ', std::string(kernels->name), ' ', std::string(to_string(precision)),
                     " worst ", worst, " relative ", relative);
                CHECK(relative < (precision == Precision::f32 ? 2e-6 : 8e-3));
                CHECK(worst < (precision == Precision::f32 ? 5e-5 : 0.25));
            }
    }
}

TEST_CASE(
    "neuron core sim: a sequence has the same bits in any batch, chunking, block placement and number of threads") {
    constexpr uint32_t sequences = 7, length = 90, table_blocks = 6;
    for (const Kernels* kernels : runnable_kernels())
        for (const Precision precision : {Precision::bf16, Precision::f32}) {
            std::mt19937 random(17);
            NeuronCoreSimOptions options;
            options.kernels = kernels->name;
            options.block_count = 1 + sequences * table_blocks;
            options.threads = 1;
            std::vector<std::vector<TokenId>> tokens;
            std::vector<std::vector<Logits>> expected;
            {
                const auto device = device_of(small_model(precision), options);
                for (uint32_t s = 0; s < sequences; ++s) {
                    tokens.push_back(random_tokens(length, random));
                    expected.push_back(run_alone(*device, tokens[s], blocks_from(1, table_blocks)));
                }
            }
            for (const unsigned threads : {1u, 2u, 3u}) {
                options.threads = threads;
                const auto device = device_of(small_model(precision), options);
                std::vector<BlockId> free = blocks_from(1, sequences * table_blocks);
                std::shuffle(free.begin(), free.end(), random);
                std::vector<uint32_t> done(sequences);
                for (bool more = true; more;) {
                    more = false;
                    std::vector<StepRow> rows;
                    std::vector<uint32_t> which;
                    for (uint32_t s = 0; s < sequences; ++s) {
                        if (done[s] == length) continue;
                        more = true;
                        if (random() % 3 == 0) continue;  // not in this batch
                        const uint32_t count =
                            std::min<uint32_t>(random() % 2 ? 1 : 1 + random() % 35, length - done[s]);
                        rows.push_back(
                            row_of({tokens[s].begin() + done[s], tokens[s].begin() + done[s] + count}, done[s],
                                   {free.begin() + s * table_blocks, free.begin() + (s + 1) * table_blocks}));
                        done[s] += count;
                        which.push_back(s);
                    }
                    if (rows.empty()) continue;
                    auto result = device->run(step_on(*device, rows));
                    REQUIRE_MESSAGE(result.ok(), (result.ok() ? "" : result.error().message));
                    for (size_t r = 0; r < which.size(); ++r) {
                        INFO(std::string(kernels->name), ' ', std::string(to_string(precision)), " threads ", threads,
                             " sequence ", which[r], " at ", done[which[r]]);
                        REQUIRE(same_bits(result->rows[r].logits, expected[which[r]][done[which[r]] - 1]));
                    }
                }
            }
        }
}

TEST_CASE("neuron core sim: a block of other arithmetic, precision or size is refused and changes nothing") {
    std::mt19937 random(4);
    NeuronCoreSimOptions options;
    options.block_count = 8;
    const auto device = device_of(small_model(), options);
    run_alone(*device, random_tokens(32, random), {1, 2});
    const std::string before = *device->export_block(2, 16);
    for (int which = 0; which < 3; ++which) {
        NeuronCoreSimOptions elsewhere = options;
        if (which == 0) elsewhere.kernels = "portable";
        if (which == 1) elsewhere.block_tokens = 32;
        const auto foreign = device_of(small_model(which == 2 ? Precision::f32 : Precision::bf16), elsewhere);
        if (which == 0 && foreign->caps().kernel_id == device->caps().kernel_id) continue;  // nothing better runs here
        run_alone(*foreign, random_tokens(16, random), {1});
        CHECK(device->import_block(2, *foreign->export_block(1, 16)).error().fault == DeviceFault::bad_bytes);
        CHECK(*device->export_block(2, 16) == before);
    }
}

TEST_CASE("neuron core sim: options that cannot be are refused by name, and memory is asked for before it is taken") {
    const auto refused = [](auto change, const char* param) {
        NeuronCoreSimOptions options;
        options.block_count = 8;
        change(options);
        const auto device = make_neuron_core_sim(small_model(), options);
        REQUIRE(!device.ok());
        CHECK(device.error().param == param);
    };
    refused([](auto& o) { o.threads = 0; }, "threads");
    refused([](auto& o) { o.block_tokens = 24; }, "block_tokens");
    refused([](auto& o) { o.block_count = 1; }, "block_count");
    refused([](auto& o) { o.rows_max = 0; }, "rows_max");
    refused([](auto& o) { o.tokens_max = 1; }, "tokens_max");
    refused([](auto& o) { o.kernels = "abacus"; }, "kernels");
    refused([](auto& o) { o.hardware = "trn9"; }, "hardware");
    refused([](auto& o) { o.strict = true, o.decode_buckets = {4, 2}; }, "decode_buckets");
    refused([](auto& o) { o.strict = true, o.context_buckets = {40}; }, "context_buckets");
    refused([](auto& o) { o.block_count = 16'000'000; }, "memory");
    refused([](auto& o) { o.memory_bytes_max = 100'000; }, "memory");
    CHECK(open_neuron_core_sim("/nonexistent", Precision::bf16, {}).error().code == ErrorCode::model_not_loadable);
}

TEST_CASE("device clock: a step takes as long as the slower of arithmetic and memory, and says what was assumed") {
    const auto trn2 = find_device_hardware("trn2"), trn3 = find_device_hardware("trn3");
    REQUIRE(trn2.ok());
    CHECK(!find_device_hardware("h100").ok());
    // The facts' example: Llama-3.1-8B in BF16, one row, nothing but weights: 16.1 GB / 2.9 TB/s = 5.5 ms at full rate.
    StepShape shape;
    shape.body_parameters = 7'500'000'000;
    shape.head_parameters = 525'000'000;
    shape.weight_bytes = 16'050'000'000;
    shape.tokens = shape.head_rows = 1;
    const StepTime one = device_time(*trn2, shape);
    CHECK(one.seconds == doctest::Approx(16.05e9 / 2.9e12 / 0.7 + 50e-6).epsilon(1e-6));
    CHECK(device_time(*trn3, shape).seconds < one.seconds);
    CHECK(one.joules > trn2->idle_watts * one.seconds);
    CHECK(one.joules < trn2->busy_watts * one.seconds);
    // Many rows: bound by arithmetic, and one row costs less.
    shape.tokens = shape.head_rows = 2048;
    const StepTime many = device_time(*trn2, shape);
    CHECK(many.seconds == doctest::Approx(2 * 8.025e9 * 2048 / (667e12 * 0.4) + 50e-6).epsilon(1e-6));
    CHECK(many.seconds / 2048 < one.seconds / 10);
    shape.bf16 = false;
    CHECK(device_time(*trn2, shape).seconds > 3 * many.seconds);
    CHECK(device_hardware().size() == 4);

    NeuronCoreSimOptions options;
    options.block_count = 8;
    options.hardware = "";
    const auto none = device_of(small_model(), options);
    auto done = none->run(step_on(*none, {row_of({1}, 0, {1})}));
    CHECK(done->cost.device_s == 0);
    CHECK(done->cost.flops > 0);
    CHECK(none->caps().simulated);
}
