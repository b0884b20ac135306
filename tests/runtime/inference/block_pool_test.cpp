#include "runtime/inference/block_pool.h"

#include <doctest/doctest.h>

#include <map>
#include <numeric>
#include <set>
#include <span>

#include "runtime/base/random.h"

using namespace mainstay;

namespace {

constexpr uint32_t block_tokens = 4;

SessionKey session_of(uint64_t n, uint32_t tenant = 1) {
    return {TenantId{tenant}, SessionId{FamilyId{n + 1}, n * 0x9e3779b97f4a7c15ull, n}};
}

std::vector<TokenId> tokens_of(size_t n, TokenId first = 100) {
    std::vector<TokenId> out(n);
    std::iota(out.begin(), out.end(), first);
    return out;
}

KvChain chain_of(const std::vector<TokenId>& tokens, uint32_t tenant = 1) {
    KvChain chain{kv_root("model", "format", TenantId{tenant}), {}};
    extend_chain(chain, tokens, block_tokens);
    return chain;
}

/// Acquire, compute everything, and close: a whole turn without generation.
BlockPool::Acquired turn(BlockPool& pool, DeviceId device, const SessionKey& session,
                         const std::vector<TokenId>& tokens, uint32_t definition = 0) {
    const KvChain chain = chain_of(tokens, session.tenant.value);
    auto got = pool.acquire(device, session, chain, tokens);
    REQUIRE(pool.settled(got.table));
    REQUIRE(pool.reserve(got.table, uint32_t(tokens.size())));
    pool.computed(got.table, uint32_t(tokens.size()), chain, session, definition);
    pool.close(got.table, session, chain, tokens);
    return got;
}

/// Performs the saves of a device and answers them; the host keeps the names.
void save_all(BlockPool& pool, DeviceId device) {
    while (pool.has_device_effects(device))
        for (const auto& save : pool.take_device_effects(device).saves) pool.saved(device, save.hash, true);
}

}  // namespace

TEST_CASE("kv hash: a name stands for all tokens before it, the model and the tenant") {
    const auto tokens = tokens_of(12);
    const auto chain = chain_of(tokens);
    REQUIRE(chain.blocks.size() == 3);
    auto other = tokens;
    other[1] = 7;
    const auto changed = chain_of(other);
    for (size_t i = 0; i < 3; ++i) CHECK(chain.blocks[i] != changed.blocks[i]);
    CHECK(chain_of(tokens, 2).blocks[0] != chain.blocks[0]);
    CHECK(kv_root("model", "other", TenantId{1}) != chain.root);
    CHECK(kv_root("model2", "format", TenantId{1}) != chain.root);
    CHECK(kv_next(chain.root, std::span(tokens).first(3)) != chain.blocks[0]);
    KvChain grown{chain.root, {}};
    extend_chain(grown, std::span(tokens).first(7), block_tokens);
    CHECK(grown.blocks.size() == 1);
    extend_chain(grown, tokens, block_tokens);
    CHECK(grown.blocks == chain.blocks);
}

TEST_CASE("block pool: a turn that extends another computes its new tokens only, the tail included") {
    BlockPool pool({block_tokens, 0, false});
    pool.add_device(DeviceId{0}, 20);
    const auto first = tokens_of(10);  // two blocks and a tail of two
    CHECK(turn(pool, DeviceId{0}, session_of(1), first).tokens == 0);
    CHECK(pool.check() == "");
    auto longer = tokens_of(19);
    const auto got = turn(pool, DeviceId{0}, session_of(1), longer);
    CHECK(got.tokens == 10);
    CHECK(got.device_tokens == 10);
    // The same prompt again: all but the last token, which has to be computed.
    CHECK(turn(pool, DeviceId{0}, session_of(1), longer).tokens == 16);
    CHECK(pool.check() == "");
    CHECK(pool.available_blocks(DeviceId{0}) == 19);
}

