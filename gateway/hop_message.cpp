#include "gateway/hop_message.h"

#include "cluster/wire_message.h"
#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"
#include "schema/hop.capnp.h"

namespace mainstay {
namespace {

constexpr size_t headers_bytes_max = 8 * 1024;
constexpr size_t word_bytes = sizeof(capnp::word);
constexpr uint64_t slack_words = 8;
constexpr int nesting_max = 4;

Error refused(const char* why) { return {ErrorCode::peer_refused, std::string("a hop: ") + why, {}}; }

/// Each line ends, and none ends the header.
bool are_header_lines(std::string_view lines) {
    if (lines.size() > headers_bytes_max) return false;
    while (!lines.empty()) {
        const auto end = lines.find("\r\n");
        if (end == 0 || end == std::string_view::npos) return false;
        for (const char c : lines.substr(0, end))
            if (static_cast<unsigned char>(c) < 0x20 && c != '\t') return false;
        lines.remove_prefix(end + 2);
    }
    return true;
}

Result<HopRequest> read(wire::HopRequest::Reader from) {
    HopRequest out;
    switch (from.getMethod()) {
        case wire::HopRequest::Method::GET: out.method = HttpMethod::get; break;
        case wire::HopRequest::Method::POST: out.method = HttpMethod::post; break;
        case wire::HopRequest::Method::DELETE: out.method = HttpMethod::del; break;
        default: return refused("unknown method");
    }
    out.head = from.getHead();
    out.path = copied(from.getPath());
    out.query = copied(from.getQuery());
    out.content_type = copied(from.getContentType());
    out.idempotency_key = copied(from.getIdempotencyKey());
    out.timeout_ms = copied(from.getTimeoutMs());
    if (from.getBody().size() > limits::http_body_bytes_max) return refused("a body beyond http_body_bytes_max");
    out.body = copied(from.getBody());
    out.principal = {TenantId{from.getTenant()}, copied(from.getPrincipal()), from.getAdmin()};
    if (!out.path.starts_with('/')) return refused("no path");
    if (out.principal.name.empty() || !is_valid_utf8(out.principal.name)) return refused("nobody's");
    return out;
}

Result<HopPart> read(wire::HopPart::Reader from) {
    if (from.which() == wire::HopPart::BODY) return HopPart(HopBody{copied(from.getBody())});
    if (from.which() != wire::HopPart::HEAD) return refused("unknown part");
    const auto head = from.getHead();
    HopHead out;
    out.status = head.getStatus();
    out.content_type = copied(head.getContentType());
    out.headers = copied(head.getHeaders());
    out.stream = head.getStream();
    if (out.status < 200 || out.status > 599) return refused("a status that is none");
    if (!are_header_lines(out.headers)) return refused("header lines that are none");
    if (const auto name = copied(head.getError()); !name.empty()) {
        const auto* known = find_error(name);
        out.error = known != nullptr ? known->code : ErrorCode::internal;  // a newer release may know more
    }
    if (const int32_t shard = head.getShard(); shard >= 0) {
        if (shard > UINT16_MAX) return refused("a shard that is none");
        out.shard = ShardId{static_cast<uint16_t>(shard)};
    }
    return HopPart(std::move(out));
}

template <class Root, class T>
Result<T> decode(std::string_view bytes) {
    return read_flat<Root, T>(bytes, slack_words, nesting_max, refused, [](auto root) { return read(root); });
}

}  // namespace

HopRequest HopRequest::of(const HttpRequest& request) {
    HopRequest out;
    out.method = request.method;
    out.head = request.head;
    out.path = request.path;
    out.query = request.query;
    out.content_type = request.content_type;
    out.idempotency_key = request.idempotency_key;
    out.timeout_ms = request.timeout_ms;
    out.body = request.body;
    out.principal = request.principal;
    return out;
}

HttpRequest HopRequest::view() const {
    HttpRequest out;
    out.method = method;
    out.head = head;
    out.path = path;
    out.query = query;
    out.content_type = content_type;
    out.idempotency_key = idempotency_key;
    out.timeout_ms = timeout_ms;
    out.body = body;
    out.principal = principal;
    return out;
}

std::string encode_hop_request(const HopRequest& request) {
    capnp::MallocMessageBuilder builder(static_cast<unsigned>(request.body.size() / word_bytes + 256));
    auto to = builder.initRoot<wire::HopRequest>();
    to.setMethod(request.method == HttpMethod::post  ? wire::HopRequest::Method::POST
                 : request.method == HttpMethod::del ? wire::HopRequest::Method::DELETE
                                                     : wire::HopRequest::Method::GET);
    const auto size = [](const std::string& of) { return static_cast<unsigned>(of.size()); };
    to.setHead(request.head);
    put_bytes(to.initPath(size(request.path)), request.path);
    put_bytes(to.initQuery(size(request.query)), request.query);
    put_bytes(to.initContentType(size(request.content_type)), request.content_type);
    put_bytes(to.initIdempotencyKey(size(request.idempotency_key)), request.idempotency_key);
    put_bytes(to.initTimeoutMs(size(request.timeout_ms)), request.timeout_ms);
    put_bytes(to.initBody(size(request.body)), request.body);
    to.setTenant(request.principal.tenant.value);
    put_bytes(to.initPrincipal(size(request.principal.name)), request.principal.name);
    to.setAdmin(request.principal.admin);
    return flat_bytes(builder);
}

std::string encode_hop_head(const HopHead& head) {
    capnp::MallocMessageBuilder builder;
    auto to = builder.initRoot<wire::HopPart>().initHead();
    to.setStatus(head.status);
    put_bytes(to.initContentType(static_cast<unsigned>(head.content_type.size())), head.content_type);
    put_bytes(to.initHeaders(static_cast<unsigned>(head.headers.size())), head.headers);
    to.setStream(head.stream);
    if (head.error) {
        const auto name = error_name(*head.error);
        put_bytes(to.initError(static_cast<unsigned>(name.size())), name);
    }
    to.setShard(head.shard ? head.shard->value : -1);
    return flat_bytes(builder);
}

std::string encode_hop_body(std::string_view bytes) {
    capnp::MallocMessageBuilder builder(static_cast<unsigned>(bytes.size() / word_bytes + 16));
    put_bytes(builder.initRoot<wire::HopPart>().initBody(static_cast<unsigned>(bytes.size())), bytes);
    return flat_bytes(builder);
}

Result<HopRequest> decode_hop_request(std::string_view bytes) { return decode<wire::HopRequest, HopRequest>(bytes); }
Result<HopPart> decode_hop_part(std::string_view bytes) { return decode<wire::HopPart, HopPart>(bytes); }

}  // namespace mainstay
