#include "runtime/inference/openai_device.h"

#include <doctest/doctest.h>

#include <boost/json.hpp>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "runtime/inference/device_set.h"
#include "runtime/inference/upstream_choice.h"
#include "tests/support/fake_upstream.h"
#include "tests/support/model_sink.h"

using namespace mainstay;

namespace {

using End = FakeAnswer::End;
constexpr const char* key = "sk-do-not-tell-anyone";

struct Fixture {
    FakeUpstream upstream;
    std::shared_ptr<HttpClient> http = std::make_shared<HttpClient>();
    OpenAiDevice device{http};
    uint64_t next_id = 1;

    Fixture() { ::setenv("MAINSTAY_TEST_KEY", key, 1); }

    ModelRequest request(std::vector<std::string> base_url = {}) {
        ModelSpec model;
        model.name = "qwen";
        model.base_url = base_url.empty() ? std::vector{upstream.url("/v1")} : std::move(base_url);
        model.api_key_env = "MAINSTAY_TEST_KEY";
        ModelRequest out;
        out.request_id = next_id++;
        out.model = std::make_shared<const ModelSpec>(std::move(model));
        Item item;
        item.text = "hi";
        out.prompt.open.push_back(std::make_shared<const Item>(std::move(item)));
        out.idempotency_key = "key-of-the-step";
        out.stream = true;
        return out;
    }
    std::shared_ptr<RecordingSink> run(ModelRequest asked) {
        auto sink = std::make_shared<RecordingSink>();
        device.submit(std::move(asked), sink);
        REQUIRE(sink->wait());
        CHECK(sink->ends() == 1);
        if (sink->error()) CHECK(sink->error()->message.find(key) == std::string::npos);
        return sink;
    }
    std::shared_ptr<RecordingSink> play(FakeAnswer answer) {
        upstream.answer(std::move(answer));
        return run(request());
    }
};

std::string event(const std::string& json) { return "data: " + json + "\n\n"; }
std::string text_event(const std::string& text) {
    return event(R"({"model":"m","choices":[{"index":0,"delta":{"content":")" + text + R"("},"finish_reason":null}]})");
}
const std::string stop_event = event(R"({"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]})");
const std::string usage_event = event(R"({"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}})");
const std::string done_event = event("[DONE]");

}  // namespace

TEST_CASE("openai device: a streamed answer comes as deltas and as a whole, by one request") {
    Fixture f;
    const auto sink =
        f.play(fake_stream({": hello\n\n", text_event("Hel"), text_event("lo"), stop_event, usage_event, done_event}));
    REQUIRE(sink->result());
    CHECK(sink->result()->text == "Hello");
    CHECK(sink->deltas() == std::vector<std::string>{"Hel", "lo"});
    CHECK(sink->result()->finish_reason == "stop");
    CHECK(sink->result()->usage.input_tokens == 5);
    CHECK_FALSE(sink->result()->usage.simulated);
    const auto seen = f.upstream.requests();
    REQUIRE(seen.size() == 1);
    CHECK(seen[0].method == "POST");
    CHECK(seen[0].target == "/v1/chat/completions");
    CHECK(seen[0].headers.at("authorization") == std::string("Bearer ") + key);
    CHECK(seen[0].headers.at("content-type") == "application/json");
    CHECK(seen[0].headers.at("idempotency-key") == "key-of-the-step");
    CHECK(boost::json::parse(seen[0].body).at("messages").at(0).at("content") == "hi");
}

TEST_CASE("openai device: characters cut by chunk borders arrive whole") {
    const std::string stream = text_event("na\u00efve \u4e16\U0001F600") + stop_event + done_event;
    Fixture f;
    std::vector<std::string> bytes;
    for (const char c : stream) bytes.emplace_back(1, c);
    const auto sink = f.play(fake_stream(bytes));
    REQUIRE(sink->result());
    CHECK(sink->result()->text == "na\u00efve \u4e16\U0001F600");
    CHECK(sink->joined() == sink->result()->text);
}

