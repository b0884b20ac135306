// Several doors in one process, over a link that a test may cut, and bridges that refuse what another node leads: what
// comes to the wrong door is answered as if it had come to the right one.

#include "gateway/hop.h"

#include <doctest/doctest.h>
#include <prometheus/text_serializer.h>

#include <memory>
#include <regex>
#include <set>
#include <sstream>

#include "gateway/door_fixture.h"
#include "gateway/hop_server.h"
#include "gateway/stream_reader.h"
#include "runtime/base/limits.h"

using namespace mainstay;

namespace {

constexpr ShardId shard{7};

NodeUuid node_no(uint8_t number) {
    NodeUuid out{};
    out[0] = number;
    return out;
}

/// Who leads the one shard of these tests, as the coordinator would have it.
class Lead {
  public:
    void set(std::optional<NodeUuid> node) {
        std::vector<std::function<void()>> told;
        {
            std::lock_guard lock(mutex_);
            leader_ = node;
            ++version_;
            told.swap(waiting_);
        }
        for (const auto& one : told) one();
    }
    std::optional<NodeUuid> get() const {
        std::lock_guard lock(mutex_);
        return leader_;
    }
    uint64_t version() const {
        std::lock_guard lock(mutex_);
        return version_;
    }
    void when_changed(uint64_t seen, std::function<void()> changed) {
        {
            std::lock_guard lock(mutex_);
            if (version_ == seen) return waiting_.push_back(std::move(changed));
        }
        changed();
    }

  private:
    mutable std::mutex mutex_;
    std::optional<NodeUuid> leader_;
    uint64_t version_ = 1;
    std::vector<std::function<void()>> waiting_;
};

class View final : public ShardDirectory {
  public:
    View(Lead& lead, NodeUuid self) : lead_(lead), self_(self) {}
    uint16_t shard_count() const override { return 16; }
    ShardPlace find(ShardId asked) const override {
        CHECK(asked == shard);
        ShardPlace place;
        if (const auto leader = lead_.get()) {
            place.where = *leader == self_ ? ShardPlace::Where::here : ShardPlace::Where::there;
            place.node = *leader;
        }
        return place;
    }
    void when_changed(uint64_t seen, std::function<void()> changed) override {
        lead_.when_changed(seen, std::move(changed));
    }
    uint64_t version() const override { return lead_.version(); }

  private:
    Lead& lead_;
    const NodeUuid self_;
};

/// The link of all nodes: parts go straight from door to door, until it is cut.
class Wire final : public HopCaller {
  public:
    struct Call final : CallReply, LinkCall {
        std::mutex mutex;
        std::function<void(std::string)> on_part;
        std::function<void(std::optional<Error>)> on_end;
        std::atomic<bool> gone{false};

        void part(std::string bytes) override {
            std::lock_guard lock(mutex);
            if (on_end) on_part(std::move(bytes));
        }
        void end(std::optional<Error> failure) override {
            std::lock_guard lock(mutex);
            if (const auto ended = std::exchange(on_end, nullptr)) ended(std::move(failure));
        }
        bool cancelled() const override { return gone; }
        void cancel() override {
            gone = true;
            end(Error{ErrorCode::turn_cancelled, "cancelled", {}});
        }
    };

    void connect(NodeUuid node, std::weak_ptr<HopServer> server) {
        std::lock_guard lock(mutex_);
        servers_[node] = std::move(server);
    }
    /// From now on there is no link to it, and what is under way is lost.
    void cut(NodeUuid node) {
        std::vector<std::shared_ptr<Call>> lost;
        {
            std::lock_guard lock(mutex_);
            servers_.erase(node);
            for (const auto& [to, call] : calls_)
                if (to == node) lost.push_back(call);
        }
        for (const auto& call : lost) {
            call->gone = true;
            call->end(Error{ErrorCode::shard_unavailable, "the link was lost", {}});
        }
    }
    std::shared_ptr<LinkCall> call(const NodeUuid& to, std::string request, std::function<void(std::string)> on_part,
                                   std::function<void(std::optional<Error>)> on_end) override {
        auto call = std::make_shared<Call>();
        call->on_part = std::move(on_part);
        call->on_end = std::move(on_end);
        std::shared_ptr<HopServer> server;
        {
            std::lock_guard lock(mutex_);
            ++asked_;
            bytes_max_ = std::max(bytes_max_, request.size());
            calls_.emplace_back(to, call);
            if (const auto found = servers_.find(to); found != servers_.end()) server = found->second.lock();
        }
        if (server)
            server->call(node_no(99), std::move(request), call);
        else
            call->end(Error{ErrorCode::misdirected, "there is no link", {}});
        return call;
    }
    size_t asked() const {
        std::lock_guard lock(mutex_);
        return asked_;
    }
    size_t bytes_max() const {
        std::lock_guard lock(mutex_);
        return bytes_max_;
    }
    size_t cancelled() const {
        std::lock_guard lock(mutex_);
        size_t count = 0;
        for (const auto& entry : calls_) count += entry.second->cancelled();
        return count;
    }

