// What an agent remembers of a user: shared by the user's sessions and by nobody else, kept over crashes, changed once.
#include "actors/user_memories.h"

#include "tests/support/actor_fixture.h"

using namespace mainstay;

namespace {

/// An agent `name` that keeps, recalls, forgets or lists as its user says, and answers with what the tool said.
void add_agent(ActorFixture& node, const std::string& name, const std::string& memory) {
    node.model("name = \"" + name + R"(-model"
device = "scripted"
[[script]]
when = "keep"
call_tool = "builtin/memory_set"
call_arguments = '{"key":"code","value":"{input}"}'
[[script]]
when = "recall"
call_tool = "builtin/memory_get"
call_arguments = '{"key":"code"}'
[[script]]
when = "forget"
call_tool = "builtin/memory_delete"
call_arguments = '{"key":"code"}'
[[script]]
when = "list"
call_tool = "builtin/memory_list"
call_arguments = '{}'
[[script]]
text = "{tool}"
)");
    node.agent("name = \"" + name + "\"\nmodel = \"" + name +
               "-model\"\n[[tools]]\ntype = \"builtin\"\nnames = [\"memory\"]\n" + memory);
}

void add_clerk(ActorFixture& node) {
    add_agent(node, "clerk", "[[memory]]\nname = \"customer\"\nscope = \"user\"\nmax_size = \"300B\"\n");
}

/// A turn of `user` in `key`, of whichever tenant that is.
GotPtr<TurnAnswer> submit_as(ActorFixture& node, const std::string& user, const SessionKey& key, std::string text,
                             const std::string& agent = "clerk") {
    AskTurn ask{std::move(text), agent};
    auto made = node.make_submit(key, ask);
    made.request.principal = {key.tenant, user, false};
    if (made.create) {
        made.create->tenant = key.tenant;
        made.create->principal = user;
    }
    auto [got, reply] = expect_reply<TurnAnswer>();
    made.done = std::move(reply);
    node.send(key, std::move(made));
    return got;
}

std::string say(ActorFixture& node, const std::string& user, const SessionKey& key, std::string text,
                const std::string& agent = "clerk") {
    const auto got = submit_as(node, user, key, std::move(text), agent);
    node.settle();
    return said(got->value());
}

UserMemory stored(ActorFixture& node, const std::string& user) {
    const auto row = node.store().read_memory(memory_key(node.tenant, user, "customer"));
    REQUIRE(row.ok());
    if (!*row) return {};
    const auto record = decode_entity(**row);
    REQUIRE(record.ok());
    CHECK(record->kind == "memory");
    CHECK(record->principal == user);
    const auto memory = UserMemory::from_body(record->body);
    REQUIRE(memory.ok());
    CHECK(record->version == memory->revision());
    return *memory;
}

/// Calls the owner of the memories as a session would, and keeps its answers.
class Caller {
  public:
    explicit Caller(ActorFixture& node) : node_(node) {
        session_ = node.system().spawn([answers = answers_](caf::event_based_actor*) -> caf::behavior {
            return {[answers](const ToolSettledPtr& settled) { answers->push_back(*settled); }};
        });
    }
    ~Caller() {
        caf::anon_send_exit(session_, caf::exit_reason::kill);
        node_.run();
    }
    void call(const std::string& user, const std::string& tool, const std::string& arguments, const std::string& key) {
        auto run = std::make_shared<RunToolCall>();
        run->call.call_id = ++calls_;
        run->call.tenant = node_.tenant;
        run->call.agent = node_.catalogue.agent("clerk");
        run->call.server_label = "builtin";
        run->call.name = tool;
        run->call.arguments = arguments;
        run->call.idempotency_key = key;
        run->call.principal = user;
        run->session = session_;
        caf::anon_send(node_.node().tool_worker, run);
    }
    void set(const std::string& user, const std::string& value, const std::string& key) {
        call(user, "memory_set", R"({"key":"code","value":")" + value + "\"}", key);
    }
    void get(const std::string& user) { call(user, "memory_get", R"({"key":"code"})", "none"); }
    const std::vector<ToolSettled>& answers() const { return *answers_; }
    std::string last() const {
        REQUIRE_FALSE(answers_->empty());
        return answers_->back().outcome.output;
    }

