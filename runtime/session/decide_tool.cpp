// Commands about tool calls: what becomes of a planned call, its answer, its loss and the outcome that nobody knows.

#include <ctime>

#include <boost/json.hpp>

#include <algorithm>

#include "runtime/base/limits.h"
#include "runtime/session/decider.h"

namespace mainstay {
namespace {

std::string rfc3339(TimeMs at) {
    const std::time_t seconds = static_cast<std::time_t>(std::min<TimeMs>(at / 1000, 253402300799));  // year 9999
    std::tm parts{};
    gmtime_r(&seconds, &parts);
    char text[64];
    std::snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02d.%03uZ", parts.tm_year + 1900, parts.tm_mon + 1,
                  parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec, static_cast<unsigned>(at % 1000));
    return text;
}

std::string call_subject(uint32_t call) { return "call " + std::to_string(call); }

}  // namespace

const Call* Decider::awaited(const TurnProgress* turn, uint32_t index, uint32_t attempt) const {
    const Call* call = turn ? turn->calls.find(index) : nullptr;
    if (!call || call->state != Call::State::intended || call->step.failure || call->step.attempt != attempt)
        return nullptr;
    return call;
}

void Decider::settle_call(ToolReceipt receipt) {
    const bool final_receipt = receipt.status != ItemStatus::unknown;
    emit(std::move(receipt));
    if (!final_receipt) return;
    INVARIANT(outstanding_ > 0, "a receipt settles an outstanding call");
    if (--outstanding_ == 0) after_calls();
}

void Decider::receipt(uint32_t call, ItemStatus status, std::string output, std::string error, uint64_t micros) {
    settle_call(ToolReceipt{call, status, std::move(output), std::move(error), micros});
}

void Decider::fail_call(uint32_t call, ErrorCode code, const std::string& message, uint64_t micros) {
    receipt(call, ItemStatus::failed, {}, std::string(error_name(code)) + ": " + message, micros);
}

void Decider::plan_call(const PlannedCall& call, uint32_t index) {
    switch (call.disposition) {
        case PlannedCall::Disposition::client: return;
        case PlannedCall::Disposition::run: return emit(ToolIntent{index, call.effect, call.timeout_ms});
        case PlannedCall::Disposition::builtin: return run_builtin(call.action, index);
        case PlannedCall::Disposition::refuse: {
            const std::string message = clip(call.refusal_message, limits::reason_bytes_max);
            emit(Decision{std::string(error_name(call.refusal)), call_subject(index), message});
            return fail_call(index, call.refusal, message);
        }
    }
}

// The builtin memory as it is after the events of this batch: calls of one step see each other in their order.
std::optional<std::string> Decider::remembered(const std::string& key) const {
    for (size_t i = events_.size(); i > 0; --i)
        if (const auto* set = std::get_if<MemorySet>(&events_[i - 1]); set && set->key == key)
            return set->removed ? std::nullopt : std::optional(set->value);
    auto at = session_.memory_.find(key);
    return at == session_.memory_.end() ? std::nullopt : std::optional(at->second);
}

std::vector<std::pair<std::string, std::string>> Decider::memory_now() const {
    std::vector<std::pair<std::string, std::string>> entries(session_.memory_.begin(), session_.memory_.end());
    for (const Event& event : events_) {
        const auto* set = std::get_if<MemorySet>(&event);
        if (!set) continue;
        std::erase_if(entries, [&](const auto& entry) { return entry.first == set->key; });
        if (!set->removed) entries.emplace_back(set->key, set->value);
    }
    std::sort(entries.begin(), entries.end());
    return entries;
}

