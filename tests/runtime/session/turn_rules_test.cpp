// The rules of a turn, one case each: what is refused, what ends it, and in which order things happen.

#include "runtime/base/digest.h"
#include "runtime/base/limits.h"
#include "runtime/session/session_fixture.h"

using namespace mainstay;
using namespace mainstay::test;
using Names = std::vector<std::string>;

namespace {

KeyHash hash_of(uint8_t first) {
    KeyHash hash{};
    hash[0] = first;
    return hash;
}

}  // namespace

TEST_CASE("session: what is not there is not found, and what is deleted stays so") {
    Rig rig;
    SubmitInput bare = Rig::input("x");
    bare.create.reset();
    CHECK(refusal(rig.run(bare)) == ErrorCode::session_not_found);
    CHECK(refusal(rig.run(CancelTurn{})) == ErrorCode::session_not_found);
    CHECK(refusal(rig.run(SetMetadata{"{}"})) == ErrorCode::session_not_found);
    CHECK_FALSE(rig.run(Tick{}).refused);

    rig.submit();
    rig.submit("second");
    Decided deleted = rig.run(DeleteSession{});
    CHECK(names(deleted) == Names{"SessionDeleted"});
    CHECK(rig.session.deleted());
    CHECK_FALSE(rig.session.exists());
    CHECK(rig.session.idle());
    CHECK_FALSE(rig.session.pending().model);
    CHECK(rig.turn() == nullptr);
    Decided again = rig.run(DeleteSession{});
    CHECK_FALSE(again.refused);
    CHECK_FALSE(again.batch);
    CHECK(refusal(rig.run(Rig::input("again"))) == ErrorCode::session_not_found);
    CHECK(refusal(rig.run(CreateSession{})) == ErrorCode::session_not_found);
    ModelStepDone late;
    late.turn = TurnNo{1};
    CHECK_FALSE(rig.run(late).refused);
    Session restarted = rig.restarted();
    CHECK(restarted.deleted());
}

TEST_CASE("session: a repeated key returns the recorded turn, for another request it is refused") {
    Rig rig;
    rig.key = hash_of(1);
    rig.digest = 11;
    CHECK(rig.run(Rig::input("a")).turn == TurnNo{1});
    rig.model("answer");
    rig.now += 1000;
    Decided again = rig.run(Rig::input("a"));
    CHECK(again.repeated);
    CHECK(again.turn == TurnNo{1});
    CHECK_FALSE(again.batch);
    rig.digest = 12;
    CHECK(refusal(rig.run(Rig::input("b"))) == ErrorCode::idempotency_key_reused);
    rig.now += limits::idempotency_key_lifetime_ms;
    Decided fresh = rig.run(Rig::input("b"));
    CHECK_FALSE(fresh.repeated);
    CHECK(fresh.turn == TurnNo{2});
}

TEST_CASE("session: a key that only the store remembers counts for a day") {
    Rig rig;
    rig.submit();
    rig.model("x");
    rig.key = hash_of(9);
    rig.digest = 5;
    SubmitInput submit = Rig::input("again");
    submit.known_key = KnownKey{TurnNo{1}, 5, rig.now - 1000};
    CHECK(rig.run(submit).repeated);
    submit.known_key->request_digest = 6;
    CHECK(refusal(rig.run(submit)) == ErrorCode::idempotency_key_reused);
    submit.known_key->at = rig.now - limits::idempotency_key_lifetime_ms;
    CHECK(rig.run(submit).turn == TurnNo{2});
}

TEST_CASE("session: keys that the store has are forgotten, and too many that it has not are refused") {
    Rig rig;
    for (uint32_t i = 0; i < limits::recent_keys_max; ++i) {
        rig.key = key_hash("k", std::to_string(i));
        REQUIRE_FALSE(rig.run(Rig::input("x")).refused);
        rig.model("y");
    }
    rig.key = hash_of(1);
    CHECK(refusal(rig.run(Rig::input("x"))) == ErrorCode::apply_backlog_full);
    CHECK(rig.session.find_key(key_hash("k", "3"), rig.now)->turn == TurnNo{4});
    rig.session.forget_keys(TurnNo{10});
    CHECK_FALSE(rig.session.find_key(key_hash("k", "3"), rig.now));
    CHECK(rig.session.find_key(key_hash("k", "10"), rig.now));
    CHECK_FALSE(rig.run(Rig::input("x")).refused);
}