TEST_CASE("block pool: sessions share full blocks, another tenant shares nothing") {
    BlockPool pool({block_tokens, 0, false});
    pool.add_device(DeviceId{0}, 40);
    const auto tokens = tokens_of(9);
    const auto chain = chain_of(tokens);
    turn(pool, DeviceId{0}, session_of(1), tokens);
    const auto a = pool.acquire(DeviceId{0}, session_of(2), chain, tokens);
    const auto b = pool.acquire(DeviceId{0}, session_of(3), chain, tokens);
    CHECK(a.tokens == 8);
    CHECK(pool.blocks(a.table) == pool.blocks(b.table));
    const auto foreign = pool.acquire(DeviceId{0}, session_of(9, 2), chain_of(tokens, 2), tokens);
    CHECK(foreign.tokens == 0);
    CHECK(pool.check() == "");
    // Both grow: what they write to is their own.
    CHECK(pool.reserve(a.table, 9));
    CHECK(pool.reserve(b.table, 9));
    CHECK(pool.blocks(a.table)[2] != pool.blocks(b.table)[2]);
    CHECK(pool.check() == "");
}

TEST_CASE("block pool: a fork shares full blocks and copies the tail") {
    BlockPool pool({block_tokens, 0, false});
    pool.add_device(DeviceId{0}, 8);
    const auto tokens = tokens_of(6);
    const auto chain = chain_of(tokens);
    const auto a = pool.acquire(DeviceId{0}, session_of(1), chain, tokens);
    REQUIRE(pool.reserve(a.table, 6));
    pool.computed(a.table, 6, chain, session_of(1), 0);
    const auto b = pool.fork(a.table);
    REQUIRE(b);
    CHECK(pool.blocks(*b)[0] == pool.blocks(a.table)[0]);
    CHECK(pool.blocks(*b)[1] != pool.blocks(a.table)[1]);
    const auto effects = pool.take_device_effects(DeviceId{0});
    REQUIRE(effects.copies.size() == 1);
    CHECK(effects.copies[0].from == pool.blocks(a.table)[1]);
    CHECK(effects.copies[0].to == pool.blocks(*b)[1]);
    CHECK(pool.check() == "");
    pool.drop(a.table);
    CHECK(pool.blocks(*b).size() == 2);
    pool.drop(*b);
    CHECK(pool.check() == "");
    CHECK(pool.free_blocks(DeviceId{0}) == 6);
    CHECK(pool.evictable_blocks(DeviceId{0}) == 1);
}

TEST_CASE("block pool: the least recently used block goes first, a table's last blocks before its first") {
    BlockPool pool({block_tokens, 0, false});
    pool.add_device(DeviceId{0}, 5);  // four blocks
    turn(pool, DeviceId{0}, session_of(1), tokens_of(8));
    turn(pool, DeviceId{0}, session_of(2), tokens_of(8, 500));
    PrefixMatch match;
    turn(pool, DeviceId{0}, session_of(3), tokens_of(4, 900));
    pool.match(chain_of(tokens_of(8)), 2, match);
    CHECK(match.of(DeviceId{0}).reach == 1);  // of the oldest session the second block
    pool.match(chain_of(tokens_of(8, 500)), 2, match);
    CHECK(match.of(DeviceId{0}).reach == 2);
    const auto held = pool.acquire(DeviceId{0}, session_of(2), chain_of(tokens_of(9, 500)), tokens_of(9, 500));
    CHECK_FALSE(pool.reserve(held.table, 5 * block_tokens));
    CHECK(pool.blocks(held.table).size() == 2);
    CHECK(pool.reserve(held.table, 4 * block_tokens));
    CHECK(pool.check() == "");
}

