#pragma once
// Model steps on devices of our own at a planned hand-over of their shard: they end between two tokens, what they said
// goes into the journal, and the next owner goes on from there (docs/decisions/0024). Until the shard is gone, or the
// hand-over is off, none begins. Any thread.

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/id.h"
#include "runtime/base/limits.h"

namespace mainstay {

class StepPauses {
  public:
    /// Whoever hands over asks pause() at least so often; where it asks no more, steps may begin again.
    static constexpr TimeMs asked_within_ms = 1000;

    explicit StepPauses(const Clock& clock) : state_(std::make_shared<State>()) { state_->clock = &clock; }

    /// A step begins, and is there until the last copy of what this returns is gone. `pause` may be called again and
    /// again, and must not block. Null: its shard is about to be handed over, so it had better not begin.
    std::shared_ptr<void> begin(ShardId shard, std::function<void()> pause) const {
        std::lock_guard lock(state_->mutex);
        Shard& of = state_->shards[shard.value];
        if (of.is_asked(now())) return nullptr;
        of.asked_at = 0;
        const auto at = of.steps.insert(of.steps.end(), std::move(pause));
        // The deleter keeps the state: a session may outlive whoever asks.
        return {state_.get(), [state = state_, shard, at](void*) {
                    std::lock_guard held(state->mutex);
                    const auto found = state->shards.find(shard.value);
                    found->second.steps.erase(at);
                    if (found->second.steps.empty() && found->second.asked_at == 0) state->shards.erase(found);
                }};
    }

    /// Steps of the shard are to end; true while one has not, for limits::pause_reserve_ms at most: one that cannot be
    /// reached where it runs must not keep the others from going on.
    bool pause(ShardId shard) const {
        std::vector<std::function<void()>> told;
        bool any = false;
        {
            std::lock_guard lock(state_->mutex);
            Shard& of = state_->shards[shard.value];
            if (!of.is_asked(now())) of.asked_since = now();
            of.asked_at = now();
            // Each time: a step that was just beginning could not be paused when it was told first.
            told.assign(of.steps.begin(), of.steps.end());
            any = !told.empty() && now() - of.asked_since <= limits::pause_reserve_ms;
        }
        for (const auto& pause : told) pause();
        return any;
    }

    /// The shard is led here anew: what was asked of it while it was led here before is over.
    void resume(ShardId shard) const {
        std::lock_guard lock(state_->mutex);
        const auto found = state_->shards.find(shard.value);
        if (found == state_->shards.end()) return;
        found->second.asked_at = 0;
        if (found->second.steps.empty()) state_->shards.erase(found);
    }

  private:
    struct Shard {
        TimeMs asked_at = 0, asked_since = 0;  // pause(): last, and first without a gap; 0: nobody asks
        bool is_asked(TimeMs now) const { return asked_at != 0 && now - asked_at <= asked_within_ms; }
        std::list<std::function<void()>> steps;  // each empty once it was called
    };
    struct State {
        std::mutex mutex;
        const Clock* clock = nullptr;
        std::unordered_map<uint32_t, Shard> shards;
    };
    TimeMs now() const { return state_->clock->monotonic_ns() / 1'000'000 + 1; }

    std::shared_ptr<State> state_;
};

}  // namespace mainstay
