#pragma once
// Who waits for a turn of one session: blocking callers, each with a deadline of its own, and stream readers. Pure;
// owned by the session actor. A caller that gives up changes nothing about the turn.

#include <algorithm>
#include <vector>

#include "actors/messages.h"

namespace mainstay {

class TurnWatch {
  public:
    void wait(TurnNo turn, ReplyTo<TurnAnswer> reply, TimeMs deadline, bool repeated) {
        waiters_.push_back({turn, deadline, repeated, std::move(reply)});
    }
    /// A reader will subscribe when its input is committed; what is published behind that must already be kept for it.
    void expect(TurnNo turn) { expected_.push_back(turn); }
    void subscribe(TurnNo turn, SubscriptionPtr stream) {
        if (const auto at = std::find(expected_.begin(), expected_.end(), turn); at != expected_.end())
            expected_.erase(at);
        streams_.push_back({turn, std::move(stream)});
    }

    bool empty() const { return waiters_.empty() && streams_.empty() && expected_.empty(); }
    bool has_stream(TurnNo turn) {
        if (std::find(expected_.begin(), expected_.end(), turn) != expected_.end()) return true;
        std::erase_if(streams_, [](const Stream& s) { return s.stream->closed.load(); });
        return std::any_of(streams_.begin(), streams_.end(), [&](const Stream& s) { return s.turn == turn; });
    }
    void publish(TurnNo turn, const StreamEvent& event) {
        for (auto& s : streams_)
            if (s.turn == turn) s.stream->send(event);
    }

    /// Answers and forgets everybody who waits for this turn.
    void settle(const TurnAnswer& answer) {
        const TurnNo turn = answer.turn->no;
        for (auto& w : waiters_) {
            if (w.turn != turn) continue;
            TurnAnswer mine = answer;
            mine.repeated = w.repeated;
            w.reply(std::move(mine));
        }
        std::erase_if(waiters_, [&](const Waiter& w) { return w.turn == turn; });
        publish(turn, StreamEnded{answer});
        std::erase_if(streams_, [&](const Stream& s) { return s.turn == turn; });
    }

    void fail_all(const Error& error) {
        for (auto& w : waiters_) w.reply(Error(error));
        waiters_.clear();
        for (auto& s : streams_) s.stream->send(StreamFailed{error});
        streams_.clear();
        expected_.clear();
    }

    /// Earliest deadline of a blocking caller; 0: none.
    TimeMs next_deadline() const {
        TimeMs first = 0;
        for (const auto& w : waiters_)
            if (w.deadline != 0 && (first == 0 || w.deadline < first)) first = w.deadline;
        return first;
    }
    void expire(TimeMs now, const std::function<Error(TurnNo)>& why) {
        for (auto& w : waiters_)
            if (w.deadline != 0 && w.deadline <= now) w.reply(why(w.turn));
        std::erase_if(waiters_, [&](const Waiter& w) { return w.deadline != 0 && w.deadline <= now; });
    }

  private:
    struct Waiter {
        TurnNo turn;
        TimeMs deadline = 0;
        bool repeated = false;
        ReplyTo<TurnAnswer> reply;
    };
    struct Stream {
        TurnNo turn;
        SubscriptionPtr stream;
    };
    std::vector<Waiter> waiters_;
    std::vector<Stream> streams_;
    std::vector<TurnNo> expected_;
};

}  // namespace mainstay
