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
#include "runtime/inference/sampler.h"
#include "tests/support/random_llama.h"

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
    if (!model) model = model_of(llama_shape(80, 112, 2, 4, 2, 150, true, 400), precision);
    return model;
}

std::unique_ptr<Device> device_of(std::shared_ptr<const LlamaModel> model, NeuronCoreSimOptions options = {}) {
    auto device = make_neuron_core_sim(std::move(model), options);
    REQUIRE_MESSAGE(device.ok(), (device.ok() ? "" : device.error().message));
    return std::move(*device);
}

std::vector<TokenId> random_tokens(size_t n, std::mt19937& random) {
    std::vector<TokenId> out(n);
    for (TokenId& token : out) token = random() % 150;
    return out;
}

StepRow row_of(std::vector<TokenId> tokens, uint32_t position, std::vector<BlockId> table) {
    StepRow row;
    row.tokens = std::move(tokens);
    row.position = position;
    row.block_table = std::move(table);
    row.want_logits = true;
    return row;
}

Step step_of(std::vector<StepRow> rows) {
    Step step;
    step.rows = std::move(rows);
    return step;
}

std::vector<BlockId> blocks_from(BlockId first, size_t count) {
    std::vector<BlockId> out(count);
    for (size_t i = 0; i < count; ++i) out[i] = first + BlockId(i);
    return out;
}

using Logits = std::vector<float>;

/// The logits after each of `tokens`, fed one by one, alone.
std::vector<Logits> alone(Device& device, const std::vector<TokenId>& tokens, const std::vector<BlockId>& table) {
    std::vector<Logits> out;
    for (uint32_t i = 0; i < tokens.size(); ++i) {
        auto done = device.run(step_of({row_of({tokens[i]}, i, table)}));
        REQUIRE(done.ok());
        out.emplace_back(done->rows[0].logits.begin(), done->rows[0].logits.end());
    }
    return out;
}

