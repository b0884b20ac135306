// Thousands of seeded histories of sessions and store under faults, and the proof that they would notice: mutants that
// break one guarantee each must be caught. MAINSTAY_SIM_SEED replays one history, MAINSTAY_SIM_HISTORIES runs more.

#include <doctest/doctest.h>

#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "sim/world.h"

namespace mainstay::sim {
namespace {

constexpr uint64_t histories_default = 20'000;
constexpr uint32_t commands_per_history = 200;
constexpr size_t failures_max = 10;
constexpr uint64_t mutant_seeds = 100;
constexpr unsigned threads_max = 2;  // of a machine that others use as well; each history has one thread and no share

std::optional<uint64_t> number_of(const char* name) {
    const char* text = std::getenv(name);
    return text ? std::optional<uint64_t>(std::strtoull(text, nullptr, 10)) : std::nullopt;
}

// An INVARIANT of the code under test ends the process; its history should be known all the same.
thread_local volatile uint64_t running_seed = 0;
void say_seed(int) {
    char text[64];
    const int size = std::snprintf(text, sizeof text, "in the history of MAINSTAY_SIM_SEED=%llu\n",
                                   static_cast<unsigned long long>(running_seed));
    if (write(STDERR_FILENO, text, static_cast<size_t>(size)) < 0) std::_Exit(1);
    std::signal(SIGABRT, SIG_DFL);
    std::abort();
}

/// What did not hold; empty: all did.
std::string run_history(const HistoryOptions& options, Counts& counts) {
    running_seed = options.seed;
    World world(options);
    try {
        world.run();
    } catch (const Violation& violation) {
        return violation.what();
    }
    counts.add(world.counts());
    return {};
}

uint64_t struck(const Counts& counts, StoreFault fault) { return counts.struck[static_cast<size_t>(fault)]; }

void print(const Counts& c) {
    auto of = [](uint64_t n) { return static_cast<unsigned long long>(n); };
    std::printf("histories %llu, commands %llu, killed %llu, killed by EIO %llu\n", of(c.histories), of(c.commands),
                of(c.processes_killed), of(c.crashes_by_eio));
    std::printf("struck: lost-unsynced %llu, torn %llu, EIO at write %llu, EIO at sync %llu, ENOSPC %llu, slow %llu\n",
                of(struck(c, StoreFault::lost_unsynced)), of(struck(c, StoreFault::torn)),
                of(struck(c, StoreFault::write_error)), of(struck(c, StoreFault::sync_error)),
                of(struck(c, StoreFault::no_space)), of(struck(c, StoreFault::slow)));
    std::printf("inputs %llu, answers %llu, repeated keys %llu, refused for want of space %llu, cancels %llu\n",
                of(c.submits), of(c.answers), of(c.repeats), of(c.refused_full), of(c.cancels));
    std::printf("executions %llu, unknown outcomes %llu, resolved %llu, retries %llu, forks %llu, deletes %llu\n",
                of(c.executions), of(c.unknowns), of(c.resolved), of(c.retries), of(c.forks), of(c.deletes));
    std::printf("timers %llu, passivations %llu, rebuilt states %llu, turns read back %llu\n", of(c.timers),
                of(c.sleeps), of(c.rebuilds), of(c.turns_read));
    std::printf("hand-overs %llu, with so much that went on elsewhere %llu\n", of(c.hand_overs), of(c.taken));
    std::fflush(stdout);
}

}  // namespace

TEST_CASE("nothing acknowledged is lost or repeated in any history") {
    std::signal(SIGABRT, say_seed);
    const auto replay = number_of("MAINSTAY_SIM_SEED");
    const uint64_t first = replay.value_or(1);
    const uint64_t histories = replay ? 1 : number_of("MAINSTAY_SIM_HISTORIES").value_or(histories_default);
    Counts counts;
    std::vector<std::pair<uint64_t, std::string>> failures;
    std::mutex mutex;
    std::atomic<uint64_t> next{first};
    auto work = [&] {
        Counts mine;
        for (uint64_t seed = next++; seed < first + histories; seed = next++) {
            auto violation = run_history({seed, commands_per_history}, mine);
            if (violation.empty()) continue;
            std::lock_guard lock(mutex);
            failures.emplace_back(seed, std::move(violation));
            if (failures.size() >= failures_max) next = first + histories;
        }
        std::lock_guard lock(mutex);
        counts.add(mine);
    };
    std::vector<std::thread> threads;
    for (unsigned i = std::clamp(std::thread::hardware_concurrency(), 1u, threads_max); i > 0; --i)
        threads.emplace_back(work);
    for (auto& thread : threads) thread.join();
    for (const auto& [seed, violation] : failures) MESSAGE("MAINSTAY_SIM_SEED=" << seed << ": " << violation);
    std::signal(SIGABRT, SIG_DFL);
    print(counts);
    REQUIRE(failures.empty());
    CHECK(counts.histories == histories);
    CHECK(counts.commands >= histories * commands_per_history);
    if (histories < 1000) return;
    // So often at least must each have happened, or the histories prove nothing about it.
    CHECK(counts.processes_killed >= histories);
    CHECK(struck(counts, StoreFault::lost_unsynced) >= histories / 4);
    CHECK(struck(counts, StoreFault::torn) >= histories / 4);
    CHECK(struck(counts, StoreFault::write_error) >= histories / 10);
    CHECK(struck(counts, StoreFault::sync_error) >= histories / 10);
    CHECK(struck(counts, StoreFault::no_space) >= histories / 4);
    CHECK(struck(counts, StoreFault::slow) >= histories);
    CHECK(counts.refused_full >= histories / 4);
    CHECK(counts.unknowns >= histories);
    CHECK(counts.resolved >= histories / 2);
    CHECK(counts.retries >= histories);
    CHECK(counts.repeats >= histories);
    CHECK(counts.forks >= histories / 4);
    CHECK(counts.deletes >= histories / 4);
    CHECK(counts.answers >= 4 * histories);
    CHECK(counts.rebuilds >= histories);
    CHECK(counts.turns_read >= 4 * histories);
    CHECK(counts.hand_overs >= histories / 2);
    CHECK(counts.taken >= histories / 4);
}

TEST_CASE("a history is a function of its seed") {
    Counts first, second;
    CHECK(run_history({7, 400}, first).empty());
    CHECK(run_history({7, 400}, second).empty());
    CHECK(first.commands == second.commands);
    CHECK(first.executions == second.executions);
    CHECK(first.struck == second.struck);
}

TEST_CASE("broken guarantees are noticed") {
    struct {
        Mutant mutant;
        const char* name;
    } const mutants[] = {
        {Mutant::acknowledge_before_commit, "acknowledge before commit"},
        {Mutant::dispatch_before_intent, "dispatch before the intent is committed"},
        {Mutant::recovery_repeats_once, "recovery dispatches a once tool again"},
        {Mutant::store_acknowledges_before_sync, "store acknowledges before sync"},
        {Mutant::keys_forgotten, "idempotency keys are forgotten once they are rows"},
    };
    for (const auto& [mutant, name] : mutants) {
        CAPTURE(name);
        uint64_t caught = 0, first = 0;
        std::string how;
        Counts counts;
        for (uint64_t seed = 1; seed <= mutant_seeds; ++seed) {
            const auto violation = run_history({seed, commands_per_history, mutant}, counts);
            if (violation.empty()) continue;
            if (caught++ > 0) continue;
            first = seed;
            how = violation;
        }
        std::printf("mutant: %s: caught by %llu of %llu seeds, first by %llu: %s\n", name,
                    static_cast<unsigned long long>(caught), static_cast<unsigned long long>(mutant_seeds),
                    static_cast<unsigned long long>(first), how.c_str());
        CHECK(caught > 0);
    }
}

}  // namespace mainstay::sim