TEST_CASE("session: a previous response must be the settled tip") {
    Rig rig;
    rig.submit();
    SubmitInput next = Rig::input("next");
    next.after_turn = TurnNo{1};
    CHECK(refusal(rig.run(next)) == ErrorCode::conflict);
    rig.model("done");
    next.after_turn = TurnNo{0};
    CHECK(refusal(rig.run(next)) == ErrorCode::conflict);
    next.after_turn = TurnNo{1};
    CHECK(rig.run(next).turn == TurnNo{2});
}

TEST_CASE("session: a request that arrives after its deadline is refused, a result never is") {
    Rig rig;
    rig.deadline = rig.now - 1;
    CHECK(refusal(rig.run(Rig::input("late"))) == ErrorCode::request_timeout);
    rig.deadline = rig.now;
    CHECK_FALSE(rig.run(Rig::input("in time")).refused);
    rig.deadline = rig.now - 1;
    CHECK_FALSE(rig.model("answer").refused);
    CHECK(rig.turn()->status == TurnStatus::completed);
}

TEST_CASE("session: inputs queue behind the open turn in order, up to a bound that is recorded once") {
    Rig rig;
    for (size_t i = 0; i <= limits::input_queue_max; ++i) rig.submit(std::to_string(i));
    CHECK(rig.turn(1)->status == TurnStatus::in_progress);
    CHECK(rig.turn(2)->status == TurnStatus::queued);
    Decided full = rig.run(Rig::input("one too many"));
    CHECK(refusal(full) == ErrorCode::input_queue_full);
    CHECK(names(full) == Names{"Decision"});
    Decided again = rig.run(Rig::input("and again"));
    CHECK(refusal(again) == ErrorCode::input_queue_full);
    CHECK_FALSE(again.batch);
    rig.model("first answer");
    CHECK(rig.turn(2)->status == TurnStatus::in_progress);
    CHECK(rig.session.pending().model->turn == TurnNo{2});
    CHECK_FALSE(rig.run(Rig::input("now it fits")).refused);
    CHECK(names(rig.run(Rig::input("full again"))) == Names{"Decision"});
}

TEST_CASE("session: a refusal that follows from the state is recorded, once in a turn and once between two") {
    struct Case {
        const char* code;
        void (*set_up)(Rig&);
        Decided (*ask)(Rig&);
    };
    const Case cases[] = {
        {"idempotency_key_reused", [](Rig& rig) { rig.key = KeyHash{1}; },
         [](Rig& rig) {
             rig.key = KeyHash{1};
             rig.digest = 99;
             Decided decided = rig.run(Rig::input("another"));
             rig.key.reset();
             rig.digest = 0;
             return decided;
         }},
        {"request_timeout", [](Rig&) {},
         [](Rig& rig) {
             rig.deadline = rig.now - 1;
             Decided decided = rig.run(SetMetadata{"{}"});
             rig.deadline = 0;
             return decided;
         }},
        {"conflict", [](Rig&) {}, [](Rig& rig) { return rig.run(CreateSession{}); }},
    };
    for (const Case& each : cases) {
        CAPTURE(each.code);
        Rig rig;
        each.set_up(rig);
        rig.submit();
        rig.key.reset();
        size_t records = 0;
        auto ask = [&](size_t times) {
            for (size_t i = 0; i < times; ++i) {
                const Decided decided = each.ask(rig);
                CHECK(error_name(refusal(decided)) == each.code);
                if (!decided.batch) continue;
                ++records;
                REQUIRE(decided.batch->events.size() == 1);
                const auto& record = std::get<Decision>(decided.batch->events[0]);
                CHECK(record.code == each.code);
                CHECK(record.subject == "ann");
                CHECK(decided.batch->turn.value == (rig.session.idle() ? 0 : rig.session.last_turn().value));
            }
        };
        ask(50);
        CHECK(records == 1);
        rig.model("answer");
        ask(50);
        CHECK(records == 2);
        rig.session = rig.restarted();  // a flood of refusals and restarts adds nothing either
        rig.run(SetMetadata{R"({"a":"b"})"});
        if (each.code != std::string("idempotency_key_reused")) ask(50);  // whose row the store would have
        CHECK(records == 2);
        rig.submit();
        rig.model("answer");
        if (each.code != std::string("idempotency_key_reused")) {
            ask(50);
            CHECK(records == 3);
        }
    }
}

