#pragma once
// Random but repeatable histories: whatever a session may be told, in orders that nobody would think of. A failure
// names its seed.

#include "runtime/base/digest.h"
#include "runtime/session/session_fixture.h"

namespace mainstay::test {

class RandomHistory {
  public:
    explicit RandomHistory(uint64_t seed) : random_(seed) {}

    Decided step(Rig& rig) {
        rig.now += random_.below(4) == 0 ? random_.below(3000) : random_.below(5);
        rig.key.reset();
        const Pending pending = rig.session.pending();
        switch (random_.below(20)) {
            case 0:
            case 1: return submit(rig);
            case 2: return rig.run(CancelTurn{TurnNo{random_.below(3) == 0 ? any_turn(rig) : 0}, "random"});
            case 3: return rig.tick(random_.below(2000));
            case 4: return rig.run(SetMetadata{R"({"n":")" + std::to_string(random_.below(100)) + R"("})"});
            case 5: return rig.run(AddItems{{user_item("added")}});
            case 6:
                return random_.below(4) == 0
                           ? rig.run(ForkSession{SessionId{FamilyId{5}, 6, random_.next()}, TurnNo{any_turn(rig)}})
                           : rig.run(Tick{});
            case 7: return random_.below(3) == 0 ? recover(rig) : rig.run(Tick{});
            case 8: return resolve_unknown(rig);
            case 9: return stale(rig);
            case 10: return random_.below(200) == 0 ? rig.run(DeleteSession{}) : submit(rig);
            default: return progress(rig, pending);
        }
    }

    SeededRandom& random() { return random_; }

  private:
    uint32_t any_turn(const Rig& rig) {
        return static_cast<uint32_t>(random_.below(rig.session.last_turn().value + 2));
    }

    Decided submit(Rig& rig) {
        TurnLimits limits{static_cast<uint32_t>(random_.below(5)), static_cast<uint32_t>(random_.below(3) * 20),
                          random_.below(2) * random_.below(8000)};
        if (random_.below(2) == 0) {
            rig.key = key_hash("random", std::to_string(random_.below(50)));
            rig.digest = random_.below(2);
        }
        Decided decided = rig.run(Rig::input("input " + std::to_string(random_.next()), limits));
        rig.key.reset();
        return decided;
    }

    std::vector<PlannedCall> calls() {
        std::vector<PlannedCall> calls;
        for (uint64_t n = random_.below(4); n > 0; --n) {
            const auto effect = static_cast<EffectClass>(random_.below(3));
            switch (random_.below(9)) {
                case 0: calls.push_back(planned(PlannedCall::Disposition::client)); break;
                case 1: calls.push_back(planned(PlannedCall::Disposition::refuse)); break;
                case 2: calls.push_back(sleep_call(random_.below(3000))); break;
                case 3:
                    calls.push_back(builtin(BuiltinAction::Kind::memory_set, "k" + std::to_string(random_.below(9)),
                                            std::to_string(random_.next())));
                    break;
                case 4:
                    calls.push_back(
                        builtin(BuiltinAction::Kind::memory_delete, "k" + std::to_string(random_.below(9))));
                    break;
                default: calls.push_back(run_call(effect));
            }
        }
        return calls;
    }

    Decided progress(Rig& rig, const Pending& pending) {
        if (!pending.retries.empty() && random_.below(2) == 0) {
            const AskRetry& ask = pending.retries[random_.below(pending.retries.size())];
            return rig.run(RetryVerdict{ask.turn, ask.step, ask.is_tool, ask.attempt, random_.below(3) != 0,
                                        rig.now + random_.below(1500), "random"});
        }
        if (pending.model) {
            if (random_.below(5) == 0) return rig.model_fails(random_.below(2) == 0 ? "a part" : "");
            ModelStepDone done =
                rig.answer(random_.below(3) == 0 ? "" : "text " + std::to_string(random_.next()), calls());
            if (random_.below(15) == 0) done.finish_reason = "length";
            return rig.run(done);
        }
        if (!pending.tools.empty()) {
            const size_t which = random_.below(pending.tools.size());
            if (random_.below(4) == 0) return rig.tool_fails(random_.below(2) == 0, which);
            return rig.tool_done("output " + std::to_string(random_.next()), which);
        }
        return pending.wake_at > rig.now ? rig.tick(pending.wake_at - rig.now) : rig.run(Tick{});
    }