bool same_bits(std::span<const float> a, const Logits& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
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
                const std::vector<Logits> got = alone(**device, tokens, blocks_from(1, 8));
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
                    expected.push_back(alone(*device, tokens[s], blocks_from(1, table_blocks)));
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
                    auto result = device->run(step_of(rows));
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

TEST_CASE("neuron core sim: an exported block continues elsewhere with the same bits, and carries nothing else") {
    std::mt19937 random(3);
    const std::vector<TokenId> tokens = random_tokens(50, random);
    for (const Precision precision : {Precision::bf16, Precision::f32}) {
        NeuronCoreSimOptions options;
        options.block_count = 20;
        const auto source = device_of(small_model(precision), options),
                   target = device_of(small_model(precision), options);
        const std::vector<Logits> expected = alone(*source, tokens, blocks_from(1, 4));

        std::vector<std::string> exported;
        for (BlockId block = 1; block <= 3; ++block)
            exported.push_back(*source->export_block(block, block == 3 ? 8 : 16));
        CHECK(exported[0].size() == source->caps().block_bytes);
        alone(*target, random_tokens(60, random), blocks_from(1, 6));  // blocks that others have used
        CHECK(*target->import_block(5, exported[0]) == 16);
        CHECK(*target->import_block(2, exported[1]) == 16);
        CHECK(*target->import_block(9, exported[2]) == 8);
        auto next = target->run(step_of({row_of({tokens.begin() + 40, tokens.end()}, 40, {5, 2, 9, 11})}));
        REQUIRE(next.ok());
        CHECK(same_bits(next->rows[0].logits, expected.back()));

        // The same tokens in a block that held something else before: the same bytes.
        const auto used = device_of(small_model(precision), options);
        alone(*used, random_tokens(64, random), {3, 1, 4, 2});
        alone(*used, {tokens.begin(), tokens.begin() + 40}, {1, 2, 3});
        CHECK(*used->export_block(3, 8) == exported[2]);

        // A copy has a life of its own.
        REQUIRE(used->copy_blocks(std::vector<BlockCopy>{{3, 7}}).ok());
        next = used->run(step_of({row_of({tokens.begin() + 40, tokens.end()}, 40, {1, 2, 7, 8})}));
        CHECK(same_bits(next->rows[0].logits, expected.back()));
        CHECK(*used->export_block(3, 8) == exported[2]);
    }
}

TEST_CASE("neuron core sim: a block that is damaged or not ours is refused and changes nothing") {
    std::mt19937 random(4);
    NeuronCoreSimOptions options;
    options.block_count = 8;
    const auto device = device_of(small_model(), options);
    alone(*device, random_tokens(32, random), {1, 2});
    const std::string good = *device->export_block(1, 16), other = *device->export_block(2, 16);
    const auto refused = [&](const std::string& bytes) {
        const auto result = device->import_block(2, bytes);
        REQUIRE(!result.ok());
        CHECK(result.error().fault == DeviceFault::bad_bytes);
        CHECK(result.error().action == DeviceAction::fail_request);
        CHECK(*device->export_block(2, 16) == other);
    };
    for (size_t at = 0; at < good.size(); at += at < 64 ? 1 : 97) {
        std::string bytes = good;
        bytes[at] = char(bytes[at] ^ (1 << (at % 8)));
        refused(bytes);
    }
    refused(good.substr(0, good.size() - 1));
    refused("");
    // Of a device with other arithmetic, precision or block size.
    for (int which = 0; which < 3; ++which) {
        NeuronCoreSimOptions elsewhere = options;
        if (which == 0) elsewhere.kernels = "portable";
        if (which == 1) elsewhere.block_tokens = 32;
        const auto foreign = device_of(small_model(which == 2 ? Precision::f32 : Precision::bf16), elsewhere);
        if (which == 0 && foreign->caps().kernel_id == device->caps().kernel_id) continue;  // nothing better runs here
        alone(*foreign, random_tokens(16, random), {1});
        refused(*foreign->export_block(1, 16));
    }
    CHECK(device->export_block(0, 16).error().fault == DeviceFault::bad_block_table);
    CHECK(device->export_block(8, 16).error().fault == DeviceFault::bad_block_table);
    CHECK(device->export_block(1, 0).error().fault == DeviceFault::bad_shape);
    CHECK(device->import_block(-1, good).error().fault == DeviceFault::bad_block_table);
    CHECK(!device->copy_blocks(std::vector<BlockCopy>{{1, 0}}).ok());
}

TEST_CASE("neuron core sim: a step that breaks the contract is a typed error and writes nothing") {
    NeuronCoreSimOptions options;
    options.block_count = 12;
    options.rows_max = 4;
    options.tokens_max = 40;
    const auto device = device_of(small_model(), options);
    std::mt19937 random(5);
    const std::vector<TokenId> tokens = random_tokens(41, random);
    const auto good = [&] { return row_of({1, 2, 3}, 14, {3, 4}); };
    const auto with = [&](auto change) {
        StepRow row = good();
        change(row);
        return step_of({row});
    };
    alone(*device, random_tokens(32, random), {3, 4});
    const std::string before = *device->export_block(3, 16) + *device->export_block(4, 16);
    const std::tuple<const char*, Step, DeviceFault> cases[] = {
        {"no rows", step_of({}), DeviceFault::bad_shape},
        {"too many rows", step_of({good(), good(), good(), good(), good()}), DeviceFault::bad_shape},
        {"no tokens", with([](StepRow& r) { r.tokens.clear(); }), DeviceFault::bad_shape},
        {"too many tokens", step_of({row_of(tokens, 0, {1, 2, 3})}), DeviceFault::bad_shape},
        {"beyond the context", with([](StepRow& r) { r.position = 180; }), DeviceFault::bad_shape},
        {"far beyond it", with([](StepRow& r) { r.position = UINT32_MAX; }), DeviceFault::bad_shape},
        {"a table too short", with([](StepRow& r) { r.block_table = {3}; }), DeviceFault::bad_block_table},
        {"the null block", with([](StepRow& r) {
             r.block_table = {3, 0};
         }),
         DeviceFault::bad_block_table},
        {"no block", with([](StepRow& r) {
             r.block_table = {-1, 4};
         }),
         DeviceFault::bad_block_table},
        {"a block out of range", with([](StepRow& r) {
             r.block_table = {3, 12};
         }),
         DeviceFault::bad_block_table},
        {"rubbish behind the table", with([](StepRow& r) {
             r.block_table = {3, 4, 99};
         }),
         DeviceFault::bad_block_table},
        {"a block twice", with([](StepRow& r) {
             r.block_table = {3, 3};
         }),
         DeviceFault::block_conflict},
        {"two writers", step_of({good(), row_of({1}, 1, {4})}), DeviceFault::block_conflict},
        {"a reader of a block being written", step_of({good(), row_of({1}, 17, {4, 5})}), DeviceFault::block_conflict},
        {"a token too large", with([](StepRow& r) { r.tokens[1] = 150; }), DeviceFault::bad_token},
        {"a mask too short", with([](StepRow& r) { r.allowed = {1}; }), DeviceFault::bad_token},
        {"a mask of nothing", with([](StepRow& r) {
             r.allowed = {0, 0, uint64_t(1) << 63};
         }),
         DeviceFault::bad_token},
    };
    for (const auto& [what, step, fault] : cases) {
        INFO(what);
        const auto result = device->run(step);
        REQUIRE(!result.ok());
        CHECK(result.error().fault == fault);
        CHECK(result.error().action == DeviceAction::fail_request);
        CHECK(*device->export_block(3, 16) + *device->export_block(4, 16) == before);
    }
    Step decode = step_of({good()});
    decode.kind = StepKind::decode;
    CHECK(device->run(decode).error().fault == DeviceFault::bad_shape);
    // Sharing what is only read is what prefixes are for.
    CHECK(device->run(step_of({row_of({1}, 16, {3, 4}), row_of({1}, 16, {3, 5})})).ok());
}

TEST_CASE("neuron core sim: tokens are chosen greedily or drawn, within the mask, by seed and position alone") {
    NeuronCoreSimOptions options;
    options.block_count = 40;
    const auto device = device_of(small_model(), options);
    std::vector<StepRow> rows;
    for (uint32_t r = 0; r < 9; ++r) {
        StepRow row = row_of({r, r + 1, r + 2}, 0, {BlockId(1 + r)});
        row.sequence = 100 + r;
        row.epoch = r;
        row.seed = r % 3;
        if (r >= 3) row.sampling = {1.5f, 0, 1.0f};
        if (r >= 6) row.allowed = {0, uint64_t(0xff00) << (r % 4), 0};
        if (r == 4) row.want_token = false;
        rows.push_back(row);
    }
    const auto all = device->run(step_of(rows));
    REQUIRE(all.ok());
    for (size_t r = 0; r < rows.size(); ++r) {
        const RowResult& got = const_cast<StepResult&>(*const_cast<DeviceResult<StepResult>&>(all)).rows[r];
        CHECK(got.sequence == 100 + r);
        CHECK(got.epoch == r);
        if (r == 4) {
            CHECK(!got.token);
            continue;
        }
        REQUIRE(got.token);
        CHECK(*got.token == sample(got.logits, rows[r].sampling, rows[r].seed, 3));
        if (!rows[r].allowed.empty()) CHECK((rows[r].allowed[*got.token / 64] >> (*got.token % 64) & 1));
        const TokenId token = *got.token;
        auto once_more = make_neuron_core_sim(small_model(), options);
        auto single = (*once_more)->run(step_of({rows[r]}));
        CHECK(*single->rows[0].token == token);
    }
}

TEST_CASE("neuron core sim: strict mode changes no result, and refuses what a compiled graph cannot take") {
    NeuronCoreSimOptions options;
    options.block_count = 30;
    options.strict = true;
    options.rows_max = 8;
    options.tokens_max = 64;
    options.context_max = 128;
    options.context_buckets = {32, 64, 128};
    const auto device = device_of(small_model(), options);
    CHECK(device->caps().prefill_buckets == std::vector<uint32_t>{16, 32, 64});
    CHECK(device->caps().decode_buckets == std::vector<uint32_t>{1, 2, 4, 8});
    CHECK(!device->caps().mixed_steps);

    std::mt19937 random(8);
    const std::vector<TokenId> tokens = random_tokens(42, random);
    options.strict = false;
    const std::vector<Logits> expected = alone(*device_of(small_model(), options), tokens, blocks_from(1, 4));

    Step prefill = step_of({row_of({tokens.begin(), tokens.begin() + 20}, 0, {7, 8})});
    prefill.kind = StepKind::prefill;
    prefill.token_bucket = 32;
    prefill.context_bucket = 32;
    auto done = device->run(prefill);
    REQUIRE(done.ok());
    CHECK(same_bits(done->rows[0].logits, expected[19]));
    CHECK(done->cost.tokens == 20);
    CHECK(done->cost.padded_tokens == 12);
    CHECK(done->cost.padded_context == 12);
    Step decode = step_of(
        {row_of({tokens[20]}, 20, {7, 8, -1, -1}), row_of({3}, 0, {9, -1, -1, -1}), row_of({3}, 0, {10, -1, -1, -1})});
    decode.kind = StepKind::decode;
    decode.row_bucket = 4;
    decode.context_bucket = 64;
    done = device->run(decode);
    REQUIRE(done.ok());
    CHECK(same_bits(done->rows[0].logits, expected[20]));
    CHECK(done->cost.padded_tokens == 1);

    const auto refused = [&](const Step& base, auto change, DeviceFault fault) {
        Step step = base;
        change(step);
        const auto result = device->run(step);
        REQUIRE(!result.ok());
        CHECK_MESSAGE(result.error().fault == fault, result.error().message);
    };
    refused(
        prefill, [](Step& s) { s.kind = StepKind::mixed; }, DeviceFault::bad_shape);
    refused(
        prefill, [](Step& s) { s.token_bucket = 20; }, DeviceFault::bad_shape);
    refused(
        prefill, [](Step& s) { s.token_bucket = 16; }, DeviceFault::bad_shape);
    refused(
        prefill, [](Step& s) { s.context_bucket = 48; }, DeviceFault::bad_shape);
    refused(
        prefill, [](Step& s) { s.context_bucket = 64; }, DeviceFault::bad_block_table);
    refused(
        prefill,
        [](Step& s) {
            s.rows.push_back(row_of({1}, 0, {9, -1}));
        },
        DeviceFault::bad_shape);
    refused(
        prefill,
        [](Step& s) {
            s.rows[0] = row_of({1}, 32, {7, 8, 9});
        },
        DeviceFault::bad_shape);
    refused(
        decode, [](Step& s) { s.row_bucket = 3; }, DeviceFault::bad_shape);
    refused(
        decode, [](Step& s) { s.row_bucket = 2; }, DeviceFault::bad_shape);
    refused(
        decode,
        [](Step& s) {
            s.rows[1].block_table = {9, 10, -1, -1};
        },
        DeviceFault::bad_block_table);
    refused(
        decode, [](Step& s) { s.rows[1].block_table = {9}; }, DeviceFault::bad_block_table);
    refused(
        decode, [](Step& s) { s.rows[0].tokens.push_back(1); }, DeviceFault::bad_shape);
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
    auto done = none->run(step_of({row_of({1}, 0, {1})}));
    CHECK(done->cost.device_s == 0);
    CHECK(done->cost.flops > 0);
    CHECK(none->caps().simulated);
}