TEST_CASE("session: what never was about a session, or makes the shell fork, leaves no record") {
    Rig rig;
    rig.deadline = rig.now - 1;
    CHECK_FALSE(rig.run(Rig::input("late")).batch);
    rig.deadline = 0;
    rig.submit();
    SubmitInput after = Rig::input("next");
    after.after_turn = TurnNo{1};
    const Decided busy = rig.run(after);
    CHECK(refusal(busy) == ErrorCode::conflict);
    CHECK_FALSE(busy.batch);
    CHECK_FALSE(rig.run(SetMetadata{std::string(limits::options_bytes_max + 1, ' ')}).batch);
}

TEST_CASE("session: a fork that is asked for again before its child is there is recorded once") {
    Rig rig;
    rig.submit();
    rig.model("shared");
    const SessionId child{FamilyId{1}, 2, 3}, other{FamilyId{1}, 2, 4};
    CHECK(names(rig.run(ForkSession{child, TurnNo{1}})) == Names{"Forked"});
    const Decided again = rig.run(ForkSession{child, TurnNo{1}});
    CHECK_FALSE(again.refused);
    CHECK_FALSE(again.batch);
    CHECK(again.repeated);
    CHECK(names(rig.run(ForkSession{other, TurnNo{1}})) == Names{"Forked"});
    CHECK(rig.session.children() == 2);
    for (uint64_t i = 0; i < limits::recent_forks_max; ++i) rig.run(ForkSession{{FamilyId{1}, 9, i}, TurnNo{1}});
    CHECK(names(rig.run(ForkSession{child, TurnNo{1}})) == Names{"Forked"});  // so many later, it is not known
}

TEST_CASE("session: an input over its bounds is refused and changes nothing") {
    Rig rig;
    SubmitInput many = Rig::input("x");
    many.input.items.assign(limits::input_items_max + 1, user_item("x"));
    CHECK(refusal(rig.run(many)) == ErrorCode::invalid_request);
    CHECK(refusal(rig.run(Rig::input(std::string(limits::input_bytes_max + 1, 'x')))) == ErrorCode::body_too_large);
    SubmitInput parts = Rig::input("x");
    auto item = std::make_shared<Item>();
    item->more_parts.resize(limits::input_parts_max + 1);
    parts.input.items = {item};
    CHECK(refusal(rig.run(parts)) == ErrorCode::invalid_request);
    SubmitInput options = Rig::input("x");
    options.input.options = std::string(limits::options_bytes_max + 1, ' ');
    CHECK(refusal(rig.run(options)) == ErrorCode::invalid_request);
    CHECK_FALSE(rig.session.exists());
    CHECK(rig.journal.empty());
}

TEST_CASE("session: items can be added to an idle session and are a settled turn of their own") {
    Rig rig;
    rig.run(CreateSession{});
    CHECK(rig.session.exists());
    Decided added = rig.run(AddItems{{user_item("a"), user_item("b")}});
    CHECK(names(added) == Names{"ItemsAdded"});
    CHECK(added.turn == TurnNo{1});
    CHECK(added.settled == std::vector{TurnNo{1}});
    CHECK(rig.turn()->items_only);
    CHECK(rig.turn()->status == TurnStatus::completed);
    CHECK(rig.session.item_count() == 2);
    rig.submit();
    Decided busy = rig.run(AddItems{{user_item("c")}});
    CHECK(refusal(busy) == ErrorCode::session_busy);
    CHECK(names(busy) == Names{"Decision"});
    CHECK_FALSE(rig.run(AddItems{{user_item("c")}}).batch);
    CHECK(refusal(rig.run(CreateSession{})) == ErrorCode::conflict);
}

