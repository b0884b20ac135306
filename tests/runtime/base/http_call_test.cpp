#include "runtime/base/http_call.h"

#include <doctest/doctest.h>

#include <chrono>
#include <thread>

#include "runtime/base/base64.h"
#include "support/fake_upstream.h"

namespace mainstay {
namespace {

HttpCallRequest request_to(const std::string& url, uint32_t total_ms = 20'000) {
    HttpCallRequest out;
    out.url = url;
    out.body = "{}";
    out.total_timeout_ms = total_ms;
    return out;
}

}  // namespace

TEST_CASE("http call: an answer of any status is one, and the connection is used again") {
    FakeUpstream server;
    HttpCall call({});
    for (const int status : {200, 404, 500, 200}) {
        server.answer(fake_answer(status, "says " + std::to_string(status)));
        auto request = request_to(server.url("/path"));
        request.headers = {{"Authorization", "token"}};
        const auto answer = call.post(request);
        CHECK(answer.answered);
        CHECK(answer.sent);
        CHECK(answer.status == status);
        CHECK(answer.body == "says " + std::to_string(status));
    }
    CHECK(server.connections() == 1);
    CHECK(server.requests()[3].target == "/path");
    CHECK(server.requests()[3].headers.at("authorization") == "token");
    CHECK(server.requests()[3].headers.at("content-type") == "application/json");
}

TEST_CASE("http call: nothing was sent where nobody listens") {
    std::string url;
    {
        const FakeUpstream gone;
        url = gone.url("/secret/path");
    }
    HttpCall call({});
    const auto answer = call.post(request_to(url));
    CHECK_FALSE(answer.answered);
    CHECK_FALSE(answer.sent);
    CHECK(answer.problem.find("http://127.0.0.1:") == 0);
    CHECK(answer.problem.find("secret") == std::string::npos);
}

TEST_CASE("http call: a request is sent once, also when a kept-alive connection dies under it") {
    FakeUpstream server;
    HttpCall call({});
    server.answer(fake_answer(200, "first"));
    REQUIRE(call.post(request_to(server.url())).answered);
    server.answer({{}, FakeAnswer::End::close});
    server.answer(fake_answer(200, "for the next request"));
    const auto answer = call.post(request_to(server.url()));
    CHECK_FALSE(answer.answered);
    CHECK(answer.sent);
    CHECK(server.requests().size() == 2);
    CHECK(call.post(request_to(server.url())).body == "for the next request");
}

TEST_CASE("http call: what takes too long, stays silent or is too large ends") {
    FakeUpstream server;
    HttpCall call({});
    server.answer({{}, FakeAnswer::End::stall});
    auto answer = call.post(request_to(server.url(), 100));
    CHECK_FALSE(answer.answered);
    CHECK(answer.sent);
    server.answer(fake_stream({"one\n"}, false, FakeAnswer::End::stall));
    auto silent = request_to(server.url(), 0);
    silent.silence_timeout_ms = 100;
    std::string heard;
    answer = call.post(silent, [&](std::string_view bytes) {
        heard += bytes;
        return true;
    });
    CHECK_FALSE(answer.answered);
    CHECK(heard == "one\n");
    server.answer(fake_answer(200, std::string(1001, 'x')));
    auto bounded = request_to(server.url());
    bounded.body_bytes_max = 1000;
    answer = call.post(bounded);
    CHECK_FALSE(answer.answered);
    CHECK(answer.problem.find("1000 bytes") != std::string::npos);
    server.answer(fake_answer(200, std::string(1000, 'x')));
    CHECK(call.post(bounded).answered);
}

TEST_CASE("http call: a stream is broken off by who hears it, and by stop from any thread") {
    FakeUpstream server;
    HttpCall call({});
    server.answer(fake_stream({"one\n"}, false, FakeAnswer::End::stall));
    CHECK_FALSE(call.post(request_to(server.url(), 0), [](std::string_view) { return false; }).answered);
    server.answer(fake_answer(500, "no stream"));
    const auto refused = call.post(request_to(server.url(), 0), [](std::string_view) { return true; });
    CHECK(refused.status == 500);
    CHECK(refused.body == "no stream");
    server.answer({{}, FakeAnswer::End::stall});
    std::thread stopper([&] {
        CHECK(server.wait_requests(3));
        call.stop();
    });
    const auto stopped = call.post(request_to(server.url(), 0));
    stopper.join();
    CHECK_FALSE(stopped.answered);
    const auto after = call.post(request_to(server.url(), 0));
    CHECK_FALSE(after.answered);
    CHECK_FALSE(after.sent);
    CHECK(server.requests().size() == 3);
}

TEST_CASE("base64: the vectors of RFC 4648, and nothing else") {
    const std::pair<std::string, std::string> vectors[] = {{"", ""},
                                                           {"f", "Zg=="},
                                                           {"fo", "Zm8="},
                                                           {"foo", "Zm9v"},
                                                           {"foob", "Zm9vYg=="},
                                                           {"fooba", "Zm9vYmE="},
                                                           {"foobar", "Zm9vYmFy"},
                                                           {std::string("\0\xff\xfe", 3), "AP/+"}};
    for (const auto& [bytes, text] : vectors) {
        CHECK(to_base64(bytes) == text);
        CHECK(from_base64(text) == bytes);
    }
    for (const char* bad : {"Z", "Zg", "Zg=", "Zm9v!", "Zm9v Zm9v", "Zg==Zg==", "-_-_", "Zh=="}) {
        CAPTURE(bad);
        CHECK_FALSE(from_base64(bad));
    }
}

}  // namespace mainstay