void Decider::run_builtin(const BuiltinAction& action, uint32_t index) {
    using Kind = BuiltinAction::Kind;
    auto answer = [&](std::string output, bool is_error = false) {
        if (output.size() > std::min(limits::tool_result_bytes_max, room_))
            return fail_call(index, ErrorCode::tool_result_too_large,
                             "the answer has " + std::to_string(output.size()) + " bytes");
        room_ -= output.size();
        receipt(index, is_error ? ItemStatus::failed : ItemStatus::completed, std::move(output), {});
    };
    switch (action.kind) {
        case Kind::answer: return answer(action.now ? rfc3339(now_) : action.text, action.is_error);
        case Kind::memory_get: {
            auto value = remembered(action.key);
            return value ? answer(std::move(*value)) : answer("nothing is remembered under this key", true);
        }
        case Kind::memory_set:
        case Kind::memory_delete: return change_memory(action, index);
        case Kind::memory_list: {
            boost::json::array keys;
            for (const auto& entry : memory_now()) keys.emplace_back(entry.first);
            return answer(boost::json::serialize(keys));
        }
        case Kind::sleep: return sleep(action, index);
    }
}

void Decider::change_memory(const BuiltinAction& action, uint32_t index) {
    auto refused = [&](std::string_view what, size_t max) {
        receipt(index, ItemStatus::failed, std::string(what) + ": at most " + std::to_string(max), {});
    };
    const auto old_value = remembered(action.key);
    if (action.kind == BuiltinAction::Kind::memory_delete) {
        if (!old_value) return receipt(index, ItemStatus::failed, "nothing is remembered under this key", {});
        emit(MemorySet{action.key, {}, true});
        return receipt(index, ItemStatus::completed, "forgotten", {});
    }
    if (action.key.size() > limits::memory_key_bytes_max)
        return refused("bytes of a key", limits::memory_key_bytes_max);
    if (action.value.size() > limits::memory_value_bytes_max)
        return refused("bytes of a value", limits::memory_value_bytes_max);
    size_t entries = old_value ? 0 : 1, bytes = action.key.size() + action.value.size();
    for (const auto& [key, value] : memory_now()) {
        ++entries;
        if (key != action.key) bytes += key.size() + value.size();
    }
    if (entries > limits::memory_entries_max) return refused("entries of memory", limits::memory_entries_max);
    if (bytes > limits::memory_bytes_max) return refused("bytes of memory", limits::memory_bytes_max);
    emit(MemorySet{action.key, action.value, false});
    receipt(index, ItemStatus::completed, "remembered", {});
}

void Decider::sleep(const BuiltinAction& action, uint32_t index) {
    size_t open_waits = 0;
    for (const Event& event : events_) open_waits += std::holds_alternative<WaitOpened>(event);
    if (open_waits >= limits::waits_max || action.duration_ms > limits::wait_duration_ms_max)
        return receipt(index, ItemStatus::failed,
                       open_waits >= limits::waits_max
                           ? "open waits of one session: at most " + std::to_string(limits::waits_max)
                           : "milliseconds of a sleep: at most " + std::to_string(limits::wait_duration_ms_max),
                       {});
    emit(WaitOpened{static_cast<uint32_t>(next_sequence().value),
                    WaitKind::timer,
                    std::max<TimeMs>(now_ + action.duration_ms, 1),
                    index,
                    {}});
}

void Decider::decide(const ToolStepDone& done) {
    const TurnProgress* turn = running(done.turn);
    const Call* call = awaited(turn, done.call, done.attempt);
    if (!call) return;
    begin(*turn);
    if (done.output.size() > limits::tool_result_bytes_max) {
        const std::string what = "the result has " + std::to_string(done.output.size()) + " bytes, the bound is " +
                                 std::to_string(limits::tool_result_bytes_max);
        emit(Decision{std::string(error_name(ErrorCode::tool_result_too_large)), call_subject(done.call), what});
        return fail_call(done.call, ErrorCode::tool_result_too_large, what, done.duration_micros);
    }
    receipt(done.call, done.is_error ? ItemStatus::failed : ItemStatus::completed, done.output, {},
            done.duration_micros);
}