TEST_CASE("session: a conversation may be created with its first items") {
    Rig rig;
    CreateSession create;
    create.items = {user_item("before")};
    create.created.metadata = R"({"a":"b"})";
    CHECK(names(rig.run(create)) == Names{"SessionCreated", "ItemsAdded"});
    CHECK(rig.turn(1)->items.size() == 1);
    CHECK(rig.session.metadata() == R"({"a":"b"})");
    rig.run(SetMetadata{R"({"a":"c"})"});
    CHECK(rig.session.metadata() == R"({"a":"c"})");
    CHECK(rig.submit() == TurnNo{2});
    CHECK(rig.session.window().size() == 2);
}

TEST_CASE("session: calls of the client end the turn, after those that run here") {
    Rig rig;
    rig.submit();
    Decided only = rig.model("", {planned(PlannedCall::Disposition::client)});
    CHECK(names(only) == Names{"ModelStepSettled", "TurnSettled"});
    CHECK(rig.item(1).kind == ItemKind::function_call);
    CHECK(rig.item(1).name == "files__read");
    CHECK(rig.turn()->status == TurnStatus::completed);

    rig.submit("both");
    Decided both = rig.model("", {planned(PlannedCall::Disposition::client), run_call()});
    CHECK(names(both) == Names{"ModelStepSettled", "ToolIntent"});
    CHECK(names(rig.tool_done()) == Names{"ToolReceipt", "TurnSettled"});
    CHECK(rig.turn(2)->status == TurnStatus::completed);
}

TEST_CASE("session: a refused call fails with a text for the model and a decision record, and the turn goes on") {
    Rig rig;
    rig.submit();
    PlannedCall refused = planned(PlannedCall::Disposition::refuse);
    refused.refusal_message = "not granted";
    CHECK(names(rig.model("", {refused})) == Names{"ModelStepSettled", "Decision", "ToolReceipt"});
    CHECK(rig.item(1).status == ItemStatus::failed);
    CHECK(rig.item(1).error == "tool_not_allowed: not granted");
    CHECK(rig.session.pending().model->step == 1);
}

TEST_CASE("session: an answer that was cut ends the turn incomplete and none of its calls runs") {
    struct Row {
        const char* finish_reason;
        const char* code;
    };
    for (const Row& row : {Row{"length", "max_output_tokens"}, Row{"content_filter", "content_filtered"}}) {
        Rig rig;
        rig.submit();
        ModelStepDone done = rig.answer("half an answ", {run_call()});
        done.finish_reason = row.finish_reason;
        CHECK(names(rig.run(done)) == Names{"ModelStepSettled", "TurnSettled"});
        CHECK(rig.turn()->status == TurnStatus::incomplete);
        CHECK(rig.turn()->code == row.code);
        CHECK(rig.item(1).status == ItemStatus::incomplete);
        CHECK(rig.turn()->items.size() == 2);
    }
}

TEST_CASE("session: step and token limits end the turn when one more step would be needed") {
    Rig rig;
    rig.submit("x", TurnLimits{2, 0, 0});
    rig.model("", {run_call()});
    rig.tool_done();
    rig.model("", {run_call()});
    CHECK(names(rig.tool_done()) == Names{"ToolReceipt", "TurnSettled"});
    CHECK(rig.turn()->status == TurnStatus::failed);
    CHECK(rig.turn()->code == "step_limit_reached");

    rig.submit("y", TurnLimits{32, 5, 0});
    rig.model("", {run_call()});
    rig.tool_done();
    CHECK(rig.turn(2)->code == "token_limit_reached");

    rig.submit("z", TurnLimits{1, 5, 0});
    rig.model("the last step may use them up");
    CHECK(rig.turn(3)->status == TurnStatus::completed);
}