  private:
    ActorFixture& node_;
    std::shared_ptr<std::vector<ToolSettled>> answers_ = std::make_shared<std::vector<ToolSettled>>();
    caf::actor session_;
    uint64_t calls_ = 0;
};

}  // namespace

TEST_CASE("user memory: a later session of the same user recalls it, no other user and no other tenant does") {
    ActorFixture node;
    add_clerk(node);
    const std::string nothing = "nothing is remembered under this key";
    CHECK(say(node, "ann", node.new_session(), "keep 8477") == "remembered");
    CHECK(say(node, "ann", node.new_session(), "recall") == "keep 8477");
    CHECK(say(node, "bob", node.new_session(), "recall") == nothing);
    CHECK(say(node, "bob", node.new_session(), "list") == "[]");
    auto elsewhere = node.new_session();
    elsewhere.tenant = TenantId{2};
    CHECK(say(node, "ann", elsewhere, "recall") == nothing);
    CHECK(say(node, "bob", node.new_session(), "keep 1") == "remembered");
    CHECK(say(node, "ann", node.new_session(), "recall") == "keep 8477");

    SUBCASE("at once") {}
    SUBCASE("after a restart, from the journal's tail") { node.kill_and_restart(); }
    SUBCASE("after a restart, from the state") {
        node.store().run();
        node.kill_and_restart();
    }
    CHECK(say(node, "ann", node.new_session(), "recall") == "keep 8477");
    CHECK(say(node, "bob", node.new_session(), "recall") == "keep 1");
    CHECK(say(node, "ann", node.new_session(), "forget") == "forgotten");
    CHECK(say(node, "ann", node.new_session(), "recall") == nothing);
    CHECK(say(node, "bob", node.new_session(), "recall") == "keep 1");
    node.kill_and_restart();
    CHECK(say(node, "ann", node.new_session(), "recall") == nothing);
    CHECK(stored(node, "ann").revision() == 2);
}

TEST_CASE("user memory: two users of one session have each their own") {
    ActorFixture node;
    add_clerk(node);
    const auto key = node.new_session();
    REQUIRE(node.open_conversation(key)->ok());
    const auto say_in = [&](const std::string& user, const std::string& text) {
        AskTurn ask{text, "clerk"};
        ask.conversation = true;
        auto made = node.make_submit(key, ask);
        made.request.principal.name = user;
        auto [got, reply] = expect_reply<TurnAnswer>();
        made.done = std::move(reply);
        node.send(key, std::move(made));
        node.settle();
        return said(got->value());
    };
    CHECK(say_in("ann", "keep 1") == "remembered");
    CHECK(say_in("bob", "recall") == "nothing is remembered under this key");
    CHECK(say_in("ann", "recall") == "keep 1");
}

TEST_CASE("user memory: agents share a memory by its name") {
    ActorFixture node;
    add_clerk(node);
    add_agent(node, "chief", "[[memory]]\nname = \"customer\"\nscope = \"user\"\n");
    add_agent(node, "doctor", "[[memory]]\nname = \"patient\"\nscope = \"user\"\n");
    add_agent(node, "guest", "");
    CHECK(say(node, "ann", node.new_session(), "keep 1", "clerk") == "remembered");
    CHECK(say(node, "ann", node.new_session(), "recall", "chief") == "keep 1");
    CHECK(say(node, "ann", node.new_session(), "recall", "doctor") == "nothing is remembered under this key");
    CHECK(say(node, "ann", node.new_session(), "recall", "guest") == "nothing is remembered under this key");
}

