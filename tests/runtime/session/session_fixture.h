#pragma once
// A session under test: commands by short functions, a clock that moves only when told to, and the journal of what was
// decided, so that every test can end with the question whether a replay agrees.

#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "runtime/base/random.h"
#include "runtime/session/fold.h"
#include "runtime/session/session.h"

namespace mainstay::test {

inline SessionKey test_key() {
    return SessionKey{TenantId{7},
                      SessionId{FamilyId{0x123456789abcull << 10}, 0x0102030405060708, 0x1112131415161718}};
}

inline ItemPtr user_item(std::string text) {
    auto item = std::make_shared<Item>();
    item->text = std::move(text);
    return item;
}

inline PlannedCall planned(PlannedCall::Disposition disposition, EffectClass effect = EffectClass::once) {
    PlannedCall call;
    call.disposition = disposition;
    call.call_id = "call_a";
    call.name = "files__read";
    call.tool = "read";
    call.server_label = "files";
    call.arguments = R"({"path":"/x"})";
    call.effect = effect;
    call.timeout_ms = 5000;
    return call;
}
inline PlannedCall run_call(EffectClass effect = EffectClass::once) {
    return planned(PlannedCall::Disposition::run, effect);
}
inline PlannedCall builtin(BuiltinAction::Kind kind, std::string key = {}, std::string value = {}) {
    PlannedCall call = planned(PlannedCall::Disposition::builtin);
    call.tool = "builtin";
    call.server_label.clear();
    call.action.kind = kind;
    call.action.key = std::move(key);
    call.action.value = std::move(value);
    return call;
}
inline PlannedCall sleep_call(uint64_t ms) {
    PlannedCall call = builtin(BuiltinAction::Kind::sleep);
    call.action.duration_ms = ms;
    return call;
}

struct Rig {
    Session session{test_key()};
    TimeMs now = 1'700'000'000'000;
    std::vector<std::pair<Sequence, std::string>> journal;
    std::optional<KeyHash> key;
    uint64_t digest = 0;
    TimeMs deadline = 0;

    Decided run(CommandBody body) {
        Command command;
        command.context.now = now;
        command.context.tenant = test_key().tenant;
        command.context.principal = "ann";
        command.context.key = key;
        command.context.request_digest = digest;
        command.context.deadline = deadline;
        command.body = std::move(body);
        Decided decided = session.decide(command);
        if (decided.batch) journal.emplace_back(decided.first_sequence, encode(*decided.batch));
        return decided;
    }

    static SubmitInput input(std::string text, TurnLimits limits = {}) {
        SubmitInput submit;
        submit.input.items = {user_item(std::move(text))};
        submit.input.agent = "helper";
        submit.input.agent_version = 3;
        submit.input.limits = limits;
        submit.create.emplace();
        submit.create->principal = "ann";
        return submit;
    }
    TurnNo submit(std::string text = "hello", TurnLimits limits = {}) {
        Decided decided = run(input(std::move(text), limits));
        REQUIRE_FALSE(decided.refused);
        return decided.turn;
    }

    ModelStepDone answer(std::string text, std::vector<PlannedCall> calls = {}) const {
        const Pending pending = session.pending();
        REQUIRE(pending.model);
        ModelStepDone done;
        done.turn = pending.model->turn;
        done.step = pending.model->step;
        done.attempt = pending.model->attempt;
        done.text = std::move(text);
        done.calls = std::move(calls);
        done.usage.input_tokens = 10;
        done.usage.output_tokens = 5;
        done.model = "tiny";
        done.finish_reason = done.calls.empty() ? "stop" : "tool_calls";
        return done;
    }
    Decided model(std::string text, std::vector<PlannedCall> calls = {}) {
        return run(answer(std::move(text), std::move(calls)));
    }
    Decided model_fails(std::string partial = {}) {
        const auto step = session.pending().model.value();
        ModelStepFailed failed;
        failed.turn = step.turn;
        failed.step = step.step;
        failed.attempt = step.attempt;
        failed.message = "refused the connection";
        failed.partial_text = std::move(partial);
        return run(failed);
    }
    Decided verdict(bool retry, TimeMs at = 0) {
        const auto ask = session.pending().retries.at(0);
        return run(RetryVerdict{ask.turn, ask.step, ask.is_tool, ask.attempt, retry, at, "policy"});
    }
    Decided tool_done(std::string output = "ok", size_t which = 0) {
        const auto tool = session.pending().tools.at(which);
        return run(ToolStepDone{tool.turn, tool.call, tool.attempt, false, std::move(output), 1500});
    }
    Decided tool_fails(bool lost, size_t which = 0) {
        const auto tool = session.pending().tools.at(which);
        ToolFailed failed;
        failed.turn = tool.turn;
        failed.call = tool.call;
        failed.attempt = tool.attempt;
        failed.lost = lost;
        failed.message = "the server ended";
        return run(failed);
    }
    Decided tick(TimeMs by) {
        now += by;
        return run(Tick{});
    }
    TurnPtr turn(uint32_t no = 1) const { return session.turn(TurnNo{no}); }
    const Item& item(uint32_t index, uint32_t no = 1) const { return *turn(no)->items.at(index); }
    /// The session that a restart would find: from its head alone.
    Session restarted() const {
        auto again = Session::decode_head(test_key(), session.encode_head());
        REQUIRE_MESSAGE(again.ok(), (again.ok() ? "" : again.error().message));
        return std::move(*again);
    }
};

inline std::vector<std::string> names(const Decided& decided) {
    std::vector<std::string> out;
    if (decided.batch)
        for (const Event& event : decided.batch->events) out.emplace_back(event_name(event));
    return out;
}
inline ErrorCode refusal(const Decided& decided) {
    REQUIRE(decided.refused);
    return decided.refused->code;
}

}  // namespace mainstay::test