TEST_CASE("session: an answer over its bounds is the model's protocol error, and its text is cut between characters") {
    auto fails = [](auto change) {
        Rig rig;
        rig.submit();
        ModelStepDone done = rig.answer("text", {run_call()});
        change(done);
        rig.run(done);
        CHECK(rig.turn()->status == TurnStatus::failed);
        CHECK(rig.turn()->code == "model_protocol_error");
        for (const ItemPtr& item : rig.turn()->items) CHECK(item->text.size() <= limits::model_text_bytes_max);
        return rig;
    };
    fails([](ModelStepDone& done) { done.calls.assign(limits::tool_calls_per_step_max + 1, run_call()); });
    fails([](ModelStepDone& done) { done.calls[0].arguments.assign(limits::tool_arguments_bytes_max + 1, 'x'); });
    fails([](ModelStepDone& done) { done.calls[0].name.assign(limits::name_bytes_max + 1, 'x'); });
    fails([](ModelStepDone& done) {
        done.calls.assign(limits::tool_calls_per_step_max, run_call());
        for (auto& call : done.calls) call.arguments.assign(limits::tool_arguments_bytes_max, 'x');
    });
    Rig cut = fails([](ModelStepDone& done) {
        done.text.assign(limits::model_text_bytes_max - 1, 'x');
        done.text += "\xc3\xa9";
    });
    CHECK(cut.item(1).text.size() == limits::model_text_bytes_max - 1);
    CHECK(cut.journal.back().second.size() < limits::record_bytes_max);
}

TEST_CASE("session: a failed model step asks for a verdict, waits for its time and runs as the next attempt") {
    Rig rig;
    rig.submit();
    CHECK(names(rig.model_fails("so far I")) == Names{"StepFailed"});
    Pending pending = rig.session.pending();
    CHECK_FALSE(pending.model);
    REQUIRE(pending.retries.size() == 1);
    CHECK(pending.retries[0].code == "model_unavailable");
    CHECK(pending.retries[0].cause_sequence == 3);
    CHECK(rig.item(1).status == ItemStatus::incomplete);

    CHECK(names(rig.verdict(true, rig.now + 500)) == Names{"RetryScheduled"});
    pending = rig.session.pending();
    CHECK_FALSE(pending.model);
    CHECK(pending.retries.empty());
    CHECK(pending.wake_at == rig.now + 500);
    CHECK_FALSE(rig.tick(499).batch);
    CHECK_FALSE(rig.session.pending().model);
    Decided due = rig.tick(1);
    CHECK(names(due) == Names{"Decision"});
    pending = rig.session.pending();
    REQUIRE(pending.model);
    CHECK(pending.model->attempt == 1);
    CHECK_FALSE(rig.tick(1).batch);

    ModelStepDone stale = rig.answer("late");
    stale.attempt = 0;
    CHECK_FALSE(rig.run(stale).batch);
    rig.model("whole");
    CHECK(rig.turn()->status == TurnStatus::completed);
    CHECK(rig.turn()->withheld == std::vector<uint32_t>{1});
    const auto window = rig.session.window();
    REQUIRE(window.size() == 1);
    REQUIRE(window[0]->size() == 2);
    CHECK((*window[0])[1]->text == "whole");
}

TEST_CASE("session: however often a streamed step fails, the turn keeps a bounded number of its parts") {
    Rig rig;
    rig.submit();
    for (size_t i = 0; i < limits::withheld_items_max + 3; ++i) {
        rig.model_fails("part");
        rig.verdict(true, rig.now);
    }
    CHECK(rig.turn()->withheld.size() == limits::withheld_items_max);
    rig.model("whole");
    CHECK(rig.turn()->items.size() == limits::withheld_items_max + 2);
}

TEST_CASE("session: a turn cannot be forked while an older one is open, though it was cancelled in the queue") {
    Rig rig;
    rig.submit();
    rig.submit();
    rig.run(CancelTurn{TurnNo{2}, "no longer wanted"});
    CHECK(rig.session.tip() == TurnNo{2});
    CHECK(rig.run(ForkSession{test_key().session, TurnNo{2}}).refused->code == ErrorCode::conflict);
    rig.model("done");
    CHECK_FALSE(rig.run(ForkSession{test_key().session, TurnNo{2}}).refused);
}

TEST_CASE(
    "session: what makes a retry due is the batch that recorded its time, and must be committed before it starts") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call(EffectClass::once), run_call(EffectClass::read)});
    rig.tool_fails(false, 0);
    const auto ask = rig.session.pending().retries.at(0);
    rig.run(RetryVerdict{ask.turn, ask.step, true, ask.attempt, true, rig.now + 100, ""});
    const Sequence scheduled = rig.session.last_sequence();
    rig.now += 150;
    rig.run(ToolStepDone{TurnNo{1}, 2, 0, false, "the other call's result", 0});
    const Pending pending = rig.session.pending();
    REQUIRE(pending.tools.size() == 1);
    CHECK(pending.tools[0].attempt == 1);
    CHECK(pending.tools[0].cause > scheduled);
    CHECK(pending.tools[0].cause == rig.session.last_sequence());
}

