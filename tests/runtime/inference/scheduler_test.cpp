#include "runtime/inference/scheduler.h"

#include <doctest/doctest.h>

#include <cstring>
#include <map>

#include "runtime/base/random.h"

using namespace mainstay;

namespace {

constexpr uint32_t block_tokens = 4;
constexpr uint32_t vocabulary = 50;

SessionKey session_of(uint64_t n, uint32_t tenant = 1) {
    return {TenantId{tenant}, SessionId{FamilyId{n + 1}, n * 0x9e3779b97f4a7c15ull, n}};
}

TokenId next_token(const std::vector<TokenId>& tokens, uint64_t seed) {
    return TokenId(xxh64({reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(TokenId)}, seed) %
                   vocabulary);
}

std::vector<TokenId> alone(std::vector<TokenId> tokens, uint64_t seed, size_t count) {
    std::vector<TokenId> out;
    for (; count > 0; --count) {
        out.push_back(next_token(tokens, seed));
        tokens.push_back(out.back());
    }
    return out;
}

DeviceCaps caps_of(uint32_t blocks = 64, uint32_t rows = 8, uint32_t tokens = 32, bool strict = false) {
    DeviceCaps caps;
    caps.kind = "fake";
    caps.model_hash = "m";
    caps.kv_format = "f";
    caps.vocabulary = vocabulary;
    caps.block_tokens = block_tokens;
    caps.block_count = blocks;
    caps.context_max = 128;
    caps.rows_max = rows;
    caps.tokens_max = tokens;
    caps.prefills_max = strict ? 1 : rows;
    caps.mixed_steps = !strict;
    caps.strict = strict;
    if (strict) {
        caps.prefill_buckets = {8, 16};
        caps.decode_buckets = {1, 4, 8};
        caps.context_buckets = {32, 128};
    }
    caps.kv_export = true;
    return caps;
}

/// Chooses a token from what its memory holds of the sequence, so that a wrong block shows as a wrong token. Checks
/// the contract of device.h.
struct FakeDevice {
    DeviceCaps caps;
    std::map<BlockId, std::vector<TokenId>> memory;
    std::vector<uint32_t> prefill_tokens;  // of each step

    StepResult run(const Step& step) {
        REQUIRE(!step.rows.empty());
        REQUIRE(step.rows.size() <= caps.rows_max);
        StepResult out;
        out.step = step.id;
        size_t all = 0, prefills = 0;
        std::map<BlockId, size_t> written;
        for (size_t r = 0; r < step.rows.size(); ++r) {
            const StepRow& row = step.rows[r];
            const size_t end = row.position + row.tokens.size();
            REQUIRE(!row.tokens.empty());
            REQUIRE(end <= caps.context_max);
            all += row.tokens.size();
            prefills += row.tokens.size() > 1;
            const size_t used = (end + block_tokens - 1) / block_tokens;
            if (caps.strict) {
                REQUIRE(end <= step.context_bucket);
                REQUIRE(row.block_table.size() == step.context_bucket / block_tokens);
                for (size_t i = used; i < row.block_table.size(); ++i) REQUIRE(row.block_table[i] == block_none);
            }
            REQUIRE(row.block_table.size() >= used);
            for (size_t i = 0; i < used; ++i) {
                REQUIRE(row.block_table[i] > block_null);
                REQUIRE(uint32_t(row.block_table[i]) < caps.block_count);
            }
            for (size_t i = row.position / block_tokens; i < used; ++i)
                REQUIRE(written.emplace(row.block_table[i], r).second);
        }
        REQUIRE(all <= caps.tokens_max);
        REQUIRE(prefills <= caps.prefills_max);
        if (step.kind == StepKind::decode) REQUIRE(prefills == 0);
        if (caps.strict) {
            REQUIRE(step.kind != StepKind::mixed);
            if (step.kind == StepKind::prefill) {
                REQUIRE(step.rows.size() == 1);
                REQUIRE(step.token_bucket >= all);
                REQUIRE(step.token_bucket <= 16);
            } else {
                REQUIRE(step.row_bucket >= step.rows.size());
            }
        }
        for (const StepRow& row : step.rows)
            for (size_t i = 0; i < row.tokens.size(); ++i) {
                const size_t position = row.position + i;
                auto& block = memory[row.block_table[position / block_tokens]];
                block.resize(block_tokens, 999);
                block[position % block_tokens] = row.tokens[i];
            }
        for (size_t r = 0; r < step.rows.size(); ++r) {
            const StepRow& row = step.rows[r];
            std::vector<TokenId> all_tokens;
            for (size_t i = 0; i < row.position + row.tokens.size(); ++i) {
                const BlockId block = row.block_table[i / block_tokens];
                if (const auto other = written.find(block); other != written.end()) REQUIRE(other->second == r);
                all_tokens.push_back(memory[block].at(i % block_tokens));
            }
            RowResult& result = out.rows.emplace_back();
            result.sequence = row.sequence;
            result.epoch = row.epoch;
            if (row.want_token) result.token = next_token(all_tokens, row.seed);
        }
        out.cost.tokens = uint32_t(all);
        out.cost.wall_s = 0.001 + 0.0001 * double(all);
        prefill_tokens.push_back(uint32_t(prefills));
        return out;
    }
};

/// The scheduler with its workers, as the actors drive it; everything happens when a test says so.
struct Plant {
    explicit Plant(SchedulerConfig config = {}) : scheduler(config) {}

