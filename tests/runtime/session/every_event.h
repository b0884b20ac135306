#pragma once
// One event of every kind with every field set: what the codec and the golden files must carry.

#include "runtime/session/session_fixture.h"

namespace mainstay::test {

inline ItemPtr full_item() {
    auto item = std::make_shared<Item>();
    item->kind = ItemKind::tool_call;
    item->role = Role::developer;
    item->status = ItemStatus::unknown;
    item->text = "text \xc3\xa9";
    item->more_parts = {"second", "", "third"};
    item->call_id = "call_1";
    item->name = "find";
    item->server_label = "stripe";
    item->arguments = R"({"a":1})";
    item->error = "broken";
    item->step = 3;
    return item;
}

inline Usage full_usage() { return Usage{1, 2, 3, 4, 5'000'000'000, 6'000'000'000, true}; }

inline EventBatch every_event() {
    KeyHash hash{};
    for (size_t i = 0; i < hash.size(); ++i) hash[i] = static_cast<uint8_t>(i * 17);
    const SessionId other{FamilyId{0xfeedfacecafef00d}, 0x0807060504030201, 0xf8f7f6f5f4f3f2f1};
    EventBatch batch;
    batch.at = 1'700'000'000'123;
    batch.turn = TurnNo{9};
    auto add = [&](auto event) { batch.events.emplace_back(std::move(event)); };
    add(SessionCreated{TenantId{7}, "ann", other, TurnNo{4}, R"({"k":"v"})", true, true});
    add(InputAccepted{{full_item(), user_item("plain")},
                      "helper",
                      ~0ull,
                      "ann",
                      hash,
                      0x1234567890abcdef,
                      TurnLimits{5, 6000, 70'000},
                      R"({"model":"helper"})"});
    add(ModelStepSettled{2,
                         {full_item()},
                         full_usage(),
                         "tiny",
                         "stop",
                         std::string("\x01\x00\x00\x00", 4),
                         std::string("\x00\xff", 2),
                         8});
    add(ToolIntent{3, EffectClass::idempotent, 9000});
    add(ToolReceipt{3, ItemStatus::failed, "out", "err", 1234});
    add(StepFailed{4, true, ErrorClass::lost, "tool_unavailable", "gone", "so far"});
    add(RetryScheduled{4, true, 1'700'000'001'000, 2, "backoff"});
    add(TurnSettled{TurnStatus::incomplete, "max_output_tokens", "cut"});
    add(CancelRequested{"ben", "changed my mind"});
    add(WaitOpened{77, WaitKind::approval, 1'700'000'002'000, 5, "refund"});
    add(WaitResolved{77, WaitOutcome::denied, "no", "eve"});
    add(Decision{"tool_not_allowed", "call 3", "not granted"});
    add(MemorySet{"name", "Ann", true});
    add(UnknownResolved{3, Resolution::retry, "it happened", "ben"});
    add(ItemsAdded{{full_item()}, "ann"});
    add(MetadataSet{R"({"a":"b"})"});
    add(SessionDeleted{"ann"});
    add(StreamReserved{4096});
    add(Compacted{TurnNo{3}, "they spoke of ships"});
    add(Forked{other, TurnNo{8}});
    add(StepProgress{2, {hash, 3, {1, 0, 0x01020304}}});
    return batch;
}

}  // namespace mainstay::test
