// Prompts that are too long: compaction by overflow and by the window, and that a session which is made again begins
// its prompts where the one before it did.

#include <map>

#include "runtime/base/limits.h"
#include "runtime/session/rebuild.h"
#include "runtime/session/session_fixture.h"

using namespace mainstay;
using namespace mainstay::test;

namespace {

using Names = std::vector<std::string>;

/// A session with so many settled turns of about so many bytes, and an open one.
Rig talk(uint32_t turns, size_t bytes) {
    Rig rig;
    rig.session.set_window_bytes(10'000'000);
    for (uint32_t i = 0; i < turns; ++i) {
        rig.submit(std::string(bytes, 'q'));
        rig.model("a");
    }
    rig.submit("open");
    return rig;
}

ModelStepFailed too_long(const Rig& rig, uint32_t tokens = 0, uint32_t limit = 0, bool truncate = true) {
    const auto step = rig.session.pending().model.value();
    ModelStepFailed failed;
    failed.turn = step.turn;
    failed.step = step.step;
    failed.attempt = step.attempt;
    failed.error_class = ErrorClass::context_overflow;
    failed.code = ErrorCode::context_overflow;
    failed.message = "the upstream's own words";
    failed.truncate = truncate;
    failed.context_tokens = tokens;
    failed.context_limit = limit;
    return failed;
}

size_t settled_bytes(const Session& session) {
    size_t bytes = 0;
    for (const auto& turn : session.settled_window())
        for (const auto& item : *turn) bytes += sizeof(Item) + item->bytes();
    return bytes;
}

std::vector<std::string> prompt_texts(const Session& session) {
    std::vector<std::string> texts;
    for (const auto& turn : session.window())
        for (const auto& item : *turn) texts.push_back(item->text);
    return texts;
}

/// The session that a restart finds, with its prompt made again from the rows: what a session actor does.
Session made_again(const Rig& rig, size_t window_bytes, bool from_head) {
    std::vector<FoldRecord> records;
    std::vector<TailBatch> tail;
    for (const auto& [first, bytes] : rig.journal) {
        records.push_back(FoldRecord{Lsn{1}, Epoch{1}, first, bytes});
        tail.push_back({first, bytes});
    }
    std::vector<RowOp> rows;
    REQUIRE(SessionFold().fold(test_key(), std::nullopt, records, rows).ok());
    std::map<std::string, std::string> turns;
    std::string head;
    for (const RowOp& row : rows) {
        if (row.table == Table::turn) turns[row.key] = *row.value;
        if (row.table == Table::head) head = *row.value;
    }
    auto session = from_head ? rebuild(test_key(), head, {}) : rebuild(test_key(), std::nullopt, tail);
    REQUIRE_MESSAGE(session.ok(), (session.ok() ? "" : session.error().message));
    session->set_window_bytes(window_bytes);
    std::vector<TurnPtr> window;
    size_t bytes = 0;
    for (uint32_t no = session->last_turn().value;
         no > session->left_out().value && bytes < window_bytes * limits::history_windows_read; --no) {
        const auto row = turns.find(turn_row_key(test_key(), TurnNo{no}));
        if (row == turns.end()) continue;  // not settled
        auto turn = turn_from_row(test_key(), TurnNo{no}, row->second);
        REQUIRE(turn.ok());
        bytes += window_bytes_of(*turn);
        window.push_back(std::make_shared<const Turn>(std::move(*turn)));
    }
    session->load_window(std::move(window));
    return std::move(*session);
}

}  // namespace

