#include "runtime/base/http_client.h"

#include <doctest/doctest.h>

#include <condition_variable>

#include "tests/support/fake_upstream.h"
#include "tests/support/tls_upstream.h"

using namespace mainstay;

namespace {

class Recorder final : public HttpHandler {
  public:
    void on_head(int status, const std::vector<HttpHeader>& headers) override {
        std::lock_guard lock(lock_);
        status_ = status;
        headers_ = headers;
        ++heads_;
        changed_.notify_all();
    }
    void on_body(std::string_view bytes) override {
        std::lock_guard lock(lock_);
        body_ += bytes;
        changed_.notify_all();
    }
    void on_done() override {
        std::lock_guard lock(lock_);
        ++ends_;
        changed_.notify_all();
    }
    void on_failed(HttpError error) override {
        std::lock_guard lock(lock_);
        error_ = std::move(error);
        ++ends_;
        changed_.notify_all();
    }
    bool wait() {
        std::unique_lock lock(lock_);
        return changed_.wait_for(lock, std::chrono::seconds(20), [this] { return ends_ > 0; });
    }
    bool wait_body(size_t bytes) {
        std::unique_lock lock(lock_);
        return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return body_.size() >= bytes; });
    }
    // For reading after the end.
    int status_ = 0, heads_ = 0, ends_ = 0;
    std::vector<HttpHeader> headers_;
    std::string body_;
    std::optional<HttpError> error_;

  private:
    std::mutex lock_;
    std::condition_variable changed_;
};

HttpClientRequest post(std::string url, std::string body = "{}") {
    HttpClientRequest request;
    request.method = "POST";
    request.url = std::move(url);
    request.body = std::move(body);
    return request;
}

std::shared_ptr<Recorder> run(HttpClient& client, HttpClientRequest request) {
    auto recorder = std::make_shared<Recorder>();
    REQUIRE(client.submit(std::move(request), recorder).ok());
    REQUIRE(recorder->wait());
    CHECK(recorder->ends_ == 1);
    return recorder;
}

HttpFailure failure_of(HttpClient& client, HttpClientRequest request) {
    const auto recorder = run(client, std::move(request));
    REQUIRE(recorder->error_);
    MESSAGE(recorder->error_->message);
    return recorder->error_->failure;
}

}  // namespace

TEST_CASE("http client: a request arrives as it was written and the answer comes back whole") {
    FakeUpstream upstream;
    HttpClient client;
    upstream.answer(fake_answer(201, "hello", "X-One:  a b \r\nContent-Type: text/plain\r\n"));
    auto request = post(upstream.url("/path?q=1"), std::string(2'000'000, 'x'));
    request.headers = {{"X-Test", "value"}, {"X-Empty", ""}};
    const auto answer = run(client, request);
    CHECK(answer->status_ == 201);
    CHECK(answer->body_ == "hello");
    CHECK(answer->heads_ == 1);
    REQUIRE(!answer->headers_.empty());
    CHECK(answer->headers_[0].name == "x-one");
    CHECK(answer->headers_[0].value == "a b");
    const auto seen = upstream.requests();
    REQUIRE(seen.size() == 1);
    CHECK(seen[0].method == "POST");
    CHECK(seen[0].target == "/path?q=1");
    CHECK(seen[0].body.size() == 2'000'000);
    CHECK(seen[0].headers.at("x-test") == "value");
    CHECK(seen[0].headers.count("x-empty") == 1);
    CHECK(seen[0].headers.count("expect") == 0);
}

TEST_CASE("http client: connections are kept and used again") {
    FakeUpstream upstream;
    HttpClient client;
    for (int i = 0; i < 20; ++i) upstream.answer(fake_answer(200, "x"));
    for (int i = 0; i < 20; ++i) CHECK(run(client, post(upstream.url()))->status_ == 200);
    CHECK(upstream.connections() == 1);
    CHECK(client.requests_sent() == 20);
}

TEST_CASE("http client: many requests from many threads all end once") {
    FakeUpstream upstream;
    HttpClient client;
    for (int i = 0; i < 80; ++i) upstream.answer(fake_answer(200, "x"));
    std::vector<std::thread> threads;
    std::atomic<int> good{0};
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < 10; ++i) {
                auto recorder = std::make_shared<Recorder>();
                if (!client.submit(post(upstream.url()), recorder).ok()) return;
                if (recorder->wait() && recorder->status_ == 200 && recorder->ends_ == 1) ++good;
            }
        });
    }
    for (auto& thread : threads) thread.join();
    CHECK(good == 80);
}

