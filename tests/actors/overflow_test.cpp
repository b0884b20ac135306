// Prompts that are too long for the model, and where prompts begin: the scripted models here say with which user
// message theirs did.

#include "tests/support/actor_fixture.h"

using namespace mainstay;

namespace {

/// Takes 300 tokens, that is, 1,200 bytes of history.
const std::string narrow_model = R"(name = "narrow"
device = "scripted"
context_window = 300
[[script]]
text = "from {first_input}"
fail_class = "context_overflow"
fail_times = 1
)";

AskTurn ask_of(size_t n, std::string agent, size_t bytes = 100) {
    std::string text = "turn " + std::to_string(n) + " ";
    text.resize(std::max(bytes, text.size()), '.');
    return AskTurn{std::move(text), std::move(agent)};
}

/// Number of the turn that the model's prompt began with.
size_t first_of(const TurnAnswer& answer) {
    const std::string text = said(answer);
    REQUIRE(text.starts_with("from turn "));
    return std::stoul(text.substr(10));
}

SessionKey key_of(const ActorFixture& node, const TurnAnswer& answer) { return {node.tenant, answer.session}; }

size_t count(const std::string& text, std::string_view word) {
    size_t found = 0;
    for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++found;
    return found;
}

}  // namespace

TEST_CASE("a prompt that is too long is shortened and the step runs again, in the same turn and unasked") {
    ActorFixture node;
    node.model(narrow_model);
    const auto key = node.new_session();
    std::vector<size_t> firsts;
    for (size_t n = 1; n <= 40; ++n) {
        const auto answer = node.turn(key, ask_of(n, "narrow"));
        REQUIRE(status_of(answer->value()) == "completed");
        firsts.push_back(first_of(answer->value()));
    }
    CHECK(firsts[4] == 1);
    CHECK(firsts[39] > 30);
    // Between compactions prompts only append.
    size_t moves = 0;
    for (size_t i = 1; i < firsts.size(); ++i) {
        CHECK(firsts[i] >= firsts[i - 1]);
        moves += firsts[i] != firsts[i - 1];
    }
    CHECK(moves >= 5);
    CHECK(moves <= 13);
    const std::string events = node.event_names(key);
    CHECK(count(events, "StepFailed Compacted RetryScheduled ModelStepSettled") == moves);
    CHECK(count(events, "Decision") == 0);
    // What is left out of prompts is still there to be read.
    CHECK(node.read(key, 1)->value().turn->items.size() == 2);
}

TEST_CASE("a prompt that cannot be shortened fails its turn, and the next one goes on") {
    ActorFixture node;
    node.model(narrow_model);
    const auto key = node.new_session();
    for (size_t n = 1; n <= 3; ++n) node.turn(key, ask_of(n, "narrow"));
    const auto failed = node.turn(key, ask_of(4, "narrow", 2000));
    CHECK(status_of(failed->value()) == "failed");
    CHECK(failed->value().turn->code == "context_overflow");
    CHECK(failed->value().turn->message ==
          "the prompt has 500 tokens, it may have 300; no earlier turn is left that could be left out");
    // The long input is history, too, and the first to go.
    const auto next = node.turn(key, ask_of(5, "narrow"));
    CHECK(status_of(next->value()) == "completed");
    CHECK(first_of(next->value()) == 5);
}

TEST_CASE("truncation: the request's word counts, or else the agent's") {
    ActorFixture node;
    node.model(narrow_model);
    node.agent("name = \"strict\"\nmodel = \"narrow\"\n[context]\ntruncation = \"disabled\"\n");
    node.agent("name = \"easy\"\nmodel = \"narrow\"\n");
    struct Case {
        std::string agent, options;
        bool completes;
    };
    for (const Case& c :
         {Case{"easy", "{}", true}, Case{"strict", "{}", false}, Case{"easy", R"({"truncation":"disabled"})", false},
          Case{"strict", R"({"truncation":"auto"})", true},
          Case{"strict", R"({"metadata":{"truncation":"auto"}})", false}}) {
        CAPTURE(c.agent + c.options);
        const auto key = node.new_session();
        node.turn(key, ask_of(1, "easy", 700));
        auto ask = ask_of(2, c.agent, 700);
        ask.options = c.options;
        const auto answer = node.turn(key, ask);
        CHECK(status_of(answer->value()) == (c.completes ? "completed" : "failed"));
        CHECK(answer->value().turn->code == (c.completes ? "" : "context_overflow"));
        CHECK(count(node.event_names(key), "Compacted") == (c.completes ? 1 : 0));
    }
}

TEST_CASE("a session that sleeps or is killed begins its prompts where it would have begun them awake") {
    NodeOptions options;
    options.window_bytes = 8'000;
    ActorFixture node(options), undisturbed(options);
    for (ActorFixture* each : {&node, &undisturbed}) {
        each->model("name = \"wide\"\ndevice = \"scripted\"\n[[script]]\ntext = \"from {first_input}\"\n");
        each->model(narrow_model);
    }
    for (const std::string model : {"wide", "narrow"}) {
        CAPTURE(model);
        const auto awake = undisturbed.new_session(), other = node.new_session();
        size_t moves = 0, before = 1;
        for (size_t n = 1; n <= 100; ++n) {
            CAPTURE(n);
            const size_t first = first_of(undisturbed.turn(awake, ask_of(n, model))->value());
            if (n % 3 == 0) node.advance(12'000);  // everybody sleeps
            if (n % 7 == 0) node.store().run();
            if (n % 5 == 0) node.kill_and_restart();
            CHECK(first_of(node.turn(other, ask_of(n, model))->value()) == first);
            moves += first != before;
            before = first;
        }
        CHECK(moves > 3);
        CHECK(moves < 30);
    }
}

TEST_CASE("a fork's prompts begin where its parent's do") {
    NodeOptions options;
    options.window_bytes = 8'000;
    ActorFixture node(options);
    node.model("name = \"wide\"\ndevice = \"scripted\"\n[[script]]\ntext = \"from {first_input}\"\n");
    const auto key = node.new_session();
    for (size_t n = 1; n <= 60; ++n) node.turn(key, ask_of(n, "wide"));
    // The tip is extended; what is asked behind the turn before it forks.
    node.turn(key, ask_of(61, "wide"));
    auto ask = ask_of(62, "wide");
    ask.after = TurnNo{60};
    const auto forked = node.turn(key, ask);
    CHECK(forked->value().session != key.session);
    const size_t first = first_of(forked->value());
    CHECK(first > 20);
    CHECK(first_of(node.turn(key, ask_of(62, "wide"))->value()) == first);
    CHECK(node.event_names(key_of(node, forked->value())).starts_with("SessionCreated Compacted InputAccepted "));
}
