// Steps on other nodes: real token schedulers with the shipped small model on three nodes, on one thread with virtual
// time; what is between the nodes is queues that the test empties, so that each loss is driven by hand.
#include "actors/remote_model.h"

#include <doctest/doctest.h>

#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <caf/scheduler/test_coordinator.hpp>
#include <deque>

#include "actors/messages.h"
#include "actors/model_scheduler.h"
#include "actors/step_service.h"
#include "runtime/inference/model_error.h"
#include "support/model_sink.h"
#include "support/scratch_directory.h"
#include "support/tiny_model.h"

using namespace mainstay;

namespace {

SessionKey session_of(uint64_t n) { return {TenantId{1}, SessionId{FamilyId{n + 1}, n * 7919, n * 104729}}; }

struct Config : caf::actor_system_config {
    Config() {
        set("scheduler.policy", caf::atom("testing"));
        set("logger.verbosity", caf::atom("quiet"));
    }
};

/// A call between two nodes: what the one said and the other has not heard yet.
struct Asked {
    NodeUuid from{}, to{};
    std::string request;
    std::function<void(std::string)> on_part;
    std::function<void(std::optional<Error>)> on_end;
    std::deque<std::string> parts;
    std::optional<std::optional<Error>> end;
    bool delivered = false, over = false, cancelled = false;
};
using AskedPtr = std::shared_ptr<Asked>;

class Handle final : public LinkCall {
  public:
    explicit Handle(AskedPtr call) : call_(std::move(call)) {}
    void cancel() override {
        if (std::exchange(call_->over, true)) return;
        call_->cancelled = true;
        call_->on_end(Error{ErrorCode::turn_cancelled, "cancelled", {}});
    }

  private:
    const AskedPtr call_;
};

class Reply final : public CallReply {
  public:
    explicit Reply(AskedPtr call) : call_(std::move(call)) {}
    ~Reply() override {
        if (!call_->end) call_->end.emplace(Error{ErrorCode::internal, "dropped", {}});
    }
    void part(std::string bytes) override { call_->parts.push_back(std::move(bytes)); }
    void end(std::optional<Error> failure) override { call_->end.emplace(std::move(failure)); }
    bool cancelled() const override { return call_->over; }

  private:
    const AskedPtr call_;
};

struct Cluster;

struct Node {
    Node(Cluster& cluster, uint8_t number, std::vector<std::string> computes);
    double metric(const std::string& series);
    double running() { return models.steps_here("mainstay_tiny"); }