TEST_CASE("openai device: deltas are told only where they are wanted, and connections are kept") {
    Fixture f;
    for (int i = 0; i < 5; ++i) {
        f.upstream.answer(fake_stream({text_event("a"), stop_event, done_event}));
        auto quiet = f.request();
        quiet.stream = false;
        const auto sink = f.run(quiet);
        CHECK(sink->deltas().empty());
        CHECK(sink->result()->text == "a");
        CHECK(boost::json::parse(f.upstream.requests().back().body).at("stream") == true);
    }
    // The step ends at [DONE], a moment before the transfer does, so a second connection may be opened.
    CHECK(f.upstream.connections() <= 3);
}

TEST_CASE("openai device: an answer that is plain JSON is taken as well, with or without its content type") {
    const std::string body = R"({"choices":[{"message":{"content":"whole"},"finish_reason":"stop"}]})";
    for (const std::string headers : {"Content-Type: application/json; charset=utf-8\r\n", ""}) {
        Fixture f;
        const auto sink = f.play(fake_answer(200, body, headers));
        REQUIRE(sink->result());
        CHECK(sink->result()->text == "whole");
        CHECK(sink->joined() == "whole");
    }
}

TEST_CASE("openai device: each way to fail has its class, is told once and is not tried again") {
    struct Row {
        const char* name;
        FakeAnswer answer;
        ErrorClass error_class;
        ErrorCode code;
    };
    const std::string leaky = std::string(R"({"error":{"message":"you sent )") + key + R"("}})";
    FakeAnswer whole_cut{{"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"cho"},
                         End::close};
    const std::vector<Row> rows = {
        {"no answer", {{}, End::close}, ErrorClass::transient, ErrorCode::model_unavailable},
        {"reset", {{}, End::reset}, ErrorClass::transient, ErrorCode::model_unavailable},
        {"no HTTP", {{"SSH-2.0-x\r\n\r\n"}, End::close}, ErrorClass::protocol, ErrorCode::model_protocol_error},
        {"cut in the text", fake_stream({text_event("half")}, false, End::close), ErrorClass::lost,
         ErrorCode::model_unavailable},
        {"reset in the text", fake_stream({text_event("half")}, false, End::reset), ErrorClass::lost,
         ErrorCode::model_unavailable},
        {"cut before [DONE]", fake_stream({text_event("all"), stop_event}, false, End::close), ErrorClass::protocol,
         ErrorCode::model_protocol_error},
        {"complete without [DONE]", fake_stream({text_event("all"), stop_event}), ErrorClass::protocol,
         ErrorCode::model_protocol_error},
        {"complete without an end", fake_stream({text_event("half")}), ErrorClass::lost, ErrorCode::model_unavailable},
        {"JSON cut", whole_cut, ErrorClass::lost, ErrorCode::model_unavailable},
        {"rubbish event", fake_stream({text_event("a"), event("{rubbish"), done_event}), ErrorClass::protocol,
         ErrorCode::model_protocol_error},
        {"a page of HTML", fake_answer(200, "<html></html>", "Content-Type: text/html\r\n"), ErrorClass::protocol,
         ErrorCode::model_protocol_error},
        {"rubbish JSON", fake_answer(200, "{rubbish"), ErrorClass::protocol, ErrorCode::model_protocol_error},
        {"a huge line", fake_stream({"data: " + std::string(2 * 1024 * 1024, 'x')}, false, End::stall),
         ErrorClass::protocol, ErrorCode::model_protocol_error},
        {"error in the stream",
         fake_stream({text_event("a"), event(leaky), event("{rubbish"), "data: " + std::string(2 * 1024 * 1024, 'x')}),
         ErrorClass::transient, ErrorCode::model_unavailable},
        {"400", fake_answer(400, leaky), ErrorClass::invalid, ErrorCode::model_rejected_request},
        {"400 context", fake_answer(400, R"({"error":{"code":"context_length_exceeded"}})"),
         ErrorClass::context_overflow, ErrorCode::context_overflow},
        {"400 filter", fake_answer(400, R"({"error":{"code":"content_filter"}})"), ErrorClass::content_filter,
         ErrorCode::content_filtered},
        {"401", fake_answer(401, leaky), ErrorClass::auth, ErrorCode::model_auth_failed},
        {"redirect", fake_answer(307, "", "Location: /elsewhere\r\n"), ErrorClass::invalid,
         ErrorCode::model_rejected_request},
        {"429", fake_answer(429, "{}", "Retry-After: 7\r\n"), ErrorClass::rate_limited, ErrorCode::model_rate_limited},
        {"500", fake_answer(500, leaky), ErrorClass::transient, ErrorCode::model_unavailable},
        {"503", fake_answer(503, "busy", ""), ErrorClass::overloaded, ErrorCode::model_unavailable},
        {"503 cut",
         {{"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\nbu"}, End::close},
         ErrorClass::overloaded,
         ErrorCode::model_unavailable},
        {"a large error", fake_answer(400, std::string(3'000'000, 'x'), ""), ErrorClass::invalid,
         ErrorCode::model_rejected_request},
    };
    Fixture f;
    for (const auto& row : rows) {
        CAPTURE(row.name);
        f.upstream.answer(row.answer);
        const auto sink = f.run(f.request());
        REQUIRE(sink->error());
        CAPTURE(sink->error()->message);
        CHECK(to_word(sink->error()->error_class) == to_word(row.error_class));
        CHECK(sink->error()->code == row.code);
        CHECK_FALSE(sink->error()->message.empty());
        CHECK(sink->error()->message.size() < 1000);
        if (std::string(row.name) == "429") CHECK(sink->error()->retry_after_ms == 7000);
    }
    CHECK(f.upstream.requests().size() == rows.size());
    CHECK(f.http->requests_sent() == rows.size());
}

TEST_CASE("openai device: a silent upstream ends at the deadline of the step, and a passed deadline sends nothing") {
    Fixture f;
    f.upstream.answer(fake_stream({text_event("half")}, false, End::stall));
    auto request = f.request();
    request.deadline = SystemClock().now_ms() + 300;
    CHECK(f.run(request)->error()->error_class == ErrorClass::timeout);
    CHECK(f.upstream.wait_closed(1));
    auto late = f.request();
    late.deadline = SystemClock().now_ms() - 1;
    CHECK(f.run(late)->error()->code == ErrorCode::model_timeout);
    CHECK(f.upstream.requests().size() == 1);
}

TEST_CASE("openai device: a silent upstream is a stall after the time that the operator set") {
    Fixture f;
    OpenAiDevice hasty(f.http, 100);
    for (const auto& answer : {FakeAnswer{{}, End::stall}, fake_stream({text_event("half")}, false, End::stall)}) {
        f.upstream.answer(answer);
        auto sink = std::make_shared<RecordingSink>();
        hasty.submit(f.request(), sink);
        REQUIRE(sink->wait());
        REQUIRE(sink->error());
        CHECK(sink->error()->error_class == ErrorClass::timeout);
        CHECK(sink->error()->message.find("100 ms") != std::string::npos);
    }
    CHECK(f.upstream.requests().size() == 2);
}

TEST_CASE("openai device: a cancelled step is cut off upstream and its sink hears nothing more") {
    Fixture f;
    f.upstream.answer(fake_stream({text_event("first")}, false, End::stall));
    auto sink = std::make_shared<RecordingSink>();
    auto request = f.request();
    f.device.submit(request, sink);
    REQUIRE(sink->wait_delta());
    f.device.cancel(request.request_id);
    f.device.cancel(request.request_id);
    CHECK(f.upstream.wait_closed(1));
    CHECK(sink->ends() == 0);
    CHECK(sink->joined() == "first");
}

TEST_CASE("openai device: destroying a device with its own client ends its steps in silence") {
    FakeUpstream upstream;
    upstream.answer(fake_stream({text_event("first")}, false, End::stall));
    ModelSpec model;
    model.name = "qwen";
    model.base_url = {upstream.url()};
    auto device = make_text_device(model);
    REQUIRE(device.ok());
    auto sink = std::make_shared<RecordingSink>();
    ModelRequest request;
    request.request_id = 1;
    request.stream = true;
    request.model = std::make_shared<const ModelSpec>(model);
    (*device)->submit(request, sink);
    REQUIRE(sink->wait_delta());
    device->reset();
    CHECK(upstream.wait_closed(1));
    CHECK(sink->ends() == 0);
    CHECK(sink.use_count() == 1);
}

TEST_CASE("openai device: a destroyed device calls no sink any more, though its client lives on") {
    // The sink is inside its first delta when the device goes: the destructor must wait for it to come out.
    struct SlowSink final : ModelSink {
        std::mutex lock;
        std::condition_variable changed;
        bool inside = false, may_leave = false;
        std::atomic<bool> left{false};
        std::atomic<int> later{0};
        void delta(uint64_t, std::string) override {
            if (left) ++later;
            std::unique_lock hold(lock);
            inside = true;
            changed.notify_all();
            changed.wait_for(hold, std::chrono::seconds(20), [this] { return may_leave; });
            left = true;
        }
        void done(uint64_t, ModelResult) override { ++later; }
        void failed(uint64_t, ModelError) override { ++later; }
    };
    Fixture f;
    auto device = std::make_unique<OpenAiDevice>(f.http);
    auto sink = std::make_shared<SlowSink>();
    f.upstream.answer(fake_stream({text_event("a") + text_event("b") + stop_event + done_event}));
    device->submit(f.request(), sink);
    {
        std::unique_lock hold(sink->lock);
        REQUIRE(sink->changed.wait_for(hold, std::chrono::seconds(20), [&] { return sink->inside; }));
    }
    bool was_out = false;
    int heard = 0;
    std::thread destroyer([&] {
        device.reset();
        was_out = sink->left;
        heard = sink->later;  // what came between leaving and the end of the device
    });
    {
        std::lock_guard hold(sink->lock);
        sink->may_leave = true;
    }
    sink->changed.notify_all();
    destroyer.join();
    CHECK(was_out);
    f.upstream.answer(fake_stream({text_event("c"), stop_event, done_event}));
    CHECK(f.run(f.request())->result()->text == "c");  // the client's thread has been past the old step
    CHECK(sink->later == heard);
}

TEST_CASE("openai device: without its key nothing is sent, and the variable is named") {
    Fixture f;
    auto request = f.request();
    ModelSpec model = *request.model;
    model.api_key_env = "MAINSTAY_TEST_NO_SUCH_KEY";
    request.model = std::make_shared<const ModelSpec>(model);
    const auto error = *f.run(request)->error();
    CHECK(error.error_class == ErrorClass::auth);
    CHECK(error.message.find("MAINSTAY_TEST_NO_SUCH_KEY") != std::string::npos);
    ::setenv("MAINSTAY_TEST_KEY", "sk-with\r\nX-Smuggled: yes", 1);
    const auto refused = *f.run(f.request())->error();
    CHECK(refused.error_class == ErrorClass::invalid);
    CHECK(refused.message.find("sk-with") == std::string::npos);
    CHECK(f.upstream.requests().empty());
}

TEST_CASE("openai device: the next attempt passes over an address that refused, this one does not try another") {
    Fixture f;
    const std::string dead = "http://127.0.0.1:" + std::to_string(refusing_port()) + "/v1";
    f.upstream.answer(fake_stream({text_event("a"), stop_event, done_event}));
    const std::vector<std::string> urls = {dead, f.upstream.url("/v1")};
    CHECK(f.run(f.request(urls))->error()->error_class == ErrorClass::transient);
    CHECK(f.upstream.requests().empty());
    CHECK(f.run(f.request(urls))->result()->text == "a");
}

TEST_CASE("openai device: many steps at once all end once") {
    Fixture f;
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (int i = 0; i < 64; ++i) f.upstream.answer(fake_stream({text_event("a"), stop_event, done_event}));
    for (int i = 0; i < 64; ++i) {
        sinks.push_back(std::make_shared<RecordingSink>());
        f.device.submit(f.request(), sinks.back());
    }
    for (const auto& sink : sinks) {
        REQUIRE(sink->wait());
        CHECK(sink->ends() == 1);
        CHECK(sink->result());
    }
    CHECK(f.upstream.requests().size() == 64);
}

TEST_CASE("upstream choice: the first address that is not cooling down, else the one whose time ends first") {
    UpstreamChoice choice;
    const std::vector<std::string> urls = {"a", "b", "c"};
    CHECK(choice.pick(urls, 0, 0) == 0);
    choice.refused("a", 0);
    CHECK(choice.pick(urls, 0, 1) == 1);
    choice.refused("b", 1);
    choice.refused("c", 2);
    CHECK(choice.pick(urls, 0, 3) == 0);
    choice.refused("a", 3);
    CHECK(choice.pick(urls, 0, 4) == 1);
    CHECK(choice.pick(urls, 0, limits::upstream_cooldown_ms + 1) == 1);
    CHECK(choice.pick(urls, 0, limits::upstream_cooldown_ms + 3) == 0);
    choice.refused("a", 100'000);
    choice.answered("a");
    CHECK(choice.pick(urls, 0, 100'001) == 0);
}

TEST_CASE("upstream choice: a session keeps its address, sessions are spread, and only those of a lost address move") {
    const std::vector<std::string> urls = {"http://a:8000/v1", "http://b:8000/v1", "http://c:8000/v1"};
    constexpr uint64_t sessions = 3000;
    UpstreamChoice choice;
    std::vector<size_t> before;
    std::vector<size_t> count(urls.size());
    for (uint64_t session = 1; session <= sessions; ++session) {
        before.push_back(choice.pick(urls, session, 0));
        ++count[before.back()];
        CHECK(choice.pick(urls, session, 1) == before.back());
    }
    for (const size_t of_one : count)
        CHECK(of_one > sessions / 3 - 150);  // over five standard deviations below a third

    choice.refused(urls[1], 10);
    std::vector<size_t> moved(urls.size());
    for (uint64_t session = 1; session <= sessions; ++session) {
        const size_t now = choice.pick(urls, session, 11);
        CHECK(now != 1);
        if (before[session - 1] == 1)
            ++moved[now];
        else
            CHECK(now == before[session - 1]);
    }
    CHECK(moved[0] > count[1] / 3);  // to both of the others
    CHECK(moved[2] > count[1] / 3);

    // Back where they came from once the address answers, or its time is over.
    const uint64_t later = 10 + limits::upstream_cooldown_ms;
    for (uint64_t session = 1; session <= sessions; ++session)
        CHECK(choice.pick(urls, session, later) == before[session - 1]);

    // The order of the list means nothing, and one more address takes its share from all and moves nobody else.
    const std::vector<std::string> more = {urls[2], "http://d:8000/v1", urls[0], urls[1]};
    size_t taken = 0;
    for (uint64_t session = 1; session <= sessions; ++session) {
        const std::string& now = more[choice.pick(more, session, later)];
        taken += now == more[1];
        if (now != more[1]) CHECK(now == urls[before[session - 1]]);
    }
    CHECK(taken > sessions / 4 - 150);
    CHECK(taken < sessions / 4 + 150);

    for (const auto& url : urls) choice.refused(url, later);
    choice.refused(urls[1], later + 1);
    choice.refused(urls[2], later + 1);
    CHECK(choice.pick(urls, 7, later + 2) == 0);  // all refuse: the one whose time ends first, as without a session
}

TEST_CASE("openai device: a session sticks to one of several addresses, says so by a digest, and moves when it must") {
    Fixture f;
    FakeUpstream second;
    FakeUpstream* const both[] = {&f.upstream, &second};
    const std::vector<std::string> urls = {f.upstream.url("/v1"), second.url("/v1")};
    const auto answer = fake_stream({text_event("a"), stop_event, done_event});
    const auto ask = [&](const SessionKey& session, std::vector<std::string> addresses) {
        auto request = f.request(std::move(addresses));
        request.session = session;
        return f.run(std::move(request));
    };
    const auto header = [](const FakeUpstream::Request& request) {
        const auto found = request.headers.find("x-session-id");
        return found == request.headers.end() ? std::string() : found->second;
    };
    std::map<std::string, size_t> place_of;  // of a session's digest
    size_t used[2] = {};
    for (uint64_t i = 1; i <= 16; ++i) {
        const SessionKey session{TenantId{1}, {FamilyId{77}, 0x1122334455667788, i}};
        for (int turn = 0; turn < 3; ++turn) {
            const size_t had[2] = {f.upstream.requests().size(), second.requests().size()};
            for (auto* upstream : both) upstream->answer(answer);
            REQUIRE(ask(session, urls)->result());
            const size_t at = second.requests().size() > had[1];
            REQUIRE(both[at]->requests().size() == had[at] + 1);
            const auto seen = both[at]->requests().back();
            const std::string digest = header(seen);
            CHECK(digest.size() == 32);
            CHECK(digest.find("1122334455667788") == std::string::npos);
            CHECK(digest.find("8877665544332211") == std::string::npos);
            CHECK(seen.body.find("prompt_cache_key") == std::string::npos);  // these might refuse it
            if (turn == 0) {
                CHECK(place_of.emplace(digest, at).second);  // of no other session
                ++used[at];
            }
            CHECK(place_of.at(digest) == at);
        }
    }
    CHECK(used[0] > 0);
    CHECK(used[1] > 0);

    // An address that refuses: the attempt fails, the next one goes elsewhere, others do not notice.
    const std::vector<std::string> half_dead = {"http://127.0.0.1:1/v1", second.url("/v1")};
    size_t failed = 0;
    for (uint64_t i = 1; i <= 16; ++i) {
        const SessionKey session{TenantId{1}, {FamilyId{77}, 0x1122334455667788, i}};
        for (int attempt = 0; attempt < 2; ++attempt) {
            second.answer(answer);
            const auto sink = ask(session, half_dead);
            failed += sink->error().has_value();
            if (attempt == 1) CHECK(sink->result());
        }
    }
    CHECK(failed == 1);

    f.upstream.answer(answer);
    second.answer(answer);
    REQUIRE(ask({}, urls)->result());  // of no session: the first address, and nothing that could be told
    CHECK(header(f.upstream.requests().back()).empty());
}

TEST_CASE("openai device: tokens that the upstream had cached are told") {
    Fixture f;
    const auto sink = f.play(fake_stream({text_event("a"), stop_event,
                                          event(R"({"choices":[],"usage":{"prompt_tokens":50,"completion_tokens":2,)"
                                                R"("prompt_tokens_details":{"cached_tokens":48}}})"),
                                          done_event}));
    REQUIRE(sink->result());
    CHECK(sink->result()->usage.input_tokens == 50);
    CHECK(sink->result()->usage.cached_tokens == 48);
}

TEST_CASE("device set: a model gets the device that it names, or a reason") {
    ModelSpec upstream;
    upstream.name = "m";
    upstream.base_url = {"http://127.0.0.1:1/v1"};
    CHECK(make_text_device(upstream).ok());
    upstream.device = "openai";
    CHECK(check_model(upstream, {}).ok());
    ModelSpec scripted;
    scripted.name = "s";
    scripted.device = "scripted";
    scripted.script.emplace_back().text = "x";
    CHECK(make_text_device(scripted).ok());

    const auto param_of = [](const ModelSpec& model) {
        const auto made = make_text_device(model);
        REQUIRE_FALSE(made.ok());
        CHECK(made.error().code == ErrorCode::unsupported_value);
        CHECK(made.error().message.find("model " + model.name) != std::string::npos);
        return made.error().param;
    };
    ModelSpec bad;
    bad.name = "bad";
    CHECK(param_of(bad) == "device");
    bad.device = "neuron_core_sim";
    CHECK(param_of(bad) == "device");
    bad.device = "openai";
    CHECK(param_of(bad) == "base_url");
    bad.base_url = {"ftp://x/"};
    CHECK(param_of(bad) == "base_url");
    bad.base_url = {"http://user:pw@x/"};
    CHECK(param_of(bad) == "base_url");
    bad.base_url = {"http://x/"};
    bad.script.emplace_back();
    CHECK(param_of(bad) == "script");
    bad.device = "scripted";
    CHECK(param_of(bad) == "base_url");
    bad.base_url.clear();
    bad.script.clear();
    CHECK(param_of(bad) == "script");
}
