// How a session actor starts what its state implies, and takes the outcomes back as commands.

#include <caf/send.hpp>

#include "actors/model_scheduler.h"
#include "actors/session_actor.h"
#include "runtime/inference/own_device.h"
#include "runtime/tool/builtin.h"

namespace mainstay {
namespace {

/// Instructions of the agent, then those of the request for this turn.
std::string join_instructions(const AgentSpec& agent, const std::string& options) {
    if (options.find("\"instructions\"") == std::string::npos) return agent.instructions;
    const auto of_request = option_text(options, "instructions");
    if (of_request.empty()) return agent.instructions;
    return agent.instructions.empty() ? of_request : agent.instructions + "\n\n" + of_request;
}

/// Whether a prompt that is too long may leave out older turns: the request's word, or else the agent's.
bool truncates(const AgentSpec& agent, const std::string& options) {
    const auto of_request =
        options.find("\"truncation\"") == std::string::npos ? std::string() : option_text(options, "truncation");
    return of_request.empty() ? agent.truncate_history : of_request == "auto";
}

/// What the request leaves open, the agent's author decides.
std::string merge_sampling(const AgentSpec& agent, const std::string& options) {
    if (!agent.temperature && !agent.top_p) return options;
    return with_sampling(options, agent.temperature, agent.top_p);
}

/// echo does nothing that the session could not do itself, but it is there to stand for a tool: it goes the whole way
/// through intent, dispatch and receipt.
void dispatch_echo(PlannedCall& call) {
    if (call.disposition != PlannedCall::Disposition::builtin || call.tool != "echo" || call.action.is_error) return;
    call.disposition = PlannedCall::Disposition::run;
    call.effect = EffectClass::read;
}

}  // namespace

// --- starting
// ---------------------------------------------------------------------------------------------------------

void SessionActor::drive() {
    if (broken_) return arm_timer(node_.clock.now_ms() + node_.options.passivate_after_ms);
    if (!recovered_) return;  // recover() comes, and drives
    waits_for_commit_ = false;
    const Pending& pending = pending_now();
    cancel_stale(pending);
    if (pending.model && !model_) {
        if (node_.options.strict && !gate_.is_committed(pending.model->cause))
            waits_for_commit_ = true;
        else
            start_model(*pending.model);
    }
    for (const auto& tool : pending.tools) {
        const bool running = std::any_of(tools_.begin(), tools_.end(), [&](const ToolInFlight& t) {
            return t.turn == tool.turn && t.call == tool.call && t.attempt == tool.attempt;
        });
        if (running) continue;
        if (gate_.is_committed(tool.cause) || mutant("dispatch_before_intent"))
            start_tool(tool);
        else
            waits_for_commit_ = true;
    }
    for (const auto& ask : pending.retries) {
        const bool asked = std::any_of(retries_.begin(), retries_.end(), [&](const RetryAskedFor& r) {
            return r.turn == ask.turn && r.step == ask.step && r.is_tool == ask.is_tool && r.attempt == ask.attempt;
        });
        if (asked) continue;
        retries_.push_back({ask.turn, ask.step, ask.attempt, ask.is_tool});
        const Turn& turn = *session_->open_turn();
        const auto agent = bound_agent(node_.catalogue, turn.agent, turn.agent_version);
        const TimeMs deadline = session_->open_deadline();
        self_->send(supervisor_, RetryAsked{key_, ask, agent ? agent->retry : RetrySpec{}, last_retry_after_ms_,
                                            deadline, std::exchange(steps_settled_, 0)});
    }
    TimeMs wake = pending.wake_at;
    if (const TimeMs deadline = watch_.next_deadline(); deadline != 0 && (wake == 0 || deadline < wake))
        wake = deadline;
    // Idle checks ride on the same timer.
    const TimeMs now = node_.clock.now_ms();
    const TimeMs idle_ms = node_.options.passivate_after_ms;
    // What is due for sleep but still has work is looked at again an interval later.
    const TimeMs sleep_at = last_active_ + idle_ms > now ? last_active_ + idle_ms : now + idle_ms;
    if (wake == 0 || sleep_at < wake) wake = sleep_at;
    arm_timer(wake);
    count_busy();
}

/// pending() follows from the state alone and only batches change that, so a commit need not derive it again.
const Pending& SessionActor::pending_now() {
    if (pending_of_ != last() || !pending_) {
        pending_ = session_->pending();
        pending_of_ = last();
    }
    return *pending_;
}

/// What the state no longer asks for (a cancelled turn, an expired deadline) is stopped; its outcome would be ignored.
void SessionActor::cancel_stale(const Pending& pending) {
    if (model_ && !(pending.model && pending.model->turn == model_->step.turn &&
                    pending.model->step == model_->step.step && pending.model->attempt == model_->step.attempt)) {
        const RunModelStep& step = model_->step;
        if (model_->left)
            cancel_left(*model_->left, {false, step.turn, step.step, step.attempt});
        else
            node_.models.cancel(model_->request_id);
        model_.reset();
    }
    std::erase_if(tools_, [&](const ToolInFlight& t) {
        const bool wanted = std::any_of(pending.tools.begin(), pending.tools.end(), [&](const RunTool& p) {
            return p.turn == t.turn && p.call == t.call && p.attempt == t.attempt;
        });
        if (wanted) return false;
        if (t.left)
            cancel_left(*t.left, {true, t.turn, t.call, t.attempt});
        else
            node_.tools.cancel(t.call_id);
        return true;
    });
}

AgentToolsPtr SessionActor::tools_of(const AgentPtr& agent, const std::string& options) {
    if (!needs_listing(*agent)) {
        if (options.find("\"tools\"") == std::string::npos)
            return node_.agent_tools.builtin_only(*agent, node_.options.tool_call_timeout_ms);
        return make_agent_tools(*agent, {}, options, node_.options.tool_call_timeout_ms);
    }
    if (listed_ && listed_->agent_version == agent->version)
        return make_agent_tools(*agent, *listed_->tools, options, node_.options.tool_call_timeout_ms);
    if (!listing_) {
        listing_ = true;
        node_.tools.list(key_.tenant, key_, agent,
                         [session = caf::actor_cast<caf::actor>(self_), version = agent->version](
                             std::shared_ptr<const std::vector<ToolInfo>> tools, std::string failure) {
                             caf::anon_send(session, std::make_shared<ToolsReady>(
                                                         ToolsReady{version, std::move(tools), std::move(failure)}));
                         });
    }
    return nullptr;
}

void SessionActor::tools_ready(const ToolsReady& ready) {
    listing_ = false;
    listed_ = ready;
    if (!listed_->tools) listed_->tools = std::make_shared<const std::vector<ToolInfo>>();
    drive();
}

void SessionActor::start_model(const RunModelStep& step) {
    const Turn& turn = *session_->open_turn();
    const auto agent = bound_agent(node_.catalogue, turn.agent, turn.agent_version);
    if (!agent)
        return fail_model(step, ErrorClass::invalid, ErrorCode::model_not_found,
                          "the agent version of this turn is gone: " + turn.agent);
    const auto model = node_.catalogue.model(agent->model);
    if (!model)
        return fail_model(step, ErrorClass::invalid, ErrorCode::model_not_found,
                          "agent " + agent->name + " names an unknown model: " + agent->model);
    const auto tools = tools_of(agent, turn.options);
    if (!tools) return;  // tools_ready() comes back here
    if (listed_ && !listed_->failure.empty()) {
        const auto failure = std::exchange(listed_, std::nullopt)->failure;  // the next attempt asks again
        return fail_model(step, ErrorClass::transient, ErrorCode::tool_unavailable, failure);
    }

    if (auto* left = claims_ ? claims_->find({false, step.turn, step.step, step.attempt}) : nullptr)
        return take_step(step, *left, tools);
    const uint64_t id = node_.next_request.fetch_add(1, std::memory_order_relaxed);
    std::shared_ptr<void> pausable;
    if (runs_on_own_device(*model)) {
        pausable = node_.pauses.begin(node_.shard_of(key_), [this_node = &node_, id] { this_node->models.pause(id); });
        // Whoever leads the shard then begins it; if it stays here after all, the session looks again.
        if (!pausable) return arm_timer(node_.clock.now_ms() + limits::pause_recheck_ms);
    }
    load_window();
    if (broken_) return watch_.fail_all(*broken_);  // its history cannot be read: it says so to whoever asks
    ModelRequest request;
    request.request_id = id;
    request.model = model;
    request.session = request.root = key_;
    request.instructions = join_instructions(*agent, turn.options);
    // The window ends with the open turn, as far as it belongs into a prompt.
    request.prompt.settled = session_->settled_window();
    request.prompt.open = *session_->open_items();
    request.tools = tools->definitions;
    request.options = merge_sampling(*agent, turn.options);
    request.max_output_tokens = agent->max_output_tokens;
    request.step = step.step;
    request.attempt = step.attempt;
    request.resume = step.resume;
    request.deadline = session_->open_deadline();
    request.stream = watch_.has_stream(turn.no) || turn.no == taken_up_;
    request.idempotency_key = to_text(ResponseId{key_.session, turn.no}) + ":" + std::to_string(step.step);
    // A shorter prompt is another request: an upstream that has seen the key would answer it as it answered the longer.
    if (const TurnNo left_out = session_->left_out(); left_out.value != 0)
        request.idempotency_key += ":" + std::to_string(left_out.value);
    model_ = ModelInFlight{step, request.request_id, tools, {}, static_cast<uint32_t>(turn.items.size())};
    model_->truncate = truncates(*agent, turn.options);
    model_->pausable = std::move(pausable);
    used_model_ = true;
    node_.models.submit(std::move(request), caf::actor_cast<caf::actor>(self_));
}

/// A step that cannot even start fails like one that did.
void SessionActor::fail_model(const RunModelStep& step, ErrorClass error_class, ErrorCode code, std::string message) {
    ModelError error{error_class, code, std::move(message), 0};
    const uint64_t id = node_.next_request.fetch_add(1, std::memory_order_relaxed);
    model_ = ModelInFlight{step, id, nullptr, {}, 0};
    self_->send(self_, std::make_shared<ModelSettled>(ModelSettled{id, std::move(error)}));
}

void SessionActor::start_tool(const RunTool& tool) {
    const Turn& turn = *session_->open_turn();
    auto run = std::make_shared<RunToolCall>();
    run->call.call_id = node_.next_request.fetch_add(1, std::memory_order_relaxed);
    run->call.tenant = key_.tenant;
    run->call.session = key_;
    run->call.agent = bound_agent(node_.catalogue, turn.agent, turn.agent_version);
    run->call.server_label = tool.server_label;
    run->call.name = tool.name;
    run->call.arguments = tool.arguments;
    run->call.idempotency_key = tool.idempotency_key;
    run->call.timeout_ms = static_cast<uint32_t>(tool.timeout_ms);
    run->call.principal = turn.principal;
    run->session = caf::actor_cast<caf::actor>(self_);
    tools_.push_back(
        {run->call.call_id, tool.turn, tool.call, tool.attempt, node_.activity.begin(node_.shard_of(key_)), {}});
    crash_point("session.before_dispatch");
    self_->send(node_.tool_worker, std::move(run));
    crash_point("session.after_dispatch");
}

void SessionActor::arm_timer(TimeMs at) {
    if (at == 0 || (armed_at_ != 0 && armed_at_ <= at)) return;
    armed_at_ = at;
    self_->send(node_.timer, ArmTimer{key_, at});
}

// --- outcomes
// ---------------------------------------------------------------------------------------------------------

void SessionActor::model_delta(const ModelDelta& delta) {
    if (!model_ || model_->request_id != delta.request_id) return;
    model_->streamed += delta.text;
    publish_deltas();
}

/// Provisional or not, text leaves only when what it answers is committed; so it also comes behind the items of the
/// step before. If the step is settled by then, its items come whole.
void SessionActor::publish_deltas() {
    if (!model_ || model_->published == model_->streamed.size() || !gate_.is_committed(model_->step.cause)) return;
    watch_.publish(model_->step.turn,
                   StreamDelta{model_->step.step, model_->step.attempt, model_->streamed.substr(model_->published)});
    model_->published = model_->streamed.size();
}

void SessionActor::model_settled(ModelSettled& settled) {
    if (!model_ || model_->request_id != settled.request_id) return;
    crash_point("session.model_answered");
    const auto flight = std::move(*model_);
    model_.reset();
    if (flight.left) claims_->forget(flight.request_id);
    const auto& step = flight.step;
    const Turn* open = session_->open_turn();
    const size_t items_before = open && open->no == step.turn ? open->items.size() : 0;
    Decided decided;
    if (auto* result = std::get_if<ModelResult>(&settled.outcome)) {
        node_.metrics.step_settled("model");
        node_.metrics.model_tokens(result->usage.input_tokens, result->usage.cached_tokens,
                                   result->usage.output_tokens);
        ++steps_settled_;
        ModelStepDone done;
        done.turn = step.turn;
        done.step = step.step;
        done.attempt = step.attempt;
        done.text = std::move(result->text);
        done.usage = result->usage;
        done.model = std::move(result->model);
        done.finish_reason = std::move(result->finish_reason);
        done.tokens = std::move(result->tokens);
        if (result->placed) done.placed = Decision{"placed", result->placed->where, result->placed->why};
        for (auto& call : result->calls) {
            done.calls.push_back(plan_call(flight.tools->exposed, flight.tools->client_functions,
                                           {std::move(call.call_id), std::move(call.name), std::move(call.arguments)}));
            dispatch_echo(done.calls.back());
        }
        decided = decide(context("system"), std::move(done));
    } else if (auto* said = std::get_if<StepTokens>(&settled.outcome)) {
        decided = decide(context("system"), ModelStepPaused{step.turn, step.step, step.attempt, std::move(*said)});
        gate_.hold(last(), [pausable = flight.pausable] {});  // the hand-over waits for the commit
    } else {
        auto& error = std::get<ModelError>(settled.outcome);
        node_.metrics.step_failed(to_word(error.error_class));
        last_retry_after_ms_ = error.retry_after_ms;
        ModelStepFailed failed{step.turn,         step.step,  step.attempt,
                               error.error_class, error.code, std::move(error.message),
                               flight.streamed};
        failed.truncate = flight.truncate;
        failed.context_tokens = error.context_tokens;
        failed.context_limit = error.context_limit;
        decided = decide(context("system"), std::move(failed));
    }
    publish_step(step.turn, items_before, step);
    follow_up(decided);
    drive();
}

/// New items of a step, for stream readers, once they are committed.
void SessionActor::publish_step(TurnNo turn_no, size_t items_before, const RunModelStep& step) {
    if (!watch_.has_stream(turn_no)) return;
    const auto turn = session_->turn(turn_no);
    if (!turn || turn->items.size() <= items_before) return;
    const auto first = static_cast<uint32_t>(items_before);
    if (turn->items[first]->status == ItemStatus::incomplete && turn->items[first]->kind == ItemKind::message &&
        turn->items.size() == items_before + 1 && !is_settled(turn->status)) {
        gate_.hold(last(), [this, turn_no, first, item = turn->items[first]] {
            watch_.publish(turn_no, StreamBroken{first, item});
        });
        return;
    }
    StreamItems added{first, {turn->items.begin() + first, turn->items.end()}, step.step, step.attempt};
    gate_.hold(last(), [this, turn_no, added = std::move(added)] { watch_.publish(turn_no, added); });
}

void SessionActor::tool_settled(ToolSettled& settled) {
    const auto found =
        std::find_if(tools_.begin(), tools_.end(), [&](const ToolInFlight& t) { return t.call_id == settled.call_id; });
    if (found == tools_.end()) return;
    const auto flight = *found;
    tools_.erase(found);
    if (flight.left) claims_->forget(flight.call_id);
    auto& outcome = settled.outcome;
    crash_point("session.tool_answered");
    Decided decided;
    if (outcome.kind == ToolOutcome::Kind::result) {
        node_.metrics.step_settled("tool");
        ++steps_settled_;
        node_.metrics.tool_call(outcome.is_error ? "error" : "result");
        decided = decide(context("system"), ToolStepDone{flight.turn, flight.call, flight.attempt, outcome.is_error,
                                                         std::move(outcome.output), outcome.duration_micros});
    } else {
        const bool lost = outcome.kind == ToolOutcome::Kind::lost;
        node_.metrics.tool_call(lost ? "lost" : "failed");
        decided =
            decide(context("system"), ToolFailed{flight.turn, flight.call, flight.attempt, lost, outcome.error_class,
                                                 outcome.code, std::move(outcome.message), outcome.duration_micros});
    }
    if (flight.activity) gate_.hold(last(), [activity = flight.activity] {});
    if (watch_.has_stream(flight.turn)) {
        const auto turn = session_->turn(flight.turn);
        if (turn && flight.call < turn->items.size() && turn->items[flight.call]->status != ItemStatus::in_progress)
            gate_.hold(last(), [this, flight, item = turn->items[flight.call]] {
                watch_.publish(flight.turn, StreamItemDone{flight.call, item});
            });
    }
    follow_up(decided);
    drive();
}

void SessionActor::retry_decided(const RetryDecided& decided) {
    const auto& verdict = decided.verdict;
    std::erase_if(retries_, [&](const RetryAskedFor& r) {
        return r.turn == verdict.turn && r.step == verdict.step && r.is_tool == verdict.is_tool &&
               r.attempt == verdict.attempt;
    });
    if (verdict.retry) node_.metrics.retried();
    follow_up(decide(context("system"), verdict));
    drive();
}

}  // namespace mainstay
