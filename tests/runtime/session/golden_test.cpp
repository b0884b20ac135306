// Bytes that earlier versions wrote stay readable: formats change by adding only. The files under tests/golden/session
// are never rewritten; a version that adds something adds a file. With MAINSTAY_WRITE_GOLDEN=1 the test writes those
// that are missing.

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "runtime/session/event_json.h"
#include "runtime/session/every_event.h"
#include "runtime/session/random_history.h"

using namespace mainstay;
using namespace mainstay::test;

namespace {

const std::string folder = std::string(MAINSTAY_SOURCE_DIR) + "/tests/golden/session/";

std::optional<std::string> load(const std::string& name) {
    std::ifstream in(folder + name, std::ios::binary);
    if (!in) return std::nullopt;
    return std::string(std::istreambuf_iterator<char>(in), {});
}

std::string golden(const std::string& name, const std::string& now) {
    auto held = load(name);
    if (!held && std::getenv("MAINSTAY_WRITE_GOLDEN")) {
        std::ofstream(folder + name, std::ios::binary) << now;
        held = load(name);
    }
    REQUIRE_MESSAGE(held, "missing golden file: " << name);
    return *held;
}

}  // namespace

TEST_CASE("golden: a batch with an event of every kind") {
    const std::string bytes = golden("events_1.bin", encode(every_event()));
    auto batch = decode_batch(bytes);
    REQUIRE_MESSAGE(batch.ok(), (batch.ok() ? "" : batch.error().message));
    const std::string shown = batch_json(*batch, Sequence{100});
    CHECK(shown == golden("events_1.json", shown));
    CHECK(batch->events.size() == 20);
}