TEST_CASE("user memory: it answers in the words of a session's own memory") {
    ActorFixture node;
    add_agent(node, "clerk", "[[memory]]\nname = \"customer\"\nscope = \"user\"\n");
    add_agent(node, "guest", "");
    const auto own_session = node.new_session();
    REQUIRE(node.open_conversation(own_session)->ok());
    const auto calls_of = [](const TurnAnswer& answer) {
        std::vector<ItemPtr> found;
        for (const auto& item : answer.turn->items)
            if (item->kind != ItemKind::message) found.push_back(item);
        REQUIRE(found.size() == 1);
        return found.front();
    };
    for (const std::string text : {"list", "recall", "forget", "keep 1", "recall", "keep \xC3\xA9", "recall", "list",
                                   "forget", "forget", "list"}) {
        CAPTURE(text);
        const auto of_user = submit_as(node, "ann", node.new_session(), text);
        AskTurn ask{text, "guest"};
        ask.conversation = true;
        const auto own = node.turn(own_session, ask);
        CHECK(said(of_user->value()) == said(own->value()));
        const auto a = calls_of(of_user->value()), b = calls_of(own->value());
        CHECK(a->kind == b->kind);
        CHECK(a->status == b->status);
        CHECK(a->text == b->text);
        CHECK(a->error == b->error);
        CHECK(a->name == b->name);
        CHECK(a->server_label == "builtin");
        CHECK(b->server_label == "builtin");
    }
}

TEST_CASE("user memory: a call has its intent, its receipt and the author's bound") {
    ActorFixture node;
    add_clerk(node);
    const auto key = node.new_session();
    CHECK(say(node, "ann", key, "keep " + std::string(300, 'x')) == "bytes of memory: at most 300");
    CHECK(node.event_names(key).find("ModelStepSettled ToolIntent ToolReceipt ModelStepSettled TurnSettled") !=
          std::string::npos);
    CHECK(say(node, "ann", node.new_session(), "keep " + std::string(280, 'x')) == "remembered");
    CHECK(stored(node, "ann").revision() == 1);
}

TEST_CASE("user memory: a crash between any two writes neither loses nor repeats a change") {
    // Once without a crash, to know how many steps of the store there are.
    size_t steps = 0, crashed_before_receipt = 0;
    for (size_t crash_after = 0; crash_after == 0 || crash_after <= steps; ++crash_after) {
        CAPTURE(crash_after);
        ActorFixture node;
        add_clerk(node);
        CHECK(say(node, "ann", node.new_session(), "keep first") == "remembered");
        const auto key = node.new_session();
        node.hold_store = true;
        const auto got = submit_as(node, "ann", key, "keep second");
        if (crash_after == 0) {
            node.run();
            for (; node.store().step_journal(); ++steps) node.run();
            CHECK(said(got->value()) == "remembered");
            REQUIRE(steps > 6);
            continue;
        }
        node.run();
        for (size_t i = 1; i < crash_after; ++i) {
            REQUIRE(node.store().step_journal());
            node.run();
        }
        const bool accepted = !node.store().load(key).value().tail.empty();
        const bool changed = stored(node, "ann").revision() == 2;
        const bool answered = got->ok();
        if (changed && !answered) ++crashed_before_receipt;
        CHECK((!answered || changed));
        node.kill_and_restart();
        node.settle();
        const std::string now = say(node, "ann", node.new_session(), "recall");
        const auto memory = stored(node, "ann");
        if (changed || answered) CHECK(now == "keep second");
        // An input that was written was perhaps not acknowledged yet; whichever it is, it happens once.
        if (accepted) {
            CHECK(now == "keep second");
            CHECK(said(node.read(key, 1)->value()) == "remembered");
        }
        CHECK(memory.revision() == (now == "keep second" ? 2 : 1));
    }
    CHECK(crashed_before_receipt > 0);
}

TEST_CASE("user memory: nobody is told, nor shown, what is not durable") {
    ActorFixture node;
    add_clerk(node);
    Caller caller(node);
    node.hold_store = true;
    caller.set("ann", "1", "first");
    caller.get("ann");
    caller.get("bob");
    node.run();
    REQUIRE(caller.answers().size() == 1);
    CHECK(caller.last() == "nothing is remembered under this key");  // bob's
    caller.set("ann", "2", "second");
    node.run();
    CHECK(caller.answers().size() == 1);
    node.hold_store = false;
    node.settle();
    REQUIRE(caller.answers().size() == 4);
    CHECK(caller.answers()[1].outcome.output == "remembered");
    CHECK(caller.answers()[2].outcome.output == "1");  // as it was when it was asked
    CHECK(caller.answers()[3].outcome.output == "remembered");
    CHECK(stored(node, "ann").entries().at("code") == "2");
}

