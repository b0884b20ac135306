// What device.h promises, against every kind of device that has blocks (tests/support/device_kinds.h). What one kind
// alone promises is tested with it.
#include <doctest/doctest.h>

#include <map>

#include "runtime/inference/sampler.h"
#include "tests/support/device_kinds.h"

using namespace mainstay;

namespace {

/// Every token that the device holds in these blocks.
std::string content(const Device& device, const std::vector<BlockId>& blocks) {
    std::string out;
    for (const BlockId block : blocks) {
        auto bytes = device.export_block(block, device.caps().block_tokens);
        REQUIRE(bytes.ok());
        out += *bytes;
    }
    return out;
}

}  // namespace

TEST_CASE("device contract: capabilities are whole, and say what is simulated") {
    for (const DeviceKind& kind : device_kinds()) {
        INFO(kind.name);
        const auto device = kind.open();
        const DeviceCaps& caps = device->caps();
        CHECK(std::string(kind.name).rfind(caps.kind, 0) == 0);
        CHECK(caps.simulated == (caps.kind == "neuron_core_sim"));
        CHECK(!caps.model_hash.empty());
        CHECK(!caps.kernel_id.empty());
        CHECK(!caps.kv_format.empty());
        CHECK(caps.vocabulary == contract_vocabulary);
        CHECK(caps.block_tokens == 16);
        CHECK(caps.block_count == contract_blocks);
        CHECK(caps.context_max == contract_context);
        CHECK(caps.rows_max == contract_rows);
        CHECK(caps.tokens_max == contract_tokens);
        CHECK(caps.kv_export);
        CHECK(caps.logit_mask);
        CHECK(caps.deterministic);
        CHECK(caps.mixed_steps == !caps.strict);
        if (!caps.strict) continue;
        CHECK(caps.prefills_max == 1);
        CHECK(caps.prefill_buckets == std::vector<uint32_t>{16, 32, 64});
        CHECK(caps.decode_buckets == std::vector<uint32_t>{1, 2, 4, 8});
        CHECK(caps.context_buckets == std::vector<uint32_t>{32, 64, 128});
    }
}

TEST_CASE("device contract: a sequence has the same bits on every kind, in any batch, chunking and placement") {
    constexpr uint32_t sequences = 7, length = 90, table_blocks = 6;
    std::mt19937 tokens_random(17);
    std::vector<std::vector<TokenId>> tokens;
    for (uint32_t s = 0; s < sequences; ++s) tokens.push_back(random_tokens(length, tokens_random));
    std::map<size_t, std::vector<std::vector<Logits>>> alone;  // by reference
    for (const DeviceKind& kind : device_kinds()) {
        std::vector<std::vector<Logits>>& expected = alone[kind.reference];
        if (expected.empty()) {
            const auto reference = device_kinds()[kind.reference].open();
            for (const std::vector<TokenId>& sequence : tokens)
                expected.push_back(run_alone(*reference, sequence, blocks_from(1, table_blocks)));
        }
        std::mt19937 random(23);
        const auto device = kind.open();
        std::vector<BlockId> free = blocks_from(1, sequences * table_blocks);
        std::shuffle(free.begin(), free.end(), random);
        std::vector<uint32_t> done(sequences);
        while (*std::min_element(done.begin(), done.end()) < length) {
            std::vector<StepRow> rows;
            std::vector<uint32_t> which;
            size_t room = contract_tokens;
            for (uint32_t s = 0; s < sequences; ++s) {
                if (done[s] == length || random() % 3 == 0) continue;  // not in this batch
                const uint32_t wanted = random() % 2 ? 1 : 1 + random() % 35;
                const uint32_t count = std::min<uint32_t>({wanted, length - done[s], uint32_t(room)});
                if (count == 0) continue;
                room -= count;
                rows.push_back(row_of({tokens[s].begin() + done[s], tokens[s].begin() + done[s] + count}, done[s],
                                      {free.begin() + s * table_blocks, free.begin() + (s + 1) * table_blocks}));
                done[s] += count;
                which.push_back(s);
            }
            if (rows.empty()) continue;
            const std::vector<RanRow> ran = run_rows(*device, rows);
            for (size_t r = 0; r < which.size(); ++r) {
                INFO(kind.name, " sequence ", which[r], " at ", done[which[r]]);
                REQUIRE(same_bits(ran[r].logits, expected[which[r]][done[which[r]] - 1]));
            }
        }
    }
}

