#pragma once
// One blocking POST after the other on a kept-alive connection, over libcurl: for callers that have a thread to wait on
// and must know exactly how far a request came. What HttpClient is for many streams on one thread, this is for a few
// small requests towards a service of our own cluster, with client certificates.
//
// A request is sent at most once (libcurl's own repeat on a stale connection is prevented); `sent` is false only where
// it is certain that no byte of it left. post() belongs to one thread at a time; stop() may be called from any.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/http_client.h"
#include "runtime/base/limits.h"

namespace mainstay {

struct HttpCallRequest {
    std::string url;
    std::vector<HttpHeader> headers;
    std::string_view body;            // outlives the call
    uint32_t connect_timeout_ms = 0;  // name lookup, TCP and TLS; 0: as long as the whole call
    uint32_t total_timeout_ms = 0;    // 0: none
    uint32_t silence_timeout_ms = 0;  // connected, and no byte of the answer for so long; 0: none
    size_t body_bytes_max = limits::coordinator_answer_bytes_max;
};

struct HttpCallAnswer {
    bool answered = false;  // a complete answer came, of whatever status
    bool sent = false;      // the server may have the request
    int status = 0;         // of the answer, as far as it came
    std::string body;
    std::string problem;  // where not answered: for people; names the server, holds no secret
};

class HttpCall {
  public:
    struct Options {
        std::string ca_file;                     // PEM; empty: the system's certificates
        std::string certificate_file, key_file;  // PEM; empty: no client certificate
    };

    explicit HttpCall(Options options);
    ~HttpCall();
    HttpCall(const HttpCall&) = delete;
    HttpCall& operator=(const HttpCall&) = delete;

    /// Sends and waits. An answer of status 200 is given to `on_body` in pieces as they come, where there is one; with
    /// false it breaks the call off. Without it, and for any other status, it is gathered, at most body_bytes_max.
    HttpCallAnswer post(const HttpCallRequest& request, const std::function<bool(std::string_view)>& on_body = nullptr);

    /// Ends the call that is under way, and all later ones before they begin.
    void stop();

  private:
    struct Call;
    struct Handles;

    void configure(Call& call) const;
    bool stopped() const { return stopped_.load(std::memory_order_acquire); }

    const Options options_;
    std::unique_ptr<Handles> handles_;
    std::atomic<bool> stopped_{false};
};

}  // namespace mainstay
