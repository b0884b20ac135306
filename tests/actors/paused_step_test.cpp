// A model step on a device of our own when its shard is handed over: paused, recorded, and gone on with where the
// session is then. The real small model, one thread, the test's time.
#include <doctest/doctest.h>

#include "actors/step_pauses.h"
#include "tests/support/actor_fixture.h"
#include "tests/support/tiny_model.h"

using namespace mainstay;

namespace {

struct WithDevice {
    WithDevice() {
        node.model(
            "name = \"mainstay_tiny\"\ndevice = \"neuron_core_sim\"\npath = \"mainstay_tiny\"\n"
            "context_window = 768\nthreads = 1\n[kv]\ndevice = \"16MB\"\nhost = \"0B\"\ndisk = \"0B\"\n");
        OwnModelsConfig own;
        own.models_directory = models_directory;
        own.clock = &node.clock;
        own.detached = false;
        node.node().models.attach(node.system(), own);
        node.node().models.load(node.catalogue.model("mainstay_tiny"));
        node.settle();
    }
    ~WithDevice() {
        node.node().models.stop();
        node.settle();
    }
    /// A turn, as far as the model has begun to speak.
    Reader begin(const SessionKey& key) {
        Reader reader = node.stream(key, {"tell me a joke", "mainstay_tiny", "key-1"});
        until([&] { return !reader.text().empty(); });
        return reader;
    }
    template <class Holds>
    void until(Holds holds) {
        for (int i = 0; i < 10'000 && !holds(); ++i) {
            node.store().step_journal();
            if (node.scheduler().has_job()) node.scheduler().run_once();
        }
        REQUIRE(holds());
    }
    bool pause(const SessionKey& key) { return node.node().pauses.pause(shard_of(key)); }
    /// Tokens that devices have sampled and that counted.
    uint64_t generated() {
        uint64_t tokens = 0;
        node.node().models.read_models([&](std::vector<ModelInfo> models) {
            for (const auto& model : models) tokens += model.scheduler.generated_tokens;
        });
        node.settle();
        return tokens;
    }
    size_t count(const SessionKey& key, const std::string& event) {
        const std::string names = node.event_names(key);
        size_t found = 0;
        for (size_t at = 0; (at = names.find(event + " ", at)) != std::string::npos; ++at) ++found;
        return found;
    }

    ActorFixture node;
};

}  // namespace

TEST_CASE("paused step: it ends between two tokens, is recorded, and goes on from there") {
    WithDevice here;
    const SessionKey quiet = here.node.new_session(), key = here.node.new_session();
    const auto unmoved = here.node.turn(quiet, {"tell me a joke", "mainstay_tiny"});
    REQUIRE(unmoved->ok());

    const Reader reader = here.begin(key);
    CHECK_FALSE(here.pause(quiet));  // another shard
    here.node.hold_store = true;
    CHECK(here.pause(key));
    here.node.run();
    CHECK(here.pause(key));  // what it said is not committed
    here.node.hold_store = false;
    here.node.settle();
    CHECK_FALSE(here.pause(key));
    CHECK(here.count(key, "StepProgress") == 1);
    CHECK(here.count(key, "ModelStepSettled") == 0);
    CHECK(here.node.node().models.in_flight() == 0);

    // As long as the hand-over is near, nothing begins; then it goes on, and says the same as ever.
    for (int i = 0; i < 5; ++i) {
        here.node.advance(500);
        CHECK_FALSE(here.pause(key));
        CHECK(here.node.node().models.in_flight() == 0);
    }
    here.node.advance(StepPauses::asked_within_ms + limits::pause_recheck_ms + 200);
    const auto answer = here.node.read(key, 1);
    REQUIRE(answer->ok());
    CHECK(status_of(answer->value()) == "completed");
    CHECK(said(answer->value()).size() > 0);
    CHECK(reader.shape().back() == 'e');
    CHECK(here.count(key, "StepFailed") == 0);
    const auto& usage = answer->value().turn->usage;
    CHECK(here.generated() == usage.output_tokens + unmoved->value().turn->usage.output_tokens);
}

TEST_CASE("paused step: another actor of the session goes on from what was said") {
    WithDevice here;
    const SessionKey key = here.node.new_session();
    here.begin(key);
    REQUIRE(here.pause(key));
    here.node.settle();
    REQUIRE(here.count(key, "StepProgress") == 1);
    CHECK_FALSE(here.pause(key));
    const uint64_t said_before = here.generated();
    here.node.crash_session(key);
    here.node.settle();
    here.node.advance(10'000);
    const auto answer = here.node.read(key, 1);
    REQUIRE(answer->ok());
    CHECK(status_of(answer->value()) == "completed");
    CHECK(said_before > 0);
    CHECK(here.generated() == answer->value().turn->usage.output_tokens);  // no token was sampled twice
}

TEST_CASE("paused step: who comes back to read it hears it as it comes") {
    WithDevice here;
    const SessionKey key = here.node.new_session();
    const Reader gone = here.begin(key);
    here.node.crash_session(key);
    // It is taken up, and begins, before its reader is there again.
    here.until([&] { return here.node.node().models.in_flight() == 0; });
    here.until([&] { return here.node.node().models.in_flight() == 1; });
    const Reader reader = here.node.stream(key, {"tell me a joke", "mainstay_tiny", "key-1"});
    here.node.settle();
    CHECK(reader.shape().find("dd") != std::string::npos);
    CHECK(reader.shape().back() == 'e');
    CHECK(reader.text() == said(here.node.read(key, 1)->value()));
}

TEST_CASE("step pauses: a step is told each time, and none begins while somebody asks") {
    ManualClock clock;
    StepPauses pauses(clock);
    const ShardId shard{3}, other{4};
    int told = 0;
    auto first = pauses.begin(shard, [&] { ++told; });
    auto elsewhere = pauses.begin(other, [&] { told += 100; });
    REQUIRE(first);
    CHECK(pauses.pause(shard));
    CHECK(pauses.pause(shard));
    CHECK(told == 2);
    CHECK_FALSE(pauses.begin(shard, [] {}));
    first.reset();
    CHECK_FALSE(pauses.pause(shard));
    clock.advance(StepPauses::asked_within_ms);
    CHECK_FALSE(pauses.begin(shard, [] {}));
    clock.advance(1);
    auto again = pauses.begin(shard, [&] { ++told; });
    CHECK(again);
    CHECK(pauses.pause(shard));
    CHECK(told == 3);
    // It does not end: the hand-over goes on without it, and still nothing begins.
    for (TimeMs passed = 0; passed < limits::pause_reserve_ms; passed += 500) {
        CHECK(pauses.pause(shard));
        clock.advance(500);
    }
    clock.advance(1);
    CHECK_FALSE(pauses.pause(shard));
    CHECK_FALSE(pauses.begin(shard, [] {}));
    // Asked anew after a while, it has its time again.
    clock.advance(StepPauses::asked_within_ms + 1);
    CHECK(pauses.pause(shard));
    // Led here again, a moment after it was handed over: its sessions go on at once.
    CHECK_FALSE(pauses.begin(shard, [] {}));
    pauses.resume(shard);
    CHECK(pauses.begin(shard, [] {}));
}
