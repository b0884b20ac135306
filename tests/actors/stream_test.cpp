// Streams: what a reader is shown, in which order, and when it is dropped.

#include "tests/support/actor_fixture.h"

using namespace mainstay;

namespace {

/// The shape with runs of deltas written as one.
std::string gist(const Reader& reader) {
    std::string out;
    for (char c : reader.shape())
        if (c != 'd' || out.empty() || out.back() != 'd') out += c;
    return out;
}

}  // namespace

TEST_CASE("a stream is accepted, deltas, items, ended, in this order") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    Reader reader = node.stream(key, {"hello"});
    node.settle();
    node.release_models();
    node.settle();
    CHECK(gist(reader) == "adie");
    CHECK(reader.text() == "You said: hello");
    const auto& accepted = std::get<StreamAccepted>(reader.events->front()).answer;
    CHECK(status_of(accepted) == "in_progress");
    CHECK(said(std::get<StreamEnded>(reader.events->back()).answer) == "You said: hello");
}

TEST_CASE("a reader is told nothing before the input is committed, and no end before the answer is") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_store = true;
    Reader reader = node.stream(key, {"hello"});
    node.settle();
    CHECK(reader.shape().empty());
    node.hold_models();
    node.hold_store = false;
    node.settle();
    CHECK(reader.shape().starts_with("a"));
    node.release_models();
    node.settle();

    Reader second = node.stream(key, {"two"});
    node.hold_models();
    node.settle();
    CHECK(second.shape() == "a");
    node.hold_store = true;
    node.release_models();
    node.settle();
    CHECK(gist(second) == "ad");  // provisional text may be shown, items may not
    node.hold_store = false;
    node.settle();
    CHECK(gist(second) == "adie");
}

TEST_CASE("a stream shows a tool call, its output, and the text that follows") {
    ActorFixture node;
    node.bank_agent("banker", "look", EffectClass::read);
    const auto key = node.new_session();
    Reader reader = node.stream(key, {"look", "banker"});
    node.settle();
    CHECK(gist(reader) == "ai");
    CHECK(std::get<StreamItems>((*reader.events)[1]).items.front()->kind == ItemKind::tool_call);
    node.hold_store = true;
    node.tools.answer(0, "much");
    node.settle();
    CHECK(gist(reader) == "ai");
    node.hold_store = false;
    node.settle();
    CHECK(gist(reader) == "aicie");  // a model that answers before the commit of what it answers is shown whole
    CHECK(std::get<StreamItemDone>((*reader.events)[2]).item->text == "much");
}

TEST_CASE("a reader that closed is dropped, and the turn goes on without it") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    Reader reader = node.stream(key, {"hello"});
    Reader queued = node.stream(key, {"two"});
    node.settle();
    reader.close();
    node.release_models();
    node.settle();
    CHECK(reader.shape() == "a");
    CHECK(gist(queued) == "adie");
    CHECK(said(node.read(key, 1)->value()) == "You said: hello");
    node.advance(12'000);
    CHECK(node.active() == 0);  // nobody is waited for
}

TEST_CASE("a session whose only reader closed before its turn began to run can sleep again") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_store = true;
    Reader reader = node.stream(key, {"hello"});
    node.settle();
    reader.close();
    node.hold_store = false;
    node.settle();
    CHECK(reader.shape().empty());
    node.advance(12'000);
    CHECK(node.active() == 0);
    CHECK(said(node.read(key, 1)->value()) == "You said: hello");
}

TEST_CASE("a refused stream says why and ends") {
    ActorFixture node;
    const auto key = node.new_session();
    AskTurn ask{"hello"};
    ask.conversation = true;  // there is none
    Reader reader = node.stream(key, ask);
    node.settle();
    REQUIRE(reader.shape() == "f");
    CHECK(std::get<StreamFailed>(reader.events->front()).error.code == ErrorCode::session_not_found);
}

TEST_CASE("a stream whose turn is cancelled ends with the cancelled turn") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    Reader reader = node.stream(key, {"hello"});
    node.settle();
    node.cancel(key, 1);
    CHECK(reader.shape() == "ae");
    CHECK(status_of(std::get<StreamEnded>(reader.events->back()).answer) == "cancelled");
}

TEST_CASE("a step that fails and works later shows the readers its text once") {
    ActorFixture node;
    node.model(R"(name = "failing-model"
device = "scripted"
[[script]]
text = "at last"
fail_class = "transient"
fail_times = 2
)");
    node.agent("name = \"failing\"\nmodel = \"failing-model\"\n[retry]\nbackoff = \"1s..2s\"\n");
    const auto key = node.new_session();
    Reader reader = node.stream(key, {"hello", "failing"});
    node.advance(30'000);
    // Deltas only if the attempt's cause was committed before the model, which answers at once, had answered.
    CHECK((gist(reader) == "adie" || gist(reader) == "aie"));
    CHECK((reader.text().empty() || reader.text() == "at last"));
    CHECK(said(std::get<StreamEnded>(reader.events->back()).answer) == "at last");
}

TEST_CASE("a repeated key streams the recorded turn, or joins the one that runs") {
    ActorFixture node;
    const auto key = node.new_session();
    node.hold_models();
    Reader first = node.stream(key, {"hello", "plain", "order-1"});
    node.settle();
    Reader joined = node.stream(key, {"hello", "plain", "order-1"});
    node.settle();
    CHECK(joined.shape() == "a");
    node.release_models();
    node.settle();
    CHECK(gist(first) == "adie");
    CHECK(gist(joined) == "adie");
    Reader late = node.stream(key, {"hello", "plain", "order-1"});
    node.settle();
    CHECK(late.shape() == "ae");
    CHECK(said(std::get<StreamEnded>(late.events->back()).answer) == "You said: hello");
}

TEST_CASE("one who joins a turn between two steps is shown what there is, once") {
    ActorFixture node;
    node.bank_agent("banker", "look", EffectClass::read);
    const auto key = node.new_session();
    Reader first = node.stream(key, {"look", "banker", "order-1"});
    node.settle();
    Reader joined = node.stream(key, {"look", "banker", "order-1"});
    node.settle();
    CHECK(gist(joined) == "ai");
    node.hold_models();
    node.tools.answer(0, "much");
    node.settle();
    node.release_models();
    node.settle();
    CHECK(gist(first) == "aicdie");
    CHECK(gist(joined) == "aicdie");
    CHECK(joined.text() == first.text());
}
