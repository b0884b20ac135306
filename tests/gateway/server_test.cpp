// What hostile, broken and slow peers get: always a 4xx with a stable code or a closed connection, never more memory
// than the bounds allow. All over raw bytes on a loopback socket.

#include <doctest/doctest.h>
#include <prometheus/counter.h>

#include "gateway/door_fixture.h"

using namespace mainstay;

namespace {

const std::string auth = "Authorization: Bearer secret\r\n";
const std::string good_body = R"({"model":"assistant","input":"hi"})";

std::string nested(size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

}  // namespace

TEST_CASE("server: bytes that two servers could read differently are refused") {
    RunningDoor running;
    const std::string host = "Host: localhost\r\n" + auth;
    struct Case {
        std::string what, bytes;
        int status;
        std::string code;
    };
    const Case cases[] = {
        {"two equal lengths",
         "POST /v1/responses HTTP/1.1\r\n" + host + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400,
         "malformed_http"},
        {"two lengths", "POST /v1/responses HTTP/1.1\r\n" + host + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
         400, "malformed_http"},
        {"length and chunked",
         "POST /v1/responses HTTP/1.1\r\n" + host + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         400, "malformed_http"},
        {"chunked and length",
         "POST /v1/responses HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
         400, "malformed_http"},
        {"length with a sign", "POST /v1/responses HTTP/1.1\r\n" + host + "Content-Length: +2\r\n\r\n{}", 400,
         "malformed_http"},
        {"negative length", "POST /v1/responses HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n{}", 400,
         "malformed_http"},
        {"length list", "POST /v1/responses HTTP/1.1\r\n" + host + "Content-Length: 2, 2\r\n\r\n{}", 400,
         "malformed_http"},
        {"another coding",
         "POST /v1/responses HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400,
         "malformed_http"},
        {"identity coding", "POST /v1/responses HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\n\r\n", 400,
         "malformed_http"},
        {"chunked in 1.0", "POST /v1/responses HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         400, "malformed_http"},
        {"folded line", "GET /healthz HTTP/1.1\r\n" + host + "X-A: b\r\n c\r\n\r\n", 400, "malformed_http"},
        {"folded with a tab", "GET /healthz HTTP/1.1\r\n" + host + "X-A: b\r\n\tc\r\n\r\n", 400, "malformed_http"},
        {"no host", "GET /healthz HTTP/1.1\r\n" + auth + "\r\n", 400, "malformed_http"},
        {"two hosts", "GET /healthz HTTP/1.1\r\n" + host + "Host: localhost\r\n\r\n", 400, "malformed_http"},
        {"bare CR", "GET /healthz HTTP/1.1\r\n" + host + "X-A: b\rc\r\n\r\n", 400, "malformed_http"},
        {"bare LF", "GET /healthz HTTP/1.1\nHost: localhost\n\n", 400, "malformed_http"},
        {"NUL", "GET /healthz HTTP/1.1\r\n" + host + "X-A: b" + std::string(1, '\0') + "\r\n\r\n", 400,
         "malformed_http"},
        {"space before the colon", "GET /healthz HTTP/1.1\r\n" + host + "X-A : b\r\n\r\n", 400, "malformed_http"},
        {"a TLS hello", std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11), 400, "malformed_http"},
        {"another version", "GET /healthz HTTP/3.0\r\n" + host + "\r\n", 400, "malformed_http"},
        {"absolute target", "GET http://localhost/healthz HTTP/1.1\r\n" + host + "\r\n", 400, "malformed_http"},
        {"chunk size overflow",
         "POST /v1/responses HTTP/1.1\r\n" + host +
             "Transfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
         400, "malformed_http"},
        {"chunk size text", "POST /v1/responses HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400,
         "malformed_http"},
        {"encoding", "POST /v1/responses HTTP/1.1\r\n" + host + "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
         415, "unsupported_encoding"},
        {"long target", "GET /" + std::string(5000, 'a') + " HTTP/1.1\r\n" + host + "\r\n", 414, "uri_too_long"},
        {"endless target", "GET /" + std::string(40'000, 'a'), 414, "uri_too_long"},
        {"long header", "GET /healthz HTTP/1.1\r\n" + host + "X-A: " + std::string(20'000, 'a') + "\r\n\r\n", 431,
         "header_too_large"},
        {"announced too large", "POST /v1/responses HTTP/1.1\r\n" + host + "Content-Length: 99999999\r\n\r\n", 413,
         "body_too_large"},
        {"a foreign host", "GET /healthz HTTP/1.1\r\nHost: evil.example\r\n" + auth + "\r\n", 403, "forbidden"},
        {"no key", "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 401, "unauthenticated"},
        {"a wrong key", "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secreT\r\n\r\n", 401,
         "unauthenticated"},
        {"another scheme", "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic secret\r\n\r\n", 401,
         "unauthenticated"},
    };
    for (const auto& test : cases) {
        INFO(test.what);
        Client client(running.door.port());
        client.send(test.bytes);
        client.finish_sending();
        const auto answer = client.read();
        CHECK(answer.status == test.status);
        if (answer.status == 0) continue;
        CHECK(answer.code() == test.code);
        CHECK(answer.has("Connection: close"));
        CHECK(answer.has("x-request-id: req_"));
        CHECK(client.ended());
    }
    // The door is as it was.
    CHECK(running.ask("POST", "/v1/responses", good_body).status == 200);
}

TEST_CASE("server: a hundred fields pass, more do not") {
    RunningDoor running;
    std::string fields;
    for (int i = 0; i < 97; ++i) fields += "X-" + std::to_string(i) + ": a\r\n";  // with host, key and type: 100
    CHECK(running.ask("GET", "/v1/models", {}, fields).status == 200);
    const auto answer = running.ask("GET", "/v1/models", {}, fields + "X-Last: a\r\n");
    CHECK(answer.status == 431);
    CHECK(answer.code() == "header_too_large");
}

TEST_CASE("server: bad bodies get their own code and the connection stays") {
    RunningDoor running;
    Client client(running.door.port());
    const std::pair<std::string, std::string> cases[] = {
        {"{\"model\":", "malformed_json"},
        {"{\"model\":\"a\",\"input\":\"\xff\"}", "invalid_utf8"},
        {"{\"model\":\"a\",\"input\":\"\xed\xa0\x80\"}", "invalid_utf8"},
        {R"({"model":"a","input":"\ud800"})", "malformed_json"},
        {"{\"model\":\"a\",\"input\":" + nested(100) + "}", "json_too_deep"},
        {nested(200'000), "json_too_deep"},
        {"[]", "invalid_request"},
        {"{} {}", "malformed_json"},
        {"nan", "malformed_json"},
        {"{\"model\":\"a\",\"input\":\"" + std::string(600'000, 'x') + "\"}", "body_too_large"},
    };
    for (const auto& [body, code] : cases) {
        INFO(body.substr(0, 60));
        client.send(RunningDoor::request("POST", "/v1/responses", body));
        const auto answer = client.read();
        CHECK(answer.status >= 400);
        CHECK(answer.status < 500);
        CHECK(answer.code() == code);
    }
    client.send(RunningDoor::request("POST", "/v1/responses", good_body));
    CHECK(client.read().status == 200);
}

TEST_CASE("server: a body in chunks is read, and bounded") {
    RunningDoor running;
    Client client(running.door.port());
    std::string bytes = RunningDoor::request("POST", "/v1/responses", {}, "Transfer-Encoding: chunked\r\n");
    for (char c : good_body) bytes += std::string("1;ext=1\r\n") + c + "\r\n";
    client.send(bytes + "0\r\nTrailer: x\r\n\r\n");
    CHECK(client.read().status == 200);
    // The connection goes on behind it.
    client.send(RunningDoor::request("GET", "/v1/models"));
    CHECK(client.read().status == 200);

    Client large(running.door.port());
    large.send(RunningDoor::request("POST", "/v1/responses", {}, "Transfer-Encoding: chunked\r\n"));
    const std::string chunk = "10000\r\n" + std::string(0x10000, ' ') + "\r\n";
    for (int i = 0; i < 40 && large.send(chunk); ++i) {
    }
    const auto answer = large.read();
    CHECK(answer.status == 413);
    CHECK(answer.code() == "body_too_large");
}

TEST_CASE("server: requests that come at once are answered in order") {
    RunningDoor running;
    Client client(running.door.port());
    std::string bytes;
    for (int i = 0; i < 50; ++i)
        bytes += i % 5 == 4 ? RunningDoor::request("GET", "/nowhere")
                            : RunningDoor::request("POST", "/v1/responses",
                                                   R"({"model":"assistant","input":")" + std::to_string(i) + "\"}");
    client.send(bytes);
    for (int i = 0; i < 50; ++i) {
        const auto answer = client.read();
        if (i % 5 == 4) {
            CHECK(answer.status == 404);
            continue;
        }
        REQUIRE(answer.status == 200);
        const auto text = answer.json().at("output").at(0).at("content").at(0).at("text");
        CHECK(text == ("echo: " + std::to_string(i)).c_str());
    }
}

TEST_CASE("server: a request in single bytes is read") {
    RunningDoor running;
    Client client(running.door.port());
    for (char c : RunningDoor::request("POST", "/v1/responses", good_body)) client.send(std::string_view(&c, 1));
    CHECK(client.read().status == 200);
}

TEST_CASE("server: a client that asks first is told to go on") {
    RunningDoor running;
    Client client(running.door.port());
    const auto bytes = RunningDoor::request("POST", "/v1/responses", good_body, "Expect: 100-continue\r\n");
    client.send(bytes.substr(0, bytes.size() - good_body.size()));
    CHECK(client.read().status == 100);
    client.send(good_body);
    CHECK(client.read().status == 200);

    Client refused(running.door.port());
    refused.send(
        RunningDoor::request("POST", "/v1/responses", {}, "Expect: 100-continue\r\nContent-Length: 9999999\r\n"));
    CHECK(refused.read().status == 413);
}

TEST_CASE("server: slow peers are cut off, idle ones are let go") {
    auto config = RunningDoor::quick();
    config.header_timeout_ms = 60;
    config.body_timeout_ms = 60;
    config.idle_timeout_ms = 150;
    RunningDoor running(config);

    Client header(running.door.port());
    header.send("POST /v1/responses HT");
    auto answer = header.read();
    CHECK(answer.status == 408);
    CHECK(answer.code() == "request_timeout");
    CHECK(header.ended());

    Client body(running.door.port());
    const auto bytes = RunningDoor::request("POST", "/v1/responses", good_body);
    body.send(bytes.substr(0, bytes.size() - 5));
    answer = body.read();
    CHECK(answer.status == 408);
    CHECK(answer.code() == "request_timeout");

    Client idle(running.door.port());
    CHECK(idle.ended());
    Client between(running.door.port());
    between.send(RunningDoor::request("GET", "/v1/models"));
    CHECK(between.read().status == 200);
    CHECK(between.ended());
}

TEST_CASE("server: a reader that takes nothing is cut off") {
    auto config = RunningDoor::quick();
    config.write_timeout_ms = 100;
    RunningDoor running(config);
    running.bridge.on_create = [&](TurnRequest request, Callback<TurnAnswer> done) {
        done(running.bridge.make_turn(request, std::string(16 * 1024 * 1024, 'x')));
    };
    Client client(running.door.port());
    client.send(RunningDoor::request("POST", "/v1/responses", good_body));
    auto& counter = prometheus::BuildCounter()
                        .Name("mainstay_http_requests_total")
                        .Help("Requests answered, by route and class of the status.")
                        .Register(running.registry)
                        .Add({{"route", "/v1/responses"}, {"status", "2xx"}});
    CHECK(eventually([&] { return counter.Value() == 1; }));
    const auto answer = client.read();
    CHECK(answer.body.size() < 16 * 1024 * 1024);
}

TEST_CASE("server: unknown addresses and methods say so") {
    RunningDoor running;
    auto answer = running.ask("GET", "/v1/nothing");
    CHECK(answer.status == 404);
    CHECK(answer.code() == "not_found");
    answer = running.ask("PUT", "/v1/responses", "{}");
    CHECK(answer.status == 405);
    CHECK(answer.code() == "method_not_allowed");
    CHECK(answer.has("Allow: POST\r\n"));
    answer = running.ask("DELETE", "/v1/agents");
    CHECK(answer.has("Allow: GET, HEAD, POST\r\n"));
    answer = running.ask("GET", "/v1/responses/");
    CHECK(answer.status == 404);
}

TEST_CASE("server: too many connections are refused with an answer") {
    auto config = RunningDoor::quick();
    config.connections_max = 2;
    RunningDoor running(config);
    auto first = std::make_unique<Client>(running.door.port());
    Client second(running.door.port());
    for (auto* client : {first.get(), &second}) {
        client->send(RunningDoor::request("GET", "/v1/models"));
        CHECK(client->read().status == 200);
    }
    Client third(running.door.port());
    const auto answer = third.read();
    CHECK(answer.status == 503);
    CHECK(answer.code() == "too_many_connections");
    CHECK(answer.has("Retry-After: "));
    first.reset();
    CHECK(eventually([&] { return running.ask("GET", "/v1/models").status == 200; }));
}

TEST_CASE("server: a proxy's host name is served where it is listed, and refused elsewhere") {
    const auto status = [](RunningDoor& running, const std::string& host) {
        Client client(running.door.port());
        client.send("GET /v1/models HTTP/1.1\r\nHost: " + host + "\r\n" + auth + "\r\n");
        return client.read();
    };
    RunningDoor bare;
    const auto refused = status(bare, "agents.example");
    CHECK(refused.status == 403);
    CHECK(refused.body.find("listen.allowed_hosts") != std::string::npos);
    auto config = RunningDoor::quick();
    config.allowed_hosts = {"agents.example", "[fd00::1]"};
    RunningDoor listed(config);
    for (const char* host : {"agents.example", "Agents.Example:443", "[fd00::1]:80", "localhost", "LOCALHOST:8080"}) {
        CAPTURE(host);
        CHECK(status(listed, host).status == 200);
    }
    for (const char* host : {"evil.example", "agents.example.evil", "xagents.example", "fd00::1", ""}) {
        CAPTURE(host);
        CHECK(status(listed, host).status == 403);
    }
}

TEST_CASE("server: health needs no key on loopback, unless the operator wants one") {
    RunningDoor running;
    const std::string bare = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n";
    Client client(running.door.port());
    client.send(bare);
    auto answer = client.read();
    CHECK(answer.status == 200);
    CHECK(answer.body == "ok\n");
    CHECK(running.ask("GET", "/readyz").status == 200);
    CHECK(running.ask("GET", "/metrics").has("text/plain; version=0.0.4"));
    running.bridge.reason = "draining";
    answer = running.ask("GET", "/readyz");
    CHECK(answer.status == 503);
    CHECK(answer.code() == "draining");

    auto config = RunningDoor::quick();
    config.public_health = false;
    RunningDoor closed(config);
    Client other(closed.door.port());
    other.send(bare);
    CHECK(other.read().status == 401);
}

TEST_CASE("server: draining answers what is in flight, then ends") {
    RunningDoor running;
    Callback<TurnAnswer> held;
    TurnRequest asked;
    std::atomic<bool> arrived{false};
    running.bridge.on_create = [&](TurnRequest request, Callback<TurnAnswer> done) {
        held = std::move(done);
        asked = std::move(request);
        arrived = true;
    };
    Client idle(running.door.port());
    idle.send(RunningDoor::request("GET", "/v1/models"));
    CHECK(idle.read().status == 200);
    Client busy(running.door.port());
    busy.send(RunningDoor::request("POST", "/v1/responses", good_body));
    REQUIRE(eventually([&] { return arrived.load(); }));
    running.door.stop();
    CHECK(idle.ended());
    CHECK(eventually([&] { return !Client(running.door.port()).connected(); }));
    std::exchange(held, nullptr)(running.bridge.make_turn(asked, "late but whole"));
    const auto answer = busy.read();
    CHECK(answer.status == 200);
    CHECK(answer.has("Connection: close"));
    CHECK(busy.ended());
    running.join();
}

TEST_CASE("server: an answer after the door has ended harms nobody") {
    Callback<TurnAnswer> held;
    TurnAnswer late;
    {
        RunningDoor running;
        std::atomic<bool> arrived{false};
        running.bridge.on_create = [&](TurnRequest request, Callback<TurnAnswer> done) {
            late = running.bridge.make_turn(request, "late");
            held = std::move(done);
            arrived = true;
        };
        Client client(running.door.port());
        client.send(RunningDoor::request("POST", "/v1/responses", good_body));
        REQUIRE(eventually([&] { return arrived.load(); }));
    }
    held(late);
    held = nullptr;
}

TEST_CASE("server: a turn that outlasts the request's own deadline is a 408") {
    RunningDoor running;
    running.bridge.on_create = [&](TurnRequest request, Callback<TurnAnswer> done) {
        CHECK(request.timeout_ms == 50);
        done(Error{ErrorCode::request_timeout, "The turn goes on as resp_x.", {}});
    };
    const auto answer = running.ask("POST", "/v1/responses", good_body, "X-Mainstay-Timeout-Ms: 50\r\n");
    CHECK(answer.status == 408);
    CHECK(answer.code() == "request_timeout");
    CHECK(running.ask("POST", "/v1/responses", good_body, "X-Mainstay-Timeout-Ms: soon\r\n").code() ==
          "invalid_request");
    CHECK(
        running.ask("POST", "/v1/responses", good_body, "Idempotency-Key: " + std::string(300, 'k') + "\r\n").code() ==
        "invalid_request");
}
