// Sampled tokens in a session's history: which item has them, that they outlive restarts, and what is not kept.

#include "runtime/base/limits.h"
#include "runtime/session/event_json.h"
#include "runtime/session/rebuild.h"
#include "runtime/session/session_fixture.h"

using namespace mainstay;
using namespace mainstay::test;

namespace {

std::shared_ptr<const StepTokens> some_tokens(std::vector<uint32_t> ids = {1, 0x01020304, 0, ~0u}) {
    StepTokens tokens;
    for (size_t i = 0; i < tokens.tokenizer.size(); ++i) tokens.tokenizer[i] = static_cast<uint8_t>(200 + i);
    tokens.template_version = 101;
    tokens.ids = std::move(ids);
    return std::make_shared<const StepTokens>(std::move(tokens));
}

/// Which items of a turn have tokens.
std::vector<size_t> with_tokens(const Turn& turn) {
    std::vector<size_t> positions;
    for (size_t i = 0; i < turn.items.size(); ++i)
        if (turn.items[i]->tokens) positions.push_back(i);
    return positions;
}

using Positions = std::vector<size_t>;

}  // namespace

TEST_CASE("step tokens: the first item of the step has them, live, from the journal, from a head and from a row") {
    Rig rig;
    rig.submit();
    ModelStepDone done = rig.answer("I look", {run_call(EffectClass::read), run_call(EffectClass::read)});
    done.tokens = some_tokens();
    rig.run(done);
    rig.tool_done();
    rig.tool_done();
    done = rig.answer("", {run_call(EffectClass::read)});
    done.tokens = some_tokens({7});
    rig.run(done);

    std::vector<TailBatch> tail;
    for (const auto& [first, bytes] : rig.journal) tail.push_back({first, bytes});
    const auto replayed = rebuild(test_key(), std::nullopt, tail);
    REQUIRE(replayed.ok());
    const Session restarted = rig.restarted();
    for (const Session* session : std::initializer_list<const Session*>{&rig.session, &*replayed, &restarted}) {
        const TurnPtr turn = session->turn(TurnNo{1});
        CHECK(with_tokens(*turn) == Positions{1, 4});
        CHECK(*turn->items[1]->tokens == *some_tokens());
        CHECK(*turn->items[4]->tokens == *some_tokens({7}));
        CHECK(session->open_items()->at(1)->tokens);
        CHECK(turn->items[1]->bytes() == std::string_view("I look").size() + 16);
    }
    rig.tool_done();  // the item is made anew, and keeps them
    CHECK(with_tokens(*rig.turn()) == Positions{1, 4});
    rig.model("done");

    std::vector<FoldRecord> records;
    for (const auto& [first, bytes] : rig.journal) records.push_back(FoldRecord{Lsn{1}, Epoch{1}, first, bytes});
    std::vector<RowOp> rows;
    REQUIRE(SessionFold().fold(test_key(), std::nullopt, records, rows).ok());
    for (const RowOp& row : rows) {
        if (row.table != Table::turn) continue;
        auto turn = turn_from_row(test_key(), TurnNo{1}, *row.value);
        REQUIRE(turn.ok());
        CHECK(with_tokens(*turn) == Positions{1, 4});
        CHECK(*turn->items[1] == *rig.turn()->items[1]);
    }
    // What a fork is shown is its parent's window.
    Session child(SessionKey{test_key().tenant, SessionId{test_key().session.family, 3, 4}});
    child.load_window({rig.turn()});
    CHECK(child.settled_window()[0]->at(1)->tokens);
}

TEST_CASE("step tokens: none are kept that no item of the step stands for") {
    const auto kept = [](auto&& change) {
        Rig rig;
        rig.submit();
        ModelStepDone done = rig.answer("text");
        done.tokens = some_tokens();
        change(done);
        const Decided decided = rig.run(done);
        const auto& settled = std::get<ModelStepSettled>(decided.batch->events[0]);
        CHECK(settled.token_ids.empty() == settled.tokenizer_hash.empty());
        CHECK(settled.token_ids.empty() == (settled.template_version == 0));
        CHECK(settled.token_ids.empty() == with_tokens(*rig.turn()).empty());
        return !settled.token_ids.empty();
    };
    CHECK(kept([](ModelStepDone&) {}));
    CHECK(kept([](ModelStepDone& done) { done.finish_reason = "length"; }));
    CHECK(kept([](ModelStepDone& done) { done.calls = {run_call()}; }));
    CHECK_FALSE(kept([](ModelStepDone& done) { done.tokens.reset(); }));
    CHECK_FALSE(kept([](ModelStepDone& done) { done.text.clear(); }));  // an empty answer leaves no item
    CHECK_FALSE(kept([](ModelStepDone& done) {
        done.finish_reason = "length";  // none of its calls runs
        done.calls = {run_call()};
    }));
    CHECK(kept(
        [](ModelStepDone& done) { done.tokens = some_tokens(std::vector<uint32_t>(limits::step_tokens_max, 1)); }));
    CHECK_FALSE(kept(
        [](ModelStepDone& done) { done.tokens = some_tokens(std::vector<uint32_t>(limits::step_tokens_max + 1, 1)); }));
}

TEST_CASE("step tokens: an answer that its bound cut is part of later prompts, one that a filter cut is not") {
    for (const std::string reason : {"length", "content_filter"}) {
        Rig rig;
        rig.submit();
        ModelStepDone done = rig.answer("half an ans");
        done.finish_reason = reason;
        rig.run(done);
        CHECK(rig.turn()->status == TurnStatus::incomplete);
        CHECK(rig.turn()->items.size() == 2);
        rig.submit("go on");
        CHECK(rig.session.settled_window()[0]->size() == (reason == "length" ? 2 : 1));
    }
}

TEST_CASE("step tokens: a batch whose tokens cannot be is damage") {
    const auto decoded = [](std::string ids, std::string hash) {
        EventBatch batch;
        batch.turn = TurnNo{1};
        ModelStepSettled settled;
        settled.token_ids = std::move(ids);
        settled.tokenizer_hash = std::move(hash);
        batch.events = {settled};
        auto again = decode_batch(encode(batch));
        return again.ok() ? std::string("ok") : std::string(error_name(again.error().code));
    };
    const std::string hash(16, 'h');
    CHECK(decoded(std::string(8, 'i'), hash) == "ok");
    CHECK(decoded(std::string(limits::step_tokens_max * 4, 'i'), hash) == "ok");
    for (const size_t size : {1, 2, 3, 5, 4095}) CHECK(decoded(std::string(size, 'i'), hash) == "journal_damaged");
    CHECK(decoded(std::string(limits::step_tokens_max * 4 + 4, 'i'), hash) == "journal_damaged");
    CHECK(decoded(std::string(8, 'i'), std::string(limits::tokenizer_hash_bytes_max + 1, 'h')) == "journal_damaged");
    // A hash of another length names no tokenizer that this version knows: the text counts.
    CHECK(decoded(std::string(8, 'i'), "short") == "ok");
    ModelStepSettled settled;
    settled.set_tokens(*some_tokens());
    CHECK(*settled.tokens() == *some_tokens());
    settled.tokenizer_hash.pop_back();
    CHECK(settled.tokens() == nullptr);
}
