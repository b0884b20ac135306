#include "actors/model_scheduler.h"

#include <thread>

#include "tests/support/actor_fixture.h"

using namespace mainstay;

namespace {

/// Stands for sessions: writes down what it is told, "3:done" or "3:error unsupported_value".
struct Receiver {
    explicit Receiver(ActorFixture& fixture) : node(fixture) {
        actor = node.system().spawn([log = log](caf::event_based_actor* self) -> caf::behavior {
            return {
                [log](const ModelDelta& delta) { log->push_back(std::to_string(delta.request_id) + ":delta"); },
                [log](const ModelSettledPtr& settled) {
                    auto line = std::to_string(settled->request_id) + ":";
                    if (const auto* error = std::get_if<ModelError>(&settled->outcome))
                        line += "error " + std::string(error_name(error->code));
                    else
                        line += "done";
                    log->push_back(std::move(line));
                },
                [self](drain_atom) { self->quit(); },
            };
        });
    }
    ~Receiver() {
        caf::anon_send(actor, drain_atom::value);
        node.run();
    }
    std::vector<std::string> heard() {
        node.run();
        return *log;
    }

    ActorFixture& node;
    std::shared_ptr<std::vector<std::string>> log = std::make_shared<std::vector<std::string>>();
    caf::actor actor;
};

ModelRequest request(uint64_t id, uint32_t delay_ms = 0, std::string device = "scripted") {
    auto spec = std::make_shared<ModelSpec>();
    spec->name = "m";
    spec->version = 1 + device.size();
    spec->device = std::move(device);
    spec->script.emplace_back();
    spec->script.back().text = "hello";
    spec->script.back().delay_ms = delay_ms;
    ModelRequest made;
    made.request_id = id;
    made.model = std::move(spec);
    return made;
}

/// A step that runs for longer than any test.
ModelRequest endless(uint64_t id) { return request(id, limits::script_delay_ms_max); }

using Lines = std::vector<std::string>;

}  // namespace

TEST_CASE("model scheduler: a step is answered once, after its deltas") {
    ActorFixture node;
    Receiver session(node);
    ModelScheduler models(node.metrics, 4);
    auto streamed = request(1);
    streamed.stream = true;
    models.submit(std::move(streamed), session.actor);
    auto heard = session.heard();
    REQUIRE(heard.size() >= 2);
    CHECK(heard.back() == "1:done");
    heard.pop_back();
    for (const auto& line : heard) CHECK(line == "1:delta");
    CHECK(models.in_flight() == 0);
}

TEST_CASE("model scheduler: beyond the bound steps wait, and come first in, first out") {
    ActorFixture node;
    Receiver session(node);
    ModelScheduler models(node.metrics, 2);
    models.submit(endless(1), session.actor);
    models.submit(endless(2), session.actor);
    for (uint64_t id = 3; id < 6; ++id) models.submit(request(id), session.actor);
    CHECK(models.in_flight() == 2);
    CHECK(session.heard().empty());
    models.cancel(1);
    CHECK(session.heard() == Lines{"3:done", "4:done", "5:done"});
    CHECK(models.in_flight() == 1);
    models.cancel(2);
    CHECK(models.in_flight() == 0);
    CHECK(session.heard().size() == 3);  // nothing of what was cancelled
}

TEST_CASE("model scheduler: a step that waits is cancelled and never runs") {
    ActorFixture node;
    Receiver session(node);
    ModelScheduler models(node.metrics, 1);
    models.submit(endless(1), session.actor);
    models.submit(request(2), session.actor);
    models.submit(request(3), session.actor);
    models.cancel(2);
    models.cancel(2);
    models.cancel(77);
    CHECK(models.in_flight() == 1);
    models.cancel(1);
    CHECK(session.heard() == Lines{"3:done"});
    models.cancel(3);
    CHECK(models.in_flight() == 0);
}

TEST_CASE("model scheduler: a device that nobody can make is an outcome, and takes no place") {
    ActorFixture node;
    Receiver session(node);
    ModelScheduler models(node.metrics, 1);
    models.submit(request(1, 0, "abacus"), session.actor);
    models.submit(request(2, 0, "abacus"), session.actor);
    models.submit(request(3), session.actor);
    CHECK(session.heard() == Lines{"1:error unsupported_value", "2:error unsupported_value", "3:done"});
    CHECK(models.in_flight() == 0);
}

TEST_CASE("model scheduler: a long queue of steps that are answered at once is no deep stack") {
    ActorFixture node;
    Receiver session(node);
    ModelScheduler models(node.metrics, 1);
    models.submit(endless(1), session.actor);
    constexpr uint64_t last = limits::sessions_active_max;
    for (uint64_t id = 2; id <= last; ++id) models.submit(request(id), session.actor);
    models.cancel(1);
    const auto heard = session.heard();
    REQUIRE(heard.size() == last - 1);
    CHECK(heard.front() == "2:done");
    CHECK(heard.back() == std::to_string(last) + ":done");
    CHECK(models.in_flight() == 0);
}

TEST_CASE("model scheduler: what runs and what waits at the end is dropped in silence") {
    ActorFixture node;
    Receiver session(node);
    {
        ModelScheduler models(node.metrics, 1);
        models.submit(endless(1), session.actor);
        models.submit(request(2), session.actor);
    }
    CHECK(session.heard().empty());
}

TEST_CASE("model scheduler: on many threads every step is answered once, and every place comes back") {
    struct Config : caf::actor_system_config {
        Config() {
            set("scheduler.policy", caf::atom("sharing"));
            set("scheduler.max-threads", uint64_t{1});
        }
    };
    constexpr uint64_t steps = 2000;
    Config config;
    caf::actor_system system{config};
    std::atomic<uint64_t> answers{0}, ids{0};
    auto counter = system.spawn([&](caf::event_based_actor* self) -> caf::behavior {
        return {[&](const ModelSettledPtr& settled) {
                    ids += settled->request_id;
                    ++answers;
                },
                [self](drain_atom) { self->quit(); }};
    });
    Metrics metrics;
    {
        ModelScheduler models(metrics, 8);
        std::vector<std::thread> submitters;
        for (uint64_t t = 0; t < 2; ++t)
            submitters.emplace_back([&, t] {
                // Some are answered on the submitting thread, some by the device's own.
                for (uint64_t i = 0; i < steps / 2; ++i)
                    models.submit(request(1 + t * steps / 2 + i, static_cast<uint32_t>(i % 3)), counter);
            });
        for (auto& thread : submitters) thread.join();
        const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
        while ((answers < steps || models.in_flight() != 0) && std::chrono::steady_clock::now() < until)
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        CHECK(answers == steps);
        CHECK(ids == steps * (steps + 1) / 2);
        CHECK(models.in_flight() == 0);
    }
    caf::anon_send(counter, drain_atom::value);
    system.await_all_actors_done();
}