    Cluster& cluster;
    const NodeUuid uuid;
    const std::vector<std::string> computes;
    ScratchDirectory folder;
    Metrics metrics;
    ModelScheduler models{metrics, 8};
    std::optional<RemoteModel> remote;
    std::optional<StepService> service;
    bool up = true;
};

struct Cluster {
    /// What each of three nodes computes.
    explicit Cluster(std::vector<std::string> one = {}, std::vector<std::string> two = {"*"},
                     std::vector<std::string> three = {"*"})
        : system(config),
          first(*this, 1, std::move(one)),
          second(*this, 2, std::move(two)),
          third(*this, 3, std::move(three)) {
        model = std::make_shared<const ModelSpec>([] {
            ModelSpec spec = tiny_model();
            spec.version = 1;
            return spec;
        }());
        for (Node* node : all()) node->models.load(model);
        settle();
    }
    ~Cluster() {
        // A call that did not end holds its step, which holds it.
        for (const AskedPtr& call : calls) {
            call->over = true;
            call->on_part = nullptr;
            call->on_end = nullptr;
        }
        calls.clear();
        for (Node* node : all()) {
            node->service->stop();
            node->models.stop();
        }
        settle();
        system.await_all_actors_done();
    }
    std::vector<Node*> all() { return {&first, &second, &third}; }
    Node& at(const NodeUuid& uuid) {
        for (Node* node : all())
            if (node->uuid == uuid) return *node;
        FAIL("no such node");
        return first;
    }
    caf::scheduler::test_coordinator& coordinator() {
        return dynamic_cast<caf::scheduler::test_coordinator&>(system.scheduler());
    }
    void settle() { coordinator().run(); }
    void advance(TimeMs by) {
        clock.advance(by);
        coordinator().advance_time(std::chrono::milliseconds(by));
        settle();
    }
    /// A request is heard by the node that it was sent to, which works on it.
    void hear(const AskedPtr& call) {
        call->delivered = true;
        at(call->to).service->serve(call->from, call->request, std::make_shared<Reply>(call));
    }
    /// The next part of an answer, or its end, is heard; false: there is none yet.
    bool answer(const AskedPtr& call) {
        if (call->over) return false;
        if (!call->parts.empty()) {
            std::string part = std::move(call->parts.front());
            call->parts.pop_front();
            call->on_part(std::move(part));
            return true;
        }
        if (!call->end) return false;
        call->over = true;
        call->on_end(*call->end);
        return true;
    }
    /// Until nothing moves any more.
    void run() {
        for (bool moved = true; moved;) {
            moved = false;
            settle();
            for (size_t i = 0; i < calls.size(); ++i) {
                const AskedPtr call = calls[i];
                if (!call->delivered && !call->over) {
                    hear(call);
                    moved = true;
                }
                settle();
                while (answer(call)) moved = true;
            }
        }
    }
    /// The node is gone: its calls end, in both directions.
    void kill(Node& node) {
        node.up = false;
        for (const AskedPtr& call : std::vector(calls))
            if ((call->to == node.uuid || call->from == node.uuid) && !std::exchange(call->over, true))
                call->on_end(Error{ErrorCode::shard_unavailable, "lost the link", {}});
    }
    ModelRequest request(const SessionKey& session, const std::string& text, bool stream = true) {
        Item item;
        item.role = Role::user;
        item.text = text;
        ModelRequest out;
        out.request_id = ++requests;
        out.model = model;
        out.session = out.root = session;
        out.prompt.open = {std::make_shared<const Item>(std::move(item))};
        out.options = R"({"temperature":0})";
        out.max_output_tokens = 40;
        out.stream = stream;
        out.idempotency_key = "step of " + text;
        return out;
    }
    std::shared_ptr<RecordingSink> submit(Node& node, ModelRequest request) {
        auto sink = std::make_shared<RecordingSink>();
        node.remote->submit(std::move(request), sink);
        return sink;
    }
    std::shared_ptr<RecordingSink> ask(Node& node, const SessionKey& session, const std::string& text) {
        auto sink = submit(node, request(session, text));
        run();
        if (const auto error = sink->error()) FAIL(error->message);
        REQUIRE(sink->ends() == 1);
        return sink;
    }
    AskedPtr last() { return calls.back(); }