TEST_CASE("session: a retry at once needs no tick") {
    Rig rig;
    rig.submit();
    rig.model_fails();
    rig.verdict(true, rig.now);
    REQUIRE(rig.session.pending().model);
    CHECK(rig.session.pending().model->attempt == 1);
}

TEST_CASE("session: a model step that is given up fails the turn with its code and leaves a decision") {
    Rig rig;
    rig.submit();
    rig.model_fails();
    CHECK(names(rig.verdict(false)) == Names{"Decision", "TurnSettled"});
    CHECK(rig.turn()->status == TurnStatus::failed);
    CHECK(rig.turn()->code == "model_unavailable");
    CHECK(rig.turn()->message == "refused the connection");
}

TEST_CASE("session: results of a turn that is settled, of another step or of no call are ignored") {
    Rig rig;
    rig.submit();
    const ModelStepDone first = rig.answer("x", {run_call()});
    rig.run(first);
    CHECK_FALSE(rig.run(first).batch);
    CHECK_FALSE(rig.run(ToolStepDone{TurnNo{1}, 1, 0, false, "not a call", 0}).batch);
    CHECK_FALSE(rig.run(ToolStepDone{TurnNo{1}, 2, 1, false, "another attempt", 0}).batch);
    CHECK_FALSE(rig.run(ToolStepDone{TurnNo{2}, 2, 0, false, "another turn", 0}).batch);
    rig.tool_done();
    CHECK_FALSE(rig.run(ToolStepDone{TurnNo{1}, 2, 0, false, "twice", 0}).batch);
    rig.model("done");
    CHECK_FALSE(rig.run(first).refused);
    CHECK_FALSE(rig.run(RetryVerdict{TurnNo{1}, 0, false, 0, true, 0, ""}).batch);
}

TEST_CASE("session: a turn can be cancelled wherever it is, and the next one starts") {
    Rig rig;
    rig.submit("one");
    rig.submit("two");
    rig.submit("three");
    CHECK(names(rig.run(CancelTurn{TurnNo{2}, "not needed"})) == Names{"CancelRequested", "TurnSettled"});
    CHECK(rig.turn(2)->status == TurnStatus::cancelled);
    CHECK(rig.turn(2)->message == "not needed");
    CHECK(rig.session.tip() == TurnNo{2});
    CHECK(rig.session.last_turn() == TurnNo{3});
    CHECK(rig.session.pending().model->turn == TurnNo{1});

    rig.model("", {run_call(EffectClass::once), run_call(EffectClass::read), sleep_call(1000)});
    Decided cancelled = rig.run(CancelTurn{});
    CHECK(names(cancelled) == Names{"CancelRequested", "WaitResolved", "Decision", "ToolReceipt", "Decision",
                                    "ToolReceipt", "ToolReceipt", "TurnSettled"});
    CHECK(rig.item(1).status == ItemStatus::unknown);
    CHECK(rig.item(2).status == ItemStatus::failed);
    CHECK(rig.item(3).status == ItemStatus::failed);
    CHECK(rig.turn(1)->code == "turn_cancelled");
    CHECK(rig.session.pending().model->turn == TurnNo{3});
    CHECK_FALSE(rig.run(ToolStepDone{TurnNo{1}, 1, 0, false, "late", 0}).batch);

    Decided again = rig.run(CancelTurn{TurnNo{1}, ""});
    CHECK_FALSE(again.refused);
    CHECK_FALSE(again.batch);
    CHECK(refusal(rig.run(CancelTurn{TurnNo{99}, ""})) == ErrorCode::response_not_found);
    rig.model("third answer");
    CHECK_FALSE(rig.run(CancelTurn{}).batch);
}