TEST_CASE("user memory: a late repetition of an older call undoes nothing, after a crash neither") {
    ActorFixture node;
    add_clerk(node);
    {
        Caller caller(node);
        caller.set("ann", "old", "first");
        caller.set("ann", "new", "second");
        node.settle();
    }
    SUBCASE("at once") {}
    SUBCASE("after a restart") { node.kill_and_restart(); }
    Caller caller(node);
    caller.set("ann", "old", "first");
    node.settle();
    CHECK(caller.last() == "remembered");
    CHECK_FALSE(caller.answers().back().outcome.is_error);
    CHECK(stored(node, "ann").entries().at("code") == "new");
    CHECK(stored(node, "ann").revision() == 2);
    caller.get("ann");
    node.settle();
    CHECK(caller.last() == "new");
}

TEST_CASE("user memory: more users than are kept in memory are read from the store again") {
    ActorFixture node;
    add_clerk(node);
    Caller caller(node);
    constexpr size_t users = limits::user_memories_cached_max + 200;
    const auto user = [](size_t i) { return "user " + std::to_string(i); };
    node.hold_store = true;  // all of them wait for the disk: none may be forgotten
    for (size_t i = 0; i < users; ++i) caller.set(user(i), std::to_string(i), "set");
    node.run();
    CHECK(caller.answers().empty());
    node.hold_store = false;
    node.settle();
    CHECK(caller.answers().size() == users);
    SUBCASE("from the tail") {}
    SUBCASE("from the state") { node.store().run(); }
    for (size_t i = 0; i < users; ++i) {
        caller.get(user(i));
        node.run();
        REQUIRE(caller.last() == std::to_string(i));
    }
    CHECK(node.store().entities().value().empty());
    // Whose memory is kept does not see what another hand writes; whose is not does.
    for (const size_t i : {size_t{0}, users - 1}) {
        Append append;
        append.kind = RecordKind::entity;
        append.session = memory_key(node.tenant, user(i), "customer");
        append.event_count = 1;
        append.payload =
            encode_entity({"memory", "customer", 2, R"({"applied":[],"entries":{"code":"written"},"revision":2})", 1,
                           user(i), false});
        node.store().append(std::move(append));
    }
    node.settle();
    caller.get(user(0));
    node.run();
    CHECK(caller.last() == "written");
    caller.get(user(users - 1));
    node.run();
    CHECK(caller.last() == std::to_string(users - 1));
}

TEST_CASE("user memory: what cannot be read or written fails the call and says why") {
    ActorFixture node;
    add_clerk(node);
    Caller caller(node);
    const auto put = [&](const EntityRecord& record) {
        Append append;
        append.kind = RecordKind::entity;
        append.session = memory_key(node.tenant, "ann", "customer");
        append.event_count = 1;
        append.payload = encode_entity(record);
        node.store().append(std::move(append));
        node.settle();
    };
    const std::string body = R"({"applied":[],"entries":{"code":"1"},"revision":1})";
    SUBCASE("another user's record under this user's key") { put({"memory", "customer", 1, body, 1, "bob", false}); }
    SUBCASE("another memory's record") { put({"memory", "patient", 1, body, 1, "ann", false}); }
    SUBCASE("a body that is none") { put({"memory", "customer", 1, "{}", 1, "ann", false}); }
    for (const auto* tool : {"memory_get", "memory_delete"}) {
        caller.call("ann", tool, R"({"key":"code"})", tool);
        node.settle();
        CHECK(caller.answers().back().outcome.kind == ToolOutcome::Kind::failed);
        CHECK(caller.answers().back().outcome.code == ErrorCode::state_damaged);
        CHECK(caller.last().empty());
    }
    // Nobody else is touched by it.
    caller.set("bob", "2", "first");
    node.settle();
    CHECK(caller.last() == "remembered");
    // A full disk takes no change, and reads go on.
    node.store().inject(StoreFault::no_space, 0);
    caller.set("bob", "3", "second");
    node.settle();
    CHECK(caller.answers().back().outcome.kind == ToolOutcome::Kind::failed);
    CHECK(caller.answers().back().outcome.code == ErrorCode::storage_full);
    caller.get("bob");
    node.settle();
    CHECK(caller.last() == "2");
}