    ManualClock clock;
    Config config;
    caf::actor_system system;
    ModelPtr model;
    uint64_t requests = 0;
    std::vector<AskedPtr> calls;
    std::vector<NodeUuid> ghosts;  // nodes that compute everything, and never say a word
    Node first, second, third;
};

Node::Node(Cluster& all, uint8_t number, std::vector<std::string> names)
    : cluster(all), uuid{number}, computes(std::move(names)) {
    OwnModelsConfig own{models_directory, folder / "", &cluster.clock, false};
    own.computed = computes;
    models.attach(cluster.system, std::move(own));
    RemoteModelConfig of;
    of.self = uuid;
    of.clock = &cluster.clock;
    of.here = &models.own_devices();
    of.nodes = [this] {
        auto out = std::make_shared<std::vector<StepNode>>();
        for (Node* node : cluster.all()) out->push_back({node->uuid, node->computes, false, node->up});
        for (const NodeUuid& ghost : cluster.ghosts) out->push_back({ghost, {"*"}, false, true});
        return out;
    };
    of.call = [this](const NodeUuid& to, std::string request, auto on_part, auto on_end,
                     uint32_t) -> std::shared_ptr<LinkCall> {
        const bool ghost = std::find(cluster.ghosts.begin(), cluster.ghosts.end(), to) != cluster.ghosts.end();
        if (!ghost && !cluster.at(to).up) {
            on_end(Error{ErrorCode::misdirected, "no link", {}});
            return nullptr;
        }
        auto call = std::make_shared<Asked>();
        call->from = uuid;
        call->to = to;
        call->request = std::move(request);
        call->on_part = std::move(on_part);
        call->on_end = std::move(on_end);
        cluster.calls.push_back(call);
        return std::make_shared<Handle>(call);
    };
    of.registry = &metrics.registry();
    remote.emplace(std::move(of));
    models.place_steps(*remote);
    StepServiceConfig serves;
    serves.devices = &models.own_devices();
    serves.clock = &cluster.clock;
    serves.model = [this](const std::string& name, uint64_t version) {
        return names_model(computes, name) && name == "mainstay_tiny" && version == 1 ? cluster.model : nullptr;
    };
    serves.load = [this](const std::string& name) { return HostLoad{models.steps_here(name), 1}; };
    serves.next_request = [this] { return 1'000'000 + ++cluster.requests; };
    serves.registry = &metrics.registry();
    service.emplace(cluster.system, std::move(serves));
}

double Node::metric(const std::string& series) {
    const std::string text = metrics.expose();
    const size_t at = text.find("\n" + series + " ");
    INFO(series);
    REQUIRE(at != std::string::npos);
    return std::stod(text.substr(at + series.size() + 2));
}

const std::string sent = "mainstay_cluster_model_steps_sent_total",
                  served = "mainstay_cluster_model_steps_served_total",
                  serving = "mainstay_cluster_model_steps_serving",
                  redispatches = "mainstay_cluster_model_step_redispatches_total";
std::string with(const std::string& family, const std::string& outcome) {
    return family + "{outcome=\"" + outcome + "\"}";
}

const std::string joke = "tell me a joke";

}  // namespace

TEST_CASE("remote model: a step on another node says what it would have said here, and its next one finds its KV") {
    Cluster alone({"*"}, {}, {});
    const auto here = alone.ask(alone.first, session_of(1), joke);
    CHECK(alone.calls.empty());
    CHECK(here->result()->placed == nullptr);

    Cluster cluster;
    const auto there = cluster.ask(cluster.first, session_of(1), joke);
    CHECK(there->result()->text == here->result()->text);
    CHECK(there->joined() == there->result()->text);
    CHECK(there->deltas().size() > 2);
    CHECK(there->result()->usage == here->result()->usage);
    REQUIRE(cluster.calls.size() == 1);
    const NodeUuid host = cluster.last()->to;
    REQUIRE(there->result()->placed);
    CHECK(there->result()->placed->where == to_text(host).substr(0, 8) + "/mainstay_tiny");

    // It stays with its KV, and that is no news, whatever else the host has to do.
    const auto busy = cluster.submit(cluster.first, cluster.request(session_of(2), "hello"));
    for (int i = 0; i < 3; ++i) {
        const auto again = cluster.ask(cluster.first, session_of(1), joke);
        CHECK(cluster.last()->to == host);
        CHECK(again->result()->placed == nullptr);
        CHECK(again->result()->usage.cached_tokens > 0);
    }
    // What no stream reads comes whole.
    const auto quiet = cluster.submit(cluster.first, cluster.request(session_of(1), joke, false));
    cluster.run();
    CHECK(quiet->deltas().empty());
    CHECK(quiet->result()->text == here->result()->text);
    CHECK(cluster.first.metric(with(sent, "done")) == 6);
    CHECK(cluster.second.metric(with(served, "done")) + cluster.third.metric(with(served, "done")) == 6);
    CHECK(cluster.first.metric(redispatches) == 0);
    CHECK(cluster.second.metric(serving) + cluster.third.metric(serving) == 0);
}