TEST_CASE("block pool: what was copied to the host comes back, to any device, and to disk when it must go") {
    BlockPool pool({block_tokens, 3, true});
    pool.add_device(DeviceId{0}, 10);
    pool.add_device(DeviceId{1}, 10);
    const auto tokens = tokens_of(10);
    turn(pool, DeviceId{0}, session_of(1), tokens);
    save_all(pool, DeviceId{0});
    CHECK(pool.stats().host_blocks == 3);
    PrefixMatch match;
    pool.match(chain_of(tokens), 2, match);
    CHECK(match.reach == 2);
    CHECK(match.of(DeviceId{0}).hits == 2);
    CHECK(match.of(DeviceId{1}).hits == 0);

    auto longer = tokens_of(12);
    const auto moved = pool.acquire(DeviceId{1}, session_of(1), chain_of(longer), longer);
    CHECK(moved.host_tokens == 10);
    CHECK(moved.tokens == 10);
    CHECK_FALSE(pool.settled(moved.table));
    const auto loads = pool.take_device_effects(DeviceId{1}).loads;
    REQUIRE(loads.size() == 3);
    CHECK(loads[2].tokens == 2);
    for (const auto& load : loads) pool.loaded(DeviceId{1}, load.block, load.hash, load.from, true);
    CHECK(pool.settled(moved.table));
    CHECK(pool.valid_tokens(moved.table) == 10);
    pool.drop(moved.table);
    CHECK(pool.check() == "");

    // A second session's blocks take the place of the first one's, which go to disk.
    turn(pool, DeviceId{0}, session_of(2), tokens_of(12, 900));
    save_all(pool, DeviceId{0});
    CHECK(pool.stats().host_blocks == 3);
    size_t stored = 0, dropped = 0;
    for (const auto& effect : pool.take_tier_effects()) {
        stored += effect.kind == TierEffect::Kind::store_disk;
        dropped += effect.kind == TierEffect::Kind::drop_host;
        if (effect.kind != TierEffect::Kind::store_disk) continue;
        CHECK(effect.owner == session_of(1));
        pool.stored_on_disk(effect.hash, true);
    }
    CHECK(stored == 3);
    CHECK(dropped == 3);
    pool.remove_device(DeviceId{0});
    pool.remove_device(DeviceId{1});
    pool.add_device(DeviceId{2}, 10);
    const auto back = pool.acquire(DeviceId{2}, session_of(1), chain_of(longer), longer);
    CHECK(back.disk_tokens == 10);
    CHECK(pool.check() == "");
}

TEST_CASE(
    "block pool: a block that cannot be loaded ends the prefix there, for all who wait, and is not offered again") {
    BlockPool pool({block_tokens, 8, false});
    pool.add_device(DeviceId{0}, 10);
    pool.add_device(DeviceId{1}, 10);
    const auto tokens = tokens_of(13);
    turn(pool, DeviceId{0}, session_of(1), tokens);
    save_all(pool, DeviceId{0});
    const auto a = pool.acquire(DeviceId{1}, session_of(1), chain_of(tokens), tokens);
    const auto b = pool.acquire(DeviceId{1}, session_of(2), chain_of(tokens), tokens);
    CHECK(b.tokens == 12);
    CHECK(pool.blocks(a.table) == pool.blocks(b.table));
    const auto loads = pool.take_device_effects(DeviceId{1}).loads;
    REQUIRE(loads.size() == 3);  // shared
    pool.loaded(DeviceId{1}, loads[0].block, loads[0].hash, loads[0].from, true);
    pool.loaded(DeviceId{1}, loads[1].block, loads[1].hash, loads[1].from, false);
    CHECK(pool.settled(a.table));
    CHECK(pool.valid_tokens(a.table) == 4);
    CHECK(pool.valid_tokens(b.table) == 4);
    CHECK(pool.check() == "");
    pool.loaded(DeviceId{1}, loads[2].block, loads[2].hash, loads[2].from, true);  // late, nobody waits
    CHECK(pool.check() == "");
    PrefixMatch match;
    pool.match(chain_of(tokens), 3, match);
    CHECK(match.reach == 1);
    bool dropped = false;
    for (const auto& effect : pool.take_tier_effects())
        dropped |= effect.kind == TierEffect::Kind::drop_host && effect.hash == loads[1].hash;
    CHECK(dropped);
}

