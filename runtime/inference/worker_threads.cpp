#include "runtime/inference/worker_threads.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>

#include "runtime/base/invariant.h"
#include "runtime/base/limits.h"

namespace mainstay {

namespace {

void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/// The address of an atomic's value: futexes take plain integers (lock-free atomics are those, checked here).
uint32_t* address_of(std::atomic<uint32_t>& value) {
    static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
    return reinterpret_cast<uint32_t*>(&value);
}

}  // namespace

WorkerThreads::WorkerThreads(unsigned threads) : count_(threads) {
    INVARIANT(threads >= 1 && threads <= limits::device_threads_max, "threads of a device");
    for (unsigned thread = 1; thread < count_; ++thread) threads_.emplace_back([this, thread] { serve(thread); });
}

WorkerThreads::~WorkerThreads() {
    stop_.store(true);
    open(jobs_);
    for (std::thread& thread : threads_) thread.join();
}

void WorkerThreads::run_erased(Call call, void* context) {
    call_ = call;
    context_ = context;
    open(jobs_);
    call(context, 0);
    barrier();  // the job's end: the context may go away
}

void WorkerThreads::serve(unsigned thread) {
    for (uint32_t seen = 0;; ++seen) {
        await_change(jobs_, seen);
        if (stop_.load()) return;
        call_(context_, thread);
        barrier();
    }
}

void WorkerThreads::barrier() {
    if (count_ == 1) return;
    const uint32_t seen = phase_.value.load(std::memory_order_relaxed);  // nobody opens it before this thread arrives
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
        arrived_.store(0, std::memory_order_relaxed);
        open(phase_);
    } else {
        await_change(phase_, seen);
    }
}

void WorkerThreads::open(Gate& gate) {
    // Sequentially consistent with the waiter's count below: either it is seen asleep here, or it sees the new value.
    gate.value.fetch_add(1);
    if (gate.asleep.load() > 0)
        syscall(SYS_futex, address_of(gate.value), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void WorkerThreads::await_change(Gate& gate, uint32_t seen) {
    constexpr auto spin = std::chrono::microseconds(limits::device_spin_us_max);
    const auto start = std::chrono::steady_clock::now();
    do {
        for (int i = 0; i < 16; ++i) {
            if (gate.value.load(std::memory_order_acquire) != seen) return;
            pause_briefly();
        }
    } while (std::chrono::steady_clock::now() - start < spin);
    gate.asleep.fetch_add(1);
    while (gate.value.load() == seen) {
        sleeps_.fetch_add(1, std::memory_order_relaxed);
        syscall(SYS_futex, address_of(gate.value), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    }
    gate.asleep.fetch_sub(1);
}

}  // namespace mainstay
