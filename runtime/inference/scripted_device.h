#pragma once
// A deterministic stand-in for a model: it answers what ModelSpec.script says. For tests, benchmarks and the story;
// never a default, and its usage is marked simulated. The same request gives the same text and the same call ids, so a
// step that is run again after a crash repeats itself exactly.
//
// One device serves every scripted model. A step without delay is answered on the submitting thread, before submit()
// returns; a delayed one on the device's timer thread, which is started by the first of them. Destroying the device
// cancels what is left.

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/result.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

/// Exactly `bytes` bytes of English-like ASCII text, a pure function of its arguments; costs one copy.
void append_prose(std::string& out, size_t bytes, uint64_t seed);

class ScriptedDevice final : public TextDevice {
  public:
    ScriptedDevice();
    ~ScriptedDevice() override;
    ScriptedDevice(const ScriptedDevice&) = delete;
    ScriptedDevice& operator=(const ScriptedDevice&) = delete;

    /// Whether a script can be played: it has steps, its fail_class words exist, its sizes are within bounds.
    static Result<void> check(const ModelSpec& model);

    void submit(ModelRequest request, std::shared_ptr<ModelSink> sink) override;
    /// A call to the sink that has already begun may still be under way when this returns; no further one follows.
    void cancel(uint64_t request_id) override;

  private:
    struct Script;
    struct Answer;
    struct Job;
    using Instant = std::chrono::steady_clock::time_point;

    std::shared_ptr<const Script> script_of(const ModelPtr& model);
    void start_timer_locked();
    void run_timer();

    // Compiled scripts by the spec they came from; an entry holds its spec, so that an address is never reused.
    std::shared_mutex scripts_lock_;
    std::unordered_map<const ModelSpec*, std::shared_ptr<const Script>> scripts_;

    std::mutex timer_lock_;
    std::condition_variable timer_wake_;
    std::multimap<Instant, std::shared_ptr<Job>> due_;
    std::unordered_map<uint64_t, std::shared_ptr<Job>> jobs_;  // by request id
    bool stopping_ = false;
    std::thread timer_;
};

}  // namespace mainstay
