// The plain parts of the shells: output gate, turn watch, reply callbacks, agent binding.

#include <doctest/doctest.h>

#include "actors/agent_binding.h"
#include "actors/output_gate.h"
#include "actors/turn_watch.h"
#include "runtime/agent/agent_file.h"
#include "tests/support/actor_fixture.h"

using namespace mainstay;

namespace {

TurnAnswer answer_of(uint32_t no) {
    auto turn = std::make_shared<Turn>();
    turn->no = TurnNo{no};
    TurnAnswer answer;
    answer.turn = std::move(turn);
    return answer;
}

}  // namespace

// --- output gate
// ----------------------------------------------------------------------------------------------------

TEST_CASE("output gate: what is committed leaves at once, the rest in the order of its sequences") {
    OutputGate gate;
    gate.start_at(Sequence{5});
    CHECK(gate.committed() == Sequence{5});
    std::string out;
    gate.hold(Sequence{5}, [&] { out += "a"; });
    CHECK(out == "a");
    gate.hold(Sequence{7}, [&] { out += "b"; });
    gate.hold(Sequence{7}, [&] { out += "c"; });
    gate.hold(Sequence{9}, [&] { out += "d"; });
    gate.commit(Sequence{6});
    CHECK(out == "a");
    CHECK_FALSE(gate.empty());
    gate.commit(Sequence{8});
    CHECK(out == "abc");
    CHECK(gate.is_committed(Sequence{8}));
    CHECK_FALSE(gate.is_committed(Sequence{9}));
    gate.commit(Sequence{9});
    CHECK(out == "abcd");
    CHECK(gate.empty());
}

TEST_CASE("output gate: nothing overtakes what is held, though its own cause be committed") {
    OutputGate gate;
    std::string out;
    gate.hold(Sequence{2}, [&] { out += "2"; });
    gate.hold(Sequence{0}, [&] { out += "0"; });
    CHECK(out.empty());
    gate.commit(Sequence{2});
    CHECK(out == "20");
}

TEST_CASE("output gate: an output may hold further ones, and an old commit takes nothing back") {
    OutputGate gate;
    std::string out;
    gate.hold(Sequence{1}, [&] {
        out += "1";
        gate.hold(Sequence{1}, [&] { out += "again"; });
        gate.hold(Sequence{3}, [&] { out += "3"; });
    });
    gate.commit(Sequence{1});
    CHECK(out == "1again");
    gate.commit(Sequence{0});
    CHECK(gate.committed() == Sequence{1});
    gate.commit(Sequence{3});
    CHECK(out == "1again3");
}

// --- turn watch
// -----------------------------------------------------------------------------------------------------

TEST_CASE("turn watch: settling a turn answers its own callers, each with its own mark of repetition") {
    TurnWatch watch;
    auto [first, first_reply] = expect_reply<TurnAnswer>();
    auto [again, again_reply] = expect_reply<TurnAnswer>();
    auto [other, other_reply] = expect_reply<TurnAnswer>();
    watch.wait(TurnNo{1}, std::move(first_reply), 0, false);
    watch.wait(TurnNo{1}, std::move(again_reply), 0, true);
    watch.wait(TurnNo{2}, std::move(other_reply), 0, false);
    watch.settle(answer_of(1));
    CHECK_FALSE(first->value().repeated);
    CHECK(again->value().repeated);
    CHECK_FALSE(other->answered());
    CHECK_FALSE(watch.empty());
    watch.settle(answer_of(2));
    CHECK(other->ok());
    CHECK(watch.empty());
}