TEST_CASE("remote model: a host that is lost amid a step costs no attempt, and nothing is said twice") {
    Cluster whole;
    const std::string said = whole.ask(whole.first, session_of(1), joke)->result()->text;
    for (size_t heard = 0; heard < 6; ++heard) {
        CAPTURE(heard);
        Cluster cluster;
        const auto sink = cluster.submit(cluster.first, cluster.request(session_of(1), joke));
        const AskedPtr call = cluster.last();
        cluster.hear(call);
        cluster.settle();
        for (size_t i = 0; i < heard; ++i) REQUIRE(cluster.answer(call));
        CHECK(sink->deltas().size() == heard);
        CHECK(sink->ends() == 0);
        cluster.kill(cluster.at(call->to));
        cluster.run();
        REQUIRE(cluster.calls.size() == 2);
        CHECK(cluster.last()->to != call->to);
        REQUIRE(sink->ends() == 1);
        REQUIRE(sink->result());
        CHECK(sink->result()->text == said);
        CHECK(sink->joined() == said);
        CHECK(sink->result()->placed->why.find("lost the link") != std::string::npos);
        CHECK(cluster.first.metric(with(sent, "lost")) == 1);
        CHECK(cluster.first.metric(redispatches) == 1);
    }
}

TEST_CASE("remote model: twice at most, then the step is lost") {
    Cluster cluster({}, {}, {});
    for (uint8_t n = 11; n < 18; ++n) cluster.ghosts.push_back(NodeUuid{n});
    const auto sink = cluster.submit(cluster.first, cluster.request(session_of(1), joke));
    for (size_t n = 1; n <= 3; ++n) {
        CHECK(sink->ends() == 0);
        REQUIRE(cluster.calls.size() == n);
        for (size_t before = 0; before + 1 < n; ++before) CHECK(cluster.calls[before]->to != cluster.last()->to);
        const AskedPtr call = cluster.last();
        call->over = true;
        call->on_end(Error{ErrorCode::shard_unavailable, "lost the link", {}});
    }
    CHECK(cluster.calls.size() == 3);
    REQUIRE(sink->error());
    CHECK(sink->error()->error_class == ErrorClass::lost);
    CHECK(sink->error()->message.find("lost the link") != std::string::npos);
    CHECK(cluster.first.metric(redispatches) == 2);
}

TEST_CASE("remote model: a host that says something else than was passed on fails the step as lost") {
    Cluster cluster;
    const auto sink = cluster.submit(cluster.first, cluster.request(session_of(1), joke));
    const AskedPtr call = cluster.last();
    call->on_part(encode_delta("Something that no model would"));
    cluster.kill(cluster.at(call->to));
    cluster.run();
    REQUIRE(sink->ends() == 1);
    REQUIRE(sink->error());
    CHECK(sink->error()->error_class == ErrorClass::lost);
    CHECK(sink->joined() == "Something that no model would");
    cluster.advance(1000);
    CHECK(cluster.second.running() + cluster.third.running() == 0);

    // ... and one that ends before it has said as much.
    ModelResult result;
    Cluster other;
    const auto cut = other.submit(other.first, other.request(session_of(1), joke));
    const AskedPtr begun = other.last();
    begun->on_part(encode_delta("Some text"));
    other.kill(other.at(begun->to));
    other.last()->on_part(encode_delta("Some"));
    other.last()->on_part(encode_ended({result, {}}));
    REQUIRE(cut->ends() == 1);
    CHECK(cut->error()->error_class == ErrorClass::lost);
}

