#pragma once
// The fixed threads of one device. A step runs as one job on all of them, with barriers between its phases, because a
// step has some fifty phases of a few microseconds each. A thread that waits spins for at most
// limits::device_spin_us_max and then sleeps on a futex: on a shared machine spinning takes the processor from the very
// thread that is waited for.
//
// Owned by the device; run() is called by one thread, which takes part as thread 0. Which thread does what may not
// change results (kernels.h), so nothing here is deterministic.

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace mainstay {

class WorkerThreads {
  public:
    /// 1 to limits::device_threads_max, the caller of run() included.
    explicit WorkerThreads(unsigned threads);
    ~WorkerThreads();
    WorkerThreads(const WorkerThreads&) = delete;
    WorkerThreads& operator=(const WorkerThreads&) = delete;

    unsigned count() const { return count_; }

    /// job(thread) on every thread, 0 to count() - 1; returns when all are done. The job must not throw.
    template <class Job>
    void run(Job&& job) {
        using Type = std::remove_reference_t<Job>;
        run_erased([](void* context, unsigned thread) { (*static_cast<Type*>(context))(thread); },
                   const_cast<void*>(static_cast<const void*>(&job)));
    }

    /// Inside a job, by every thread: none goes on before all have come. What was written before is seen after.
    void barrier();

    /// How often a thread slept since the start: for tests and metrics.
    uint64_t sleeps() const { return sleeps_.load(std::memory_order_relaxed); }

  private:
    using Call = void (*)(void*, unsigned);

    /// A number that waiters watch; alone on its cache line.
    struct alignas(64) Gate {
        std::atomic<uint32_t> value{0};
        std::atomic<uint32_t> asleep{0};
    };

    void run_erased(Call call, void* context);
    void serve(unsigned thread);
    void await_change(Gate& gate, uint32_t seen);
    void open(Gate& gate);

    const unsigned count_;
    Call call_ = nullptr;
    void* context_ = nullptr;
    std::atomic<bool> stop_{false};
    std::atomic<uint64_t> sleeps_{0};
    Gate jobs_;   // counts jobs
    Gate phase_;  // counts barriers
    alignas(64) std::atomic<uint32_t> arrived_{0};
    std::vector<std::thread> threads_;
};

}  // namespace mainstay
