#include "actors/remote_model.h"

#include <prometheus/counter.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <utility>

#include "actors/model_step_message.h"
#include "cluster/placement.h"
#include "runtime/inference/model_error.h"

namespace mainstay {
namespace {

constexpr uint32_t grace_ms = 5'000;   // beyond the step's deadline, which the host keeps itself
constexpr uint32_t notice_ms = 5'000;  // pause, rest: nobody waits for their answer
constexpr uint32_t timeout_ms_max = 24 * 3600 * 1000;

constexpr std::array<const char*, 6> sent_words = {"done", "failed", "paused", "cancelled", "refused", "lost"};

ModelError said_otherwise() {
    return make_model_error(ErrorClass::lost,
                            "the node that went on with the step said something else than the one "
                            "before it");
}

std::string node_words(const NodeUuid& node) { return "node " + short_text(node); }

const char* to_words(StepWhy why) {
    switch (why) {
        case StepWhy::kv: return "it holds the session's KV";
        case StepWhy::here: return "the session is here";
        case StepWhy::least_loaded: return "it has the least to do";
    }
    return "";
}

/// Failures of a host, not of the step: another may do better.
bool of_host(const ModelError& error) {
    return error.error_class == ErrorClass::overloaded || error.error_class == ErrorClass::lost ||
           error.error_class == ErrorClass::transient || error.code == ErrorCode::model_not_loadable;
}

}  // namespace

struct RemoteModel::Metrics {
    explicit Metrics(prometheus::Registry& registry)
        : redispatches(prometheus::BuildCounter()
                           .Name("mainstay_cluster_model_step_redispatches_total")
                           .Help("Model steps that went to a further node, because the one before was lost or refused.")
                           .Register(registry)
                           .Add({})) {
        auto& family = prometheus::BuildCounter()
                           .Name("mainstay_cluster_model_steps_sent_total")
                           .Help("Model steps of this node's sessions on other nodes, by what became of them there.")
                           .Register(registry);
        for (size_t i = 0; i < sent.size(); ++i) sent[i] = &family.Add({{"outcome", sent_words[i]}});
    }
    void count(Sent outcome) { sent[size_t(outcome)]->Increment(); }

    std::array<prometheus::Counter*, sent_words.size()> sent{};
    prometheus::Counter& redispatches;
};

/// A step from submit() to its end, over all nodes that it goes to.
struct RemoteModel::Step {
    Step(ModelRequest of, std::shared_ptr<ModelSink> to)
        : request(std::move(of)), model(request.model->name), sink(std::move(to)) {}

    const ModelRequest request;
    const std::string model;
    const std::shared_ptr<ModelSink> sink;

    std::mutex mutex;       // of what follows
    uint64_t dispatch = 0;  // the newest one's number
    bool at_host = false;   // it counts: neither is it over, nor is the next node to be found
    bool closed = false, pausing = false;
    NodeUuid host{};  // of the newest dispatch
    StepWhy why = StepWhy::here;
    std::shared_ptr<LinkCall> call;  // null: it runs here
    std::vector<NodeUuid> tried;
    std::string passed;                 // text that the sink was given
    size_t matched = 0;                 // of it, what this dispatch has said again
    std::optional<ModelError> failure;  // of the last host

    bool is(uint64_t number) const { return !closed && at_host && dispatch == number; }
};

/// A step on this node's own devices.
class RemoteModel::HereSink final : public ModelSink {
  public:
    HereSink(RemoteModel& model, StepPtr step, uint64_t number)
        : model_(model), step_(std::move(step)), number_(number) {}
    void delta(uint64_t, std::string text) override { model_.text_came(step_, number_, std::move(text)); }
    void done(uint64_t, ModelResult result) override { end({std::move(result), {}}); }
    void failed(uint64_t, ModelError error) override { end({std::move(error), {}}); }
    void paused(uint64_t, StepTokens so_far) override { end({std::move(so_far), {}}); }

