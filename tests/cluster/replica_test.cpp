// A shard's copy on one node: what it answers, keeps, cuts and refuses.

#include <doctest/doctest.h>

#include "cluster/cluster_fixture.h"
#include "cluster/replica.h"

namespace mainstay {
namespace {

struct Copy {
    explicit Copy(const DurableShard& durable = {}) : replica(durable) {}
    Replica replica;
    ReplicaOutputs out;

    ReplicaOutputs append(uint64_t epoch, const LogPosition& previous, std::vector<LogEntry> entries,
                          uint64_t commit = 0) {
        AppendEntries message;
        message.epoch = Epoch(epoch);
        message.previous = previous;
        message.entries = std::move(entries);
        message.commit = commit;
        message.round = 1;
        ReplicaOutputs outputs;
        replica.append(message, outputs);
        return outputs;
    }
    ReplicaOutputs sync(const ReplicaOutputs& written) {
        ReplicaOutputs outputs;
        for (const auto& group : written.writes) replica.synced(group.ticket, outputs);
        return outputs;
    }
};

AppendAnswer answer_of(const ReplicaOutputs& out) {
    REQUIRE(out.answer.has_value());
    REQUIRE(std::holds_alternative<AppendAnswer>(*out.answer));
    return std::get<AppendAnswer>(*out.answer);
}

}  // namespace

TEST_CASE("replica: an entry counts after its sync, and promise and entries are one group") {
    Copy copy;
    const auto first = entry_after({}, 3, "a");
    const auto written = copy.append(3, {}, {first});
    CHECK_FALSE(written.answer.has_value());
    REQUIRE(written.writes.size() == 1);
    CHECK(written.writes[0].promise == Epoch(3));
    CHECK(written.writes[0].entries.size() == 1);
    const auto answer = answer_of(copy.sync(written));
    CHECK(answer.status == AppendStatus::ok);
    CHECK(answer.matched == 1);
    CHECK(answer.round == 1);
}

TEST_CASE("replica: what is written is answered once, when it is durable, but a read's round at once") {
    Copy copy;
    const auto first = entry_after({}, 3, "a"), second = entry_after(position_of(first), 3, "b"),
               third = entry_after(position_of(second), 3, "c");
    copy.sync(copy.append(3, {}, {first}));
    const auto written = copy.append(3, position_of(first), {second});
    CHECK_FALSE(written.answer.has_value());
    CHECK(answer_of(copy.sync(written)).matched == 2);
    AppendEntries reads;
    reads.epoch = Epoch(3);
    reads.previous = position_of(second);
    reads.entries = {third};
    reads.round = 2;
    ReplicaOutputs out;
    copy.replica.append(reads, out);
    CHECK(answer_of(out).round == 2);
    CHECK(answer_of(out).matched == 2);
    CHECK(answer_of(copy.append(3, position_of(third), {})).matched == 2);  // a heartbeat is answered at once
}

TEST_CASE("replica: a lower epoch is refused, by name of the higher") {
    Copy copy;
    copy.sync(copy.append(3, {}, {}));
    const auto refused = copy.append(2, {}, {entry_after({}, 2, "late")});
    CHECK(answer_of(refused).status == AppendStatus::fenced);
    CHECK(answer_of(refused).promised == Epoch(3));
    CHECK(refused.writes.empty());
    CHECK(copy.replica.log().last_index() == 0);
}

TEST_CASE("replica: an answer waits for its promise to be durable") {
    Copy copy;
    const auto written = copy.append(3, {}, {});
    CHECK_FALSE(written.answer.has_value());
    const auto again = copy.append(3, {}, {});
    CHECK_FALSE(again.answer.has_value());
    CHECK(answer_of(copy.sync(written)).epoch == Epoch(3));
}

TEST_CASE("replica: what diverges is cut, what is equal stays, and no answer counts what was cut") {
    Copy copy;
    const auto a = entry_after({}, 1, "a"), b = entry_after(position_of(a), 1, "b"),
               c = entry_after(position_of(b), 1, "c");
    copy.sync(copy.append(1, {}, {a, b, c}));
    const auto other = entry_after(position_of(a), 2, "other");
    const auto written = copy.append(2, {}, {a, other});
    REQUIRE(written.writes.size() == 1);
    CHECK(written.writes[0].truncate_to == 1);
    CHECK(written.writes[0].entries.size() == 1);
    CHECK(copy.replica.durable_index() == 1);
    CHECK(answer_of(copy.sync(written)).matched == 2);
    CHECK(copy.replica.log().last() == position_of(other));
}

TEST_CASE("replica: a group that was under way when its entries were cut does not make them durable") {
    Copy copy;
    const auto a = entry_after({}, 1, "a"), b = entry_after(position_of(a), 1, "b");
    const auto first = copy.append(1, {}, {a, b});
    const auto other = entry_after({}, 2, "other");
    const auto second = copy.append(2, {}, {other});
    copy.sync(first);
    CHECK(copy.replica.durable_index() == 0);
    copy.sync(second);
    CHECK(copy.replica.durable_index() == 1);
}

TEST_CASE("replica: what is committed is not cut; it halts instead") {
    Copy copy;
    const auto a = entry_after({}, 1, "a");
    copy.sync(copy.append(1, {}, {a}, 1));
    REQUIRE(copy.replica.commit() == 1);
    const auto out = copy.append(2, {}, {entry_after({}, 2, "b")});
    CHECK(out.halt != nullptr);
    CHECK(out.writes.empty());
    CHECK(copy.replica.log().last() == position_of(a));
}

TEST_CASE("replica: a gap is answered by where to go on") {
    Copy copy;
    const auto a = entry_after({}, 1, "a"), b = entry_after(position_of(a), 1, "b"),
               c = entry_after(position_of(b), 1, "c");
    copy.sync(copy.append(1, {}, {a}));
    const auto answer = answer_of(copy.append(1, position_of(b), {c}));
    CHECK(answer.status == AppendStatus::mismatch);
    CHECK(answer.hint == 1);
    CHECK(answer.matched == 1);
}

TEST_CASE("replica: a damaged entry is no entry, and its epoch is promised all the same") {
    Copy copy;
    auto damaged = entry_after({}, 4, "a");
    damaged.payload = text("b");
    const auto written = copy.append(4, {}, {damaged});
    REQUIRE(written.writes.size() == 1);
    CHECK(written.writes[0].promise == Epoch(4));
    CHECK(written.writes[0].entries.empty());
    CHECK(copy.replica.log().last_index() == 0);
}

TEST_CASE("replica: the primary's commit counts only as far as the log is verified") {
    Copy copy;
    const auto a = entry_after({}, 1, "a"), b = entry_after(position_of(a), 1, "b");
    copy.sync(copy.append(1, {}, {a, b}));
    // Another epoch's primary has committed more than it has shown to this replica: b may still be cut.
    copy.sync(copy.append(2, {}, {a}, 9));
    CHECK(copy.replica.commit() == 1);
}

TEST_CASE("replica: without space it takes no entries, says so, and goes on when there is") {
    Copy copy;
    copy.sync(copy.append(1, {}, {}));
    copy.replica.set_full(true);
    const auto a = entry_after({}, 1, "a");
    const auto refused = copy.append(1, {}, {a});
    CHECK(answer_of(refused).full);
    CHECK(answer_of(refused).matched == 0);
    CHECK(refused.writes.empty());
    copy.replica.set_full(false);
    CHECK(answer_of(copy.sync(copy.append(1, {}, {a}))).matched == 1);
}

TEST_CASE("replica: a snapshot replaces a log that does not hold its position, and no other") {
    const auto a = entry_after({}, 1, "a"), b = entry_after(position_of(a), 1, "b"),
               c = entry_after(position_of(b), 1, "c");
    SnapshotPart part;
    part.epoch = Epoch(2);
    part.transfer = 1;
    part.at = position_of(b);
    part.last = true;
    part.bytes = text("state");

    Copy longer;
    longer.sync(longer.append(1, {}, {a, b, c}));
    ReplicaOutputs kept;
    longer.replica.take_part(part, kept);
    CHECK(kept.staged.empty());
    CHECK(longer.replica.log().last_index() == 3);  // c may be acknowledged
    longer.sync(kept);

    Copy empty;
    ReplicaOutputs installed;
    empty.replica.take_part(part, installed);
    REQUIRE(installed.writes.size() == 1);
    CHECK(installed.staged.size() == 1);
    CHECK(installed.writes[0].install == position_of(b));
    CHECK(empty.replica.durable_index() == 0);
    CHECK(answer_of(empty.sync(installed)).matched == 2);
    CHECK(answer_of(empty.sync(empty.append(2, position_of(b), {c}))).matched == 3);
}

TEST_CASE("replica: what a deposed primary had added and never written does not exist") {
    Copy copy;
    ReplicaOutputs begun;
    copy.replica.begin_epoch(Epoch(1), begun);
    copy.sync(begun);
    copy.replica.add_own(text("never written"));
    const auto barrier = copy.replica.log().at(1);
    const auto b = entry_after(*barrier, 2, "b");
    const auto written = copy.append(2, *barrier, {b});
    REQUIRE(written.writes.size() == 1);
    CHECK_FALSE(written.writes[0].truncate_to.has_value());
    copy.sync(written);
    CHECK(copy.replica.log().last() == position_of(b));
    CHECK(copy.replica.durable_index() == 2);
}

}  // namespace mainstay
