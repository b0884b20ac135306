#pragma once
// What stays of a session's actor when its shard leaves while a tool call or a step of an upstream is under way: it
// takes the outcomes that were to come to the session, and gives them to whoever leads it now. It holds nothing else of
// the session and decides nothing. Ends a while after everything has an outcome (left_work_keep_ms).

#include <caf/event_based_actor.hpp>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "actors/left_work.h"
#include "actors/messages.h"
#include "actors/node_context.h"

namespace mainstay {

struct LeftBehindWork {
    LeftName name;
    uint64_t id = 0;   // request_id of a model step, call_id of a tool call
    std::string said;  // by a step
    std::optional<LeftPart> outcome{};
    bool given = false;
    size_t kept_bytes = 0;
};

class LeftBehind {
  public:
    /// `led_in`: the epoch in which the work was begun.
    LeftBehind(caf::event_based_actor* self, NodeContext& node, Epoch led_in, std::vector<LeftBehindWork> work);
    ~LeftBehind();

    void asked(const LeftAsk& ask);
    void cancel(const CancelLeftWork& cancel);
    void model_delta(const ModelDelta& delta);
    void model_settled(ModelSettled& settled);
    void tool_settled(ToolSettled& settled);
    /// Time has passed: true if it goes.
    bool look();

  private:
    void settled(LeftBehindWork& work, LeftPart outcome);
    void give(LeftBehindWork& work);
    void stop(LeftBehindWork& work);
    LeftBehindWork* find(bool is_tool, uint64_t id);
    bool all_ended() const;

    caf::event_based_actor* self_;
    NodeContext& node_;
    const Epoch led_in_;
    Epoch asked_in_{};  // of who asked last; below led_in_: nobody
    std::shared_ptr<LeftAnswer> answer_;
    std::vector<LeftBehindWork> work_;
    TimeMs begun_at_ = 0, ended_at_ = 0;
};

/// What the actor does from then on.
caf::behavior left_behind(caf::event_based_actor* self, std::shared_ptr<LeftBehind> state);

}  // namespace mainstay