TEST_CASE("overflow: the oldest turns are left out until half of the limit is used, and the step runs again at once") {
    struct Case {
        uint32_t tokens, limit;
        double part_min, part_max;  // of the settled bytes, what may stay
    };
    for (const Case& c : {Case{1100, 1000, 0.42, 0.46}, Case{2000, 1000, 0.22, 0.26}, Case{1001, 1000, 0.47, 0.51},
                          Case{8000, 1000, 0.03, 0.07}, Case{0, 0, 0.47, 0.51}, Case{5000, 0, 0.47, 0.51},
                          Case{100, 1'000'000, 0.7, 0.76}, Case{4'000'000'000, 1, 0, 0.01}}) {
        INFO(c.tokens, " of ", c.limit);
        Rig rig = talk(100, 10'000);
        const auto before = prompt_texts(rig.session);
        const size_t bytes = settled_bytes(rig.session);
        const auto step = rig.session.pending().model.value();
        const Decided decided = rig.run(too_long(rig, c.tokens, c.limit));
        CHECK(names(decided) == Names{"StepFailed", "Compacted", "RetryScheduled"});
        const double part = double(settled_bytes(rig.session)) / double(bytes);
        CHECK(part >= c.part_min);
        CHECK(part <= c.part_max);

        const Pending pending = rig.session.pending();
        CHECK(pending.retries.empty());  // nobody is asked
        REQUIRE(pending.model);
        CHECK(pending.model->attempt == step.attempt);
        CHECK(pending.model->cause == rig.session.last_sequence());
        // The prompt is the end of what it was; the items are still there to be read.
        const auto after = prompt_texts(rig.session);
        CHECK(std::equal(after.rbegin(), after.rend(), before.rbegin()));
        rig.model("now it fits");
        CHECK(rig.turn(101)->status == TurnStatus::completed);
        CHECK(rig.session.left_out() == std::get<Compacted>(decided.batch->events[1]).up_to);
    }
}

TEST_CASE("overflow: again and again ends, by what is left to leave out") {
    for (const auto& [tokens, limit] : {std::pair{0u, 0u}, std::pair{100u, 1000u}, std::pair{1100u, 1000u}}) {
        Rig rig = talk(200, 1000);
        size_t compactions = 0;
        Decided decided;
        for (; rig.session.pending().model; ++compactions) {
            REQUIRE(compactions < 40);
            decided = rig.run(too_long(rig, tokens, limit));
        }
        CHECK(compactions > 2);
        CHECK(names(decided) == Names{"StepFailed", "TurnSettled"});
        CHECK(rig.session.settled_window().size() == 1);  // the turn that failed; nothing of those before
        CHECK(rig.turn(201)->status == TurnStatus::failed);
        CHECK(rig.turn(201)->code == "context_overflow");
        CHECK(rig.turn(201)->message ==
              (tokens == 0 ? std::string("the upstream's own words")
                           : "the prompt has " + std::to_string(tokens) + " tokens, it may have 1000") +
                  "; no earlier turn is left that could be left out");
        // The next turn begins with the little that is left.
        rig.submit("shorter");
        rig.model("fits");
        CHECK(rig.turn(202)->status == TurnStatus::completed);
    }
}

TEST_CASE("overflow: truncation disabled ends the turn at once") {
    Rig rig = talk(10, 1000);
    CHECK(names(rig.run(too_long(rig, 1100, 1000, false))) == Names{"StepFailed", "TurnSettled"});
    CHECK(rig.turn(11)->code == "context_overflow");
    CHECK(rig.turn(11)->message == "the prompt has 1100 tokens, it may have 1000; truncation is disabled");
    CHECK(rig.session.left_out() == TurnNo{0});
    CHECK(rig.session.settled_window().size() == 11);
}

TEST_CASE("overflow: the turn that asked for what the open turn answers stays") {
    Rig rig = talk(5, 1000);
    rig.model("", {planned(PlannedCall::Disposition::client)});
    SubmitInput answer = Rig::input("");
    auto output = std::make_shared<Item>();
    output->kind = ItemKind::function_call_output;
    output->call_id = "call_a";
    output->text = "42";
    answer.input.items = {output};
    rig.run(answer);
    CHECK(names(rig.run(too_long(rig, 4'000'000'000, 1))) == Names{"StepFailed", "Compacted", "RetryScheduled"});
    REQUIRE(rig.session.settled_window().size() == 1);
    CHECK(rig.session.left_out() == TurnNo{5});
    CHECK(names(rig.run(too_long(rig, 4'000'000'000, 1))) == Names{"StepFailed", "TurnSettled"});
}

TEST_CASE("overflow: a restart in the middle goes on with the shorter prompt") {
    Rig rig = talk(50, 1000);
    rig.run(too_long(rig, 3000, 1000));
    for (const bool from_head : {false, true}) {
        const Session again = made_again(rig, 10'000'000, from_head);
        CHECK(prompt_texts(again) == prompt_texts(rig.session));
        CHECK(again.left_out() == rig.session.left_out());
        CHECK(again.pending().model->attempt == rig.session.pending().model->attempt);
    }
}

TEST_CASE("window: its beginning moves seldom, and is recorded") {
    Rig rig;
    constexpr size_t window_bytes = 40'000;
    rig.session.set_window_bytes(window_bytes);
    TurnNo before;
    size_t moved = 0, recorded = 0, turns = 400;
    for (size_t i = 0; i < turns; ++i) {
        const Decided decided = rig.run(Rig::input(std::string(1000, 'q')));
        recorded += std::holds_alternative<Compacted>(decided.batch->events.front());
        CHECK(settled_bytes(rig.session) <= window_bytes);
        if (i > 40) CHECK(settled_bytes(rig.session) > window_bytes / 2 - 2500);
        moved += rig.session.left_out() != before;
        before = rig.session.left_out();
        rig.model("a");
    }
    // 1,600 bytes a turn with what an item takes itself: half a window has more than ten of them.
    CHECK(moved > 10);
    CHECK(moved < turns / 10);
    CHECK(recorded == moved);
}

TEST_CASE("window: a session that is made again begins its prompts at the same turn") {
    constexpr size_t window_bytes = 6000;
    for (uint64_t seed = 1; seed <= 30; ++seed) {
        INFO("seed ", seed);
        SeededRandom random(seed);
        Rig rig;
        rig.session.set_window_bytes(window_bytes);
        for (int i = 0; i < 120; ++i) {
            rig.now += random.below(3);
            const uint64_t what = random.below(20);
            if (what == 0) {
                rig.run(CancelTurn{TurnNo{0}, "random"});
            } else if (what == 1) {
                rig.run(AddItems{{user_item(std::string(random.below(500), 'i'))}});
            } else if (rig.session.pending().model && what < 13) {
                if (what == 2 && rig.session.settled_window().size() > 3)
                    rig.run(too_long(rig, 1100, 1000));
                else
                    rig.model(std::string(random.below(900), 'a'));
            } else {
                rig.submit(std::string(random.below(random.below(10) == 0 ? 9000 : 700), 'q'));
            }
            if (random.below(4) != 0) continue;
            Session again = made_again(rig, window_bytes, random.below(2) == 0);
            REQUIRE(prompt_texts(again) == prompt_texts(rig.session));
            if (random.below(8) == 0) rig.session = std::move(again);
        }
    }
}

TEST_CASE("window: a fork's prompts begin where its parent's do") {
    Rig rig;
    rig.session.set_window_bytes(10'000);
    for (int i = 0; i < 30; ++i) {
        rig.submit(std::string(1000, 'q'));
        rig.model("a");
    }
    REQUIRE(rig.session.left_out().value > 15);
    REQUIRE(rig.session.left_out().value < 30);
    const auto fork_at = [&](uint32_t at) {
        Session child(SessionKey{test_key().tenant, SessionId{test_key().session.family, 3, 4}});
        Command command;
        SubmitInput submit = Rig::input("go on");
        submit.create->parent = test_key().session;
        submit.create->parent_turn = TurnNo{at};
        submit.inherited = Compacted{rig.session.left_out(), "what was said"};
        command.body = submit;
        REQUIRE_FALSE(child.decide(command).refused);
        auto again = Session::decode_head(child.key(), child.encode_head());
        REQUIRE(again.ok());
        CHECK(again->left_out() == child.left_out());
        CHECK(again->summary() == child.summary());
        return child;
    };
    CHECK(fork_at(30).left_out() == rig.session.left_out());
    CHECK(fork_at(30).summary() == "what was said");
    CHECK(fork_at(3).left_out() == TurnNo{0});  // of what the parent leaves out
}