TEST_CASE("block pool: a deleted session's content leaves all tiers, what others share or an agent defines stays") {
    BlockPool pool({block_tokens, 32, true});
    pool.add_device(DeviceId{0}, 40);
    auto mine = tokens_of(16), other = tokens_of(16);
    for (size_t i = 8; i < 16; ++i) other[i] += 1000;  // two blocks in common, of which the first is the agent's
    turn(pool, DeviceId{0}, session_of(1), mine, 4);
    turn(pool, DeviceId{0}, session_of(2), other, 4);
    save_all(pool, DeviceId{0});
    pool.settle_to_disk(session_of(1));
    for (const auto& effect : pool.take_tier_effects()) pool.stored_on_disk(effect.hash, true);
    std::vector<BlockName> held;
    pool.holdings(session_of(1), {}, held);
    CHECK(held.size() == 3);
    pool.delete_session(session_of(1));
    CHECK(pool.check() == "");
    PrefixMatch match;
    pool.match(chain_of(mine), 4, match);
    CHECK(match.of(DeviceId{0}).reach == 2);
    pool.match(chain_of(other), 4, match);
    CHECK(match.of(DeviceId{0}).reach == 4);
    size_t from_disk = 0, from_host = 0;
    for (const auto& effect : pool.take_tier_effects()) {
        from_disk += effect.kind == TierEffect::Kind::drop_disk;
        from_host += effect.kind == TierEffect::Kind::drop_host;
    }
    CHECK(from_disk == 3);
    CHECK(from_host == 2);
    pool.delete_session(session_of(2));
    pool.match(chain_of(other), 4, match);
    CHECK(match.of(DeviceId{0}).reach == 1);
    CHECK(pool.check() == "");
    CHECK(pool.stats().entries == 1);
}

TEST_CASE("block pool: a session that falls asleep is written to disk, also what was not copied to the host yet") {
    BlockPool pool({block_tokens, 8, true});
    pool.add_device(DeviceId{0}, 10);
    turn(pool, DeviceId{0}, session_of(1), tokens_of(10));
    pool.settle_to_disk(session_of(1));
    CHECK(pool.take_tier_effects().empty());
    save_all(pool, DeviceId{0});
    size_t stored = 0;
    for (const auto& effect : pool.take_tier_effects()) stored += effect.kind == TierEffect::Kind::store_disk;
    CHECK(stored == 3);
    pool.settle_to_disk(session_of(1));
    CHECK(pool.take_tier_effects().empty());
    CHECK(pool.check() == "");
}

TEST_CASE("block pool: deleted while it is copied to the host: the bytes are dropped when they come") {
    BlockPool pool({block_tokens, 8, false});
    pool.add_device(DeviceId{0}, 10);
    turn(pool, DeviceId{0}, session_of(1), tokens_of(4));
    const auto saves = pool.take_device_effects(DeviceId{0}).saves;
    REQUIRE(saves.size() == 1);
    pool.delete_session(session_of(1));
    CHECK(pool.take_tier_effects().empty());
    pool.saved(DeviceId{0}, saves[0].hash, true);
    const auto effects = pool.take_tier_effects();
    REQUIRE(effects.size() == 1);
    CHECK(effects[0].kind == TierEffect::Kind::drop_host);
    CHECK(pool.check() == "");
}

namespace {

/// Performs effects on contents that can be compared: of each block the tokens up to and with it.
class Model {
  public:
    Model(uint64_t seed, uint64_t host_max, bool disk) : random_(seed), pool_({block_tokens, host_max, disk, 2, 3}) {
        for (uint32_t d = 0; d < device_count; ++d) pool_.add_device(DeviceId{d}, blocks_per_device);
    }

    void run(int steps) {
        for (int i = 0; i < steps; ++i) {
            one();
            const std::string wrong = pool_.check();
            REQUIRE_MESSAGE(wrong.empty(), wrong, " after ", i);
            compare();
        }
    }
    uint64_t hits() const { return hits_; }
    uint64_t prefetched() const { return prefetched_; }
    uint64_t shipped() const { return shipped_; }
    uint64_t arrived(bool to_disk) const { return arrived_[to_disk]; }
    BlockPoolStats stats() const { return pool_.stats(); }