TEST_CASE("http client: a URL or header that could smuggle something is refused before anything is sent") {
    HttpClient client;
    FakeUpstream upstream;
    const std::string good = upstream.url();
    const std::vector<std::string> bad_urls = {"",
                                               "ftp://127.0.0.1/",
                                               "file:///etc/passwd",
                                               "http://user:secret@127.0.0.1/",
                                               good + "/a b",
                                               good + "/a\r\nX: y",
                                               std::string("http://127.0.0.1/\0x", 19),
                                               good + "/" + std::string(5000, 'a')};
    for (const auto& url : bad_urls) {
        const auto refused = client.submit(post(url), std::make_shared<Recorder>());
        REQUIRE_FALSE(refused.ok());
        CHECK(refused.error().code == ErrorCode::unsupported_value);
        CHECK(refused.error().message.find("secret") == std::string::npos);
    }
    for (const auto& header : std::vector<HttpHeader>{{"X-A", "secret\r\nX-B: c"},
                                                      {"X-A", "secret\nx"},
                                                      {"X-A", std::string("secret\0", 7)},
                                                      {"X A", "secret"},
                                                      {"", "secret"},
                                                      {"X:", "secret"}}) {
        auto request = post(good);
        request.headers = {header};
        const auto refused = client.submit(request, std::make_shared<Recorder>());
        REQUIRE_FALSE(refused.ok());
        CHECK(refused.error().message.find("secret") == std::string::npos);
    }
    auto strange = post(good);
    strange.method = "GET / HTTP/1.1\r\n";
    CHECK_FALSE(client.submit(strange, std::make_shared<Recorder>()).ok());
    CHECK(upstream.requests().empty());
    CHECK(client.requests_sent() == 0);
}

TEST_CASE("http client: failures are told apart") {
    FakeUpstream upstream;
    HttpClient client;
    using End = FakeAnswer::End;
    CHECK(failure_of(client, post("http://127.0.0.1:" + std::to_string(refusing_port()))) == HttpFailure::connect);
    upstream.answer({{"rubbish\r\n\r\n"}, End::close});
    CHECK(failure_of(client, post(upstream.url())) == HttpFailure::protocol);
    upstream.answer({{}, End::close});
    CHECK(failure_of(client, post(upstream.url())) == HttpFailure::lost);
    upstream.answer({{}, End::reset});
    CHECK(failure_of(client, post(upstream.url())) == HttpFailure::lost);
    upstream.answer({{"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"}, End::close});
    CHECK(failure_of(client, post(upstream.url())) == HttpFailure::lost);
    upstream.answer(fake_stream({"half"}, false, End::close));
    CHECK(failure_of(client, post(upstream.url())) == HttpFailure::lost);
    upstream.answer(fake_answer(200, std::string(5000, 'x')));
    auto small = post(upstream.url());
    small.body_bytes_max = 4999;
    CHECK(failure_of(client, small) == HttpFailure::too_large);
    FakeAnswer endless{{"HTTP/1.1 200 OK\r\n"}, End::stall};
    for (int i = 0; i < 100; ++i) endless.pieces.push_back("X-Long: " + std::string(1000, 'x') + "\r\n");
    upstream.answer(endless);
    CHECK(failure_of(client, post(upstream.url())) == HttpFailure::too_large);
    FakeUpstream plain("220 this is no TLS server\r\n");
    CHECK(failure_of(client, post("https://127.0.0.1:" + std::to_string(plain.port()) + "/")) == HttpFailure::tls);
    FakeUpstream mute;
    auto hurried = post("https://127.0.0.1:" + std::to_string(mute.port()) + "/");
    hurried.connect_timeout_ms = 100;
    CHECK(failure_of(client, hurried) == HttpFailure::connect_timeout);
    CHECK(upstream.requests().size() == 7);  // not one of them was sent twice
}