TEST_CASE("device contract: an exported block continues elsewhere with the same bits, and carries nothing else") {
    for (const DeviceKind& kind : device_kinds()) {
        INFO(kind.name);
        std::mt19937 random(3);
        const std::vector<TokenId> tokens = random_tokens(50, random);
        const auto source = kind.open(), target = kind.open();
        const std::vector<Logits> expected = run_alone(*source, tokens, blocks_from(1, 4));
        const std::vector<TokenId> rest(tokens.begin() + 40, tokens.end());

        std::vector<std::string> exported;
        for (BlockId block = 1; block <= 3; ++block)
            exported.push_back(*source->export_block(block, block == 3 ? 8 : 16));
        CHECK(exported[0].size() == source->caps().block_bytes);
        run_alone(*target, random_tokens(60, random), blocks_from(1, 6));  // blocks that others have used
        run_alone(*target, random_tokens(60, random), {9, 11, 5, 2});
        CHECK(*target->import_block(5, exported[0]) == 16);
        CHECK(*target->import_block(2, exported[1]) == 16);
        CHECK(*target->import_block(9, exported[2]) == 8);
        CHECK(same_bits(run_rows(*target, {row_of(rest, 40, {5, 2, 9, 11})})[0].logits, expected.back()));

        // The same tokens in a block that held something else before: the same bytes.
        const auto used = kind.open();
        run_alone(*used, random_tokens(64, random), {3, 1, 4, 2});
        run_alone(*used, {tokens.begin(), tokens.begin() + 40}, {1, 2, 3});
        CHECK(*used->export_block(3, 8) == exported[2]);

        // A copy has a life of its own; copies are made in their order.
        REQUIRE(used->copy_blocks(std::vector<BlockCopy>{{3, 6}, {6, 7}}).ok());
        CHECK(same_bits(run_rows(*used, {row_of(rest, 40, {1, 2, 7, 8})})[0].logits, expected.back()));
        CHECK(*used->export_block(3, 8) == exported[2]);
        CHECK(*used->export_block(6, 8) == exported[2]);
    }
}

TEST_CASE("device contract: a block that is damaged or not ours is refused and changes nothing") {
    for (const DeviceKind& kind : device_kinds()) {
        INFO(kind.name);
        std::mt19937 random(4);
        const auto device = kind.open();
        run_alone(*device, random_tokens(32, random), {1, 2});
        const std::string good = *device->export_block(1, 16), other = *device->export_block(2, 16);
        const auto refused = [&](const std::string& bytes) {
            const auto result = device->import_block(2, bytes);
            REQUIRE(!result.ok());
            CHECK(result.error().fault == DeviceFault::bad_bytes);
            CHECK(result.error().action == DeviceAction::fail_request);
        };
        for (size_t at = 0; at < good.size(); at += at < 64 ? 1 : 97) {
            std::string bytes = good;
            bytes[at] = char(bytes[at] ^ (1 << (at % 8)));
            refused(bytes);
        }
        refused(good.substr(0, good.size() - 1));
        refused("");
        CHECK(*device->export_block(2, 16) == other);
        CHECK(device->export_block(0, 16).error().fault == DeviceFault::bad_block_table);
        CHECK(device->export_block(BlockId(contract_blocks), 16).error().fault == DeviceFault::bad_block_table);
        CHECK(device->export_block(1, 0).error().fault == DeviceFault::bad_shape);
        CHECK(device->export_block(1, 17).error().fault == DeviceFault::bad_shape);
        CHECK(device->import_block(-1, good).error().fault == DeviceFault::bad_block_table);
        CHECK(device->import_block(0, good).error().fault == DeviceFault::bad_block_table);
        for (const BlockCopy& copy : {BlockCopy{1, 0}, BlockCopy{0, 1}, BlockCopy{1, 1}, BlockCopy{-1, 2}})
            CHECK(device->copy_blocks(std::vector<BlockCopy>{{1, 2}, copy}).error().fault ==
                  DeviceFault::bad_block_table);
        CHECK(*device->export_block(2, 16) == other);  // not even the first copy of a list that is wrong
        CHECK(*device->import_block(2, good) == 16);
        CHECK(*device->export_block(2, 16) == good);
    }
}

TEST_CASE("device contract: blocks of one kind are not those of another, though they hold the same numbers") {
    const auto sim = device_kinds()[0].open(), nrt = device_kinds()[2].open();
    for (Device* device : {sim.get(), nrt.get()}) run_alone(*device, {1, 2, 3}, {1});
    CHECK(sim->import_block(2, *nrt->export_block(1, 3)).error().fault == DeviceFault::bad_bytes);
    CHECK(nrt->import_block(2, *sim->export_block(1, 3)).error().fault == DeviceFault::bad_bytes);
    // In this process or in a worker is the same device.
    CHECK(*device_kinds()[3].open()->import_block(2, *nrt->export_block(1, 3)) == 3);
}

