// What the pure session core costs, without store, actors or network: the four decisions of a turn with one tool call,
// the codec, the fold, and a head at turn 10 against one at turn 10,000. Prints a table and, with --json, writes it.

#include <CLI/CLI.hpp>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "runtime/session/fold.h"
#include "runtime/session/session.h"

namespace {

using namespace mainstay;

struct Figure {
    std::string name;
    double value;
    std::string unit;
};
std::vector<Figure> figures;

void report(const std::string& name, double value, const std::string& unit) {
    figures.push_back({name, value, unit});
    std::printf("%-52s %12.3f %s\n", name.c_str(), value, unit.c_str());
}

// The best of several runs: what the code costs, without what else the machine was doing.
double micros_each(size_t count, const std::function<void(size_t)>& run) {
    double best = 1e30;
    for (int repeat = 0; repeat < 60; ++repeat) {
        const auto start = std::chrono::steady_clock::now();
        run(count);
        const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
        best = std::min(best, took.count() / static_cast<double>(count));
    }
    return best;
}

const SessionKey key{TenantId{1}, SessionId{FamilyId{0x18c0'0000'0000'1234}, 0x1122334455667788, 0x99aabbccddeeff00}};
const std::string question(200, 'q'), answer_text(400, 'a'), output(400, 'o');

Command command(TimeMs now, CommandBody body) {
    Command c;
    c.context.now = now;
    c.context.tenant = key.tenant;
    c.context.principal = "bench";
    c.body = std::move(body);
    return c;
}

SubmitInput input() {
    SubmitInput submit;
    auto item = std::make_shared<Item>();
    item->text = question;
    submit.input.items = {item};
    submit.input.agent = "helper";
    submit.input.agent_version = 77;
    submit.input.options = R"({"model":"helper","temperature":0.2})";
    submit.create.emplace();
    return submit;
}

ModelStepDone step(TurnNo turn, uint32_t number, bool call) {
    ModelStepDone done;
    done.turn = turn;
    done.step = number;
    done.usage.input_tokens = 300;
    done.usage.output_tokens = 100;
    done.model = "tiny";
    done.finish_reason = call ? "tool_calls" : "stop";
    if (!call) {
        done.text = answer_text;
        return done;
    }
    PlannedCall& planned = done.calls.emplace_back();
    planned.disposition = PlannedCall::Disposition::run;
    planned.call_id = "call_7f3a9b2c";
    planned.name = "files__read";
    planned.server_label = "files";
    planned.tool = "read";
    planned.arguments = R"({"path":"/data/notes.txt"})";
    planned.effect = EffectClass::idempotent;
    planned.timeout_ms = 60000;
    return done;
}

using Journal = std::vector<std::pair<Sequence, std::string>>;

size_t turn(Session& session, TimeMs& now, Journal* journal) {
    size_t bytes = 0;
    auto run = [&](CommandBody body) {
        Decided decided = session.decide(command(++now, std::move(body)));
        INVARIANT(decided.batch, "every command of the bench decides something");
        std::string encoded = encode(*decided.batch);
        bytes += encoded.size();
        if (journal) journal->emplace_back(decided.first_sequence, std::move(encoded));
        return decided.turn;
    };
    const TurnNo no = run(input());
    run(step(no, 0, true));
    ToolStepDone done;
    done.turn = no;
    done.call = 1;
    done.output = output;
    run(done);
    run(step(no, 1, false));
    INVARIANT(session.idle(), "the turn is settled");
    return bytes;
}

void measure_turns() {
    Session session(key);
    TimeMs now = 1'700'000'000'000;
    size_t bytes = 0;
    report("turn: four decides with encode",
           micros_each(1000,
                       [&](size_t n) {
                           for (size_t i = 0; i < n; ++i) bytes = turn(session, now, nullptr);
                       }),
           "us");
    report("turn: journal payload", static_cast<double>(bytes), "bytes");
}

void measure_codec() {
    EventBatch batch;
    batch.at = 1'700'000'000'000;
    batch.turn = TurnNo{4};
    auto item = std::make_shared<Item>();
    item->role = Role::assistant;
    item->text = answer_text;
    ModelStepSettled settled;
    settled.items = {item};
    settled.usage.input_tokens = 300;
    settled.usage.output_tokens = 100;
    settled.model = "tiny";
    settled.finish_reason = "stop";
    batch.events.emplace_back(settled);
    batch.events.emplace_back(TurnSettled{});
    size_t sum = 0;
    report("codec: encode, batch with 400 B of text",
           micros_each(2000,
                       [&](size_t n) {
                           for (size_t i = 0; i < n; ++i) sum += encode(batch).size();
                       }),
           "us");
    const std::string bytes = encode(batch);
    report("codec: decode of it",
           micros_each(2000,
                       [&](size_t n) {
                           for (size_t i = 0; i < n; ++i) sum += decode_batch(bytes).value().events.size();
                       }),
           "us");
    report("codec: its bytes", static_cast<double>(bytes.size()), "bytes");
    INVARIANT(sum > 0, "the loops ran");
}

void measure_fold() {
    for (size_t turns : {1, 8, 32}) {
        Session session(key);
        TimeMs now = 1'700'000'000'000;
        Journal journal;
        turn(session, now, nullptr);
        const std::string head = session.encode_head();
        for (size_t i = 0; i < turns; ++i) turn(session, now, &journal);
        std::vector<FoldRecord> records;
        for (const auto& [first, bytes] : journal) records.push_back(FoldRecord{Lsn{1}, Epoch{1}, first, bytes});
        SessionFold fold;
        std::vector<RowOp> rows;
        const double each = micros_each(100, [&](size_t n) {
            for (size_t i = 0; i < n; ++i) {
                rows.clear();
                INVARIANT(fold.fold(key, head, records, rows).ok(), "the records fold");
            }
        });
        report("fold: each of " + std::to_string(turns) + " turns of four records", each / static_cast<double>(turns),
               "us");
        if (turns == 1)
            for (const RowOp& row : rows)
                if (row.table == Table::turn) report("fold: turn row", static_cast<double>(row.value->size()), "bytes");
    }
}

void measure_head() {
    Session session(key);
    TimeMs now = 1'700'000'000'000;
    size_t sum = 0;
    uint32_t done = 0;
    for (uint32_t turns : {10u, 10000u}) {
        for (; done < turns; ++done) turn(session, now, nullptr);
        const std::string at = " at turn " + std::to_string(turns);
        report("head: encode" + at,
               micros_each(2000,
                           [&](size_t n) {
                               for (size_t i = 0; i < n; ++i) sum += session.encode_head().size();
                           }),
               "us");
        const std::string head = session.encode_head();
        report("head: bytes" + at, static_cast<double>(head.size()), "bytes");
        report("head: decode" + at,
               micros_each(1000,
                           [&](size_t n) {
                               for (size_t i = 0; i < n; ++i) sum += Session::decode_head(key, head).ok();
                           }),
               "us");
        Session copy = session;
        report("turn: four decides with encode" + at,
               micros_each(500,
                           [&](size_t n) {
                               for (size_t i = 0; i < n; ++i) turn(copy, now, nullptr);
                           }),
               "us");
        report("window" + at,
               micros_each(1000,
                           [&](size_t n) {
                               for (size_t i = 0; i < n; ++i) sum += session.window().size();
                           }),
               "us");
    }
    INVARIANT(sum > 0, "the loops ran");
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"cost of the session core"};
    std::string json;
    app.add_option("--json", json, "write the figures to this file");
    CLI11_PARSE(app, argc, argv);
    measure_turns();
    measure_codec();
    measure_fold();
    measure_head();
    if (json.empty()) return 0;
    std::ofstream out(json);
    out << "{\n";
    for (size_t i = 0; i < figures.size(); ++i)
        out << "  \"" << figures[i].name << "\": {\"value\": " << figures[i].value << ", \"unit\": \""
            << figures[i].unit << "\"}" << (i + 1 < figures.size() ? "," : "") << "\n";
    out << "}\n";
    return out.good() ? 0 : 1;
}