  private:
    using Content = std::vector<TokenId>;
    static constexpr uint32_t device_count = 3, blocks_per_device = 24, session_count = 12;
    struct Run {
        uint64_t session = 0;
        TableId table;
        uint32_t device = 0;
        KvChain chain;
        Content tokens;
    };

    static Content upto(const Content& tokens, size_t end) { return {tokens.begin(), tokens.begin() + ptrdiff_t(end)}; }

    void one() {
        const uint64_t dice = random_.below(108);
        if (dice >= 106)
            arrive();
        else if (dice >= 104)
            ship();
        else if (dice >= 100)
            prefetch();
        else if (dice < 25)
            start();
        else if (dice < 55)
            advance();
        else if (dice < 62)
            finish();
        else if (dice < 65)
            fork();
        else if (dice < 85)
            effects(uint32_t(random_.below(device_count)));
        else if (dice < 92)
            answer();
        else if (dice < 96)
            tiers();
        else if (dice < 98)
            erase();
        else if (dice < 99)
            pool_.settle_to_disk(session_of(random_.below(session_count)));
        else
            lose();
    }

    void start() {
        const uint64_t s = random_.below(session_count);
        for (const Run& run : runs_)
            if (run.session == s) return;
        Content& history = histories_[s];
        if (history.empty()) history = tokens_of(random_.below(11), 1);  // a beginning that many share
        for (uint64_t n = 1 + random_.below(6); n > 0; --n) history.push_back(TokenId(random_.below(3)));
        if (history.size() > 40) history.resize(12);
        Run run{s, {}, uint32_t(random_.below(device_count)), chain_of(history), history};
        const auto got = pool_.acquire(DeviceId{run.device}, session_of(s), run.chain, run.tokens);
        CHECK(got.tokens < history.size());
        CHECK(got.tokens == got.device_tokens + got.host_tokens + got.disk_tokens);
        hits_ += got.tokens;
        run.table = got.table;
        runs_.push_back(std::move(run));
    }

    void prefetch() {
        const auto& tier = random_.below(2) ? host_ : disk_;
        if (tier.empty()) return;
        auto at = tier.begin();
        std::advance(at, random_.below(tier.size()));
        prefetched_ += pool_.prefetch(DeviceId{uint32_t(random_.below(device_count))}, at->first);
    }

    /// A block of some session comes from another node.
    void arrive() {
        if (histories_.empty()) return;
        auto history = histories_.begin();
        std::advance(history, random_.below(histories_.size()));
        const KvChain chain = chain_of(history->second);
        if (chain.blocks.empty()) return;
        tiers();  // as the scheduler's owner does: what was dropped before is dropped before
        const size_t at = random_.below(chain.blocks.size());
        const BlockTaken taken = pool_.accept({chain.blocks[at], block_tokens, session_of(history->first)});
        if (taken == BlockTaken::known || taken == BlockTaken::no_room) return;
        host_[chain.blocks[at]] = upto(history->second, (at + 1) * block_tokens);
        arrived_[taken == BlockTaken::disk] += 1;
        tiers();
    }

    /// One goes to another node.
    void ship() {
        if (histories_.empty()) return;
        auto history = histories_.begin();
        std::advance(history, random_.below(histories_.size()));
        std::vector<BlockName> held;
        pool_.holdings(session_of(history->first), chain_of(history->second), held);
        if (!held.empty()) pool_.export_block(held[random_.below(held.size())].hash);
    }

    Run* pick() { return runs_.empty() ? nullptr : &runs_[random_.below(runs_.size())]; }

    void advance() {
        Run* run = pick();
        if (!run || !pool_.settled(run->table)) return;
        effects(run->device);  // a step comes after all work before it
        if (!pool_.settled(run->table)) return;
        const uint32_t valid = pool_.valid_tokens(run->table);
        const uint32_t next = std::min<uint32_t>(valid + 1 + uint32_t(random_.below(7)), uint32_t(run->tokens.size()));
        if (next <= valid || !pool_.reserve(run->table, next)) return;
        effects(run->device);
        auto& memory = memory_[run->device];
        const auto blocks = pool_.blocks(run->table);
        for (uint32_t i = valid; i < next; ++i) memory[blocks[i / block_tokens]] = upto(run->tokens, i + 1);
        pool_.computed(run->table, next, run->chain, session_of(run->session), 0);
    }

