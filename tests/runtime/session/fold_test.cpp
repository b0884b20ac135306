#include "runtime/session/fold.h"

#include <map>
#include <set>

#include "runtime/base/limits.h"
#include "runtime/session/event_json.h"
#include "runtime/session/random_history.h"

using namespace mainstay;
using namespace mainstay::test;

namespace {

/// Rows as the store would hold them.
struct Rows {
    std::map<std::pair<Table, std::string>, std::string> all;

    void apply(const std::vector<RowOp>& ops) {
        for (const RowOp& op : ops) {
            if (op.value) {
                all[{op.table, op.key}] = *op.value;
            } else if (op.prefix) {
                std::erase_if(all, [&](const auto& row) {
                    return row.first.first == op.table && row.first.second.starts_with(op.key);
                });
            } else {
                all.erase({op.table, op.key});
            }
        }
    }
    std::optional<std::string_view> get(Table table, const std::string& key) const {
        auto at = all.find({table, key});
        return at == all.end() ? std::nullopt : std::optional<std::string_view>(at->second);
    }
    size_t count(Table table) const {
        size_t n = 0;
        for (const auto& row : all) n += row.first.first == table;
        return n;
    }
};

using Journal = std::vector<std::pair<Sequence, std::string>>;

// Folds the journal in groups whose sizes `next_group` gives.
template <class NextGroup>
Rows folded(const Journal& journal, NextGroup next_group) {
    Rows rows;
    SessionFold fold;
    for (size_t at = 0; at < journal.size();) {
        const size_t end = std::min(journal.size(), at + next_group());
        std::vector<FoldRecord> records;
        for (; at < end; ++at) records.push_back(FoldRecord{Lsn{at}, Epoch{1}, journal[at].first, journal[at].second});
        std::vector<RowOp> ops;
        const std::string head_key = session_row_key(test_key());
        std::optional<std::string_view> head = rows.get(Table::head, head_key);
        const std::string held(head.value_or(""));  // the row may be replaced while it is read
        auto result = fold.fold(test_key(), head ? std::optional<std::string_view>(held) : std::nullopt, records, ops);
        REQUIRE_MESSAGE(result.ok(), (result.ok() ? "" : result.error().message));
        rows.apply(ops);
    }
    return rows;
}

Rows one_by_one(const Journal& journal) {
    return folded(journal, [] { return size_t{1}; });
}

}  // namespace

TEST_CASE("fold: rows depend on the records, not on how they were grouped") {
    for (uint64_t seed = 1; seed <= 60; ++seed) {
        INFO("seed ", seed);
        RandomHistory history(seed);
        Rig rig;
        for (int i = 0; i < 200; ++i) history.step(rig);
        const Rows single = one_by_one(rig.journal);
        const Rows at_once = folded(rig.journal, [&] { return rig.journal.size(); });
        const Rows random = folded(rig.journal, [&] { return 1 + history.random().below(9); });
        REQUIRE(single.all == at_once.all);
        REQUIRE(single.all == random.all);
    }
}

TEST_CASE("fold: the rows are the session: its head, its turns, its timer and whether it is open") {
    for (uint64_t seed = 200; seed < 240; ++seed) {
        INFO("seed ", seed);
        RandomHistory history(seed);
        Rig rig;
        rig.session.set_window_bytes(100 * 1024 * 1024);
        for (int i = 0; i < 150; ++i) history.step(rig);
        if (rig.session.deleted()) continue;
        const Rows rows = one_by_one(rig.journal);
        const std::string prefix = session_row_key(test_key());
        REQUIRE(rows.get(Table::head, prefix) == rig.session.encode_head());
        REQUIRE(rows.get(Table::open, prefix).has_value() == !rig.session.idle());
        const TimeMs wake = rig.session.pending().wake_at;
        REQUIRE(rows.count(Table::due) == (wake == 0 ? 0 : 1));
        if (wake != 0) REQUIRE(rows.get(Table::due, due_row_key(wake, test_key())));
        const std::vector<TurnNo> open = rig.session.open_turns();
        size_t settled = 0;
        for (uint32_t no = 1; no <= rig.session.last_turn().value; ++no) {
            auto row = rows.get(Table::turn, turn_row_key(test_key(), TurnNo{no}));
            const bool is_open = std::find(open.begin(), open.end(), TurnNo{no}) != open.end();
            REQUIRE(row.has_value() == !is_open);
            if (is_open) continue;
            ++settled;
            auto turn = turn_from_row(test_key(), TurnNo{no}, *row);
            REQUIRE_MESSAGE(turn.ok(), (turn.ok() ? "" : turn.error().message));
            REQUIRE(rig.turn(no));
            REQUIRE(describe(*turn) == describe(*rig.turn(no)));
        }
        // Every batch of the journal is in a row or in the head, once.
        std::set<uint64_t> sequences;
        for (const auto& [key, value] : rows.all) {
            if (key.first != Table::turn) continue;
            auto batches = batches_from_row(value);
            REQUIRE(batches.ok());
            for (const auto& [first, batch] : *batches) REQUIRE(sequences.insert(first).second);
        }
        size_t of_open_turns = 0;
        for (const auto& [first, bytes] : rig.journal) {
            const TurnNo turn = decode_batch(bytes)->turn;
            const bool is_open = std::find(open.begin(), open.end(), turn) != open.end();
            of_open_turns += is_open;
            REQUIRE(sequences.contains(first.value) == !is_open);
        }
        REQUIRE(sequences.size() + of_open_turns == rig.journal.size());
        REQUIRE(settled > 0);
    }
}

