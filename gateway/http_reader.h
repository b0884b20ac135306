#pragma once
// From bytes to a request header, in place: Boost.Beast's parser plus the guards that it lacks (two equal
// Content-Length, obs-fold, a missing or second Host, more fields than allowed, transfer codings other than chunked).
// What two servers could read differently is refused, so nobody smuggles a request past a proxy. Stateless but for the
// chunked decoder; used by one connection at a time.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "runtime/base/result.h"

namespace mainstay {

/// Views into the buffer that was parsed.
struct RequestHead {
    std::string_view method, target;
    std::string_view host, authorization, content_type, idempotency_key, timeout_ms;
    uint64_t content_length = 0;
    size_t bytes = 0;  // of the header, the empty line included
    bool chunked = false;
    bool keep_alive = true;
    bool expects_continue = false;
    bool has_body() const { return chunked || content_length > 0; }
};

/// Parses the header at the start of `buffer`. true: `header` is filled. false: more bytes are needed. Errors:
/// malformed_http, uri_too_long, header_too_large, unsupported_encoding.
Result<bool> parse_header(std::string_view buffer, RequestHead& header);

/// "host:port", "[::1]:port" without the port.
std::string_view host_without_port(std::string_view host);

/// Decodes one chunked body, bounded by `body_max`.
class ChunkedReader {
  public:
    /// `header`: the bytes of the header that announced it.
    ChunkedReader(std::string_view header, size_t body_max);
    ~ChunkedReader();

    /// Takes what it can of `bytes`, gives how much. Errors: malformed_http, body_too_large.
    Result<size_t> feed(std::string_view bytes);
    bool done() const;
    const std::string& body() const;

  private:
    struct Parser;
    std::unique_ptr<Parser> parser_;
};

}  // namespace mainstay