    void finish() {
        if (runs_.empty()) return;
        const size_t at = random_.below(runs_.size());
        Run run = runs_[at];
        runs_.erase(runs_.begin() + ptrdiff_t(at));
        if (random_.below(4) == 0) {
            pool_.drop(run.table);
        } else {
            pool_.close(run.table, session_of(run.session), run.chain, run.tokens);
        }
    }

    void fork() {
        Run* run = pick();
        if (!run || !pool_.settled(run->table)) return;
        effects(run->device);
        const auto made = pool_.fork(run->table);
        if (!made) return;
        Run copy = *run;
        copy.session = session_count + random_.below(1000);
        copy.table = *made;
        effects(run->device);
        runs_.push_back(std::move(copy));
    }

    void effects(uint32_t d) {
        const auto work = pool_.take_device_effects(DeviceId{d});
        auto& memory = memory_[d];
        for (const auto& save : work.saves) {
            Content content = memory[save.block];
            content.resize(content.size() / block_tokens * block_tokens +
                           (content.size() % block_tokens > save.tokens ? save.tokens : content.size() % block_tokens));
            saves_.push_back({d, save.hash, content});
        }
        for (const auto& sent : work.exports) {
            if (sent.block == block_none) continue;
            // What is sent is what its name says.
            Content content = memory[sent.block];
            const size_t begin = (content.size() - 1) / block_tokens * block_tokens;
            REQUIRE(content.size() >= begin + sent.tokens);
            content.resize(begin + sent.tokens);
            KvChain chain = chain_of(content);
            if (sent.tokens < block_tokens)
                chain.blocks.push_back(kv_next(chain.before(begin / block_tokens), std::span(content).subspan(begin)));
            REQUIRE(chain.blocks.back() == sent.hash);
            ++shipped_;
        }
        for (const auto& copy : work.copies) memory[copy.to] = memory[copy.from];
        for (const auto& load : work.loads) {
            auto& tier = load.from == KvTier::host ? host_ : disk_;
            const bool ok = tier.contains(load.hash) && random_.below(10) > 0;
            if (ok) memory[load.block] = tier[load.hash];
            loads_.push_back({d, load, ok});
        }
    }

    void answer() {
        for (const auto& [d, hash, content] : saves_) {
            const bool ok = random_.below(8) > 0;
            if (ok) host_[hash] = content;
            pool_.saved(DeviceId{d}, hash, ok);
        }
        saves_.clear();
        for (const auto& [d, load, ok] : loads_) pool_.loaded(DeviceId{d}, load.block, load.hash, load.from, ok);
        loads_.clear();
    }

    void tiers() {
        for (const auto& effect : pool_.take_tier_effects()) {
            switch (effect.kind) {
                case TierEffect::Kind::store_disk: {
                    const bool ok = host_.contains(effect.hash) && random_.below(6) > 0;
                    if (ok) disk_[effect.hash] = host_[effect.hash];
                    pool_.stored_on_disk(effect.hash, ok);
                    break;
                }
                case TierEffect::Kind::drop_host: host_.erase(effect.hash); break;
                case TierEffect::Kind::drop_disk: disk_.erase(effect.hash); break;
            }
        }
        if (!disk_.empty() && random_.below(3) == 0) {
            pool_.lost_on_disk(disk_.begin()->first);
            disk_.erase(disk_.begin());
        }
    }

    void erase() {
        const uint64_t s = random_.below(session_count);
        std::erase_if(runs_, [&](const Run& run) {
            if (run.session == s) pool_.drop(run.table);
            return run.session == s;
        });
        pool_.delete_session(session_of(s));
        histories_.erase(s);
    }

