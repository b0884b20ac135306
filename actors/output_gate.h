#pragma once
// The output gate of one session: what a decision makes visible (an answer, a stream event, a deletion that follows)
// waits here until the store has committed the decision's last event. Nothing else decides when an output may leave.
// Pure; owned by the session actor.

#include <deque>
#include <functional>
#include <utility>

#include "runtime/base/crash_point.h"
#include "runtime/base/id.h"

namespace mainstay {

class OutputGate {
  public:
    using Output = std::function<void()>;

    /// Everything up to `committed` at activation is on disk already.
    void start_at(Sequence committed) { committed_ = committed; }
    Sequence committed() const { return committed_; }
    bool is_committed(Sequence sequence) const { return sequence <= committed_; }
    bool empty() const { return held_.empty(); }

    /// Runs `output` at once if `sequence` is committed and nothing older is held; else keeps its place in the order.
    void hold(Sequence sequence, Output output) {
        if ((held_.empty() && sequence <= committed_) || mutant("ack_before_commit"))
            output();
        else
            held_.emplace_back(sequence, std::move(output));
    }

    /// An output may itself hold further outputs.
    void commit(Sequence sequence) {
        if (sequence > committed_) committed_ = sequence;
        while (!held_.empty() && held_.front().first <= committed_) {
            auto output = std::move(held_.front().second);
            held_.pop_front();
            output();
        }
    }

  private:
    Sequence committed_;
    std::deque<std::pair<Sequence, Output>> held_;  // sequences never fall: decisions are made in order
};

}  // namespace mainstay
