// The scheduler with devices that compute: batches, chunks, tiers and losses must change no token of a real model, and
// nothing that it composes may violate the contract of a strict device.
#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <random>

#include "runtime/inference/neuron_core_sim.h"
#include "runtime/inference/scheduler.h"
#include "tests/support/random_llama.h"

using namespace mainstay;

namespace {

std::shared_ptr<const LlamaModel> tiny_model() {
    std::string name = (std::filesystem::temp_directory_path() / "mainstay_sched_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()));
    RandomLlama(llama_shape(32, 48, 2, 2, 1, 120, true, 256), RandomLlama::Type::f32, 5).write(name);
    auto model = LlamaModel::load(name, Precision::f32, 256 << 20);
    std::filesystem::remove_all(name);
    REQUIRE(model.ok());
    return std::move(*model);
}

SessionKey session_of(uint64_t n) { return {TenantId{1}, SessionId{FamilyId{n + 1}, n, n}}; }

struct Workers {
    Workers(std::shared_ptr<const LlamaModel> of, SchedulerConfig config) : model(std::move(of)), scheduler(config) {}

    void add(uint32_t id, bool strict, uint32_t blocks) {
        NeuronCoreSimOptions options;
        options.threads = 1;
        options.block_count = blocks;
        options.rows_max = 4;
        options.tokens_max = 32;
        options.strict = strict;
        auto device = make_neuron_core_sim(model, options);
        REQUIRE(device.ok());
        REQUIRE(scheduler.add_device(DeviceId{id}, (*device)->caps(), now));
        devices[id] = std::move(*device);
    }

    void submit(uint64_t sequence, uint64_t session, std::vector<TokenId> tokens, uint32_t count) {
        TokenRequest request;
        request.sequence = sequence;
        request.session = request.root = session_of(session);
        request.tokens = std::move(tokens);
        request.max_new_tokens = count;
        request.sampling = {0.9f, 20, 0.95f};
        request.seed = sequence;
        const auto refusal = scheduler.submit(std::move(request), now);
        REQUIRE_MESSAGE(!refusal, (refusal ? refusal->reason : ""));
    }

    bool round() {
        auto all = scheduler.step(now);
        for (DeviceWork& work : all) {
            Device& device = *devices.at(work.device.value);
            for (const BlockSave& save : work.effects.saves) {
                auto bytes = device.export_block(save.block, save.tokens);
                REQUIRE(bytes.ok());
                host[save.hash] = *bytes;
                scheduler.saved(work.device, save.hash, true);
            }
            REQUIRE(device.copy_blocks(work.effects.copies).ok());
            for (const BlockLoad& load : work.effects.loads) {
                auto tokens = device.import_block(load.block, host[load.hash]);
                scheduler.loaded(work.device, load.block, load.hash, load.from, tokens.ok());
                if (tokens.ok()) CHECK(*tokens == load.tokens);
            }
            now += 500;
            if (!work.step) {
                scheduler.idle(work.device);
                continue;
            }
            auto result = device.run(*work.step);
            REQUIRE_MESSAGE(result.ok(), (result.ok() ? "" : result.error().message));
            scheduler.completed(work.device, *result, now);
        }
        auto out = scheduler.outputs();
        for (auto& one : out.ended) ended[one.sequence] = std::move(one);
        for (const auto& effect : out.tiers)
            if (effect.kind == TierEffect::Kind::drop_host) host.erase(effect.hash);
        return !all.empty();
    }
    void run() {
        int most = 20'000;
        while (round() && --most > 0) {
        }
        REQUIRE(most > 0);
    }

    std::shared_ptr<const LlamaModel> model;
    TimeUs now = 1'000'000;
    Scheduler scheduler;
    std::map<uint32_t, std::unique_ptr<Device>> devices;
    std::map<KvHash, std::string> host;
    std::map<uint64_t, SequenceEnded> ended;
};

}  // namespace

TEST_CASE("scheduler on a device: same tokens one by one, batched, in strict mode, over tiers and after a loss") {
    const auto model = tiny_model();
    constexpr uint64_t sessions = 8;
    std::mt19937 random(3);
    std::vector<TokenId> shared(20);
    for (TokenId& token : shared) token = random() % 120;
    std::vector<std::vector<TokenId>> prompts(sessions, shared), more(sessions);
    for (uint64_t s = 0; s < sessions; ++s) {
        for (uint64_t n = 1 + s * 5; n > 0; --n) prompts[s].push_back(random() % 120);
        for (int n = 0; n < 7; ++n) more[s].push_back(random() % 120);
    }
    const auto two_turns = [&](Workers& workers, bool loss) {
        for (uint64_t s = 0; s < sessions; ++s) workers.submit(s + 1, s, prompts[s], 24);
        if (loss) {
            for (int i = 0; i < 12; ++i) workers.round();
            workers.scheduler.device_lost(DeviceId{0}, "killed by a test", workers.now);
            workers.devices.erase(0);
            workers.add(7, true, 40);
        }
        workers.run();
        std::vector<std::vector<TokenId>> out;
        for (uint64_t s = 0; s < sessions; ++s) {
            auto tokens = prompts[s];
            const auto& said = workers.ended[s + 1].generated;
            tokens.insert(tokens.end(), said.begin(), said.end());
            tokens.insert(tokens.end(), more[s].begin(), more[s].end());
            workers.submit(100 + s, s, tokens, 12);
        }
        workers.run();
        for (uint64_t s = 0; s < sessions; ++s) {
            out.push_back(workers.ended[s + 1].generated);
            out.push_back(workers.ended[100 + s].generated);
            CHECK(out.back().size() == 12);
        }
        CHECK(workers.scheduler.check() == "");
        return out;
    };
    SchedulerConfig config;
    config.running_max = 1;
    Workers alone(model, config);
    alone.add(0, false, 200);
    const auto expected = two_turns(alone, false);

    config = {};
    Workers batched(model, config);
    batched.add(0, false, 200);
    CHECK(two_turns(batched, false) == expected);
    CHECK(batched.ended[100].usage.prefilled_tokens == 8);  // seven new ones and the last that was sampled
    CHECK(batched.scheduler.view().devices[0].steps < alone.scheduler.view().devices[0].steps / 2);

    config.host_blocks_max = 200;
    Workers crowded(model, config);
    crowded.add(0, true, 14);
    crowded.add(1, false, 14);
    CHECK(two_turns(crowded, true) == expected);
    CHECK(crowded.scheduler.view().pool.loaded > 0);
    CHECK(crowded.scheduler.view().requeued > 0);
}
