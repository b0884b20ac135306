#include "gateway/http_reader.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <cstring>

#include "runtime/base/limits.h"

namespace mainstay {
namespace {

namespace http = boost::beast::http;
namespace beast = boost::beast;

std::string_view view(beast::string_view text) { return {text.data(), text.size()}; }

bool equal_ignoring_case(std::string_view a, std::string_view b) {
    return std::ranges::equal(a, b, [](unsigned char x, unsigned char y) {
        const auto lower = [](unsigned char c) { return c >= 'A' && c <= 'Z' ? c | 0x20 : int(c); };
        return lower(x) == lower(y);
    });
}

/// Keeps the fields that the door reads and counts what must not come twice. Nothing is copied.
class Parser : public http::basic_parser<true> {
  public:
    RequestHead header;
    std::string* body = nullptr;
    size_t fields = 0, hosts = 0, lengths = 0, codings = 0;
    int version = 0;  // 10, 11
    bool unsupported_coding = false, unsupported_encoding = false;

  private:
    void on_request_impl(http::verb, beast::string_view method, beast::string_view target, int http_version,
                         beast::error_code&) override {
        header.method = view(method);
        header.target = view(target);
        version = http_version;
    }
    void on_response_impl(int, beast::string_view, int, beast::error_code&) override {}
    void on_field_impl(http::field name, beast::string_view name_text, beast::string_view value,
                       beast::error_code&) override {
        ++fields;
        switch (name) {
            case http::field::host:
                ++hosts;
                header.host = view(value);
                break;
            case http::field::authorization: header.authorization = view(value); break;
            case http::field::content_type: header.content_type = view(value); break;
            case http::field::content_length:
                ++lengths;
                // A list of equal numbers is one number to some and none to others.
                if (!std::ranges::all_of(view(value), [](char c) { return c >= '0' && c <= '9'; })) ++lengths;
                break;
            case http::field::transfer_encoding:
                ++codings;
                if (!equal_ignoring_case(view(value), "chunked")) unsupported_coding = true;
                break;
            case http::field::content_encoding:
                if (!equal_ignoring_case(view(value), "identity")) unsupported_encoding = true;
                break;
            case http::field::expect:
                if (equal_ignoring_case(view(value), "100-continue")) header.expects_continue = true;
                break;
            case http::field::unknown:
                if (equal_ignoring_case(view(name_text), "idempotency-key"))
                    header.idempotency_key = view(value);
                else if (equal_ignoring_case(view(name_text), "x-mainstay-timeout-ms"))
                    header.timeout_ms = view(value);
                break;
            default: break;
        }
    }
    void on_header_impl(beast::error_code&) override {}
    void on_body_init_impl(const boost::optional<uint64_t>&, beast::error_code&) override {}
    size_t on_body_impl(beast::string_view text, beast::error_code&) override { return take(text); }
    void on_chunk_header_impl(uint64_t, beast::string_view, beast::error_code&) override {}
    size_t on_chunk_body_impl(uint64_t, beast::string_view text, beast::error_code&) override { return take(text); }
    void on_finish_impl(beast::error_code&) override {}