TEST_CASE("remote model: a host that refuses or is overloaded is left out for the step") {
    Cluster cluster;
    const auto refused = cluster.submit(cluster.first, cluster.request(session_of(1), joke));
    AskedPtr call = cluster.last();
    call->over = true;
    call->on_end(Error{ErrorCode::peer_refused, "another version", {}});
    cluster.run();
    CHECK(refused->result());
    CHECK(cluster.last()->to != call->to);
    CHECK(cluster.first.metric(with(sent, "refused")) == 1);

    const auto busy = cluster.submit(cluster.first, cluster.request(session_of(2), joke));
    call = cluster.last();
    call->on_part(encode_ended({make_model_error(ErrorClass::overloaded, "too much", 500), {9, 1}}));
    call->over = true;
    cluster.run();
    CHECK(busy->result());
    CHECK(cluster.last()->to != call->to);

    // All of them: who is asked again waits as the last one said.
    const auto all = cluster.submit(cluster.first, cluster.request(session_of(3), joke));
    for (int i = 0; i < 2; ++i) {
        const AskedPtr one = cluster.last();
        one->over = true;
        one->on_part(encode_ended({make_model_error(ErrorClass::overloaded, "too much", 500), {9, 1}}));
    }
    REQUIRE(all->error());
    CHECK(all->error()->error_class == ErrorClass::overloaded);
    CHECK(all->error()->retry_after_ms == 500);

    // What is the step's own fault is told at once.
    const auto wrong = cluster.submit(cluster.first, cluster.request(session_of(4), joke));
    const size_t before = cluster.calls.size();
    cluster.last()->on_part(encode_ended({make_model_error(ErrorClass::invalid, "no such tool"), {}}));
    REQUIRE(wrong->error());
    CHECK(wrong->error()->message == "no such tool");
    CHECK(cluster.calls.size() == before);
}

TEST_CASE("remote model: where nobody computes the model the error names it") {
    Cluster cluster({}, {"other"}, {});
    const auto sink = cluster.submit(cluster.first, cluster.request(session_of(1), joke));
    REQUIRE(sink->error());
    CHECK(sink->error()->error_class == ErrorClass::transient);
    CHECK(sink->error()->code == ErrorCode::model_unavailable);
    CHECK(sink->error()->message.find("mainstay_tiny") != std::string::npos);
    CHECK(cluster.calls.empty());
    CHECK_FALSE(cluster.first.remote->place(session_of(1), "mainstay_tiny"));

    // A node that is alone.
    auto alone = std::make_shared<RecordingSink>();
    cluster.first.models.own_devices().submit(cluster.request(session_of(1), joke), alone);
    REQUIRE(alone->error());
    CHECK(alone->error()->error_class == ErrorClass::invalid);
    CHECK(alone->error()->code == ErrorCode::model_unavailable);
    CHECK(alone->error()->message.find("mainstay_tiny") != std::string::npos);
    CHECK(cluster.first.models.own_models().empty());
}

TEST_CASE("remote model: a step that nobody waits for ends on its host within the bound") {
    for (const bool killed : {false, true}) {
        CAPTURE(killed);
        Cluster cluster;
        const auto request = cluster.request(session_of(1), joke);
        const auto sink = cluster.submit(cluster.first, request);
        const AskedPtr call = cluster.last();
        Node& host = cluster.at(call->to);
        cluster.hear(call);
        for (int i = 0; i < 200 && host.running() == 0; ++i) cluster.coordinator().try_run_once();
        REQUIRE(host.running() == 1);
        CHECK(host.metric(serving) == 1);
        if (killed)
            cluster.kill(cluster.first);
        else
            cluster.first.remote->cancel(request.request_id);
        CHECK(call->over);
        cluster.coordinator().advance_time(std::chrono::milliseconds(limits::model_step_look_ms));
        for (int i = 0; i < 3; ++i) cluster.coordinator().try_run_once();
        CHECK(host.running() == 0);
        CHECK(host.metric(serving) == 0);
        CHECK(host.metric(with(served, "cancelled")) == 1);
        cluster.settle();
        if (!killed) CHECK(sink->ends() == 0);
        CHECK(host.metric(with(served, "done")) == 0);
    }
}

