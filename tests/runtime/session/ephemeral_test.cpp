// store: false. The session goes when its answer has left, but not before the idempotency key that made it: a client
// whose answer was lost asks again, and must neither be told something else nor have a tool run twice.

#include "runtime/base/limits.h"
#include "runtime/session/session_fixture.h"

using namespace mainstay;
using namespace mainstay::test;
using Names = std::vector<std::string>;

namespace {

SubmitInput unstored(std::string text = "secret") {
    SubmitInput submit = Rig::input(std::move(text));
    submit.create->ephemeral = true;
    return submit;
}

Rig answered(std::optional<KeyHash> key) {
    Rig rig;
    rig.key = key;
    rig.run(unstored());
    rig.model("", {run_call(EffectClass::once)});
    rig.tool_done("done once");
    rig.model("answer");
    return rig;
}

/// What the store has after the journal was folded: head, key row and due row of the session.
struct Stored {
    std::optional<std::string> head, key, due;
    size_t others = 0;
};
Stored stored(const Rig& rig) {
    std::vector<FoldRecord> records;
    for (const auto& [first, bytes] : rig.journal) records.push_back(FoldRecord{Lsn{1}, Epoch{1}, first, bytes});
    std::vector<RowOp> rows;
    REQUIRE(SessionFold().fold(test_key(), std::nullopt, records, rows).ok());
    Stored stored;
    for (const RowOp& row : rows) {
        if (!row.value) continue;
        if (row.table == Table::head)
            stored.head = row.value;
        else if (row.table == Table::key)
            stored.key = row.value;
        else if (row.table == Table::due)
            stored.due = row.key;
        else
            ++stored.others;
    }
    return stored;
}

}  // namespace

TEST_CASE("ephemeral: without a key it is done with its answer and leaves nothing") {
    Rig rig = answered(std::nullopt);
    CHECK(rig.session.disposable(rig.now));
    CHECK(rig.session.pending().wake_at == 0);
    CHECK_FALSE(rig.run(Tick{}).batch);  // whoever sends the answer deletes it, afterwards
    rig.run(DeleteSession{});
    const Stored rows = stored(rig);
    CHECK_FALSE(rows.head);
    CHECK_FALSE(rows.due);
    CHECK(rows.others == 0);
}

TEST_CASE("ephemeral: a repeated key is answered by the turn that it made, for a day and over a restart") {
    const KeyHash key{4};
    for (const bool restarted : {false, true}) {
        Rig rig = answered(key);
        const TimeMs until = rig.now + limits::idempotency_key_lifetime_ms;
        CHECK_FALSE(rig.session.disposable(until - 1));
        CHECK(rig.session.pending().wake_at == until);
        SubmitInput again = unstored();
        if (restarted) {
            // As a node finds it: the head, and the key in its row.
            const Stored rows = stored(rig);
            REQUIRE(rows.head);
            REQUIRE(rows.key);
            CHECK(rows.due == due_row_key(until, test_key()));
            rig.session = Session::decode_head(test_key(), *rows.head).value();
            again.known_key = decode_key_row(*rows.key).value();
        }
        rig.now = until - 1;
        const Decided repeated = rig.run(again);
        CHECK(repeated.repeated);
        CHECK(repeated.turn == TurnNo{1});
        CHECK_FALSE(repeated.batch);
        CHECK_FALSE(rig.run(Tick{}).batch);
        rig.key.reset();
        CHECK(names(rig.tick(1)) == Names{"SessionDeleted"});
        CHECK(rig.session.deleted());
        const Stored rows = stored(rig);
        CHECK_FALSE(rows.head);
        CHECK_FALSE(rows.due);
        CHECK(rows.others == 0);
    }
}

TEST_CASE("ephemeral: it takes one turn, and to all but a repetition it is gone") {
    Rig rig = answered(KeyHash{4});
    rig.key.reset();
    CHECK(refusal(rig.run(unstored("more"))) == ErrorCode::session_not_found);
    SubmitInput after = unstored("more");
    after.after_turn = TurnNo{1};
    CHECK(refusal(rig.run(after)) == ErrorCode::previous_response_not_found);
    rig.key = KeyHash{5};
    CHECK(refusal(rig.run(unstored())) == ErrorCode::session_not_found);
    CHECK(rig.session.last_turn() == TurnNo{1});
}

TEST_CASE("ephemeral: deleted by hand before its key expires, it is not made anew by a repetition") {
    Rig rig = answered(KeyHash{4});
    rig.run(DeleteSession{});
    const Stored rows = stored(rig);
    REQUIRE(rows.head);
    CHECK(rows.head->size() < 48);
    rig.session = Session::decode_head(test_key(), *rows.head).value();
    CHECK(rig.session.deleted());
    CHECK(refusal(rig.run(unstored())) == ErrorCode::session_not_found);
}

TEST_CASE("ephemeral: a parent that has forks keeps its head and the turns that they share") {
    Rig rig = answered(std::nullopt);
    rig.run(ForkSession{SessionId{FamilyId{1}, 2, 3}, TurnNo{1}});
    rig.run(DeleteSession{});
    const Stored rows = stored(rig);
    REQUIRE(rows.head);
    CHECK(rows.others > 0);
    const Session parent = Session::decode_head(test_key(), *rows.head).value();
    CHECK(parent.deleted());
    CHECK(parent.children() == 1);
}