TEST_CASE("turn watch: callers expire by their own deadlines, the earliest is known") {
    TurnWatch watch;
    auto [patient, patient_reply] = expect_reply<TurnAnswer>();
    auto [early, early_reply] = expect_reply<TurnAnswer>();
    auto [late, late_reply] = expect_reply<TurnAnswer>();
    CHECK(watch.next_deadline() == 0);
    watch.wait(TurnNo{1}, std::move(patient_reply), 0, false);
    CHECK(watch.next_deadline() == 0);
    watch.wait(TurnNo{1}, std::move(late_reply), 200, false);
    watch.wait(TurnNo{1}, std::move(early_reply), 100, false);
    CHECK(watch.next_deadline() == 100);
    const auto why = [](TurnNo) { return Error{ErrorCode::request_timeout, "later", {}}; };
    watch.expire(99, why);
    CHECK_FALSE(early->answered());
    watch.expire(100, why);
    CHECK(early->code() == "request_timeout");
    CHECK_FALSE(late->answered());
    CHECK(watch.next_deadline() == 200);
    watch.settle(answer_of(1));
    CHECK(patient->ok());
    CHECK(late->ok());
    CHECK(watch.next_deadline() == 0);
}

TEST_CASE("turn watch: a stream is expected, subscribed, published to and dropped when it closed") {
    TurnWatch watch;
    CHECK_FALSE(watch.has_stream(TurnNo{1}));
    watch.expect(TurnNo{1});
    CHECK(watch.has_stream(TurnNo{1}));
    CHECK_FALSE(watch.has_stream(TurnNo{2}));
    CHECK_FALSE(watch.empty());
    Reader reader;
    watch.subscribe(TurnNo{1}, reader.subscribe());
    CHECK(watch.has_stream(TurnNo{1}));
    watch.publish(TurnNo{1}, StreamDelta{0, 0, "text"});
    watch.publish(TurnNo{2}, StreamDelta{0, 0, "of another"});
    CHECK(reader.text() == "text");
    reader.close();
    watch.publish(TurnNo{1}, StreamDelta{0, 0, "unheard"});
    CHECK_FALSE(watch.has_stream(TurnNo{1}));
    CHECK(watch.empty());
    CHECK(reader.shape() == "d");
}

TEST_CASE("turn watch: one failure ends everybody, and an ended stream hears nothing more") {
    TurnWatch watch;
    auto [caller, reply] = expect_reply<TurnAnswer>();
    Reader reader, ended;
    watch.wait(TurnNo{1}, std::move(reply), 50, false);
    const auto stream = ended.subscribe();
    watch.subscribe(TurnNo{1}, stream);
    watch.settle(answer_of(1));
    watch.subscribe(TurnNo{2}, reader.subscribe());
    watch.fail_all({ErrorCode::session_not_found, "gone", {}});
    CHECK(caller->ok());
    CHECK(reader.shape() == "f");
    CHECK(watch.empty());
    stream->send(StreamDelta{0, 0, "more"});
    CHECK(ended.shape() == "e");
}

// --- callbacks that are never lost
// ----------------------------------------------------------------------------------

TEST_CASE("a dropped request tells its caller, an answered or moved one does not") {
    auto [dropped, dropped_reply] = expect_reply<TurnAnswer>();
    { ReplyTo<TurnAnswer> gone(std::move(dropped_reply)); }
    CHECK(dropped->code() == "internal");

    auto [answered, answered_reply] = expect_reply<TurnAnswer>();
    {
        ReplyTo<TurnAnswer> moved(std::move(answered_reply));
        CHECK_FALSE(static_cast<bool>(answered_reply));
        moved(answer_of(1));
        CHECK_FALSE(static_cast<bool>(moved));
        moved(answer_of(2));  // once is once
    }
    CHECK(answered->value().turn->no == TurnNo{1});

    auto [replaced, replaced_reply] = expect_reply<TurnAnswer>();
    auto [kept, kept_reply] = expect_reply<TurnAnswer>();
    replaced_reply = std::move(kept_reply);
    CHECK(replaced->code() == "internal");
    CHECK_FALSE(kept->answered());
    replaced_reply(answer_of(1));
    CHECK(kept->ok());
}