    void lose() {
        const uint32_t d = uint32_t(random_.below(device_count));
        std::erase_if(runs_, [&](const Run& run) { return run.device == d; });
        std::erase_if(saves_, [&](const auto& save) { return std::get<0>(save) == d; });
        std::erase_if(loads_, [&](const auto& load) { return std::get<0>(load) == d; });
        pool_.remove_device(DeviceId{d});
        pool_.add_device(DeviceId{d}, blocks_per_device);
        memory_[d].clear();
    }

    /// No table shows a block with other content than the tokens it stands for.
    void compare() {
        for (const Run& run : runs_) {
            if (!pool_.settled(run.table)) continue;
            const auto& blocks = pool_.blocks(run.table);
            const uint32_t valid = pool_.valid_tokens(run.table);
            // What is loaded or copied but not performed yet is not there yet.
            if (pool_.has_device_effects(DeviceId{run.device})) effects(run.device);
            for (uint32_t i = 0; i < valid; i += block_tokens) {
                const uint32_t end = std::min(valid, i + block_tokens);
                const auto& content = memory_[run.device][blocks[i / block_tokens]];
                REQUIRE(content.size() >= end);
                REQUIRE(upto(content, end) == upto(run.tokens, end));
            }
        }
    }

    SeededRandom random_;
    BlockPool pool_;
    std::map<uint64_t, Content> histories_;
    std::vector<Run> runs_;
    std::map<BlockId, Content> memory_[device_count];
    std::map<KvHash, Content> host_, disk_;
    std::vector<std::tuple<uint32_t, KvHash, Content>> saves_;
    std::vector<std::tuple<uint32_t, BlockLoad, bool>> loads_;
    uint64_t hits_ = 0, prefetched_ = 0, shipped_ = 0, arrived_[2] = {0, 0};
};

}  // namespace

