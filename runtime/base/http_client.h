#pragma once
// HTTP towards models and tools: libcurl's multi interface on one thread of its own. HTTP/2 where TLS negotiates it,
// connections kept alive, certificates always verified. A request is sent at most once: what fails is reported with
// how far it came, and whether it is tried again is somebody else's decision (libcurl's own silent repeat on a stale
// connection is prevented). Nothing of a request but scheme, host and port ever appears in an error, because headers
// and queries hold secrets.
//
// submit() and cancel() may be called from any thread, callbacks included; callbacks run on the client's thread, one
// at a time, and must not block. Destroying the client cancels everything.

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/limits.h"
#include "runtime/base/result.h"

namespace mainstay {

struct HttpHeader {
    std::string name, value;
};

struct HttpClientRequest {
    std::string method = "GET";  // GET, POST, PUT, DELETE
    std::string url;             // http or https, without user information
    std::vector<HttpHeader> headers;
    std::string body;                                                   // POST and PUT
    uint32_t connect_timeout_ms = limits::upstream_connect_timeout_ms;  // name lookup, TCP and TLS
    uint32_t stall_timeout_ms = limits::upstream_stall_timeout_ms;      // connected, and no byte in or out for so long
    uint32_t total_timeout_ms = limits::upstream_total_timeout_ms;      // 0: none
    size_t body_bytes_max = limits::upstream_body_bytes_max;            // of the answer
    uint32_t redirects_max = 0;                                         // 0: a redirect is an answer like another
};

enum class HttpFailure : uint8_t {
    resolve,          // no address for the name
    connect,          // refused, unreachable
    connect_timeout,  // nothing has been sent up to here
    tls,              // handshake or certificate
    lost,             // connection lost after the request was, perhaps in part, sent
    stall,
    total_timeout,
    too_large,  // a bound of the answer
    protocol,   // not HTTP
};
std::string_view to_word(HttpFailure failure);

struct HttpError {
    HttpFailure failure = HttpFailure::lost;
    std::string message;  // for people; holds no secret
};

/// Told in this order: head once, body in pieces, then done; or failed at any point. Nothing follows done or failed.
class HttpHandler {
  public:
    virtual ~HttpHandler() = default;
    /// Header names are in lower case. Not told for 1xx and for redirects that are followed.
    virtual void on_head(int status, const std::vector<HttpHeader>& headers) = 0;
    virtual void on_body(std::string_view bytes) = 0;
    virtual void on_done() = 0;
    virtual void on_failed(HttpError error) = 0;
};

/// Why a URL cannot be called (unsupported_value), or nothing.
Result<void> check_http_url(const std::string& url);
/// The three date forms of RFC 9110, 5.6.7.
std::optional<TimeMs> parse_http_date(const std::string& text);

class HttpClient {
  public:
    struct Options {
        bool environment_proxies = false;  // http_proxy and its kin
        std::string ca_file;               // PEM; empty: the system's certificates
        size_t idle_connections_max = 256;
    };

    explicit HttpClient(Options options);
    HttpClient() : HttpClient(Options{}) {}
    ~HttpClient();
    HttpClient(const HttpClient&) = delete;
    HttpClient& operator=(const HttpClient&) = delete;

    /// Checks and queues. A refusal (unsupported_value, or too_many_connections at upstream_transfers_max) is final:
    /// the handler hears nothing. The number names the request in cancel().
    Result<uint64_t> submit(HttpClientRequest request, std::shared_ptr<HttpHandler> handler);
    /// A callback that has already begun may still be under way when this returns; no further one follows. Unknown
    /// numbers are ignored.
    void cancel(uint64_t id);

    /// Requests put on a wire so far, for tests and metrics.
    uint64_t requests_sent() const { return requests_sent_.load(std::memory_order_relaxed); }

  private:
    struct Transfer;
    struct Loop;
    friend struct Loop;

    void run();
    void forget(uint64_t id);

    const Options options_;
    std::unique_ptr<Loop> loop_;
    std::atomic<uint64_t> requests_sent_{0};

    std::mutex lock_;
    std::unordered_map<uint64_t, std::shared_ptr<Transfer>> transfers_;  // queued or active
    std::vector<std::shared_ptr<Transfer>> queue_;
    std::vector<std::shared_ptr<Transfer>> cancelled_;
    uint64_t next_id_ = 1;
    bool stopping_ = false;
    std::thread thread_;
};

}  // namespace mainstay
