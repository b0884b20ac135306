#pragma once
// A whole node on one thread: the real actors under CAF's deterministic scheduler with virtual time, a MemoryStore that
// the test steps, a clock that the test moves, scripted models that the test may hold, and tools that the test answers.
// Nothing happens between two calls of a test, so each race is driven by hand. Owned by the test's thread.
//
// Every actor is ended by drain before its system is destroyed: one that is left would hang the destructor, so the
// fixture aborts and says so instead.

#include <doctest/doctest.h>

#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <caf/scheduler/test_coordinator.hpp>
#include <caf/send.hpp>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "actors/agent_binding.h"
#include "actors/messages.h"
#include "actors/model_scheduler.h"
#include "actors/node_context.h"
#include "actors/node_fold.h"
#include "actors/node_supervisor.h"
#include "runtime/agent/agent_file.h"
#include "runtime/base/digest.h"
#include "runtime/store/memory_store.h"

namespace mainstay {

/// What a callback was told. A second call is a failure of whoever calls.
template <class T>
struct Got {
    std::optional<Result<T>> result;

    bool answered() const { return result.has_value(); }
    bool ok() const { return result && result->ok(); }
    const T& value() const {
        REQUIRE(answered());
        if (!result->ok()) FAIL("refused: " << error_name(result->error().code) << ": " << result->error().message);
        return **result;
    }
    /// The code's name, "" if it was not answered, "ok" if it was not refused.
    std::string code() const {
        if (!result) return {};
        return result->ok() ? "ok" : std::string(error_name(result->error().code));
    }
};
template <class T>
using GotPtr = std::shared_ptr<Got<T>>;

template <class T>
std::pair<GotPtr<T>, ReplyTo<T>> expect_reply() {
    auto got = std::make_shared<Got<T>>();
    return {got, ReplyTo<T>([got](Result<T> result) {
                CHECK_FALSE(got->answered());
                got->result.emplace(std::move(result));
            })};
}

/// Tools whose answers the test releases.
class FakeTools final : public ToolHost {
  public:
    struct Call {
        ToolCall call;
        ToolDone done;
        bool cancelled = false;
    };
    std::vector<ToolInfo> infos;
    std::string list_failure;
    std::vector<Call> calls;  // as they were dispatched, oldest first
    size_t lists = 0;

    void list(TenantId, const SessionKey&, AgentPtr, ToolsListed done) override {
        ++lists;
        done(std::make_shared<const std::vector<ToolInfo>>(infos), list_failure);
    }
    void call(ToolCall call, ToolDone done) override { calls.push_back({std::move(call), std::move(done)}); }
    void cancel(uint64_t call_id) override {
        for (auto& c : calls) {
            if (c.call.call_id != call_id || !c.done) continue;
            c.cancelled = true;
            ToolOutcome outcome;
            outcome.kind = ToolOutcome::Kind::lost;
            outcome.message = "cancelled";
            settle(c, std::move(outcome));
        }
    }

    void answer(size_t index, std::string output) {
        ToolOutcome outcome;
        outcome.output = std::move(output);
        settle(calls.at(index), std::move(outcome));
    }
    void lose(size_t index) {
        ToolOutcome outcome;
        outcome.kind = ToolOutcome::Kind::lost;
        outcome.message = "the connection broke";
        settle(calls.at(index), std::move(outcome));
    }
    void fail(size_t index) {
        ToolOutcome outcome;
        outcome.kind = ToolOutcome::Kind::failed;
        outcome.message = "not started";
        settle(calls.at(index), std::move(outcome));
    }
    size_t open() const {
        size_t n = 0;
        for (const auto& c : calls) n += static_cast<bool>(c.done);
        return n;
    }

  private:
    static void settle(Call& call, ToolOutcome outcome) {
        REQUIRE(call.done);
        std::exchange(call.done, nullptr)(call.call.call_id, std::move(outcome));
    }
};

/// A reader of a stream, with every event it was sent. Like the door, it does not keep the subscription alive.
struct Reader {
    std::weak_ptr<Subscription> subscription;
    std::shared_ptr<std::vector<StreamEvent>> events = std::make_shared<std::vector<StreamEvent>>();