    void add(uint32_t id, const DeviceCaps& caps) {
        REQUIRE(scheduler.add_device(DeviceId{id}, caps, now));
        workers[id] = FakeDevice{caps, {}, {}};
    }
    void lose(uint32_t id) {
        workers.erase(id);
        std::erase_if(under_way, [&](const DeviceWork& work) { return work.device.value == id; });
        scheduler.device_lost(DeviceId{id}, "killed", now);
    }

    std::optional<Refusal> submit(uint64_t sequence, const SessionKey& session, std::vector<TokenId> tokens,
                                  uint32_t count, auto&&... change) {
        TokenRequest request;
        request.sequence = sequence;
        request.session = request.root = session;
        request.tokens = std::move(tokens);
        request.max_new_tokens = count;
        request.seed = sequence * 7;
        (change(request), ...);
        return scheduler.submit(std::move(request), now);
    }

    /// Hands out work; it is under way until perform().
    bool hand_out() {
        auto work = scheduler.step(now);
        const bool any = !work.empty();
        for (auto& one : work) {
            for (const auto& save : one.effects.saves)
                exported[{one.device.value, save.hash}] = workers[one.device.value].memory[save.block];
            under_way.push_back(std::move(one));
        }
        collect();
        return any;
    }
    void perform() {
        for (auto& work : std::exchange(under_way, {})) {
            FakeDevice& worker = workers[work.device.value];
            for (const auto& save : work.effects.saves) {
                host[save.hash] = exported[{work.device.value, save.hash}];
                scheduler.saved(work.device, save.hash, true);
            }
            for (const auto& load : work.effects.loads) {
                auto& tier = load.from == KvTier::host ? host : disk;
                const bool ok = tier.contains(load.hash) && !tear_loads;
                if (ok) worker.memory[load.block] = tier[load.hash];
                scheduler.loaded(work.device, load.block, load.hash, load.from, ok);
            }
            now += 1000;
            if (work.step) {
                steps.push_back(*work.step);
                scheduler.completed(work.device, worker.run(*work.step), now);
            } else {
                scheduler.idle(work.device);
            }
        }
        collect();
        const std::string wrong = scheduler.check();
        REQUIRE_MESSAGE(wrong.empty(), wrong);
    }
    bool turn_once() {
        const bool any = hand_out();
        perform();
        return any;
    }
    void run(int most = 100'000) {
        while (most-- > 0 && (hand_out() || !under_way.empty())) perform();
        REQUIRE(most > 0);
    }
    void collect() {
        auto out = scheduler.outputs();
        for (const auto& token : out.tokens) streamed[token.sequence].push_back(token.token);
        for (auto& one : out.ended) ended[one.sequence] = std::move(one);
        for (auto& one : out.decisions) decisions.push_back(std::move(one));
        for (const auto& effect : out.tiers) {
            if (effect.kind == TierEffect::Kind::store_disk) {
                disk[effect.hash] = host[effect.hash];
                scheduler.stored_on_disk(effect.hash, true);
            } else {
                (effect.kind == TierEffect::Kind::drop_host ? host : disk).erase(effect.hash);
            }
        }
    }
    size_t decided(SchedulerDecision::Kind kind) const {
        size_t n = 0;
        for (const auto& one : decisions) n += one.kind == kind && !one.reason.empty();
        return n;
    }

    TimeUs now = 1'000'000;
    Scheduler scheduler;
    std::map<uint32_t, FakeDevice> workers;
    std::vector<DeviceWork> under_way;
    std::map<std::pair<uint32_t, KvHash>, std::vector<TokenId>> exported;
    std::map<KvHash, std::vector<TokenId>> host, disk;
    bool tear_loads = false;
    std::map<uint64_t, std::vector<TokenId>> streamed;
    std::map<uint64_t, SequenceEnded> ended;
    std::vector<SchedulerDecision> decisions;
    std::vector<Step> steps;
};

std::vector<TokenId> prompt_of(uint64_t seed, size_t n) {
    SeededRandom random(seed);
    std::vector<TokenId> out;
    while (out.size() < n) out.push_back(TokenId(random.below(vocabulary)));
    return out;
}

}  // namespace

