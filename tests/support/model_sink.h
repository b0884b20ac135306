#pragma once
// A sink for device tests: keeps all it is told and lets the test wait, with a bound, for the end of a step. Called on
// the device's threads, read by the test's; every access takes the lock.

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/inference/text_device.h"

namespace mainstay {

class RecordingSink final : public ModelSink {
  public:
    void delta(uint64_t, std::string text) override {
        std::lock_guard lock(lock_);
        deltas_.push_back(std::move(text));
        changed_.notify_all();
    }
    void done(uint64_t, ModelResult result) override {
        std::lock_guard lock(lock_);
        result_ = std::move(result);
        ++ends_;
        changed_.notify_all();
    }
    void failed(uint64_t, ModelError error) override {
        std::lock_guard lock(lock_);
        error_ = std::move(error);
        ++ends_;
        changed_.notify_all();
    }

    void paused(uint64_t, StepTokens so_far) override {
        std::lock_guard lock(lock_);
        paused_ = std::move(so_far);
        ++ends_;
        changed_.notify_all();
    }

    /// False where the step has not ended within the bound.
    bool wait(std::chrono::milliseconds bound = std::chrono::seconds(20)) {
        std::unique_lock lock(lock_);
        return changed_.wait_for(lock, bound, [this] { return ends_ > 0; });
    }
    bool wait_delta(std::chrono::milliseconds bound = std::chrono::seconds(20)) {
        std::unique_lock lock(lock_);
        return changed_.wait_for(lock, bound, [this] { return !deltas_.empty() || ends_ > 0; });
    }

    int ends() const { return locked(ends_); }
    std::vector<std::string> deltas() const { return locked(deltas_); }
    std::optional<ModelResult> result() const { return locked(result_); }
    std::optional<ModelError> error() const { return locked(error_); }
    std::optional<StepTokens> paused() const { return locked(paused_); }
    std::string joined() const {
        std::string out;
        for (const auto& piece : deltas()) out += piece;
        return out;
    }

  private:
    template <class T>
    T locked(const T& value) const {
        std::lock_guard lock(lock_);
        return value;
    }

    mutable std::mutex lock_;
    std::condition_variable changed_;
    std::vector<std::string> deltas_;
    std::optional<ModelResult> result_;
    std::optional<ModelError> error_;
    std::optional<StepTokens> paused_;
    int ends_ = 0;
};

}  // namespace mainstay