TEST_CASE("device contract: a step that breaks the contract is a typed error and writes nothing") {
    for (const DeviceKind& kind : device_kinds()) {
        const auto device = kind.open();
        std::mt19937 random(5);
        const auto good = [] { return row_of({1, 2, 3}, 14, {3, 4}); };
        const auto with = [&](auto change) {
            StepRow row = good();
            change(row);
            return step_on(*device, {row});
        };
        const auto after = [](Step step, auto change) {
            change(step);
            return step;
        };
        run_alone(*device, random_tokens(32, random), {3, 4});
        const std::string before = content(*device, {3, 4});
        std::vector<StepRow> crowd;
        for (uint32_t r = 0; r <= contract_rows; ++r) crowd.push_back(row_of({1}, 0, {BlockId(10 + r)}));
        const std::tuple<const char*, Step, DeviceFault> cases[] = {
            {"no rows", step_on(*device, {}), DeviceFault::bad_shape},
            {"too many rows", step_on(*device, crowd), DeviceFault::bad_shape},
            {"no tokens", with([](StepRow& r) { r.tokens.clear(); }), DeviceFault::bad_shape},
            {"too many tokens",
             step_on(*device, {row_of(random_tokens(contract_tokens + 1, random), 0, blocks_from(10, 5))}),
             DeviceFault::bad_shape},
            {"beyond the context", with([](StepRow& r) { r.position = contract_context - 2; }), DeviceFault::bad_shape},
            {"far beyond it", with([](StepRow& r) { r.position = UINT32_MAX; }), DeviceFault::bad_shape},
            {"a table too short", after(step_on(*device, {good()}), [](Step& s) { s.rows[0].block_table = {3}; }),
             DeviceFault::bad_block_table},
            {"the null block", with([](StepRow& r) { r.block_table[1] = block_null; }), DeviceFault::bad_block_table},
            {"no block", with([](StepRow& r) { r.block_table[0] = block_none; }), DeviceFault::bad_block_table},
            {"a block out of range", with([](StepRow& r) { r.block_table[1] = BlockId(contract_blocks); }),
             DeviceFault::bad_block_table},
            {"rubbish behind the table",
             after(step_on(*device, {good()}), [](Step& s) { s.rows[0].block_table.push_back(99); }),
             DeviceFault::bad_block_table},
            {"a block twice", with([](StepRow& r) { r.block_table[1] = 3; }), DeviceFault::block_conflict},
            {"two writers", step_on(*device, {row_of({1}, 16, {3, 4}), row_of({1}, 1, {4})}),
             DeviceFault::block_conflict},
            {"a reader of a block being written", step_on(*device, {row_of({1}, 16, {3, 4}), row_of({1}, 17, {4, 5})}),
             DeviceFault::block_conflict},
            {"a token too large", with([](StepRow& r) { r.tokens[1] = contract_vocabulary; }), DeviceFault::bad_token},
            {"a mask too short", with([](StepRow& r) { r.allowed = {1}; }), DeviceFault::bad_token},
            {"a mask of nothing", with([](StepRow& r) {
                 r.allowed = {0, 0, uint64_t(1) << 63};
             }),
             DeviceFault::bad_token},
            {"a prompt in a decode", after(step_on(*device, {good()}), [](Step& s) { s.kind = StepKind::decode; }),
             DeviceFault::bad_shape},
        };
        for (const auto& [what, step, fault] : cases) {
            INFO(kind.name, ": ", what);
            const auto result = device->run(step);
            REQUIRE(!result.ok());
            CHECK(result.error().fault == fault);
            CHECK(result.error().action == DeviceAction::fail_request);
            CHECK(content(*device, {3, 4}) == before);
        }
        // Sharing what is only read is what prefixes are for.
        CHECK(device->run(step_on(*device, {row_of({1}, 16, {3, 4}), row_of({1}, 16, {3, 5})})).ok());
    }
}