TEST_CASE("scheduler: many sequences share steps, and each has the tokens that it has alone") {
    for (const bool strict : {false, true}) {
        CAPTURE(strict);
        Plant plant;
        plant.add(0, caps_of(200, 8, 32, strict));
        for (uint64_t s = 1; s <= 20; ++s) REQUIRE(!plant.submit(s, session_of(s), prompt_of(s, 3 + s * 3), 12));
        plant.run();
        for (uint64_t s = 1; s <= 20; ++s) {
            CAPTURE(s);
            REQUIRE(plant.ended.count(s));
            CHECK(plant.ended[s].end == SequenceEnd::length);
            CHECK(plant.ended[s].generated == alone(prompt_of(s, 3 + s * 3), s * 7, 12));
            CHECK(plant.streamed[s] == plant.ended[s].generated);
            CHECK(plant.ended[s].usage.prefilled_tokens == 3 + s * 3);
        }
        size_t rows = 0;
        for (const Step& step : plant.steps) rows += step.rows.size();
        CHECK(double(rows) / double(plant.steps.size()) > (strict ? 2.0 : 4.0));
    }
}

TEST_CASE("scheduler: decodes come first in a mixed step, and prompts are computed in chunks within the budget") {
    Plant plant;
    plant.add(0, caps_of(200, 8, 16));
    plant.submit(1, session_of(1), prompt_of(1, 5), 40);
    plant.turn_once();
    plant.submit(2, session_of(2), prompt_of(2, 50), 5);
    for (int i = 0; i < 3; ++i) {
        plant.turn_once();
        const Step& step = plant.steps.back();
        REQUIRE(step.rows.size() == 2);
        CHECK(step.rows[0].sequence == 1);
        CHECK(step.rows[0].tokens.size() == 1);
        CHECK(step.rows[1].tokens.size() == 15);
        CHECK_FALSE(step.rows[1].want_token);
    }
    plant.turn_once();
    CHECK(plant.steps.back().rows[1].tokens.size() == 5);
    CHECK(plant.steps.back().rows[1].want_token);
}

TEST_CASE("scheduler: a turn computes its new tokens only, on the device, after eviction, and after a restart") {
    SchedulerConfig config;
    config.host_blocks_max = 100;
    config.disk = true;
    auto plant = std::make_unique<Plant>(config);
    plant->add(0, caps_of(40));
    auto history = prompt_of(1, 20);
    plant->submit(1, session_of(1), history, 10);
    plant->run();
    const auto go_on = [&](uint64_t sequence) {
        const auto& said = plant->ended[sequence - 1].generated;
        history.insert(history.end(), said.begin(), said.end());
        const auto asked = prompt_of(sequence, 5);
        history.insert(history.end(), asked.begin(), asked.end());
        REQUIRE(!plant->submit(sequence, session_of(1), history, 6));
        plant->run();
        CHECK(plant->ended[sequence].generated == alone(history, sequence * 7, 6));
        // The last sampled token was never computed; the rest is cached to the token.
        CHECK(plant->ended[sequence].usage.prefilled_tokens == 6);
        return plant->ended[sequence].usage;
    };
    CHECK(go_on(2).cached_device == 29);
    // Others fill the device; it comes back from the host's memory.
    for (uint64_t s = 100; s < 103; ++s) plant->submit(s, session_of(s), prompt_of(s, 60), 1);
    plant->run();
    CHECK(go_on(3).cached_host > 0);
    // Idle, written to disk, the daemon starts again, with another device.
    plant->scheduler.session_idle(session_of(1));
    plant->collect();
    const auto disk = plant->disk;
    const auto ended = plant->ended;
    const auto held = plant->scheduler.holdings([](const SessionKey& key) { return key == session_of(1); }, 1000);
    plant = std::make_unique<Plant>(config);
    plant->add(3, caps_of(40));
    plant->disk = disk;
    plant->ended = ended;
    for (const auto& block : held) CHECK(plant->scheduler.offer(KvTier::disk, block.hash, block.tokens, session_of(1)));
    CHECK(go_on(4).cached_disk > 0);
}

TEST_CASE("scheduler: what goes to another node is who was served last first, and of each the beginning first") {
    SchedulerConfig config;
    config.host_blocks_max = 100;
    Plant plant(config);
    plant.add(0, caps_of(60));
    for (const uint64_t s : {1, 2, 3, 4, 2}) {
        static uint64_t sequence = 0;
        plant.submit(++sequence, session_of(s), prompt_of(s, 20), 1);
        plant.run();
    }
    const auto odd = [](const SessionKey& key) { return key != session_of(4); };
    std::vector<SessionKey> order;
    KvChain chain{kv_root(caps_of().model_hash, caps_of().kv_format, TenantId{1}), {}};
    extend_chain(chain, prompt_of(2, 20), caps_of().block_tokens);
    const auto names = plant.scheduler.holdings(odd, 1000);
    for (const BlockName& name : names)
        if (order.empty() || order.back() != name.owner) order.push_back(name.owner);
    CHECK(order == std::vector{session_of(2), session_of(3), session_of(1)});
    REQUIRE(names.size() > chain.blocks.size());
    for (size_t i = 0; i < chain.blocks.size(); ++i) CHECK(names[i].hash == chain.blocks[i]);
    // No more than is asked for, but for the last session's.
    const size_t each = names.size() / 3;
    CHECK(plant.scheduler.holdings(odd, each).size() == each);
    CHECK(plant.scheduler.holdings(odd, each + 1).size() == 2 * each);
}