TEST_CASE("golden: a step with the tokens that were sampled, and what a prompt that is too long leaves") {
    ModelStepSettled settled;
    settled.items = {user_item("x")};
    settled.finish_reason = "stop";
    StepTokens tokens;
    for (size_t i = 0; i < tokens.tokenizer.size(); ++i) tokens.tokenizer[i] = static_cast<uint8_t>(255 - i);
    tokens.template_version = 201;
    tokens.ids = {9, 0x00010203, 151'645};
    settled.set_tokens(tokens);
    EventBatch now;
    now.at = 1'700'000'000'456;
    now.turn = TurnNo{2};
    now.events = {StepFailed{0, false, ErrorClass::context_overflow, "context_overflow", "too long", ""},
                  Compacted{TurnNo{1}, ""}, RetryScheduled{0, false, 1'700'000'000'456, 0, "shorter"}, settled};
    auto batch = decode_batch(golden("events_2.bin", encode(now)));
    REQUIRE_MESSAGE(batch.ok(), (batch.ok() ? "" : batch.error().message));
    const std::string shown = batch_json(*batch, Sequence{7});
    CHECK(shown == golden("events_2.json", shown));
    const auto held = std::get<ModelStepSettled>(batch->events.at(3)).tokens();
    REQUIRE(held);
    CHECK(*held == tokens);
}

TEST_CASE("golden: a step that was paused") {
    EventBatch now;
    now.at = 1'700'000'000'789;
    now.turn = TurnNo{2};
    now.events = {every_event().events.back()};
    auto batch = decode_batch(golden("events_3.bin", encode(now)));
    REQUIRE_MESSAGE(batch.ok(), (batch.ok() ? "" : batch.error().message));
    const std::string shown = batch_json(*batch, Sequence{7});
    CHECK(shown == golden("events_3.json", shown));
    CHECK(std::get<StepProgress>(batch->events.at(0)).tokens == std::get<StepProgress>(now.events.at(0)).tokens);
}

namespace {

// Something in every field of a head, and a turn in the middle of everything that can be open.
Rig golden_history() {
    Rig rig;
    SubmitInput submit = Rig::input("remember that I am Ann");
    submit.create->metadata = R"({"topic":"ships"})";
    submit.create->conversation = true;
    submit.create->parent = SessionId{test_key().session.family, 3, 4};
    submit.create->parent_turn = TurnNo{6};
    rig.run(submit);
    rig.model("noted", {builtin(BuiltinAction::Kind::memory_set, "name", "Ann"), run_call(EffectClass::read)});
    rig.tool_done("a file");
    rig.model_fails("I will");
    rig.verdict(true, rig.now);
    rig.model("done");
    rig.submit("and now wait");
    rig.submit("queued behind");
    rig.model("", {sleep_call(5000), run_call(EffectClass::idempotent), run_call(EffectClass::once)});
    rig.now += 10;
    rig.tool_fails(true, 1);
    rig.tool_fails(false, 0);
    return rig;
}

std::string shown(const Session& session) {
    std::string out = describe(session) + "\n" + std::to_string(session.usage().output_tokens) + " " +
                      session.created().principal + " " + std::to_string(session.created_at()) + " " +
                      to_text(session.parent()) + " " + std::to_string(session.parent_turn().value) + "\n";
    for (const auto& [key, value] : session.memory()) out += key + "=" + value + "\n";
    for (TurnNo no : session.open_turns()) out += describe(*session.turn(no)) + "\n";
    return out;
}

}  // namespace

TEST_CASE("golden: a head with open turns") {
    const Rig rig = golden_history();
    auto session = Session::decode_head(test_key(), golden("head_1.bin", rig.session.encode_head()));
    REQUIRE_MESSAGE(session.ok(), (session.ok() ? "" : session.error().message));
    CHECK(shown(*session) == golden("head_1.txt", shown(rig.session)));
    CHECK(session->pending().retries.size() == 1);
}

TEST_CASE("golden: a head that is kept for its key, with a refusal noted") {
    Rig rig;
    rig.key = KeyHash{4};
    SubmitInput submit = Rig::input("not to be kept");
    submit.create->ephemeral = true;
    rig.run(submit);
    rig.model("answer");
    rig.digest = 1;
    rig.run(submit);
    auto session = Session::decode_head(test_key(), golden("head_2.bin", rig.session.encode_head()));
    REQUIRE_MESSAGE(session.ok(), (session.ok() ? "" : session.error().message));
    CHECK(session->ephemeral());
    CHECK(session->wake_at() == 1'700'000'000'000 + 24 * 3600 * 1000);
    CHECK(session->encode_head() == golden("head_2.bin", {}));
    rig.session = std::move(*session);
    rig.key.reset();
    CHECK_FALSE(rig.run(CreateSession{}).batch->events.empty());
    CHECK_FALSE(rig.run(CreateSession{}).batch);
}

TEST_CASE("golden: turn rows, plain and compressed, and a key row") {
    const Rig rig = golden_history();
    std::vector<FoldRecord> records;
    for (const auto& [first, bytes] : rig.journal) records.push_back(FoldRecord{Lsn{1}, Epoch{1}, first, bytes});
    std::vector<RowOp> rows;
    REQUIRE(SessionFold().fold(test_key(), std::nullopt, records, rows).ok());
    std::string plain_now;
    for (const RowOp& row : rows)
        if (row.table == Table::turn && row.key == turn_row_key(test_key(), TurnNo{7})) plain_now = *row.value;
    auto plain = turn_from_row(test_key(), TurnNo{7}, golden("turn_row_1.bin", plain_now));
    REQUIRE_MESSAGE(plain.ok(), (plain.ok() ? "" : plain.error().message));
    CHECK(describe(*plain) == golden("turn_row_1.txt", describe(*plain)));

    Rig long_turn;
    long_turn.submit(std::string(4000, 'q'));
    long_turn.model("short");
    records.clear();
    rows.clear();
    for (const auto& [first, bytes] : long_turn.journal) records.push_back(FoldRecord{Lsn{1}, Epoch{1}, first, bytes});
    REQUIRE(SessionFold().fold(test_key(), std::nullopt, records, rows).ok());
    std::string compressed_now;
    for (const RowOp& row : rows)
        if (row.table == Table::turn) compressed_now = *row.value;
    auto compressed = turn_from_row(test_key(), TurnNo{1}, golden("turn_row_zstd_1.bin", compressed_now));
    REQUIRE_MESSAGE(compressed.ok(), (compressed.ok() ? "" : compressed.error().message));
    CHECK(compressed->items.at(0)->text == std::string(4000, 'q'));
    CHECK(compressed->items.at(1)->text == "short");

    auto key =
        decode_key_row(golden("key_row_1.bin", encode_key_row(KnownKey{TurnNo{3}, 0xabcdef, 1'700'000'000'000})));
    REQUIRE(key.ok());
    CHECK(key->turn == TurnNo{3});
    CHECK(key->request_digest == 0xabcdef);
    CHECK(key->at == 1'700'000'000'000);
}