TEST_CASE("fold: a key row is expired when its lifetime is over, other rows never are") {
    const SessionFold fold;
    const std::string row = encode_key_row(KnownKey{TurnNo{3}, 77, 1000});
    CHECK_FALSE(fold.expired(Table::key, row, 1000 + limits::idempotency_key_lifetime_ms - 1));
    CHECK(fold.expired(Table::key, row, 1000 + limits::idempotency_key_lifetime_ms));
    CHECK_FALSE(fold.expired(Table::turn, row, 1000 + limits::idempotency_key_lifetime_ms));
    std::string newer = row;
    newer[0] = 2;  // a format that this program cannot read
    CHECK_FALSE(fold.expired(Table::key, newer, 1000 + limits::idempotency_key_lifetime_ms));
}

TEST_CASE("fold: a batch that makes and deletes a session deletes it, whatever was there") {
    // What an operator's deletion of a damaged session journals: nobody can load that session to decide upon.
    EventBatch batch;
    batch.at = 5;
    SessionCreated created;
    created.tenant = test_key().tenant;
    batch.events = {created, SessionDeleted{}};
    const std::string bytes = encode(batch);
    std::vector<RowOp> rows;
    SessionFold fold;
    REQUIRE(fold.fold(test_key(), std::nullopt, {FoldRecord{Lsn{9}, Epoch{1}, Sequence{1}, bytes}}, rows).ok());
    const std::string prefix = session_row_key(test_key());
    const auto deletes = [&](Table table) {
        return std::any_of(rows.begin(), rows.end(), [&](const RowOp& row) {
            return row.table == table && row.prefix && row.key == prefix && !row.value;
        });
    };
    CHECK(deletes(Table::turn));
    CHECK(deletes(Table::key));
    CHECK(
        std::none_of(rows.begin(), rows.end(), [](const RowOp& row) { return row.table == Table::turn && row.value; }));
}

TEST_CASE("fold: records that the head contains are skipped, a gap is refused") {
    Rig rig;
    rig.submit();
    rig.model("a");
    rig.submit();
    rig.model("b");
    const Rows once = one_by_one(rig.journal);
    const std::string head(*once.get(Table::head, session_row_key(test_key())));
    std::vector<FoldRecord> records;
    for (const auto& [first, bytes] : rig.journal) records.push_back(FoldRecord{Lsn{1}, Epoch{1}, first, bytes});
    std::vector<RowOp> ops;
    SessionFold fold;
    REQUIRE(fold.fold(test_key(), head, records, ops).ok());
    CHECK(ops.empty());
    records.erase(records.begin() + 1);
    auto gap = fold.fold(test_key(), std::nullopt, records, ops);
    REQUIRE_FALSE(gap.ok());
    CHECK(gap.error().code == ErrorCode::journal_damaged);
    CHECK(ops.empty());
}

TEST_CASE("fold: batches of the session itself have rows behind its turns") {
    Rig rig;
    rig.run(CreateSession{});
    rig.submit();
    rig.model("a");
    rig.run(SetMetadata{R"({"a":"b"})"});
    const Rows rows = one_by_one(rig.journal);
    CHECK(rows.count(Table::turn) == 3);
    auto created = rows.get(Table::turn, session_batch_row_key(test_key(), Sequence{1}));
    REQUIRE(created);
    auto batches = batches_from_row(*created);
    REQUIRE(batches.ok());
    CHECK(event_name((*batches)[0].second.events[0]) == "SessionCreated");
    CHECK(session_batch_row_key(test_key(), Sequence{1}) > turn_rows_end(test_key()));
    CHECK(turn_row_key(test_key(), TurnNo{~0u}) < turn_rows_end(test_key()));
}