    SubscriptionPtr subscribe() {
        auto made = std::make_shared<Subscription>();
        made->on_event = [events = events](StreamEvent event) { events->push_back(std::move(event)); };
        subscription = made;
        return made;
    }
    /// The client goes away.
    void close() {
        if (const auto still = subscription.lock()) still->closed = true;
    }

    /// One letter an event: accepted, delta, items, call done (c), broken, ended, failed.
    std::string shape() const {
        std::string out;
        for (const auto& event : *events) out += "adicbef"[event.index()];
        return out;
    }
    std::string text() const {
        std::string out;
        for (const auto& event : *events)
            if (const auto* delta = std::get_if<StreamDelta>(&event)) out += delta->text;
        return out;
    }
};

inline ItemPtr user_message(std::string text) {
    Item item;
    item.text = std::move(text);
    return std::make_shared<const Item>(std::move(item));
}

/// Text of the assistant's last message; empty if there is none.
inline std::string said(const TurnAnswer& answer) {
    for (auto item = answer.turn->items.rbegin(); item != answer.turn->items.rend(); ++item)
        if ((*item)->kind == ItemKind::message && (*item)->role == Role::assistant) return (*item)->text;
    return {};
}
inline std::string status_of(const TurnAnswer& answer) { return std::string(to_word(answer.turn->status)); }

/// How one turn is asked for.
struct AskTurn {
    std::string text;
    std::string agent = "plain";
    std::string idempotency_key = {};
    uint64_t digest = 1;
    std::optional<TurnNo> after = {};
    bool conversation = false;  // the session must exist
    bool store = true;
    bool background = false;
    uint64_t timeout_ms = 0;
    std::string options = "{}";
};

class ActorFixture {
  public:
    explicit ActorFixture(NodeOptions options = {}, MemoryStoreConfig config = {}) : options_(options) {
        config.epoch = Epoch{1};
        config.fold = &fold_;
        store_.emplace(config);
        model(R"(name = "plain"
device = "scripted"
[[script]]
text = "You said: {input}"
)");
        model(R"(name = "first"
device = "scripted"
[[script]]
text = "First you said: {first_input}"
)");
        start();
    }
    ~ActorFixture() { stop(); }
    ActorFixture(const ActorFixture&) = delete;
    ActorFixture& operator=(const ActorFixture&) = delete;

    // --- what the node knows
    void model(const std::string& toml) {
        auto parsed = parse_model(toml, Syntax::toml, "model.toml");
        if (!parsed.ok()) FAIL(parsed.error().message);
        catalogue.apply(*parsed);
    }
    void agent(const std::string& toml) {
        auto parsed = parse_agent(toml, Syntax::toml, "agent.toml");
        if (!parsed.ok()) FAIL(parsed.error().message);
        catalogue.apply(*parsed);
    }
    /// An agent `name` whose model calls bank/<tool> once and then says what the tool said.
    void bank_agent(const std::string& name, const std::string& tool, EffectClass effect,
                    const std::string& more = "") {
        tools.infos.push_back({"bank", tool, "a tool of the bank", R"({"type":"object"})", effect});
        model("name = \"" + name + "-model\"\ndevice = \"scripted\"\n[[script]]\ncall_tool = \"bank/" + tool +
              "\"\ncall_arguments = '{\"n\":1}'\n[[script]]\ntext = \"The bank said: {tool}\"\n");
        agent("name = \"" + name + "\"\nmodel = \"" + name +
              "-model\"\n[[tools]]\ntype = \"mcp\"\nserver_label = \"bank\"\ncommand = [\"bank\"]\n" + more);
    }