  private:
    void end(StepEnded outcome) { model_.ended(step_, number_, std::move(outcome)); }
    RemoteModel& model_;
    const StepPtr step_;
    const uint64_t number_;
};

RemoteModel::RemoteModel(RemoteModelConfig config)
    : config_(std::move(config)), metrics_(std::make_unique<Metrics>(*config_.registry)), placement_(config_.self) {}
RemoteModel::~RemoteModel() = default;

TimeMs RemoteModel::now() const { return TimeMs(config_.clock->monotonic_ns() / 1'000'000); }

std::optional<StepChoice> RemoteModel::place(const SessionKey& session, const std::string& model) const {
    const auto nodes = config_.nodes();
    std::lock_guard lock(mutex_);
    return placement_.choose(session, model, *nodes, {}, now());
}

// --- to a node ------------------------------------------------------------------------------------------------------

void RemoteModel::submit(ModelRequest request, std::shared_ptr<ModelSink> sink) {
    const uint64_t id = request.request_id;
    auto step = std::make_shared<Step>(std::move(request), std::move(sink));
    {
        std::lock_guard lock(mutex_);
        steps_[id] = step;
    }
    dispatch(step);
}

/// To the best node that was not tried yet; where there is none, its end.
void RemoteModel::dispatch(const StepPtr& step) {
    const auto nodes = config_.nodes();
    std::vector<NodeUuid> tried;
    {
        std::lock_guard lock(step->mutex);
        tried = step->tried;
    }
    std::optional<StepChoice> choice;
    if (tried.size() <= limits::scheduler_redispatch_max) {
        std::lock_guard lock(mutex_);
        choice = placement_.choose(step->request.session, step->model, *nodes, tried, now());
        if (choice) placement_.began(choice->node, step->model);
    }
    const uint64_t id = step->request.request_id;
    std::optional<ModelError> nobody;
    bool closed = false, paused = false;
    uint64_t number = 0;
    {
        std::lock_guard lock(step->mutex);
        closed = step->closed;
        paused = !closed && step->pausing;
        if (!choice)
            nobody = step->failure.value_or(
                make_model_error(ErrorClass::transient, "no node that can be reached computes the model " +
                                                            step->model + " on its devices (inference.models)"));
        step->closed = closed || paused || nobody;
        if (!step->closed) {
            number = ++step->dispatch;
            step->at_host = true;
            step->tried.push_back(choice->node);
            step->host = choice->node;
            step->why = choice->why;
            step->call = nullptr;
            step->matched = 0;
        }
    }
    if (number == 0) {
        if (choice) {
            std::lock_guard lock(mutex_);
            placement_.ended(choice->node, step->model);
        }
        forget(*step);
        if (paused)
            step->sink->paused(id, {});
        else if (!closed)
            step->sink->failed(id, std::move(*nobody));
        return;
    }
    if (number > 1) metrics_->redispatches.Increment();
    if (choice->node == config_.self)
        config_.here->submit(step->request, std::make_shared<HereSink>(*this, step, number));
    else
        send(step, choice->node, number);
}

void RemoteModel::send(const StepPtr& step, const NodeUuid& to, uint64_t number) {
    RunRemoteStep run{step->request, step->model, step->request.model->version, 0};
    uint32_t timeout_ms = 0;
    if (const TimeMs deadline = step->request.deadline; deadline != 0) {
        const TimeMs wall = config_.clock->now_ms();
        run.timeout_ms = deadline > wall ? uint64_t(deadline - wall) : 1;
        timeout_ms = uint32_t(std::min<uint64_t>(run.timeout_ms, timeout_ms_max)) + grace_ms;
    }
    auto call = config_.call(
        to, encode_step(run), [this, step, number](const std::string& part) { part_came(step, number, part); },
        [this, step, number](const std::optional<Error>& failure) { call_ended(step, number, failure); }, timeout_ms);
    bool cancelled = false;
    {
        std::lock_guard lock(step->mutex);
        cancelled = step->closed && step->dispatch == number;
        if (!step->closed && step->dispatch == number) step->call = call;
    }
    if (cancelled && call) call->cancel();  // it was cancelled before it could be named
}

// --- from a node ----------------------------------------------------------------------------------------------------

void RemoteModel::part_came(const StepPtr& step, uint64_t number, const std::string& bytes) {
    auto part = decode_step_part(bytes);
    if (!part) {
        spdlog::warn("a step's answer: {}", part.error().message);
        return host_failed(step, number, Sent::lost, make_model_error(ErrorClass::lost, "its answer cannot be read"));
    }
    if (auto* delta = std::get_if<StepDelta>(&*part)) return text_came(step, number, std::move(delta->text));
    ended(step, number, std::move(std::get<StepEnded>(*part)));
}

void RemoteModel::text_came(const StepPtr& step, uint64_t number, std::string text) {
    bool differs = false;
    {
        std::lock_guard lock(step->mutex);
        if (!step->is(number)) return;
        const size_t again = std::min(text.size(), step->passed.size() - step->matched);
        differs = step->passed.compare(step->matched, again, text, 0, again) != 0;
        if (!differs) {
            text.erase(0, again);
            step->passed += text;
            step->matched += again + text.size();
        }
    }
    if (differs) return give_up(step, number, said_otherwise());
    if (!text.empty()) step->sink->delta(step->request.request_id, std::move(text));
}

void RemoteModel::call_ended(const StepPtr& step, uint64_t number, const std::optional<Error>& failure) {
    if (!failure)
        return host_failed(step, number, Sent::lost,
                           make_model_error(ErrorClass::lost, "it ended its answer before the step ended"));
    if (failure->code == ErrorCode::body_too_large)
        return give_up(step, number,
                       {ErrorClass::invalid, ErrorCode::body_too_large,
                        "the prompt is larger than a message between nodes (link_message_bytes_max), and no device of "
                        "this node computes the model",
                        0});
    // The one was not sent, the other not begun; all else may have run there.
    const bool surely_not = failure->code == ErrorCode::misdirected || failure->code == ErrorCode::peer_refused;
    host_failed(step, number, surely_not ? Sent::refused : Sent::lost,
                make_model_error(surely_not ? ErrorClass::transient : ErrorClass::lost, failure->message));
}

void RemoteModel::ended(const StepPtr& step, uint64_t number, StepEnded ended) {
    if (auto* error = std::get_if<ModelError>(&ended.outcome); error && of_host(*error))
        return host_failed(step, number, Sent::failed, std::move(*error), ended.load);
    auto* result = std::get_if<ModelResult>(&ended.outcome);
    bool differs = false;
    std::shared_ptr<LinkCall> call;  // it holds the step in turn
    {
        std::lock_guard lock(step->mutex);
        if (!step->is(number)) return;
        differs = result && step->matched != step->passed.size();
        step->closed = !differs;
        if (!differs) call = std::exchange(step->call, nullptr);
    }
    if (differs) return give_up(step, number, said_otherwise());
    // Closed, so nobody else changes it any more.
    const uint64_t id = step->request.request_id;
    const bool elsewhere = step->host != config_.self;
    bool news = false;
    {
        std::lock_guard lock(mutex_);
        placement_.ended(step->host, step->model);
        if (elsewhere) placement_.told(step->host, step->model, ended.load, now());
        if (result) news = placement_.ran(step->request.session, step->model, step->host);
    }
    forget(*step);
    if (result) {
        if (elsewhere) metrics_->count(Sent::done);
        if (news) result->placed = placed(*step);
        return step->sink->done(id, std::move(*result));
    }
    if (auto* error = std::get_if<ModelError>(&ended.outcome)) {
        if (elsewhere) metrics_->count(Sent::failed);
        return step->sink->failed(id, std::move(*error));
    }
    if (elsewhere) metrics_->count(Sent::paused);
    step->sink->paused(id, std::move(std::get<StepTokens>(ended.outcome)));
}

/// For the session's journal.
std::shared_ptr<const StepPlaced> RemoteModel::placed(const Step& step) const {
    auto out = std::make_shared<StepPlaced>();
    out->where = short_text(step.host) + "/" + step.model;
    out->why = to_words(step.why);
    if (step.failure) out->why += ", after " + step.failure->message;
    return out;
}

/// Another may do better. Who was to pause has what it wanted: the step is nowhere any more.
void RemoteModel::host_failed(const StepPtr& step, uint64_t number, Sent how, ModelError why,
                              std::optional<HostLoad> load) {
    std::shared_ptr<LinkCall> call;
    NodeUuid host{};
    bool paused = false;
    {
        std::lock_guard lock(step->mutex);
        if (!step->is(number)) return;
        step->at_host = false;  // what still comes of this dispatch is late
        host = step->host;
        call = std::exchange(step->call, nullptr);
        paused = step->closed = step->pausing;
        if (host != config_.self) why.message = node_words(host) + ": " + why.message;
        step->failure = why;
    }
    if (call) call->cancel();
    {
        std::lock_guard lock(mutex_);
        placement_.ended(host, step->model);
        if (load && host != config_.self) placement_.told(host, step->model, *load, now());
    }
    if (host != config_.self) metrics_->count(how);
    if (paused) {
        forget(*step);
        return step->sink->paused(step->request.request_id, {});
    }
    spdlog::warn("a step of model {} failed on {}: {}", step->model, node_words(host), why.message);
    dispatch(step);
}

/// No other node would do better.
void RemoteModel::give_up(const StepPtr& step, uint64_t number, ModelError why) {
    std::shared_ptr<LinkCall> call;
    {
        std::lock_guard lock(step->mutex);
        if (!step->is(number)) return;
        step->closed = true;
        call = std::exchange(step->call, nullptr);
    }
    leave_host(*step, call, Sent::failed);
    forget(*step);
    step->sink->failed(step->request.request_id, std::move(why));
}

/// Of a step that is closed.
void RemoteModel::leave_host(const Step& step, const std::shared_ptr<LinkCall>& call, Sent how) {
    if (step.host == config_.self)
        config_.here->cancel(step.request.request_id);
    else if (call)
        call->cancel();
    if (step.host != config_.self) metrics_->count(how);
    std::lock_guard lock(mutex_);
    placement_.ended(step.host, step.model);
}

void RemoteModel::forget(const Step& step) {
    std::lock_guard lock(mutex_);
    const auto found = steps_.find(step.request.request_id);
    if (found != steps_.end() && found->second.get() == &step) steps_.erase(found);
}

// --- what else is asked ---------------------------------------------------------------------------------------------

RemoteModel::StepPtr RemoteModel::find(uint64_t request_id) const {
    std::lock_guard lock(mutex_);
    const auto found = steps_.find(request_id);
    return found == steps_.end() ? nullptr : found->second;
}

void RemoteModel::cancel(uint64_t request_id) {
    const StepPtr step = find(request_id);
    if (!step) return;
    std::shared_ptr<LinkCall> call;
    bool somewhere = false;
    {
        std::lock_guard lock(step->mutex);
        if (std::exchange(step->closed, true)) return;
        somewhere = step->at_host;
        call = std::exchange(step->call, nullptr);
    }
    if (somewhere) leave_host(*step, call, Sent::cancelled);
    forget(*step);
}

bool RemoteModel::pause(uint64_t request_id) {
    const StepPtr step = find(request_id);
    if (!step) return false;
    NodeUuid host{};
    {
        std::lock_guard lock(step->mutex);
        if (step->closed) return false;
        step->pausing = true;
        if (!step->at_host) return true;  // it goes to no further node
        host = step->host;
    }
    if (host == config_.self) return config_.here->pause(request_id);
    // If it does not arrive, the step runs on there, and settles as it settles.
    config_.call(
        host, encode_pause({request_id}), [](const std::string&) {}, [](const std::optional<Error>&) {}, notice_ms);
    return true;
}

void RemoteModel::session_idle(const SessionKey& session) {
    std::vector<NodeUuid> nodes;
    {
        std::lock_guard lock(mutex_);
        nodes = placement_.elsewhere(session);
    }
    for (const NodeUuid& node : nodes)
        config_.call(
            node, encode_rest({session}), [](const std::string&) {}, [](const std::optional<Error>&) {}, notice_ms);
}

void RemoteModel::session_deleted(const SessionKey& session) {
    std::lock_guard lock(mutex_);
    placement_.forget(session);
}

}  // namespace mainstay
