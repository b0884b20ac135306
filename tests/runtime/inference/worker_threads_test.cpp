#include "runtime/inference/worker_threads.h"

#include <doctest/doctest.h>

#include <vector>

using namespace mainstay;

TEST_CASE("worker threads: every thread runs each job once, and sees what was written before a barrier") {
    for (const unsigned count : {1u, 2u, 5u}) {
        WorkerThreads threads(count);
        std::vector<unsigned> written(count), wrong(count);
        for (unsigned job = 1; job <= 200; ++job) {
            threads.run([&](unsigned thread) {
                for (unsigned phase = 0; phase < 5; ++phase) {
                    written[thread] = job * 10 + phase;
                    threads.barrier();
                    for (const unsigned value : written) wrong[thread] += value != job * 10 + phase;
                    threads.barrier();
                }
            });
            for (const unsigned value : written) REQUIRE(value == job * 10 + 4);
        }
        for (const unsigned value : wrong) CHECK(value == 0);
    }
}

TEST_CASE("worker threads: who waits for long sleeps, and is woken") {
    WorkerThreads threads(2);
    const uint64_t before = threads.sleeps();
    std::atomic<bool> slept = false;
    threads.run([&](unsigned thread) {
        // Thread 0 comes only when thread 1 is asleep at the barrier (or was, before the job).
        if (thread == 0)
            while (threads.sleeps() == before) std::this_thread::yield();
        threads.barrier();
        slept = true;
    });
    CHECK(slept.load());
    CHECK(threads.sleeps() > before);
}