    size_t take(beast::string_view text) {
        if (body != nullptr) body->append(text.data(), text.size());
        return text.size();
    }
};

/// Every line ends with CR LF, none is folded, nothing is NUL.
bool is_clean(std::string_view header) {
    for (size_t at = 0; at < header.size();) {
        const char* end = static_cast<const char*>(memchr(header.data() + at, '\n', header.size() - at));
        const size_t line_end = end != nullptr ? static_cast<size_t>(end - header.data()) : header.size();
        const auto line = header.substr(at, line_end - at);
        if (at > 0 && !line.empty() && (line[0] == ' ' || line[0] == '\t')) return false;
        if (memchr(line.data(), '\0', line.size()) != nullptr) return false;
        const auto cr = line.find('\r');
        if (cr != std::string_view::npos && cr + 1 != line.size()) return false;
        if (end != nullptr && cr == std::string_view::npos) return false;
        at = line_end + 1;
    }
    return true;
}

Error malformed(std::string message) { return {ErrorCode::malformed_http, std::move(message), {}}; }

Error header_too_large() {
    return {ErrorCode::header_too_large,
            "The header exceeds " + std::to_string(limits::http_header_bytes_max) + " bytes or " +
                std::to_string(limits::http_header_fields_max) + " fields.",
            {}};
}

Error uri_too_long() {
    return {ErrorCode::uri_too_long,
            "The request target exceeds " + std::to_string(limits::http_target_bytes_max) + " bytes.",
            {}};
}

}  // namespace

Result<bool> parse_header(std::string_view buffer, RequestHead& header) {
    if (buffer.empty()) return false;
    // A TLS client, a binary protocol or garbage: say so at once instead of waiting for an end that never comes.
    if (buffer[0] < 'A' || buffer[0] > 'Z') return malformed("This is not an HTTP/1.1 request.");
    const auto found = buffer.substr(0, limits::http_header_bytes_max).find("\r\n\r\n");
    const bool whole = found != std::string_view::npos;
    const auto text = whole ? buffer.substr(0, found + 4) : buffer.substr(0, limits::http_header_bytes_max);
    if (!is_clean(text)) return malformed("The header has a folded line, a bare CR or LF, or a NUL.");
    if (!whole) {
        if (text.find("\r\n") == std::string_view::npos && text.size() > limits::http_target_bytes_max + 64)
            return uri_too_long();
        if (buffer.size() >= limits::http_header_bytes_max) return header_too_large();
        return false;
    }

    Parser parser;
    parser.header_limit(static_cast<uint32_t>(limits::http_header_bytes_max));
    parser.body_limit(boost::none);  // the caller compares with its own limit, to answer 413
    beast::error_code ec;
    parser.put(boost::asio::const_buffer(text.data(), text.size()), ec);
    if (ec && ec != http::error::need_more) return malformed("The request is malformed: " + ec.message() + ".");
    if (!parser.is_header_done()) return malformed("The request is malformed.");
    if (parser.fields > limits::http_header_fields_max) return header_too_large();
    if (parser.header.target.size() > limits::http_target_bytes_max) return uri_too_long();
    if (parser.hosts > 1 || (parser.hosts == 0 && parser.version >= 11))
        return malformed("An HTTP/1.1 request has exactly one Host field.");
    if (parser.lengths > 1) return malformed("Content-Length must be one number, given once.");
    if (parser.lengths > 0 && parser.codings > 0) return malformed("Content-Length and Transfer-Encoding together.");
    if (parser.codings > 1 || parser.unsupported_coding || (parser.codings > 0 && parser.version < 11))
        return malformed("The only transfer coding is chunked, once, in HTTP/1.1.");
    if (parser.unsupported_encoding)
        return {ErrorCode::unsupported_encoding, "Content-Encoding is not supported: send the body as it is."};
    if (parser.header.target.empty() || parser.header.target[0] != '/')
        return malformed("The request target must begin with a slash.");

    header = parser.header;
    header.bytes = text.size();
    header.chunked = parser.codings > 0;
    header.keep_alive = parser.keep_alive();
    if (parser.lengths > 0) header.content_length = parser.content_length().value_or(0);
    return true;
}

std::string_view host_without_port(std::string_view host) {
    if (!host.empty() && host[0] == '[') {
        const auto end = host.find(']');
        return end == std::string_view::npos ? host : host.substr(0, end + 1);
    }
    return host.substr(0, host.find(':'));
}

struct ChunkedReader::Parser : mainstay::Parser {
    std::string text;
    size_t body_max = 0;
};

ChunkedReader::ChunkedReader(std::string_view header, size_t body_max) : parser_(std::make_unique<Parser>()) {
    parser_->body = &parser_->text;
    parser_->body_max = body_max;
    parser_->header_limit(static_cast<uint32_t>(limits::http_header_bytes_max));
    parser_->body_limit(body_max);
    beast::error_code ec;
    parser_->put(boost::asio::const_buffer(header.data(), header.size()), ec);
    parser_->eager(true);
}

ChunkedReader::~ChunkedReader() = default;

Result<size_t> ChunkedReader::feed(std::string_view bytes) {
    size_t taken = 0;
    while (taken < bytes.size() && !parser_->is_done()) {
        beast::error_code ec;
        const size_t n = parser_->put(boost::asio::const_buffer(bytes.data() + taken, bytes.size() - taken), ec);
        taken += n;
        if (ec == http::error::need_more) break;
        if (ec == http::error::body_limit)
            return {ErrorCode::body_too_large, "The body exceeds " + std::to_string(parser_->body_max) + " bytes."};
        if (ec) return malformed("The chunked body is malformed: " + ec.message() + ".");
        if (n == 0) break;
    }
    return taken;
}

bool ChunkedReader::done() const { return parser_->is_done(); }
const std::string& ChunkedReader::body() const { return parser_->text; }

}  // namespace mainstay