TEST_CASE("scheduler: a block that is damaged in a tier is computed again and changes no token") {
    SchedulerConfig config;
    config.host_blocks_max = 100;
    Plant plant(config);
    plant.add(0, caps_of(40));
    plant.submit(1, session_of(1), prompt_of(1, 40), 1);
    plant.run();
    plant.lose(0);
    plant.add(1, caps_of(40));
    plant.tear_loads = true;
    plant.submit(2, session_of(1), prompt_of(1, 41), 8);
    plant.run();
    CHECK(plant.ended[2].generated == alone(prompt_of(1, 41), 14, 8));
    CHECK(plant.ended[2].usage.cached_host == 0);  // it was to be loaded, and was not there
    CHECK(plant.ended[2].usage.prefilled_tokens == 41);
    CHECK(plant.scheduler.view().pool.load_failed > 0);
}

TEST_CASE("scheduler: a lost device's sequences go on elsewhere with the same tokens, and fail after the third loss") {
    Plant plant;
    plant.add(0, caps_of());
    plant.add(1, caps_of());
    for (uint64_t s = 1; s <= 6; ++s) plant.submit(s, session_of(s), prompt_of(s, 10), 20);
    for (int i = 0; i < 5; ++i) plant.turn_once();
    plant.hand_out();  // lost in the middle of a step
    plant.lose(0);
    plant.run();
    for (uint64_t s = 1; s <= 6; ++s) {
        CHECK(plant.ended[s].generated == alone(prompt_of(s, 10), s * 7, 20));
        CHECK(plant.streamed[s] == plant.ended[s].generated);
    }
    CHECK(plant.decided(SchedulerDecision::Kind::requeued) > 0);

    plant.submit(9, session_of(9), prompt_of(9, 10), 20);
    plant.turn_once();
    for (uint32_t id = 1; id < 4; ++id) {
        plant.add(id + 1, caps_of());
        plant.lose(id);
        plant.turn_once();
    }
    REQUIRE(plant.ended.count(9));
    CHECK(plant.ended[9].end == SequenceEnd::failed);
    CHECK(plant.ended[9].code == ErrorCode::model_unavailable);
}

TEST_CASE("scheduler: a cancelled sequence is in no further step, and a result that comes late has no effect") {
    Plant plant;
    plant.add(0, caps_of());
    plant.submit(1, session_of(1), prompt_of(1, 10), 50);
    plant.submit(2, session_of(2), prompt_of(2, 10), 50);
    for (int i = 0; i < 4; ++i) plant.turn_once();
    plant.hand_out();
    plant.scheduler.cancel(1, plant.now);
    plant.collect();
    CHECK(plant.ended[1].end == SequenceEnd::cancelled);
    const size_t said = plant.streamed[1].size();
    plant.perform();
    CHECK(plant.streamed[1].size() == said);
    const size_t before = plant.steps.size();
    plant.run();
    for (size_t i = before; i < plant.steps.size(); ++i)
        for (const auto& row : plant.steps[i].rows) CHECK(row.sequence != 1);
    CHECK(plant.ended[2].generated == alone(prompt_of(2, 10), 14, 50));
    CHECK(plant.scheduler.view().stale_results == 1);
}

