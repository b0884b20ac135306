#include "actors/left_behind.h"

#include <algorithm>
#include <chrono>

#include "actors/model_scheduler.h"

namespace mainstay {
namespace {

/// Of what may be large.
size_t bytes_of(const LeftPart& outcome) {
    if (const auto* tool = std::get_if<LeftToolEnded>(&outcome)) return tool->outcome.output.size();
    const auto* model = std::get_if<LeftModelEnded>(&outcome);
    const auto* result = model ? std::get_if<ModelResult>(&model->outcome) : nullptr;
    if (!result) return 0;
    size_t bytes = result->text.size();
    for (const auto& call : result->calls) bytes += call.arguments.size();
    return bytes;
}

}  // namespace

LeftBehind::LeftBehind(caf::event_based_actor* self, NodeContext& node, Epoch led_in, std::vector<LeftBehindWork> work)
    : self_(self), node_(node), led_in_(led_in), work_(std::move(work)), begun_at_(node.clock.now_ms()) {
    node_.left_work->count(LeftCount::left, work_.size());
    self_->delayed_send(self_, std::chrono::milliseconds(limits::left_work_look_ms), sweep_atom::value);
}

LeftBehind::~LeftBehind() {
    const auto nobody = std::count_if(work_.begin(), work_.end(), [](const auto& work) { return !work.given; });
    for (const LeftBehindWork& work : work_) node_.left_work->let_go(work.kept_bytes);
    node_.left_work->count(LeftCount::kept, size_t(nobody));
}

/// One who asks again in the same epoch has begun anew.
void LeftBehind::asked(const LeftAsk& ask) {
    if (ask.claim.epoch <= led_in_ || ask.claim.epoch < asked_in_) return;
    asked_in_ = ask.claim.epoch;
    answer_ = ask.answer;
    for (LeftBehindWork& work : work_) {
        answer_->part(LeftHere{work.name});
        answer_->said(work.name, work.said);
        if (work.outcome) give(work);
    }
    if (all_ended()) answer_.reset();
}

void LeftBehind::cancel(const CancelLeftWork& cancel) {
    if (cancel.epoch <= led_in_ || cancel.epoch < asked_in_) return;
    for (LeftBehindWork& work : work_)
        if (work.name == cancel.work && !work.outcome) stop(work);
}

/// Its outcome comes of that, or would not be one that anybody wants.
void LeftBehind::stop(LeftBehindWork& work) {
    if (work.name.is_tool) return node_.tools.cancel(work.id);
    node_.models.cancel(work.id);
    settled(work, LeftModelEnded{work.name, ModelError{ErrorClass::lost, ErrorCode::turn_cancelled,
                                                       "nobody wanted it any more", 0}});
}

void LeftBehind::model_delta(const ModelDelta& delta) {
    LeftBehindWork* work = find(false, delta.request_id);
    if (!work) return;
    work->said += delta.text;
    if (answer_) answer_->said(work->name, delta.text);
}

void LeftBehind::model_settled(ModelSettled& ended) {
    LeftBehindWork* work = find(false, ended.request_id);
    if (!work) return;
    if (auto* result = std::get_if<ModelResult>(&ended.outcome))
        settled(*work, LeftModelEnded{work->name, std::move(*result)});
    else if (auto* error = std::get_if<ModelError>(&ended.outcome))
        settled(*work, LeftModelEnded{work->name, std::move(*error)});
}

void LeftBehind::tool_settled(ToolSettled& ended) {
    if (LeftBehindWork* work = find(true, ended.call_id))
        settled(*work, LeftToolEnded{work->name, std::move(ended.outcome)});
}

void LeftBehind::settled(LeftBehindWork& work, LeftPart outcome) {
    const size_t bytes = bytes_of(outcome);
    work.outcome = std::move(outcome);
    if (answer_) give(work);
    if (node_.left_work->keep(bytes))
        work.kept_bytes = bytes;
    else
        work.outcome = lost_left_work(work.name, "its outcome came while the node kept left_work_bytes_max of others");
    if (!all_ended()) return;
    answer_.reset();
    ended_at_ = node_.clock.now_ms();
}

void LeftBehind::give(LeftBehindWork& work) {
    answer_->part(*work.outcome);
    if (!std::exchange(work.given, true)) node_.left_work->count(LeftCount::given);
}

/// An outcome that was given is kept for a while: whoever took it may have died of it before it was in the journal.
bool LeftBehind::look() {
    const TimeMs now = node_.clock.now_ms();
    if (all_ended() && now >= ended_at_ + limits::left_work_keep_ms) return true;
    // A model that speaks for nobody costs money.
    if (asked_in_ <= led_in_ && now >= begun_at_ + limits::left_work_keep_ms)
        for (LeftBehindWork& work : work_)
            if (!work.name.is_tool && !work.outcome) stop(work);
    self_->delayed_send(self_, std::chrono::milliseconds(limits::left_work_look_ms), sweep_atom::value);
    return false;
}

LeftBehindWork* LeftBehind::find(bool is_tool, uint64_t id) {
    for (LeftBehindWork& work : work_)
        if (work.name.is_tool == is_tool && work.id == id && !work.outcome) return &work;
    return nullptr;
}

bool LeftBehind::all_ended() const {
    return std::all_of(work_.begin(), work_.end(), [](const auto& work) { return work.outcome.has_value(); });
}

caf::behavior left_behind(caf::event_based_actor* self, std::shared_ptr<LeftBehind> state) {
    return {
        [state](const LeftAskPtr& ask) { state->asked(*ask); },
        [state](const CancelLeftWork& cancel) { state->cancel(cancel); },
        [state](const ModelDelta& delta) { state->model_delta(delta); },
        [state](const ModelSettledPtr& settled) { state->model_settled(*settled); },
        [state](const ToolSettledPtr& settled) { state->tool_settled(*settled); },
        [self, state](sweep_atom) {
            if (state->look()) self->quit(caf::exit_reason::user_shutdown);
        },
        [self](drain_atom) { self->quit(); },
        // For the session that it was.
        [](const EnvelopePtr& envelope) {
            refuse(envelope->ask, {ErrorCode::misdirected, "another node leads the session's shard", {}});
        },
        [](const Committed&) {},
        [](const ToolsReadyPtr&) {},
        [](const RetryDecided&) {},
        [](const LeftNewsPtr&) {},
        [](sleep_atom) {},
        [](lost_atom) {},
        [](refused_atom) {},
    };
}

}  // namespace mainstay