TEST_CASE("fold: a key row names the turn, and is old after a day") {
    Rig rig;
    rig.key = KeyHash{1, 2, 3};
    rig.digest = 99;
    rig.submit();
    const Rows rows = one_by_one(rig.journal);
    auto row = rows.get(Table::key, key_row_key(test_key(), KeyHash{1, 2, 3}));
    REQUIRE(row);
    auto known = decode_key_row(*row);
    REQUIRE(known.ok());
    CHECK(known->turn == TurnNo{1});
    CHECK(known->request_digest == 99);
    CHECK_FALSE(key_row_expired(*row, rig.now));
    CHECK(key_row_expired(*row, rig.now + limits::idempotency_key_lifetime_ms));
    CHECK(key_row_expired("short", rig.now));
}

TEST_CASE("fold: a deleted session leaves a tombstone, an ephemeral one nothing") {
    for (bool ephemeral : {false, true}) {
        Rig rig;
        SubmitInput submit = Rig::input("secret");
        submit.create->ephemeral = ephemeral;
        if (!ephemeral) rig.key = KeyHash{4};
        rig.run(submit);
        rig.model("", {sleep_call(1000)});
        CHECK(rig.session.ephemeral() == ephemeral);
        rig.run(DeleteSession{});
        const Rows rows = one_by_one(rig.journal);
        CHECK(rows.all == folded(rig.journal, [] { return size_t{99}; }).all);
        CHECK(rows.all.size() == (ephemeral ? 0 : 1));
        if (ephemeral) continue;
        auto head = rows.get(Table::head, session_row_key(test_key()));
        REQUIRE(head);
        CHECK(head->size() < 40);
        auto session = Session::decode_head(test_key(), *head);
        REQUIRE(session.ok());
        CHECK(session->deleted());
    }
}

TEST_CASE("fold: the turns of a deleted session stay while forks share them") {
    Rig rig;
    SubmitInput submit = Rig::input("go on");
    submit.create->parent = SessionId{FamilyId{1}, 5, 6};
    rig.run(submit);
    rig.model("shared");
    rig.run(ForkSession{SessionId{FamilyId{1}, 2, 3}, TurnNo{1}});
    rig.run(DeleteSession{});
    const Rows rows = one_by_one(rig.journal);
    CHECK(rows.get(Table::turn, turn_row_key(test_key(), TurnNo{1})));
    auto tombstone = Session::decode_head(test_key(), *rows.get(Table::head, session_row_key(test_key())));
    REQUIRE(tombstone.ok());
    CHECK(tombstone->deleted());
    CHECK(tombstone->children() == 1);
    CHECK(tombstone->parent() == SessionId{FamilyId{1}, 5, 6});
}

TEST_CASE("fold: a turn costs little more than its batches, whose compression is the store's") {
    Rig rig;
    rig.submit(std::string(300, 'q'));
    rig.model("", {run_call()});
    rig.tool_done(std::string(400, 'o'));
    rig.model(std::string(300, 'a'));
    size_t payload = 0;
    for (const auto& entry : rig.journal) payload += entry.second.size();
    Rows rows = one_by_one(rig.journal);
    auto row = rows.get(Table::turn, turn_row_key(test_key(), TurnNo{1}));
    REQUIRE(row);
    CHECK(payload > 1100);
    CHECK(row->size() <= payload + 100);

    Rig large;
    large.submit(std::string(100'000, 'q'));
    large.model("short");
    rows = one_by_one(large.journal);
    row = rows.get(Table::turn, turn_row_key(test_key(), TurnNo{1}));
    REQUIRE(row);
    CHECK((*row)[1] == 0);
    CHECK(turn_from_row(test_key(), TurnNo{1}, *row)->items.at(0)->text.size() == 100'000);
}

TEST_CASE("fold: a turn row that was changed is refused") {
    Rig rig;
    rig.submit(std::string(5000, 'q'));
    rig.model("a");
    const Rows rows = one_by_one(rig.journal);
    const std::string row(*rows.get(Table::turn, turn_row_key(test_key(), TurnNo{1})));
    for (size_t i = 0; i < row.size(); ++i) {
        if (i == 2 || i == 3) continue;  // reserved
        std::string changed = row;
        changed[i] = static_cast<char>(changed[i] ^ 0x55);
        CHECK_FALSE(turn_from_row(test_key(), TurnNo{1}, changed).ok());
    }
    CHECK_FALSE(turn_from_row(test_key(), TurnNo{2}, row).ok());
    CHECK_FALSE(turn_from_row(test_key(), TurnNo{1}, "").ok());
}