    Decided recover(Rig& rig) { return rig.run(Recover{}); }

    Decided resolve_unknown(Rig& rig) {
        const Turn* open = rig.session.open_turn();
        if (open)
            for (uint32_t i = 0; i < open->items.size(); ++i)
                if (open->items[i]->status == ItemStatus::unknown)
                    return rig.run(ResolveUnknown{open->no, i, static_cast<Resolution>(random_.below(3)), "resolved"});
        return rig.run(ResolveUnknown{TurnNo{1}, 0, Resolution::done, "nothing"});
    }

    Decided stale(Rig& rig) {
        ModelStepDone done;
        done.turn = TurnNo{any_turn(rig)};
        done.step = 50;
        rig.run(done);
        return rig.run(
            ToolStepDone{TurnNo{any_turn(rig)}, static_cast<uint32_t>(random_.below(5)), 40, false, "late", 0});
    }

    SeededRandom random_;
};

/// Everything that a caller can see of the state, for comparing.
inline std::string describe(const Session& session) {
    std::string out;
    auto add = [&out](const auto& value) {
        if constexpr (std::is_convertible_v<decltype(value), std::string_view>)
            out += std::string_view(value);
        else
            out += std::to_string(value);
        out += '|';
    };
    if (session.deleted())
        return "deleted at " + std::to_string(session.last_sequence().value);  // all a tombstone says
    const Pending pending = session.pending();
    if (pending.model) {
        add("model");
        add(pending.model->turn.value), add(pending.model->step), add(pending.model->attempt);
        if (pending.model->attempt == 0) add(pending.model->cause.value);
    }
    for (const RunTool& tool : pending.tools) {
        add("tool");
        add(tool.turn.value), add(tool.call), add(tool.attempt), add(tool.server_label);
        // A retry is caused by the batch whose time made it due; a head does not say which, as it is committed.
        if (tool.attempt == 0) add(tool.cause.value);
        add(tool.name), add(tool.arguments), add(static_cast<int>(tool.effect)), add(tool.timeout_ms);
        add(tool.idempotency_key);
    }
    for (const AskRetry& ask : pending.retries) {
        add("ask");
        add(ask.turn.value), add(ask.step), add(int{ask.is_tool}), add(ask.attempt), add(ask.code), add(ask.message);
        add(static_cast<int>(ask.error_class)), add(ask.cause_sequence);
    }
    add(pending.wake_at), add(session.last_sequence().value), add(session.last_turn().value), add(session.tip().value);
    add(session.item_count()), add(int{session.exists()}), add(int{session.deleted()}), add(session.metadata());
    add(session.now());
    return out;
}

inline std::string describe(const Turn& turn) {
    std::string out = std::to_string(turn.no.value) + std::string(to_word(turn.status)) + turn.code + "|" +
                      turn.message + "|" + std::to_string(turn.created_at) + "|" + std::to_string(turn.settled_at) +
                      "|" + turn.agent + "|" + turn.model + "|" + turn.finish_reason + "|" +
                      std::to_string(turn.model_steps) + "|" + std::to_string(turn.input_count) + "|" +
                      std::to_string(turn.usage.output_tokens) + (turn.items_only ? "items" : "") + turn.options +
                      turn.principal;
    for (const ItemPtr& item : turn.items)
        out += "\n" + std::to_string(static_cast<int>(item->kind)) + std::string(to_word(item->status)) + item->text +
               "|" + item->error + "|" + item->name + "|" + item->arguments + "|" + std::to_string(item->step);
    for (uint32_t index : turn.withheld) out += "\nwithheld " + std::to_string(index);
    return out;
}

}  // namespace mainstay::test