TEST_CASE("session: a turn past its deadline fails, but waiting for people does not count") {
    Rig rig;
    rig.submit("x", TurnLimits{32, 0, 1000});
    CHECK(rig.session.pending().wake_at == rig.now + 1000);
    rig.model("", {sleep_call(5000)});
    CHECK(rig.session.pending().wake_at == rig.now + 5000);
    CHECK_FALSE(rig.tick(4000).batch);
    rig.tick(1000);
    CHECK(rig.session.pending().wake_at == rig.now + 1000);
    CHECK_FALSE(rig.tick(999).batch);
    Decided over = rig.tick(1);
    CHECK(names(over) == Names{"TurnSettled"});
    CHECK(rig.turn()->code == "turn_deadline_exceeded");
    CHECK(rig.session.pending().wake_at == 0);
}

TEST_CASE(
    "session: a model step that fails at the turn's deadline fails the turn by its deadline, before it by its own") {
    for (const TimeMs passed : {999, 1000}) {
        CAPTURE(passed);
        Rig rig;
        rig.submit("x", TurnLimits{32, 0, 1000});
        rig.now += passed;
        rig.model_fails();
        rig.verdict(false);
        CHECK((rig.turn()->code == "turn_deadline_exceeded") == (passed == 1000));
        CHECK(rig.turn()->status == TurnStatus::failed);
    }
}

TEST_CASE("session: recorded time does not go back with the clock") {
    Rig rig;
    rig.submit();
    const TimeMs at = rig.now;
    rig.now -= 10'000;
    Decided step = rig.model("x");
    CHECK(step.batch->at == at);
    CHECK(rig.turn()->settled_at == at);
}

TEST_CASE("session: a fork goes on behind the turns that it shares") {
    Rig parent;
    for (int i = 0; i < 3; ++i) {
        parent.submit();
        parent.model("a");
    }
    const SessionId child_id{test_key().session.family, 1, 2};
    CHECK(refusal(parent.run(ForkSession{child_id, TurnNo{4}})) == ErrorCode::response_not_found);
    CHECK(names(parent.run(ForkSession{child_id, TurnNo{2}})) == Names{"Forked"});
    CHECK(parent.session.children() == 1);

    Session child(SessionKey{test_key().tenant, child_id});
    Command command;
    command.context.now = parent.now;
    SubmitInput submit = Rig::input("go on");
    submit.create->parent = test_key().session;
    submit.create->parent_turn = TurnNo{2};
    submit.after_turn = TurnNo{2};
    command.body = submit;
    Decided decided = child.decide(command);
    REQUIRE_FALSE(decided.refused);
    CHECK(decided.turn == TurnNo{3});
    CHECK(child.parent() == test_key().session);
    CHECK(child.parent_turn() == TurnNo{2});
    child.load_window({parent.turn(1), parent.turn(2)});
    CHECK(child.window().size() == 3);
    CHECK(child.turn(TurnNo{2}) == nullptr);
    auto again = Session::decode_head(child.key(), child.encode_head());
    REQUIRE(again.ok());
    CHECK(again->last_turn() == TurnNo{3});
    CHECK(again->parent_turn() == TurnNo{2});

    parent.submit();
    CHECK(refusal(parent.run(ForkSession{child_id, TurnNo{4}})) == ErrorCode::conflict);
}

TEST_CASE("session: the window is bounded in bytes, keeps the newest turn and shares its items") {
    Rig rig;
    rig.session.set_window_bytes(8 * 1024);
    for (int i = 0; i < 100; ++i) {
        rig.submit(std::string(1000, 'x'));
        rig.model("y");
    }
    const auto window = rig.session.window();
    CHECK(window.size() >= 3);
    CHECK(window.size() <= 8);
    CHECK(rig.turn(100) != nullptr);
    CHECK(rig.turn(1) == nullptr);
    CHECK(window.back()->at(0).get() == rig.turn(100)->items[0].get());
    rig.submit(std::string(100'000, 'x'));
    rig.model("y");
    CHECK(rig.session.window().size() == 1);
}

TEST_CASE("session: what was handed out of an open turn does not change") {
    Rig rig;
    rig.submit();
    rig.model("", {run_call()});
    const TurnPtr before = rig.turn();
    rig.tool_done("output");
    CHECK(before->items[1]->status == ItemStatus::in_progress);
    CHECK(rig.item(1).status == ItemStatus::completed);
    CHECK(rig.item(1).text == "output");
}