  private:
    mutable std::mutex mutex_;
    std::map<NodeUuid, std::weak_ptr<HopServer>> servers_;
    std::vector<std::pair<NodeUuid, std::shared_ptr<Call>>> calls_;
    size_t asked_ = 0, bytes_max_ = 0;
};

Error elsewhere(bool led = true) {
    return {led ? ErrorCode::misdirected : ErrorCode::shard_unavailable, "another node leads the session's shard",
            std::to_string(shard.value)};
}

/// What turns a replicated journal has: one for each key, whichever node was asked.
struct SharedTurns {
    std::mutex mutex;
    std::map<std::string, TurnAnswer> by_key;
    size_t made = 0;
};

struct Node {
    Node(uint8_t number, Lead& lead, Wire& wire, uint32_t wait_ms = 5'000, uint32_t tick_ms = 2)
        : name(node_no(number)), view(lead, name), door(config(view, wire, wait_ms, tick_ms)) {
        door.bridge.refuses = [this, &lead]() -> std::optional<Error> {
            const auto leader = lead.get();
            if (leader == name) return std::nullopt;
            return elsewhere(leader.has_value());
        };
        wire.connect(name, door.door.hop_server());
    }
    static DoorConfig config(View& view, Wire& wire, uint32_t wait_ms, uint32_t tick_ms) {
        auto config = RunningDoor::quick();
        config.tick_ms = tick_ms;
        config.shards = &view;
        config.hop_caller = &wire;
        config.hop_wait_ms = wait_ms;
        config.hop_back_off_ms = 1;
        return config;
    }
    /// Turns are those of the journal that all nodes share; `held`: not answered, as if it ran for long.
    void share(SharedTurns& turns, bool held = false) {
        door.bridge.on_create = [this, &turns, held](TurnRequest request, Callback<TurnAnswer> done) {
            std::unique_lock lock(turns.mutex);
            const auto found = turns.by_key.find(request.idempotency_key);
            const bool known = found != turns.by_key.end();
            if (!known) {
                ++turns.made;
                turns.by_key[request.idempotency_key] = door.bridge.make_turn(request, "echo: once");
            }
            auto answer = turns.by_key[request.idempotency_key];
            answer.repeated = known;
            lock.unlock();
            if (held)
                kept.push_back(std::move(done));
            else
                done(std::move(answer));
        };
    }
    double metric(const std::string& series) {
        std::istringstream lines(prometheus::TextSerializer().Serialize(door.registry.Collect()));
        for (std::string line; std::getline(lines, line);)
            if (line.starts_with(series + " ")) return std::stod(line.substr(series.size() + 1));
        return -1;
    }
    double hops(const std::string& outcome) { return metric("mainstay_http_hops_total{outcome=\"" + outcome + "\"}"); }

    const NodeUuid name;
    View view;
    std::vector<Callback<TurnAnswer>> kept;
    RunningDoor door;
};

struct Cluster {
    explicit Cluster(uint32_t wait_ms = 5'000, uint32_t tick_ms = 2)
        : a(1, lead, wire, wait_ms, tick_ms), b(2, lead, wire, wait_ms, tick_ms) {}
    Lead lead;
    Wire wire;
    Node a, b;
};

/// Ids are random and so is what contains them.
std::string without_ids(const std::string& text) {
    return std::regex_replace(text, std::regex("(resp|msg|conv)_[a-z2-7]+"), "$1_X");
}

/// Asks in the background: for what the test must do something meanwhile.
struct Asking {
    Asking(Node& node, std::string method, std::string path, std::string body, std::string headers = {})
        : thread([&node, method, path, body, headers, this] {
              answer = node.door.ask(method, path, body, headers);
              answered = true;
          }) {}
    ~Asking() {
        if (thread.joinable()) thread.join();
    }
    Client::Answer& get() {
        thread.join();
        return answer;
    }
    Client::Answer answer;
    std::atomic<bool> answered{false};
    std::thread thread;
};

const std::string hello = R"({"model":"assistant","input":"hi"})";
const std::string hello_stream = R"({"model":"assistant","input":"hi","stream":true})";

/// A turn that was accepted, and what of it was shown.
struct Running {
    explicit Running(FakeBridge& bridge, TurnRequest request) {
        settled = bridge.make_turn(request, "Hello there");
        settled.session = {FamilyId{1}, 1, 1};
        auto turn = std::make_shared<Turn>(*settled.turn);
        turn->no = TurnNo{1};
        settled.turn = turn;
        begun = std::make_shared<Turn>(*turn);
        begun->status = TurnStatus::in_progress;
        begun->items.resize(begun->input_count);
    }
    void accept(const StreamCallback& to) const {
        auto answer = settled;
        answer.turn = begun;
        to(StreamAccepted{answer});
    }
    void finish(const StreamCallback& to) const {
        to(StreamItems{begun->input_count, {settled.turn->items.back()}, 0, 1});
        to(StreamEnded{settled});
    }
    TurnAnswer settled;
    std::shared_ptr<Turn> begun;
};

}  // namespace

TEST_CASE("hop: every kind of route is answered by the owner as if it had been asked there") {
    Cluster cluster;
    cluster.lead.set(cluster.b.name);
    auto& a = cluster.a.door;
    auto& b = cluster.b.door;
    const auto made = a.ask("POST", "/v1/responses", hello);
    REQUIRE(made.status == 200);
    CHECK_FALSE(made.has("Idempotency-Replayed"));
    const std::string response = "/v1/responses/" + std::string(made.json().at("id").as_string());
    const auto opened = a.ask("POST", "/v1/conversations",
                              R"({"metadata":{"k":"v"},"items":[{"type":"message","role":"user","content":"one"}]})");
    REQUIRE(opened.status == 200);
    const std::string id(opened.json().at("id").as_string());
    const std::string conversation = "/v1/conversations/" + id;
    const auto items = a.ask("GET", conversation + "/items").json();
    REQUIRE(items.at("data").as_array().size() == 1);
    const std::string item(items.at("data").at(0).at("id").as_string());

    const SessionId nobody{FamilyId{9}, 9, 9};
    struct Case {
        std::string method, path, body, type;
        int status;
    };
    const Case cases[] = {
        {"GET", response, {}, {}, 200},
        {"HEAD", response, {}, {}, 200},
        {"GET", response + "?stream=true", {}, {}, 200},
        {"GET", response + "/input_items?limit=1", {}, {}, 200},
        {"POST", response + "/cancel", {}, {}, 200},
        {"GET", "/v1/responses/" + to_text(ResponseId{nobody, TurnNo{1}}), {}, {}, 404},
        {"POST", "/v1/responses", hello, {}, 200},
        {"POST", "/v1/responses", R"({"model":"nobody","input":"hi"})", {}, 404},
        {"GET", conversation, {}, {}, 200},
        {"POST", conversation, R"({"metadata":{"k":"w"}})", {}, 200},
        {"GET", conversation + "/items", {}, {}, 200},
        {"GET", conversation + "/items/" + item, {}, {}, 200},
        {"POST", conversation + "/items", R"({"items":[{"type":"message","role":"user","content":"two"}]})", {}, 200},
        {"GET", "/v1/sessions/" + id, {}, {}, 200},
        {"GET", "/v1/sessions/" + id + "/events", {}, {}, 200},
        {"POST", "/v1/agents?dry_run=true", "name = \"x\"", "application/toml", 200},
        {"POST", "/v1/agents", "{\"name\":\"x\"}", "application/json", 200},
        {"POST", "/v1/sessions/" + id + "/calls/" + item + "/resolve", R"({"as":"done"})", {}, 404},
        {"DELETE", "/v1/sessions/" + to_text(nobody), {}, {}, 404},
    };
    for (const auto& test : cases) {
        INFO(test.method, " ", test.path);
        const size_t before = cluster.wire.asked();
        const auto send = [&](RunningDoor& to) {
            Client client(to.door.port());
            auto bytes = RunningDoor::request(test.method, test.path, test.body);
            if (!test.type.empty()) bytes.replace(bytes.find("application/json"), 16, test.type);
            client.send(bytes);
            return client.read(test.method == "HEAD");
        };
        const auto there = send(a);
        CHECK(cluster.wire.asked() == before + 1);
        const auto here = send(b);
        CHECK(cluster.wire.asked() == before + 1);
        CHECK(there.status == test.status);
        CHECK(here.status == test.status);
        if (test.method == "HEAD") continue;
        // What adds an item adds another one each time.
        if (!test.path.ends_with("/items") || test.method == "GET")
            CHECK(without_ids(there.body) == without_ids(here.body));
        const auto type_of = [](const std::string& head) {
            const auto at = head.find("Content-Type:");
            return head.substr(at, head.find("\r\n", at) - at);
        };
        CHECK(type_of(there.head) == type_of(here.head));
    }
    CHECK(a.ask("DELETE", conversation).status == 200);
    CHECK(b.ask("GET", conversation).status == 404);
    // What is of no shard stays.
    const size_t before = cluster.wire.asked();
    for (const auto* path : {"/v1/models", "/v1/agents", "/v1/sessions", "/v1/workers", "/healthz", "/metrics", "/"})
        CHECK(a.ask("GET", path).status == 200);
    CHECK(a.ask("GET", "/v1/nothing").status == 404);
    CHECK(cluster.wire.asked() == before);
    CHECK(cluster.a.hops("answered") == cluster.wire.asked());
    CHECK(cluster.b.metric("mainstay_http_hops_served_total") == cluster.wire.asked());
    CHECK(cluster.a.metric("mainstay_http_hop_waiting_requests") == 0);
}

TEST_CASE("hop: a stream is the same to the byte") {
    Cluster cluster;
    cluster.lead.set(cluster.b.name);
    const auto here = cluster.b.door.ask("POST", "/v1/responses", hello_stream);
    Client client(cluster.a.door.door.port());
    for (int i = 0; i < 3; ++i) {  // on one connection, which goes on
        client.send(RunningDoor::request("POST", "/v1/responses", hello_stream));
        const auto there = client.read();
        REQUIRE(there.status == 200);
        CHECK(there.has("Content-Type: text/event-stream\r\n"));
        CHECK(without_ids(there.body) == without_ids(here.body));
    }
    CHECK(cluster.wire.asked() == 3);
}

TEST_CASE("hop: a request waits until its shard has an owner, whichever that is") {
    Cluster cluster;
    for (const bool local : {false, true}) {
        cluster.lead.set(std::nullopt);
        Asking asking(cluster.a, "POST", "/v1/responses", hello);
        CHECK(eventually([&] { return cluster.a.metric("mainstay_http_hop_waiting_requests") == 1; }));
        CHECK_FALSE(asking.answered);
        const size_t before = cluster.wire.asked();
        cluster.lead.set(local ? cluster.a.name : cluster.b.name);
        CHECK(asking.get().status == 200);
        CHECK(cluster.wire.asked() == before + (local ? 0 : 1));
    }
}

TEST_CASE("hop: where nobody comes to lead the shard, the error goes out after the bound") {
    Cluster cluster(50);
    const auto answer = cluster.a.door.ask("POST", "/v1/responses", hello);
    CHECK(answer.status == 503);
    CHECK(answer.code() == "shard_unavailable");
    CHECK(answer.has("Retry-After:"));
    cluster.lead.set(node_no(9));  // whom no link reaches
    CHECK(cluster.a.door.ask("POST", "/v1/responses", hello).code() == "shard_unavailable");
    CHECK(cluster.a.hops("unreachable") > 0);
    CHECK(cluster.a.metric("mainstay_http_hop_waiting_requests") == 0);
}

TEST_CASE("hop: who waits for an owner that is not ready waits for no tick of the door") {
    Cluster cluster(50'000, 60'000);
    cluster.lead.set(cluster.b.name);
    std::atomic<int> refused{0};
    cluster.b.door.bridge.refuses = [&]() -> std::optional<Error> {
        return ++refused <= 3 ? std::optional(elsewhere()) : std::nullopt;
    };
    CHECK(cluster.a.door.ask("POST", "/v1/responses", hello).status == 200);  // a client gives up before a minute
    CHECK(refused == 4);
}

TEST_CASE("hop: who is sent back again and again is told so after the bound of attempts") {
    Cluster cluster;
    cluster.lead.set(cluster.b.name);
    cluster.b.door.bridge.refuses = [] { return std::optional(elsewhere()); };
    const auto answer = cluster.a.door.ask("POST", "/v1/responses", hello);
    CHECK(answer.status == 421);
    CHECK(answer.code() == "misdirected");
    // Once here, then there: no hop was followed by another.
    CHECK(cluster.wire.asked() == limits::hop_attempts_max - 1);
    CHECK(cluster.a.hops("misdirected") == limits::hop_attempts_max - 1);
}

TEST_CASE("hop: the owner dies in the middle of a turn: the next one answers, and one turn was made") {
    for (const bool own_key : {true, false}) {
        Cluster cluster;
        SharedTurns turns;
        cluster.a.share(turns);
        cluster.b.share(turns, true);
        cluster.lead.set(cluster.b.name);
        Asking asking(cluster.a, "POST", "/v1/responses", hello, own_key ? "" : "Idempotency-Key: mine\r\n");
        REQUIRE(eventually([&] {
            std::lock_guard lock(turns.mutex);
            return turns.made == 1;
        }));
        cluster.wire.cut(cluster.b.name);
        cluster.lead.set(std::nullopt);
        cluster.lead.set(cluster.a.name);
        const auto& answer = asking.get();
        CHECK(answer.status == 200);
        CHECK(answer.body.find("echo: once") != std::string::npos);
        CHECK(turns.made == 1);
        REQUIRE(turns.by_key.size() == 1);
        const std::string key = turns.by_key.begin()->first;
        CHECK(key.starts_with(request_key_prefix) == own_key);
        // A client that gave no key is not told of one.
        CHECK(answer.has("Idempotency-Replayed") != own_key);
        CHECK(answer.head.find(key) == std::string::npos);
        CHECK(answer.body.find(key) == std::string::npos);
        CHECK(cluster.a.hops("lost") == 1);
        cluster.b.kept.clear();
    }
}

TEST_CASE("hop: what has no key is not done twice when its owner dies") {
    Cluster cluster;
    cluster.lead.set(cluster.b.name);
    const auto opened = cluster.a.door.ask("POST", "/v1/conversations", "{}");
    const std::string path = "/v1/conversations/" + std::string(opened.json().at("id").as_string()) + "/items";
    const size_t before = cluster.wire.asked();
    cluster.b.door.bridge.refuses = [&]() -> std::optional<Error> {
        cluster.wire.cut(cluster.b.name);  // on its way to be done
        cluster.lead.set(cluster.a.name);
        return std::nullopt;
    };
    const std::string items = R"({"items":[{"type":"message","role":"user","content":"two"}]})";
    const auto answer = cluster.a.door.ask("POST", path, items);
    CHECK(answer.status == 500);
    CHECK(answer.code() == "internal");
    CHECK(cluster.wire.asked() == before + 1);
    CHECK(cluster.a.door.bridge.last_request().items.empty());
    // A read is repeated: the new owner has the last word.
    CHECK(cluster.a.door.ask("GET", path).status == 404);
}

TEST_CASE("hop: a turn that is lost because this node steps down is answered by the next owner") {
    Cluster cluster;
    SharedTurns turns;
    cluster.a.share(turns, true);
    cluster.b.share(turns);
    cluster.lead.set(cluster.a.name);
    SUBCASE("told so") {
        Asking asking(cluster.a, "POST", "/v1/responses", hello);
        REQUIRE(eventually([&] {
            std::lock_guard lock(turns.mutex);
            return turns.made == 1;
        }));
        cluster.lead.set(cluster.b.name);
        cluster.a.kept.front()(elsewhere());
        CHECK(asking.get().status == 200);
    }
    SUBCASE("its actor was dropped before anybody knew of a new owner") {
        Asking asking(cluster.a, "POST", "/v1/responses", hello);
        REQUIRE(eventually([&] {
            std::lock_guard lock(turns.mutex);
            return turns.made == 1;
        }));
        cluster.a.door.bridge.refuses = [] { return std::optional(elsewhere(false)); };
        cluster.lead.set(std::nullopt);
        cluster.a.kept.front()(Error{ErrorCode::internal, "the request was dropped", {}});
        CHECK(eventually([&] { return cluster.a.metric("mainstay_http_hop_waiting_requests") == 1; }));
        cluster.lead.set(cluster.b.name);
        CHECK(asking.get().status == 200);
    }
    CHECK(turns.made == 1);
    cluster.a.kept.clear();
}

TEST_CASE("hop: an internal error is asked about once more, and then told") {
    Cluster cluster;
    cluster.lead.set(cluster.b.name);
    std::atomic<size_t> asked{0};
    cluster.b.door.bridge.refuses = [&]() -> std::optional<Error> {
        ++asked;
        return Error{ErrorCode::internal, "broken", {}};
    };
    CHECK(cluster.a.door.ask("POST", "/v1/responses", hello).code() == "internal");
    CHECK(asked == 2);
}

TEST_CASE("hop: a request that one owner after the other drops is asked of the next") {
    Cluster cluster;
    cluster.lead.set(cluster.b.name);
    std::atomic<size_t> dropped{0};
    const auto drops_it = [&](const NodeUuid& next) -> std::optional<Error> {
        if (dropped.fetch_add(1) >= 3) return std::nullopt;
        cluster.lead.set(next);
        return Error{ErrorCode::internal, "the request was dropped", {}};
    };
    for (Node* node : {&cluster.a, &cluster.b}) {
        const NodeUuid other = node == &cluster.a ? cluster.b.name : cluster.a.name;
        node->door.bridge.refuses = [&drops_it, other, leads = node->door.bridge.refuses]() -> std::optional<Error> {
            if (auto elsewhere_now = leads()) return elsewhere_now;
            return drops_it(other);
        };
    }
    CHECK(cluster.a.door.ask("POST", "/v1/responses", hello).status == 200);
    CHECK(dropped == 4);
}

TEST_CASE("hop: a node that drains is asked again where its shard went") {
    Cluster cluster;
    cluster.lead.set(cluster.b.name);
    std::atomic<bool> asked{false};
    cluster.b.door.bridge.refuses = [&]() -> std::optional<Error> {
        if (!asked.exchange(true)) cluster.lead.set(cluster.a.name);
        return Error{ErrorCode::draining, "the node is shutting down", {}};
    };
    CHECK(cluster.a.door.ask("POST", "/v1/responses", hello).status == 200);
    CHECK(asked);
}

TEST_CASE("hop: a stream goes on with the next owner, without a gap or a repetition") {
    for (const std::string shown : {"", "Hello", "Hello there", "Good"}) {
        for (const bool from_here : {false, true}) {
            INFO("shown '", shown, "' ", from_here);
            Cluster cluster;
            Node& first = from_here ? cluster.a : cluster.b;
            Node& next = from_here ? cluster.b : cluster.a;
            std::mutex mutex;
            std::vector<std::string> keys;
            StreamCallback held;
            std::atomic<bool> begun{false};
            first.door.bridge.on_stream = [&](TurnRequest request, StreamCallback to) {
                std::lock_guard lock(mutex);
                keys.push_back(request.idempotency_key);
                const Running running(first.door.bridge, request);
                running.accept(to);
                if (!shown.empty()) to(StreamDelta{0, 1, shown});
                held = std::move(to);
                begun = true;
            };
            next.door.bridge.on_stream = [&](TurnRequest request, StreamCallback to) {
                std::lock_guard lock(mutex);
                keys.push_back(request.idempotency_key);
                const Running running(next.door.bridge, request);
                running.accept(to);
                to(StreamDelta{0, 1, "Hel"});
                to(StreamDelta{0, 1, "lo th"});
                running.finish(to);
            };
            cluster.lead.set(first.name);
            Client client(cluster.a.door.door.port());
            client.send(RunningDoor::request("POST", "/v1/responses", hello_stream));
            REQUIRE(client.received(shown.empty() ? "response.in_progress" : "output_text.delta"));
            REQUIRE(eventually([&] { return begun.load(); }));
            cluster.lead.set(next.name);
            if (from_here) {
                held(StreamFailed{elsewhere()});
                held(StreamDelta{0, 1, "late"});
            } else {
                cluster.wire.cut(first.name);
            }
            const auto answer = client.read();
            REQUIRE(answer.status == 200);
            StreamReader reader;
            reader.read(answer.body);
            reader.check_closed();
            CHECK(reader.error.empty());
            const bool goes_on = std::string("Hello there").starts_with(shown);
            CHECK(reader.texts[goes_on ? 0 : 1] == "Hello there");
            if (!goes_on) CHECK(reader.done[0].at("status") == "incomplete");
            std::lock_guard lock(mutex);
            REQUIRE(keys.size() == 2);
            CHECK(keys[0] == keys[1]);
            CHECK(keys[0].starts_with(request_key_prefix));
            held = nullptr;
        }
    }
}

TEST_CASE("hop: a stream that nobody goes on with ends with the error, behind what was sent") {
    Cluster cluster(50);
    StreamCallback held;
    cluster.b.door.bridge.on_stream = [&](TurnRequest request, StreamCallback to) {
        Running(cluster.b.door.bridge, request).accept(to);
        held = std::move(to);
    };
    cluster.lead.set(cluster.b.name);
    Client client(cluster.a.door.door.port());
    client.send(RunningDoor::request("POST", "/v1/responses", hello_stream));
    REQUIRE(client.received("response.in_progress"));
    cluster.wire.cut(cluster.b.name);
    cluster.lead.set(std::nullopt);
    const auto answer = client.read();
    StreamReader reader;
    reader.read(answer.body);
    CHECK(reader.error == "internal");  // not an invitation to send it again: the turn may stand
    // The connection goes on.
    cluster.lead.set(cluster.a.name);
    client.send(RunningDoor::request("POST", "/v1/responses", hello));
    CHECK(client.read().status == 200);
    held = nullptr;
}

TEST_CASE("hop: a client that goes away cancels the call, and the owner forgets its reader") {
    Cluster cluster;
    cluster.lead.set(cluster.b.name);
    StreamCallback held;
    cluster.b.door.bridge.on_stream = [&](TurnRequest request, StreamCallback to) {
        Running(cluster.b.door.bridge, request).accept(to);
        held = std::move(to);
    };
    {
        Client client(cluster.a.door.door.port());
        client.send(RunningDoor::request("POST", "/v1/responses", hello_stream));
        REQUIRE(client.received("response.in_progress"));
    }
    CHECK(eventually([&] { return cluster.wire.cancelled() == 1; }));
    CHECK(eventually([&] { return cluster.b.door.bridge.unsubscribed() == 1; }));
    CHECK(eventually([&] { return cluster.a.hops("cancelled") == 1; }));
    held = nullptr;
}

TEST_CASE("hop: bodies of a megabyte go there, and answers of several come back") {
    Cluster cluster;
    cluster.lead.set(cluster.b.name);
    const std::string large(3'500'000, 'y');
    cluster.b.door.bridge.on_create = [&](TurnRequest request, Callback<TurnAnswer> done) {
        done(cluster.b.door.bridge.make_turn(request, large));
    };
    std::string body = hello;
    body.insert(body.size() - 1, std::string(limits::http_body_bytes_max - body.size(), ' '));
    REQUIRE(body.size() == limits::http_body_bytes_max);
    const auto answer = cluster.a.door.ask("POST", "/v1/responses", body);
    CHECK(answer.status == 200);
    CHECK(str(answer.json().at("output").at(0).at("content").at(0).at("text")) == large);
    CHECK(cluster.wire.bytes_max() > limits::http_body_bytes_max);
    CHECK(cluster.wire.bytes_max() < limits::link_message_bytes_max);
}

TEST_CASE("hop: keys of a door's own form are no client's to give") {
    Cluster cluster;
    cluster.lead.set(cluster.a.name);
    const auto answer = cluster.a.door.ask("POST", "/v1/responses", hello, "Idempotency-Key: mainstay-conv_aaaa\r\n");
    CHECK(answer.status == 400);
    CHECK(answer.code() == "invalid_request");
}

TEST_CASE("hop: who asks is who was authenticated at the first door") {
    Cluster cluster;
    cluster.lead.set(cluster.b.name);
    CHECK(cluster.a.door.ask("POST", "/v1/responses", hello).status == 200);
    const auto request = cluster.b.door.bridge.last_request();
    CHECK(request.principal.name == "admin");
    CHECK(request.principal.tenant == TenantId{1});
    CHECK(request.principal.admin);
    Client client(cluster.a.door.door.port());
    auto bytes = RunningDoor::request("POST", "/v1/responses", hello);
    bytes.replace(bytes.find("secret"), 6, "secreT");
    client.send(bytes);
    CHECK(client.read().status == 401);
    CHECK(cluster.wire.asked() == 1);
}

TEST_CASE("hop: what is no request of a door is refused") {
    Cluster cluster;
    std::optional<Error> failure;
    auto call = std::make_shared<Wire::Call>();
    call->on_part = [](std::string) {};
    call->on_end = [&](std::optional<Error> error) { failure = std::move(error); };
    cluster.b.door.door.hop_server()->call(cluster.a.name, "nonsense", call);
    REQUIRE(failure);
    CHECK(failure->code == ErrorCode::peer_refused);
}

TEST_CASE("hop: a node alone has none of it") {
    RunningDoor running;
    CHECK(running.door.hop_server() == nullptr);
    CHECK(running.ask("POST", "/v1/responses", hello).status == 200);
    CHECK(running.bridge.last_request().idempotency_key.empty());
    CHECK(running.bridge.last_request().request_digest == 0);
    const auto text = prometheus::TextSerializer().Serialize(running.registry.Collect());
    CHECK(text.find("mainstay_http_hop") == std::string::npos);
    running.bridge.refuses = [] { return std::optional(elsewhere()); };
    CHECK(running.ask("POST", "/v1/responses", hello).code() == "misdirected");
}

TEST_CASE("hop: requests and parts are read as they were written") {
    HopRequest request;
    request.method = HttpMethod::del;
    request.path = "/v1/x%20y";
    request.query = "a=b";
    request.content_type = "application/toml";
    request.idempotency_key = "key";
    request.timeout_ms = "12";
    request.body = std::string("\0body", 5);
    request.principal = {TenantId{3}, "ada", true};
    const auto bytes = encode_hop_request(request);
    const auto read = decode_hop_request(bytes);
    REQUIRE(read.ok());
    CHECK(read->method == HttpMethod::del);
    CHECK(read->path == request.path);
    CHECK(read->query == request.query);
    CHECK(read->content_type == request.content_type);
    CHECK(read->idempotency_key == request.idempotency_key);
    CHECK(read->timeout_ms == request.timeout_ms);
    CHECK(read->body == request.body);
    CHECK(read->principal.name == "ada");
    CHECK(read->principal.tenant == TenantId{3});
    CHECK(read->principal.admin);
    for (size_t cut = 0; cut < bytes.size(); ++cut) CHECK_FALSE(decode_hop_request(bytes.substr(0, cut)).ok());
    CHECK_FALSE(decode_hop_request(bytes + std::string(8, '\0')).ok());

    HopHead head{404, "application/json", "A: b\r\nC: d\r\n", false, ErrorCode::misdirected, shard};
    auto part = decode_hop_part(encode_hop_head(head));
    REQUIRE(part.ok());
    const auto& again = std::get<HopHead>(*part);
    CHECK(again.status == 404);
    CHECK(again.headers == head.headers);
    CHECK(again.error == ErrorCode::misdirected);
    CHECK(again.shard == shard);
    for (const auto* headers : {"A: b\r\n\r\nC: d\r\n", "A: b\n\r\n", "A: b", "\r\n"}) {
        head.headers = headers;
        CHECK_FALSE(decode_hop_part(encode_hop_head(head)).ok());
    }
    part = decode_hop_part(encode_hop_body("some"));
    REQUIRE(part.ok());
    CHECK(std::get<HopBody>(*part).bytes == "some");
}