TEST_CASE("remote model: a pause reaches the host; who lost it before has paused, too") {
    Cluster cluster;
    const auto request = cluster.request(session_of(1), joke);
    const auto sink = cluster.submit(cluster.first, request);
    const AskedPtr call = cluster.last();
    Node& host = cluster.at(call->to);
    cluster.hear(call);
    for (int i = 0; i < 400 && call->parts.empty(); ++i) cluster.coordinator().try_run_once();
    REQUIRE_FALSE(call->parts.empty());
    CHECK(cluster.first.remote->pause(request.request_id));
    cluster.hear(cluster.last());
    cluster.run();
    REQUIRE(sink->ends() == 1);
    REQUIRE(sink->paused());
    CHECK_FALSE(sink->paused()->ids.empty());
    CHECK(host.metric(with(served, "paused")) == 1);
    CHECK(cluster.first.metric(with(sent, "paused")) == 1);

    // It goes on from there, on any node.
    auto goes_on = request;
    goes_on.request_id = ++cluster.requests;
    goes_on.resume = std::make_shared<const StepTokens>(*sink->paused());
    const auto rest = cluster.submit(cluster.first, goes_on);
    cluster.run();
    REQUIRE(rest->result());
    Cluster whole;
    CHECK(rest->result()->text == whole.ask(whole.first, session_of(1), joke)->result()->text);
    CHECK(rest->joined() == rest->result()->text);

    const auto lost = cluster.request(session_of(2), joke);
    const auto other = cluster.submit(cluster.first, lost);
    CHECK(cluster.first.remote->pause(lost.request_id));
    cluster.kill(cluster.at(cluster.calls[cluster.calls.size() - 2]->to));
    REQUIRE(other->paused());
    CHECK(other->paused()->ids.empty());
    CHECK_FALSE(cluster.first.remote->pause(lost.request_id));
}

TEST_CASE("remote model: a session that sleeps does so where its KV is, and one that is gone leaves no place behind") {
    Cluster cluster;
    cluster.ask(cluster.first, session_of(1), joke);
    const NodeUuid host = cluster.last()->to;
    const size_t before = cluster.calls.size();
    cluster.first.models.session_idle(session_of(1));
    REQUIRE(cluster.calls.size() == before + 1);
    CHECK(cluster.last()->to == host);
    const auto told = decode_step_call(cluster.last()->request);
    REQUIRE(told.ok());
    CHECK(std::get<RestRemoteSession>(*told).session == session_of(1));
    cluster.run();
    CHECK(cluster.first.remote->place(session_of(1), "mainstay_tiny")->why == StepWhy::kv);
    cluster.first.models.session_deleted(session_of(1));
    CHECK(cluster.first.remote->place(session_of(1), "mainstay_tiny")->why == StepWhy::least_loaded);
    cluster.first.models.session_idle(session_of(1));
    CHECK(cluster.calls.size() == before + 1);
}

TEST_CASE("remote model: a request that cannot be read, or of another version, is refused with a reason") {
    Cluster cluster;
    const auto refusal = [&](std::string bytes) {
        auto call = std::make_shared<Asked>();
        cluster.second.service->serve(cluster.first.uuid, std::move(bytes), std::make_shared<Reply>(call));
        cluster.settle();
        REQUIRE(call->end);
        REQUIRE(*call->end);
        CHECK((*call->end)->code == ErrorCode::peer_refused);
        return (*call->end)->message;
    };
    CHECK_FALSE(refusal("no message").empty());
    RunRemoteStep step{cluster.request(session_of(1), joke), "mainstay_tiny", 2, 0};
    CHECK(refusal(encode_step(step)).find("mainstay_tiny") != std::string::npos);
    step.model_version = 1;
    step.model = "another";
    CHECK(refusal(encode_step(step)).find("another") != std::string::npos);
    CHECK(cluster.second.metric(with(served, "refused")) == 3);
}