    // --- the node's process
    void start() {
        process_ = std::make_unique<Process>(*this);
        process_->supervisor = process_->system.spawn(node_supervisor, &process_->node);
        run();
        caf::anon_send(process_->supervisor, resume_atom::value);
        advance(0);
    }
    /// Ends every actor; what waits is told so.
    void stop() {
        if (!process_) return;
        process_->node.draining = true;
        caf::anon_send(process_->supervisor, drain_atom::value);
        run();
        store_->run();  // acknowledges to nobody, but lets go of the actors that appended
        process_->supervisor = {};
        process_->node.router = process_->node.timer = process_->node.tool_worker = process_->node.user_memories = {};
        for (auto& call : tools.calls) call.done = nullptr;
        if (process_->system.registry().running() != 0) {
            std::fprintf(stderr, "%zu actors are left after a drain\n", process_->system.registry().running());
            std::abort();
        }
        process_.reset();
    }
    /// The process dies as by kill -9 and a new one takes the store up.
    void kill_and_restart() {
        store_->crash();
        stop();
        REQUIRE(store_->reopen(Epoch{++epoch_}).ok());
        hold_store = false;
        start();
    }

    caf::scheduler::test_coordinator& scheduler() {
        return dynamic_cast<caf::scheduler::test_coordinator&>(process_->system.scheduler());
    }
    /// Every message that is there, and those that come of it; neither time nor store move.
    void run() { scheduler().run(); }
    /// Messages, and the store unless it is held, until nothing is left to do.
    void settle() {
        for (size_t i = 0; i < 100'000; ++i) {
            run();
            if (hold_store || !store_->step_journal()) {
                if (!scheduler().has_job()) return;
            }
        }
        FAIL("the node does not come to rest");
    }
    /// Time passes for clock and timers alike, a step at a time.
    void advance(TimeMs by, TimeMs step = 100) {
        for (TimeMs left = by;; left -= std::min(left, step)) {
            const TimeMs now = std::min(left, step);
            clock.advance(now);
            scheduler().advance_time(std::chrono::milliseconds(now));
            settle();
            if (left <= now) return;
        }
    }

    // --- asking
    SessionKey new_session() { return {tenant, make_session_id(random, clock.now_ms())}; }
    void send(const SessionKey& key, Ask ask) {
        caf::anon_send(node().router, std::make_shared<Envelope>(Envelope{key, std::move(ask)}));
    }
    SubmitTurn make_submit(const SessionKey& key, const AskTurn& ask) {
        SubmitTurn submit;
        submit.agent = bind_agent(catalogue, ask.agent);
        REQUIRE(submit.agent != nullptr);
        submit.request.principal = principal;
        submit.request.items = {user_message(ask.text)};
        submit.request.agent = ask.agent;
        submit.request.options = ask.options;
        submit.request.store = ask.store;
        submit.request.background = ask.background;
        submit.request.timeout_ms = ask.timeout_ms;
        submit.request.request_digest = ask.digest;
        if (!ask.idempotency_key.empty()) submit.key = key_hash(principal.name, ask.idempotency_key);
        if (ask.after) {
            submit.after = ask.after;
            submit.fork_child = make_fork_id(random, key.session.family);
        } else if (!ask.conversation) {
            SessionCreated created;
            created.tenant = tenant;
            created.principal = principal.name;
            created.ephemeral = !ask.store;
            submit.create = created;
        }
        return submit;
    }
    GotPtr<TurnAnswer> submit(const SessionKey& key, const AskTurn& ask) {
        auto made = make_submit(key, ask);
        auto [got, reply] = expect_reply<TurnAnswer>();
        made.done = std::move(reply);
        send(key, std::move(made));
        return got;
    }
    /// Asked, and run until the node rests.
    GotPtr<TurnAnswer> turn(const SessionKey& key, const AskTurn& ask) {
        auto got = submit(key, ask);
        settle();
        return got;
    }
    Reader stream(const SessionKey& key, const AskTurn& ask) {
        Reader reader;
        auto made = make_submit(key, ask);
        made.stream = reader.subscribe();
        send(key, std::move(made));
        return reader;
    }
    GotPtr<TurnAnswer> read(const SessionKey& key, uint32_t turn_no) {
        auto [got, reply] = expect_reply<TurnAnswer>();
        send(key, ReadTurn{TurnNo{turn_no}, std::move(reply)});
        settle();
        return got;
    }
    GotPtr<TurnAnswer> cancel(const SessionKey& key, uint32_t turn_no) {
        auto [got, reply] = expect_reply<TurnAnswer>();
        send(key, CancelTurnOf{principal, TurnNo{turn_no}, std::move(reply)});
        settle();
        return got;
    }
    GotPtr<TurnAnswer> resolve(const SessionKey& key, uint32_t turn_no, uint16_t index, Resolution how,
                               std::string result) {
        auto [got, reply] = expect_reply<TurnAnswer>();
        send(key,
             ResolveCall{principal, {key.session, TurnNo{turn_no}, index}, how, std::move(result), std::move(reply)});
        settle();
        return got;
    }
    GotPtr<SessionInfo> info(const SessionKey& key) {
        auto [got, reply] = expect_reply<SessionInfo>();
        send(key, ReadInfo{std::move(reply)});
        settle();
        return got;
    }
    GotPtr<SessionInfo> remove(const SessionKey& key) {
        auto [got, reply] = expect_reply<SessionInfo>();
        send(key, RemoveSession{principal, std::move(reply)});
        settle();
        return got;
    }
    GotPtr<SessionInfo> open_conversation(const SessionKey& key, std::vector<ItemPtr> items = {}) {
        auto [got, reply] = expect_reply<SessionInfo>();
        OpenSession open;
        open.created.tenant = tenant;
        open.created.principal = principal.name;
        open.created.conversation = true;
        open.items = std::move(items);
        open.done = std::move(reply);
        send(key, std::move(open));
        settle();
        return got;
    }
    /// Names of the session's journalled events, in order, each followed by a space.
    std::string event_names(const SessionKey& key) {
        std::string out;
        for (uint64_t after = 0;;) {
            auto [got, reply] = expect_reply<std::vector<EventEntry>>();
            send(key, ListEvents{after, 100, std::move(reply)});
            settle();
            if (!got->ok() || got->value().empty()) return out;
            for (const auto& entry : got->value()) out += entry.name + " ";
            after = got->value().back().sequence;
        }
    }
    /// The session's actor dies of a caller's callback.
    void crash_session(const SessionKey& key) {
        send(key, ReadInfo{ReplyTo<SessionInfo>(
                      [](Result<SessionInfo>) { throw std::runtime_error("a callback of the test"); })});
    }