TEST_CASE("block pool: whatever happens, blocks are counted right and hold what their names say") {
    uint64_t hits = 0, loaded = 0, evicted = 0, prefetched = 0, shipped = 0, to_host = 0, to_disk = 0;
    for (uint64_t seed = 1; seed <= 12; ++seed) {
        CAPTURE(seed);
        Model model(seed, seed % 3 == 0 ? 0 : 10 + seed * 4, seed % 2 == 0);
        model.run(4000);
        hits += model.hits();
        prefetched += model.prefetched();
        shipped += model.shipped();
        to_host += model.arrived(false);
        to_disk += model.arrived(true);
        loaded += model.stats().loaded;
        evicted += model.stats().evicted_device;
    }
    // The runs did exercise what they are about.
    CHECK(hits > 10'000);
    CHECK(loaded > 1000);
    CHECK(evicted > 1000);
    CHECK(prefetched > 100);
    CHECK(shipped > 100);
    CHECK(to_host > 10);
    CHECK(to_disk > 10);
}

TEST_CASE("block pool: what a session holds is named from its beginning, with the definition that it begins with") {
    BlockPool pool({block_tokens, 32, true});
    pool.add_device(DeviceId{0}, 40);
    const auto mine = tokens_of(4 * block_tokens + 2);
    auto before = mine;  // what it once had instead of the end
    for (size_t i = 2 * block_tokens; i < before.size(); ++i) before[i] += 1000;
    turn(pool, DeviceId{0}, session_of(1), before, block_tokens);
    turn(pool, DeviceId{0}, session_of(1), mine, block_tokens);
    const KvChain chain = chain_of(mine);
    std::vector<BlockName> held;
    pool.holdings(session_of(1), chain, held);
    REQUIRE(held.size() == 4 + 1 + 2 + 1);  // the chain, its tail, and the other end with its own
    for (size_t i = 0; i < 4; ++i) CHECK(held[i].hash == chain.blocks[i]);
    CHECK_FALSE(held[0].owner.session.valid());
    for (size_t i = 1; i < held.size(); ++i) CHECK(held[i].owner == session_of(1));
    std::set<KvHash> once;
    for (const BlockName& name : held) CHECK(once.insert(name.hash).second);
    std::vector<BlockName> definitions;
    pool.definitions(TenantId{1}, definitions);
    CHECK(definitions == std::vector<BlockName>{held[0]});
    pool.delete_session(session_of(1));
    pool.remove_device(DeviceId{0});
    definitions.clear();
    pool.definitions(TenantId{1}, definitions);
    CHECK(definitions.empty());
    CHECK(pool.check() == "");
}

TEST_CASE("block pool: what comes from another node has room that nobody else needs, and goes with its session") {
    BlockPool pool({block_tokens, 2, true});
    pool.add_device(DeviceId{0}, 40);
    const auto tokens = tokens_of(4 * block_tokens + 1);
    const KvChain chain = chain_of(tokens);
    std::vector<BlockTaken> taken;
    for (const KvHash& hash : chain.blocks) taken.push_back(pool.accept({hash, block_tokens, session_of(1)}));
    CHECK(taken == std::vector{BlockTaken::host, BlockTaken::host, BlockTaken::disk, BlockTaken::disk});
    CHECK(pool.check() == "");
    CHECK(pool.stats().evicted_host == 0);
    PrefixMatch match;
    pool.match(chain, 4, match);
    CHECK(match.reach == 2);  // what is being stored is not there yet
    for (const auto& effect : pool.take_tier_effects())
        if (effect.kind == TierEffect::Kind::store_disk) {
            CHECK(effect.owner == session_of(1));
            pool.stored_on_disk(effect.hash, true);
        }
    pool.match(chain, 4, match);
    CHECK(match.reach == 4);
    CHECK(pool.accept({chain.blocks[0], block_tokens, session_of(2)}) == BlockTaken::known);
    // Nothing that is another tenant's is known, whatever its name.
    CHECK_FALSE(pool.claim({chain.blocks[1], block_tokens, session_of(3, 2)}));
    CHECK(pool.accept({chain.blocks[1], block_tokens, session_of(3, 2)}) == BlockTaken::no_room);
    pool.delete_session(session_of(1));
    pool.match(chain, 4, match);
    CHECK(match.reach == 1);  // which the second has too
    pool.delete_session(session_of(2));
    pool.match(chain, 4, match);
    CHECK(match.reach == 0);
    CHECK(pool.check() == "");

    BlockPool full({block_tokens, 1, false}), none({block_tokens, 0, false});
    CHECK(full.accept({chain.blocks[0], block_tokens, session_of(1)}) == BlockTaken::host);
    CHECK(full.accept({chain.blocks[1], block_tokens, session_of(1)}) == BlockTaken::no_room);
    CHECK(none.accept({chain.blocks[0], block_tokens, session_of(1)}) == BlockTaken::no_room);
}

TEST_CASE("block pool: what is prefetched is a hit, and loads come a few at a time") {
    BlockPool pool({block_tokens, 64, false, 16, 2});
    pool.add_device(DeviceId{0}, 17);
    pool.add_device(DeviceId{1}, 9);
    const auto tokens = tokens_of(4 * block_tokens + 1);
    turn(pool, DeviceId{0}, session_of(1), tokens);
    save_all(pool, DeviceId{0});
    const KvChain chain = chain_of(tokens);
    for (const KvHash& hash : chain.blocks) CHECK(pool.prefetch(DeviceId{1}, hash));
    CHECK_FALSE(pool.prefetch(DeviceId{1}, chain.blocks[0]));  // is on its way
    CHECK_FALSE(pool.prefetch(DeviceId{1}, kv_next(chain.root, tokens_of(block_tokens, 7))));
    size_t loaded = 0;
    while (pool.has_device_effects(DeviceId{1})) {
        const auto work = pool.take_device_effects(DeviceId{1});
        CHECK(work.loads.size() <= 2);
        for (const BlockLoad& load : work.loads) {
            pool.loaded(DeviceId{1}, load.block, load.hash, load.from, true);
            ++loaded;
        }
    }
    CHECK(loaded == 4);
    const auto got = pool.acquire(DeviceId{1}, session_of(1), chain, tokens);
    CHECK(got.device_tokens >= 4 * block_tokens);
    CHECK(got.loads == 0);
    CHECK(pool.check() == "");
}