void Decider::decide(const ToolFailed& failed) {
    const TurnProgress* turn = running(failed.turn);
    const Call* call = awaited(turn, failed.call, failed.attempt);
    if (!call) return;
    begin(*turn);
    std::string message = clip(failed.message, limits::reason_bytes_max);
    if (failed.lost && call->effect == EffectClass::once) {
        // It may have happened, and it must not happen twice: only a person can tell.
        const std::string code(error_name(ErrorCode::tool_outcome_unknown));
        emit(Decision{code, call_subject(failed.call), message});
        return receipt(failed.call, ItemStatus::unknown, {}, code + ": " + message, failed.duration_micros);
    }
    emit(StepFailed{failed.call,
                    true,
                    failed.lost ? ErrorClass::lost : failed.error_class,
                    std::string(error_name(failed.code)),
                    std::move(message),
                    {}});
}

void Decider::decide(const Recover& command) {
    if (session_.open_.empty()) return;
    const TurnProgress& turn = session_.open_.front();
    const auto goes_on = [&](bool is_tool, uint32_t number, uint32_t attempt, const std::string& subject) {
        for (const auto& one : command.elsewhere) {
            if (one.is_tool != is_tool || one.number != number || one.attempt != attempt) continue;
            if (events_.empty()) begin(turn);
            emit(Decision{"left_behind", subject, "it goes on where it began, on " + one.where});
            return true;
        }
        return false;
    };
    if (const uint32_t step = turn.turn.model_steps; turn.model_step_due() && turn.model.runnable(session_.now_))
        goes_on(false, step, turn.model.attempt, "step " + std::to_string(step));
    for (const Call& call : turn.calls.all()) {
        if (!call.in_flight(session_.now_)) continue;
        if (goes_on(true, call.index, call.step.attempt, call_subject(call.index))) continue;
        if (events_.empty()) begin(turn);
        if (call.effect == EffectClass::once) {
            const std::string code(error_name(ErrorCode::tool_outcome_unknown));
            const std::string message = "the node ended after the call may have been dispatched";
            emit(Decision{code, call_subject(call.index), message});
            receipt(call.index, ItemStatus::unknown, {}, code + ": " + message);
        } else {
            emit(RetryScheduled{call.index, true, now_, call.step.attempt + 1, "no receipt before the node ended"});
        }
    }
}

void Decider::decide(const ResolveUnknown& command) {
    const TurnProgress* turn = running(command.turn);
    const Call* call = turn ? turn->calls.find(command.call) : nullptr;
    if (!call || call->state != Call::State::unknown)
        return refuse(ErrorCode::call_not_found, "no call with an unknown outcome has this number");
    if (command.output.size() > limits::tool_result_bytes_max)
        return refuse(ErrorCode::body_too_large,
                      "bytes of a result: at most " + std::to_string(limits::tool_result_bytes_max), "output");
    begin(*turn);
    emit(UnknownResolved{command.call, command.how, command.output, context_.principal});
    if (command.how != Resolution::retry && --outstanding_ == 0) after_calls();
}

void Decider::close_call(const Call& call, ErrorCode why) {
    const std::string code(error_name(why));
    ToolReceipt closing;
    closing.call = call.index;
    closing.status = ItemStatus::failed;
    closing.error = code + ": the turn ended before the call did";
    // A first attempt that a retry waits behind may have been lost on the way as well.
    const bool known_not_done =
        call.step.failure ? call.step.failure->error_class != ErrorClass::lost : call.state == Call::State::waiting;
    if (!known_not_done && call.effect != EffectClass::read) {
        closing.status = ItemStatus::unknown;
        closing.error = code + ": the turn ended while the call was in flight, its outcome is not known";
    }
    if (call.state != Call::State::waiting) emit(Decision{code, call_subject(call.index), closing.error});
    emit(std::move(closing));
}

void Decider::close_open_work(const TurnProgress& turn, ErrorCode why) {
    for (const OpenWait& wait : turn.waits.all())
        emit(WaitResolved{wait.wait, WaitOutcome::cancelled, {}, context_.principal});
    for (const Call& call : turn.calls.all())
        if (call.state != Call::State::settled && call.state != Call::State::unknown) close_call(call, why);
}

}  // namespace mainstay