    // --- holding models: the scheduler admits one step at a time, and a step that never ends takes the place
    void hold_models() {
        REQUIRE(blocker_ == 0);
        auto spec = std::make_shared<ModelSpec>();
        spec->name = "blocker";
        spec->version = 1;
        spec->device = "scripted";
        spec->script.emplace_back();
        spec->script.back().text = "never";
        spec->script.back().delay_ms = limits::script_delay_ms_max;
        ModelRequest request;
        request.request_id = blocker_ = node().next_request.fetch_add(1);
        request.model = spec;
        process_->models.submit(std::move(request), caf::actor{});
        REQUIRE(process_->models.in_flight() == 1);
    }
    void release_models() { process_->models.cancel(std::exchange(blocker_, 0)); }

    caf::actor_system& system() { return process_->system; }
    NodeContext& node() { return process_->node; }
    const caf::actor& supervisor() const { return process_->supervisor; }
    MemoryStore& store() { return *store_; }
    /// Session actors in memory.
    size_t active() { return node().sessions_active.load(); }

    const TenantId tenant{1};
    const Principal principal{TenantId{1}, "ann", false};
    ManualClock clock;
    SeededRandom random{1};
    Metrics metrics;
    Catalogue catalogue;
    FakeTools tools;
    bool hold_store = false;

  private:
    struct Process {
        struct Config : caf::actor_system_config {
            Config() { set("scheduler.policy", caf::atom("testing")); }
        };
        Config config;
        caf::actor_system system;
        ModelScheduler models;
        NodeContext node;
        caf::actor supervisor;
        explicit Process(ActorFixture& f)
            : system(config), models(f.metrics, 1), node{*f.store_, f.catalogue, models,    f.tools,
                                                         f.clock,   f.random,    f.metrics, f.options_} {}
    };

    const NodeOptions options_;
    NodeFold fold_;
    std::optional<MemoryStore> store_;
    std::unique_ptr<Process> process_;
    uint64_t epoch_ = 1, blocker_ = 0;
};

}  // namespace mainstay