TEST_CASE("scheduler: two backlogged tenants are served alike, though one has ten times the sessions") {
    Plant plant;
    plant.add(0, caps_of(400, 8, 64));
    uint64_t sequence = 0;
    std::map<uint64_t, uint32_t> tenant_of;
    const auto backlog = [&](uint32_t tenant, uint64_t session) {
        tenant_of[++sequence] = tenant;
        REQUIRE(!plant.submit(sequence, session_of(session, tenant), prompt_of(sequence, 10), 16));
    };
    for (uint64_t s = 0; s < 50; ++s) backlog(1, s);
    for (uint64_t s = 0; s < 5; ++s)
        for (int i = 0; i < 10; ++i) backlog(2, s);
    std::map<uint32_t, uint64_t> tokens;
    std::map<uint64_t, uint64_t> per_root;
    for (int i = 0; i < 1500; ++i) {
        plant.turn_once();
        for (const auto& [s, one] : plant.ended) {
            tokens[tenant_of[s]] += 10 + 2 * one.generated.size();
            backlog(tenant_of[s], tenant_of[s] == 1 ? s % 50 : s % 5);
        }
        plant.ended.clear();
    }
    const double ratio = double(tokens[1]) / double(tokens[2]);
    CHECK(tokens[1] > 10'000);
    CHECK(ratio > 0.9);
    CHECK(ratio < 1.1);
}

TEST_CASE("scheduler: a tenant with a share of two is served twice as much") {
    Plant plant;
    plant.add(0, caps_of(400, 4, 64));
    plant.scheduler.set_weight(TenantId{2}, 2);
    uint64_t sequence = 0;
    std::map<uint64_t, uint32_t> tenant_of;
    std::map<uint32_t, double> served;
    const auto backlog = [&](uint32_t tenant) {
        tenant_of[++sequence] = tenant;
        REQUIRE(!plant.submit(sequence, session_of(sequence % 7, tenant), prompt_of(sequence, 10), 8));
    };
    for (int i = 0; i < 20; ++i) {
        backlog(1);
        backlog(2);
    }
    for (int i = 0; i < 1500; ++i) {
        plant.turn_once();
        for (const auto& [s, one] : plant.ended) {
            served[tenant_of[s]] += 1;
            backlog(tenant_of[s]);
        }
        plant.ended.clear();
    }
    CHECK(served[2] / served[1] > 1.8);
    CHECK(served[2] / served[1] < 2.2);
}

TEST_CASE("scheduler: the urgent class comes first and takes a place, the others keep their blocks and go on") {
    Plant plant;
    plant.add(0, caps_of(64, 2, 32));
    for (uint64_t s = 1; s <= 4; ++s)
        plant.submit(s, session_of(s), prompt_of(s, 8), 30, [](TokenRequest& r) { r.priority = PriorityClass::batch; });
    for (int i = 0; i < 5; ++i) plant.turn_once();
    plant.submit(9, session_of(9), prompt_of(9, 8), 5,
                 [](TokenRequest& r) { r.priority = PriorityClass::interactive; });
    plant.turn_once();
    bool there = false;
    for (const auto& row : plant.steps.back().rows) there |= row.sequence == 9;
    CHECK(there);
    CHECK(plant.decided(SchedulerDecision::Kind::preempted) == 1);
    plant.run();
    for (uint64_t s = 1; s <= 4; ++s) {
        CHECK(plant.ended[s].generated == alone(prompt_of(s, 8), s * 7, 30));
        // What was computed before it gave way was not computed again, but for the token under way.
        CHECK(plant.ended[s].usage.prefilled_tokens <= 8 + plant.ended[s].usage.preemptions);
    }
}

TEST_CASE("scheduler: a long sequence gives place to a tenant that was served less, and goes on where it was") {
    SchedulerConfig config;
    config.preempt_lead_milli = 20'000;
    config.preempt_after_tokens = 4;
    Plant plant(config);
    plant.add(0, caps_of(64, 1, 32));
    plant.submit(1, session_of(1, 1), prompt_of(1, 8), 100);
    for (int i = 0; i < 3; ++i) plant.turn_once();
    plant.submit(2, session_of(2, 2), prompt_of(2, 8), 100);
    while (!plant.ended.count(1) && !plant.ended.count(2)) REQUIRE(plant.turn_once());
    CHECK(plant.streamed[1].size() > 70);
    CHECK(plant.streamed[2].size() > 70);
    plant.run();
    for (uint64_t s = 1; s <= 2; ++s) {
        CHECK(plant.ended[s].generated == alone(prompt_of(s, 8), s * 7, 100));
        CHECK(plant.ended[s].usage.preemptions > 2);
    }
}

TEST_CASE("scheduler: root sessions of one tenant are served alike, however many sub-agents one has") {
    Plant plant;
    plant.add(0, caps_of(400, 2, 64));
    std::map<uint64_t, uint64_t> root_of, done;
    uint64_t sequence = 0;
    const auto backlog = [&](uint64_t root) {
        root_of[++sequence] = root;
        plant.submit(sequence, session_of(100 + sequence % 40), prompt_of(sequence, 8), 8,
                     [&](TokenRequest& r) { r.root = session_of(root); });
    };
    for (int i = 0; i < 30; ++i) backlog(1);
    for (int i = 0; i < 3; ++i) backlog(2);
    for (int i = 0; i < 800; ++i) {
        plant.turn_once();
        for (const auto& [s, one] : plant.ended) {
            ++done[root_of[s]];
            backlog(root_of[s]);
        }
        plant.ended.clear();
    }
    const double ratio = double(done[1]) / double(done[2]);
    CHECK(ratio > 0.9);
    CHECK(ratio < 1.1);
}

TEST_CASE("scheduler: within a root session the nearest deadline comes first, and a passed one ends the sequence") {
    Plant plant;
    plant.add(0, caps_of(64, 1, 32));
    plant.submit(1, session_of(1), prompt_of(1, 4), 20);
    plant.turn_once();
    const auto within = [&](uint64_t us) { return [at = plant.now + us](TokenRequest& r) { r.deadline = at; }; };
    plant.submit(2, session_of(1), prompt_of(2, 4), 2, within(900'000'000));
    plant.submit(3, session_of(1), prompt_of(3, 4), 2, within(500'000'000));
    plant.submit(4, session_of(1), prompt_of(4, 4), 2, within(5'000));
    plant.run();
    CHECK(plant.ended[4].end == SequenceEnd::deadline);
    CHECK(plant.ended[4].code == ErrorCode::turn_deadline_exceeded);
    CHECK(plant.ended[4].usage.queue_us >= 5'000);  // it waited to the end, and that counts as waiting
    std::vector<uint64_t> order;
    for (const Step& step : plant.steps)
        if (order.empty() || order.back() != step.rows[0].sequence) order.push_back(step.rows[0].sequence);
    CHECK(order == std::vector<uint64_t>{1, 3, 2});
}

TEST_CASE("scheduler: what waits long rises by a class") {
    SchedulerConfig config;
    config.fair.rise_after_us = 20'000;
    Plant plant(config);
    plant.add(0, caps_of(64, 1, 32));
    plant.submit(1, session_of(1), prompt_of(1, 4), 4, [](TokenRequest& r) { r.priority = PriorityClass::batch; });
    uint64_t sequence = 10;
    for (int i = 0; i < 200 && !plant.ended.count(1); ++i) {
        for (; plant.scheduler.view().waiting < 3; ++sequence)
            plant.submit(sequence, session_of(2), prompt_of(sequence, 4), 4,
                         [](TokenRequest& r) { r.priority = PriorityClass::interactive; });
        plant.turn_once();
    }
    CHECK(plant.ended.count(1));
}

TEST_CASE("scheduler: refuses with a reason and a time, before anything is computed") {
    SchedulerConfig config;
    config.waiting_max = 6;
    config.waiting_tenant_max = 4;
    Plant plant(config);
    CHECK(plant.submit(1, session_of(1), prompt_of(1, 4), 1)->code == ErrorCode::model_unavailable);
    plant.add(0, caps_of(20, 1, 8));
    CHECK(plant.submit(1, session_of(1), {}, 1)->code == ErrorCode::invalid_request);
    auto refusal = plant.submit(1, session_of(1), prompt_of(1, 128), 1);
    CHECK(refusal->code == ErrorCode::context_overflow);
    CHECK(refusal->retry_after_us == 0);
    CHECK(plant.submit(1, session_of(1), prompt_of(1, 100), 1)->reason.find("KV blocks") != std::string::npos);

    uint64_t s = 10;
    for (; s < 14; ++s) CHECK(!plant.submit(s, session_of(s), prompt_of(s, 16), 4));
    refusal = plant.submit(s, session_of(s), prompt_of(s, 16), 4);
    REQUIRE(refusal);
    CHECK(refusal->code == ErrorCode::model_rate_limited);
    CHECK(refusal->reason.find("scheduler_waiting_tenant_max") != std::string::npos);
    CHECK(refusal->retry_after_us > 0);
    for (s = 20; s < 22; ++s) CHECK(!plant.submit(s, session_of(s, 2), prompt_of(s, 16), 4));
    refusal = plant.submit(s, session_of(s, 2), prompt_of(s, 16), 4);
    REQUIRE(refusal);
    CHECK(refusal->reason.find("scheduler_waiting_max") != std::string::npos);
    plant.run();

    for (s = 30; s < 33; ++s) CHECK(!plant.submit(s, session_of(s), prompt_of(s, 16), 4));
    refusal =
        plant.submit(s, session_of(s), prompt_of(s, 16), 4, [](TokenRequest& r) { r.first_token_within_us = 1000; });
    REQUIRE(refusal);
    CHECK(refusal->reason.find("predicted") != std::string::npos);
    CHECK(refusal->retry_after_us > 0);
    CHECK(!plant.submit(s, session_of(s, 3), prompt_of(s, 16), 4,
                        [](TokenRequest& r) { r.first_token_within_us = 60'000'000; }));
    plant.run();
    CHECK(plant.ended.count(s));
}

TEST_CASE("scheduler: more sequences than blocks: all end, with their tokens") {
    for (const bool tiers : {false, true}) {
        SchedulerConfig config;
        config.host_blocks_max = tiers ? 60 : 0;
        config.reserve_tokens = 1;
        Plant plant(config);
        plant.add(0, caps_of(21, 8, 32));
        for (uint64_t s = 1; s <= 12; ++s) REQUIRE(!plant.submit(s, session_of(s), prompt_of(s, 8 + s), 40));
        plant.run();
        for (uint64_t s = 1; s <= 12; ++s) {
            CAPTURE(s);
            CHECK(plant.ended[s].generated == alone(prompt_of(s, 8 + s), s * 7, 40));
        }
        CHECK(plant.scheduler.view().preempted > 0);
        // One that grows beyond all blocks fails, and says why.
        plant.submit(50, session_of(50), prompt_of(50, 60), 60);
        plant.run();
        CHECK(plant.ended[50].end == SequenceEnd::failed);
        CHECK(plant.ended[50].code == ErrorCode::context_overflow);
    }
}

TEST_CASE("scheduler: a session stays where its tokens are cached, and others go where there is less to do") {
    Plant plant;
    plant.add(0, caps_of());
    plant.add(1, caps_of());
    auto first = prompt_of(1, 40);
    plant.submit(1, session_of(1), first, 4);
    plant.submit(2, session_of(2), prompt_of(2, 40), 4);
    plant.turn_once();
    CHECK(plant.scheduler.view().devices[0].running == 1);
    CHECK(plant.scheduler.view().devices[1].running == 1);
    plant.run();
    const DeviceId home = *plant.decisions.front().device;
    first.insert(first.end(), plant.ended[1].generated.begin(), plant.ended[1].generated.end());
    for (uint64_t s = 3; s < 6; ++s) {
        plant.submit(s, session_of(1), first, 1);
        plant.run();
        CHECK(*plant.decisions.back().device == home);
        CHECK(plant.decisions.back().reason.find("cached") != std::string::npos);
    }
}

TEST_CASE("scheduler: a drained device is left at the next step, with what others can load") {
    SchedulerConfig config;
    config.host_blocks_max = 100;
    Plant plant(config);
    plant.add(0, caps_of());
    for (uint64_t s = 1; s <= 4; ++s) plant.submit(s, session_of(s), prompt_of(s, 20), 40);
    for (int i = 0; i < 10; ++i) plant.turn_once();
    plant.scheduler.drain(DeviceId{0}, true, plant.now);
    plant.turn_once();
    CHECK_FALSE(plant.scheduler.drained(DeviceId{0}));  // nobody else is there
    plant.add(1, caps_of());
    for (int i = 0; i < 3; ++i) plant.turn_once();
    CHECK(plant.scheduler.drained(DeviceId{0}));
    plant.run();
    for (uint64_t s = 1; s <= 4; ++s) CHECK(plant.ended[s].generated == alone(prompt_of(s, 20), s * 7, 40));
    CHECK(plant.scheduler.view().pool.host_hit_blocks > 0);
}

TEST_CASE("scheduler: blocks are kept over a tool call, unless memory is tight and the tool is slow") {
    Plant plant;
    plant.add(0, caps_of(24, 4, 64));
    auto tokens = prompt_of(1, 40);
    plant.submit(1, session_of(1), tokens, 4);
    plant.run();
    plant.scheduler.tool_paused(session_of(1), "calc", plant.now);
    plant.collect();
    CHECK(plant.decided(SchedulerDecision::Kind::kept) == 1);
    CHECK(plant.scheduler.wake_at() > plant.now);
    // Another one that fits beside it evicts nothing of it.
    plant.submit(2, session_of(2), prompt_of(2, 30), 2);
    plant.run();
    tokens.insert(tokens.end(), plant.ended[1].generated.begin(), plant.ended[1].generated.end());
    tokens.push_back(1);
    plant.submit(3, session_of(1), tokens, 2);
    plant.run();
    CHECK(plant.ended[3].usage.cached_device >= 40);
    // One that needs the room gets it.
    plant.scheduler.tool_paused(session_of(1), "calc", plant.now);
    plant.submit(4, session_of(4), prompt_of(4, 80), 2);
    plant.run();
    CHECK(plant.ended[4].generated == alone(prompt_of(4, 80), 28, 2));
    CHECK(plant.decided(SchedulerDecision::Kind::released) == 1);
}

TEST_CASE("tool pause: keeps for as long as calls usually take, and not for tools that are slow") {
    ToolDurations tools;
    for (int i = 0; i < 95; ++i) tools.record("fast", 5'000);
    for (int i = 0; i < 5; ++i) tools.record("fast", 20'000'000);
    for (int i = 0; i < 100; ++i) tools.record("slow", 40'000'000);
    PauseTerms terms{100'000, 0, 60'000'000};
    CHECK(tools.keep_us("slow", terms) == 60'000'000);  // nobody needs the room
    terms.cost_us_per_us = 0.5;
    const uint64_t fast = tools.keep_us("fast", terms);
    CHECK(fast >= 5'000);
    CHECK(fast < 50'000);
    CHECK(tools.keep_us("slow", terms) == 0);
    CHECK(tools.keep_us("unknown", terms) > 0);
}

TEST_CASE("scheduler: errors of a device retry the step, fail the row that is to blame, or find it") {
    Plant plant;
    plant.add(0, caps_of());
    for (uint64_t s = 1; s <= 3; ++s) plant.submit(s, session_of(s), prompt_of(s, 8), 10);
    plant.turn_once();
    plant.hand_out();
    plant.under_way.clear();
    plant.scheduler.failed(DeviceId{0}, {DeviceAction::retry, DeviceFault::queue_full, "full", {}, 7}, plant.now);
    CHECK_FALSE(plant.hand_out());
    CHECK(plant.scheduler.wake_at() > plant.now);
    plant.now = plant.scheduler.wake_at();
    plant.hand_out();
    REQUIRE(plant.under_way.size() == 1);
    const uint64_t bad = plant.under_way[0].step->rows[1].sequence;
    plant.under_way.clear();
    plant.scheduler.failed(DeviceId{0}, {DeviceAction::fail_request, DeviceFault::numeric, "NaN", 1, 0}, plant.now);
    plant.collect();
    CHECK(plant.ended[bad].code == ErrorCode::model_protocol_error);
    // Nobody to blame: one by one.
    plant.hand_out();
    plant.under_way.clear();
    plant.scheduler.failed(DeviceId{0}, {DeviceAction::fail_request, DeviceFault::bad_shape, "?", {}, 0}, plant.now);
    plant.turn_once();
    CHECK(plant.steps.back().rows.size() == 1);
    plant.run();
    for (uint64_t s = 1; s <= 3; ++s)
        if (s != bad) CHECK(plant.ended[s].generated == alone(prompt_of(s, 8), s * 7, 10));
}

TEST_CASE("scheduler: a deleted session leaves nothing that another turn could find") {
    SchedulerConfig config;
    config.host_blocks_max = 50;
    config.disk = true;
    Plant plant(config);
    plant.add(0, caps_of());
    plant.submit(1, session_of(1), prompt_of(1, 30), 4, [](TokenRequest& r) { r.definition_tokens = 8; });
    plant.run();
    plant.submit(2, session_of(1), prompt_of(2, 30), 50);
    plant.turn_once();
    plant.scheduler.session_idle(session_of(1));
    plant.scheduler.session_deleted(session_of(1), plant.now);
    plant.run();
    plant.collect();
    CHECK(plant.ended[2].end == SequenceEnd::cancelled);
    CHECK(plant.host.size() == 2);  // of the agent's definition
    CHECK(plant.disk.empty());
    plant.submit(3, session_of(3), prompt_of(1, 30), 1);
    plant.run();
    CHECK(plant.ended[3].usage.cached_device == 8);
}

TEST_CASE("scheduler: whatever happens, every sequence ends and none has a wrong token") {
    for (uint64_t seed = 1; seed <= 10; ++seed) {
        CAPTURE(seed);
        SeededRandom random(seed);
        SchedulerConfig config;
        config.host_blocks_max = seed % 2 ? 40 : 0;
        config.disk = seed % 4 == 1;
        config.reserve_tokens = uint32_t(random.below(20));
        Plant plant(config);
        const bool strict = seed % 3 == 0;
        uint32_t devices = 0;
        for (; devices < 3; ++devices) plant.add(devices, caps_of(24 + uint32_t(random.below(20)), 4, 16, strict));
        std::map<uint64_t, std::vector<TokenId>> prompts;
        std::map<uint64_t, std::vector<TokenId>> histories;
        std::map<uint64_t, uint32_t> counts;
        uint64_t sequence = 0;
        for (int i = 0; i < 600; ++i) {
            const uint64_t dice = random.below(100);
            if (dice < 40) {
                const uint64_t s = random.below(12);
                auto& history = histories[s];
                if (history.empty()) history = prompt_of(7, random.below(9));
                for (uint64_t n = 1 + random.below(12); n > 0; --n) history.push_back(TokenId(random.below(3)));
                if (history.size() > 70) history.resize(10);
                ++sequence;
                const uint32_t count = 1 + uint32_t(random.below(12));
                const bool refused = plant
                                         .submit(sequence, session_of(s, 1 + s % 3), history, count,
                                                 [&](TokenRequest& r) {
                                                     r.priority = PriorityClass(random.below(3));
                                                     if (random.below(20) == 0) r.deadline = plant.now + 5'000;
                                                 })
                                         .has_value();
                if (!refused) {
                    prompts[sequence] = history;
                    counts[sequence] = count;
                }
            } else if (dice < 43 && sequence) {
                plant.scheduler.cancel(1 + random.below(sequence), plant.now);
            } else if (dice < 46) {
                plant.scheduler.tool_paused(session_of(random.below(12), 1 + uint32_t(random.below(3))), "t",
                                            plant.now);
            } else if (dice < 48) {
                const uint64_t s = random.below(12);
                plant.scheduler.session_deleted(session_of(s, 1 + s % 3), plant.now);
                histories.erase(s);
            } else if (dice < 50) {
                plant.lose(plant.workers.begin()->first);
                plant.add(devices++, caps_of(24 + uint32_t(random.below(20)), 4, 16, strict));
            } else if (dice < 52) {
                plant.scheduler.session_idle(session_of(random.below(12), 1));
            } else if (dice < 54) {
                plant.tear_loads = !plant.tear_loads;
            } else if (dice < 80) {
                plant.hand_out();
            } else {
                plant.perform();
            }
        }
        plant.perform();
        plant.run();
        CHECK(plant.scheduler.view().running == 0);
        CHECK(plant.scheduler.view().waiting == 0);
        for (const auto& [s, prompt] : prompts) {
            CAPTURE(s);
            REQUIRE(plant.ended.count(s));
            const auto& one = plant.ended[s];
            const auto whole = alone(prompt, s * 7, one.generated.size());
            CHECK(one.generated == whole);
            // Every token of a prompt was cached or computed, and none is told twice.
            const SequenceUsage& used = one.usage;
            if (one.end == SequenceEnd::length && used.preemptions == 0 && used.redispatches == 0)
                CHECK(used.cached_device + used.cached_host + used.cached_disk + used.prefilled_tokens ==
                      used.prompt_tokens);
            if (one.end == SequenceEnd::length) CHECK(one.generated.size() == counts[s]);
            CHECK((one.end != SequenceEnd::failed || one.code == ErrorCode::model_unavailable));
        }
    }
}