TEST_CASE("device contract: tokens are chosen greedily or drawn, within the mask, by seed and position alone") {
    for (const DeviceKind& kind : device_kinds()) {
        INFO(kind.name);
        const auto device = kind.open();
        std::vector<StepRow> rows;
        for (uint32_t r = 0; r < contract_rows; ++r) {
            StepRow row = row_of({r, r + 1, r + 2}, 0, {BlockId(1 + r)});
            row.sequence = 100 + r;
            row.epoch = r;
            row.seed = r % 3;
            if (r >= 2) row.sampling = {1.5f, 0, 1.0f};
            if (r >= 5) row.allowed = {0, uint64_t(0xff00) << (r % 4), 0};
            if (r == 6) row.sampling = {};
            if (r == 4) row.want_token = false;
            if (r == 3) row.want_logits = false;
            rows.push_back(row);
        }
        const std::vector<RanRow> ran = run_rows(*device, rows);
        for (size_t r = 0; r < rows.size(); ++r) {
            INFO("row ", r);
            CHECK(ran[r].sequence == 100 + r);
            CHECK(ran[r].epoch == r);
            CHECK(ran[r].token.has_value() == (r != 4));
            CHECK(ran[r].logits.size() == (r == 3 ? 0 : contract_vocabulary));
            if (r == 4 || r == 3) continue;
            CHECK(*ran[r].token == sample(ran[r].logits, rows[r].sampling, rows[r].seed, 3));
            if (rows[r].allowed.empty()) continue;
            CHECK((rows[r].allowed[*ran[r].token / 64] >> (*ran[r].token % 64) & 1));
            CHECK(std::count(ran[r].logits.begin(), ran[r].logits.end(), -INFINITY) == contract_vocabulary - 8);
        }
        // Alone, on a device that has seen nothing else, and on the kind whose bits it has.
        const auto fresh = kind.open(), reference = device_kinds()[kind.reference].open();
        for (const StepRow& row : rows) {
            const RanRow single = run_rows(*fresh, {row})[0];
            const size_t r = row.sequence - 100;
            CHECK(single.token == ran[r].token);
            CHECK(run_rows(*reference, {row})[0].token == ran[r].token);
        }
    }
}

TEST_CASE("device contract: static shapes are refused where they do not fit, and padding writes nothing") {
    for (const DeviceKind& kind : device_kinds()) {
        const auto device = kind.open();
        if (!device->caps().strict) continue;
        INFO(kind.name);
        std::mt19937 random(8);
        const std::vector<TokenId> tokens = random_tokens(42, random);
        run_alone(*device, random_tokens(20, random), {20, 21});
        const std::string others = content(*device, {20, 21, 22, 48});

        const Step prefill = step_on(*device, {row_of({tokens.begin(), tokens.begin() + 20}, 0, {7, 8})});
        auto done = device->run(prefill);
        REQUIRE(done.ok());
        CHECK(done->cost.tokens == 20);
        CHECK(done->cost.padded_tokens == 12);
        CHECK(done->cost.context_tokens == 20);
        CHECK(done->cost.padded_context == 12);
        CHECK(done->cost.wall_s > 0);
        const Step decode =
            step_on(*device, {row_of({tokens[20]}, 33, {7, 8, 12}), row_of({3}, 0, {9}), row_of({3}, 0, {10})});
        CHECK(decode.row_bucket == 4);
        CHECK(decode.context_bucket == 64);
        done = device->run(decode);
        REQUIRE(done.ok());
        CHECK(done->cost.padded_tokens == 1);
        CHECK(content(*device, {20, 21, 22, 48}) == others);

        const auto refused = [&](const Step& base, auto change, DeviceFault fault) {
            Step step = base;
            change(step);
            const auto result = device->run(step);
            REQUIRE(!result.ok());
            CHECK_MESSAGE(result.error().fault == fault, result.error().message);
        };
        const auto shape = DeviceFault::bad_shape, table = DeviceFault::bad_block_table;
        refused(
            prefill, [](Step& s) { s.kind = StepKind::mixed; }, shape);
        refused(
            prefill, [](Step& s) { s.token_bucket = 20; }, shape);
        refused(
            prefill, [](Step& s) { s.token_bucket = 16; }, shape);
        refused(
            prefill, [](Step& s) { s.context_bucket = 48; }, shape);
        refused(
            prefill, [](Step& s) { s.context_bucket = 64; }, table);
        refused(
            prefill,
            [](Step& s) {
                s.rows.push_back(row_of({1}, 0, {9, -1}));
            },
            shape);
        refused(
            prefill,
            [](Step& s) {
                s.rows[0] = row_of({1}, 32, {7, 8, 9});
            },
            shape);
        refused(
            decode, [](Step& s) { s.row_bucket = 3; }, shape);
        refused(
            decode, [](Step& s) { s.row_bucket = 2; }, shape);
        refused(
            decode,
            [](Step& s) {
                s.rows[1].block_table = {9, 10, -1, -1};
            },
            table);
        refused(
            decode, [](Step& s) { s.rows[1].block_table = {9}; }, table);
        refused(
            decode, [](Step& s) { s.rows[0].tokens.push_back(1); }, shape);
    }
}