TEST_CASE("every ask can be refused, and says so to whoever asked") {
    const Error error{ErrorCode::draining, "the node is shutting down", {}};
    Reader reader;
    auto [turn, turn_reply] = expect_reply<TurnAnswer>();
    SubmitTurn submit;
    submit.done = std::move(turn_reply);
    submit.stream = reader.subscribe();
    Ask ask = std::move(submit);
    refuse(ask, error);
    CHECK(turn->code() == "draining");
    CHECK(reader.shape() == "f");

    auto [info, info_reply] = expect_reply<SessionInfo>();
    ask = ReadInfo{std::move(info_reply)};
    refuse(ask, error);
    CHECK(info->code() == "draining");

    bool woken = false;
    ask = WakeUp{[&] { woken = true; }};
    refuse(ask, error);
    CHECK(woken);
}

// --- agent binding
// --------------------------------------------------------------------------------------------------

TEST_CASE("agent binding: a name is an agent or a bare model, and a bound version is found again") {
    Catalogue catalogue;
    auto model = [&](const std::string& name, const std::string& text) {
        auto parsed = parse_model(
            "name = \"" + name + "\"\ndevice = \"scripted\"\n[[script]]\ntext = \"" + text + "\"\n", Syntax::toml);
        REQUIRE(parsed.ok());
        catalogue.apply(*parsed);
        return *parsed;
    };
    auto agent = [&](const std::string& name, const std::string& instructions) {
        auto parsed = parse_agent(
            "name = \"" + name + "\"\nmodel = \"bare\"\ninstructions = \"" + instructions + "\"\n", Syntax::toml);
        REQUIRE(parsed.ok());
        catalogue.apply(*parsed);
        return *parsed;
    };
    CHECK(bind_agent(catalogue, "nobody") == nullptr);
    CHECK(bound_agent(catalogue, "nobody", 1) == nullptr);
    const auto bare = model("bare", "hello");
    const auto of_model = bind_agent(catalogue, "bare");
    REQUIRE(of_model != nullptr);
    CHECK(of_model->model == "bare");
    CHECK(of_model->version == bare->version);
    CHECK(of_model->instructions.empty());
    CHECK(of_model->tools.empty());
    REQUIRE(bound_agent(catalogue, "bare", bare->version) != nullptr);

    const auto first = agent("helper", "Be kind.");
    const auto second = agent("helper", "Be brief.");
    CHECK(bind_agent(catalogue, "helper")->version == second->version);
    CHECK(bound_agent(catalogue, "helper", first->version)->instructions == "Be kind.");
    CHECK(bound_agent(catalogue, "helper", 12345) == nullptr);
    // An agent of a model's name goes before it; turns that are bound to the bare model still find one.
    const auto named = agent("bare", "I am an agent.");
    CHECK(bind_agent(catalogue, "bare")->version == named->version);
    CHECK(bound_agent(catalogue, "bare", bare->version)->instructions.empty());
}

TEST_CASE("a running turn keeps the version that it was bound to, the next one has the latest") {
    ActorFixture node;
    node.model("name = \"m\"\ndevice = \"scripted\"\n[[script]]\ntext = \"old\"\n");
    node.agent("name = \"helper\"\nmodel = \"m\"\ninstructions = \"Be kind.\"\n");
    const auto key = node.new_session();
    node.hold_models();
    const auto one = node.turn(key, {"hello", "helper"});
    const auto version = node.catalogue.agent("helper")->version;
    node.agent("name = \"helper\"\nmodel = \"m\"\ninstructions = \"Be brief.\"\n");
    const auto two = node.turn(key, {"hello", "helper"});
    node.release_models();
    node.settle();
    CHECK(one->value().turn->agent_version == version);
    REQUIRE(one->value().agent != nullptr);
    CHECK(one->value().agent->instructions == "Be kind.");
    CHECK(two->value().agent->instructions == "Be brief.");
}
