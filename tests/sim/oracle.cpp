#include "sim/oracle.h"

namespace mainstay::sim {

void ClientView::show(const TurnPtr& turn) {
    check(!delete_acknowledged, "a deleted session serves a turn");
    acknowledged = true;
    TurnPtr& shown = turns[turn->no.value];
    if (shown && shown != turn) compare(*shown, *turn);
    shown = turn;
}

void ClientView::compare(const Turn& before, const Turn& after) const {
    check(before.no == after.no && before.key == after.key && before.request_digest == after.request_digest &&
              before.created_at == after.created_at && before.input_count == after.input_count &&
              before.items_only == after.items_only,
          "an acknowledged turn is another one now");
    check(after.items.size() >= before.items.size(), "items of an acknowledged turn are gone");
    for (size_t i = 0; i < before.items.size(); ++i) {
        const Item &was = *before.items[i], &is = *after.items[i];
        if (&was == &is) continue;
        check(was.kind == is.kind && was.role == is.role && was.call_id == is.call_id && was.name == is.name &&
                  was.arguments == is.arguments && was.step == is.step,
              "an item is at another index");
        if (was.kind == ItemKind::tool_call && was.status == ItemStatus::in_progress) continue;
        if (was.kind == ItemKind::tool_call && was.status == ItemStatus::unknown && was != is) {
            check(resolved.count({before.no.value, static_cast<uint32_t>(i)}) != 0,
                  "an unknown outcome was closed by nobody");
            continue;
        }
        check(was == is, "an acknowledged item has changed");
    }
    if (!is_settled(before.status)) return;
    check(before.status == after.status && before.code == after.code && before.message == after.message &&
              before.items.size() == after.items.size() && before.usage == after.usage &&
              before.settled_at == after.settled_at && before.model_steps == after.model_steps,
          "an acknowledged answer has changed");
    for (size_t i = 0; i < before.items.size(); ++i)
        check(before.items[i]->status == after.items[i]->status, "an item of a settled turn has changed");
}

void ToolWorld::dispatched(const SessionKey& session, const RunTool& tool) {
    const CallName name{session, tool.turn.value, tool.call};
    const auto [named, first] = keys_.emplace(name, tool.idempotency_key);
    check(named->second == tool.idempotency_key, "a repeated call carries another key");
    auto [found, fresh] = calls_.emplace(tool.idempotency_key, Call{name, tool.name, tool.arguments, tool.effect, 0});
    check(fresh == first && found->second.name == name, "two calls carry one key");
    check(found->second.tool == tool.name && found->second.arguments == tool.arguments &&
              found->second.effect == tool.effect,
          "a call was dispatched before its intent was durable: it is another one now");
}

void ToolWorld::executed(const std::string& key) {
    Call& call = calls_.at(key);
    ++executions_;
    ++call.executions;
    if (call.effect != EffectClass::once) return;
    const auto again = allowed_again_.find(call.name);
    check(call.executions <= 1 + (again == allowed_again_.end() ? 0 : again->second),
          "a tool of class once ran twice and nobody asked for it");
}

void ToolWorld::allow_again(const SessionKey& session, TurnNo turn, uint32_t call) {
    ++allowed_again_[{session, turn.value, call}];
}

}  // namespace mainstay::sim