TEST_CASE("http client: a certificate must be of a trusted authority and of the host that was called") {
    TlsUpstream upstream;
    const auto get = [](const std::string& url) {
        HttpClientRequest request;
        request.url = url;
        return request;
    };
    HttpClient untrusting;
    CHECK(failure_of(untrusting, get(upstream.url("localhost"))) == HttpFailure::tls);
    HttpClient::Options options;
    options.ca_file = upstream.certificate_file();
    HttpClient trusting(options);
    CHECK(run(trusting, get(upstream.url("localhost")))->status_ == 200);
    CHECK(failure_of(trusting, get(upstream.url("127.0.0.1"))) == HttpFailure::tls);
    CHECK(untrusting.requests_sent() == 0);
    CHECK(trusting.requests_sent() == 1);
}

TEST_CASE("http client: a silent server is a stall, before and within the answer") {
    FakeUpstream upstream;
    HttpClient client;
    for (const bool with_head : {false, true}) {
        FakeAnswer answer{{}, FakeAnswer::End::stall};
        if (with_head) answer.pieces = {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"};
        upstream.answer(answer);
        auto request = post(upstream.url());
        request.stall_timeout_ms = 100;
        CHECK(failure_of(client, request) == HttpFailure::stall);
    }
    CHECK(upstream.wait_closed(2));
    upstream.answer({{}, FakeAnswer::End::stall});
    auto request = post(upstream.url());
    request.total_timeout_ms = 100;
    CHECK(failure_of(client, request) == HttpFailure::total_timeout);
    CHECK(upstream.requests().size() == 3);
}

TEST_CASE("http client: a kept connection that dies under a request does not make it go out twice") {
    FakeUpstream upstream;
    HttpClient client;
    upstream.answer(fake_answer(200, "x"));
    run(client, post(upstream.url()));
    upstream.answer({{}, FakeAnswer::End::close});  // reads the request on the kept connection, then goes away
    upstream.answer(fake_answer(200, "a second request would get this"));
    CHECK(failure_of(client, post(upstream.url())) == HttpFailure::lost);
    CHECK(upstream.requests().size() == 2);
}

TEST_CASE("http client: redirects are answers unless asked for") {
    FakeUpstream upstream;
    HttpClient client;
    const auto moved = fake_answer(307, "old", "Location: /new\r\n");
    upstream.answer(moved);
    CHECK(run(client, post(upstream.url("/old")))->status_ == 307);
    upstream.answer(moved);
    upstream.answer(fake_answer(200, "new"));
    auto request = post(upstream.url("/old"));
    request.redirects_max = 1;
    const auto followed = run(client, request);
    CHECK(followed->status_ == 200);
    CHECK(followed->body_ == "new");
    CHECK(followed->heads_ == 1);
    CHECK(upstream.requests().back().target == "/new");
}

TEST_CASE("http client: a cancelled request is cut off and its handler hears nothing more") {
    FakeUpstream upstream;
    HttpClient client;
    auto answer = fake_stream({"first"}, false, FakeAnswer::End::stall);
    upstream.answer(answer);
    auto recorder = std::make_shared<Recorder>();
    const auto id = client.submit(post(upstream.url()), recorder);
    REQUIRE(id.ok());
    REQUIRE(recorder->wait_body(5));
    client.cancel(*id);
    client.cancel(*id);
    client.cancel(999'999);
    CHECK(upstream.wait_closed(1));
    CHECK(recorder->ends_ == 0);
}

TEST_CASE("http client: destroying it ends requests in flight without a word") {
    FakeUpstream upstream;
    auto recorder = std::make_shared<Recorder>();
    {
        HttpClient client;
        upstream.answer({{}, FakeAnswer::End::stall});
        REQUIRE(client.submit(post(upstream.url()), recorder).ok());
        REQUIRE(upstream.wait_requests(1));
    }
    CHECK(upstream.wait_closed(1));
    CHECK(recorder->ends_ == 0);
    CHECK(recorder.use_count() == 1);
}

TEST_CASE("http client: dates of HTTP are read") {
    CHECK(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT") == 784111777000);
    CHECK(parse_http_date("Sunday, 06-Nov-94 08:49:37 GMT") == 784111777000);
    CHECK(parse_http_date("Sun Nov  6 08:49:37 1994") == 784111777000);
    CHECK_FALSE(parse_http_date("soon"));
}
