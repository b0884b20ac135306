#include "gateway/hop_message.h"

#include <capnp/message.h>
#include <capnp/serialize.h>

#include <cstring>

#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"
#include "schema/hop.capnp.h"

namespace mainstay {
namespace {

constexpr size_t headers_bytes_max = 8 * 1024;
constexpr size_t word_bytes = sizeof(capnp::word);

Error refused(const char* why) { return {ErrorCode::peer_refused, std::string("a hop: ") + why, {}}; }

void put(capnp::Text::Builder to, std::string_view from) {
    if (!from.empty()) std::memcpy(to.begin(), from.data(), from.size());
}
void put(capnp::Data::Builder to, std::string_view from) {
    if (!from.empty()) std::memcpy(to.begin(), from.data(), from.size());
}
std::string text(capnp::Text::Reader from) { return {from.begin(), from.size()}; }
std::string bytes_of(capnp::Data::Reader from) { return {reinterpret_cast<const char*>(from.begin()), from.size()}; }

std::string flat(capnp::MallocMessageBuilder& builder) {
    const auto words = capnp::messageToFlatArray(builder);
    const auto bytes = words.asBytes();
    return {reinterpret_cast<const char*>(bytes.begin()), bytes.size()};
}

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
    out.path = text(from.getPath());
    out.query = text(from.getQuery());
    out.content_type = text(from.getContentType());
    out.idempotency_key = text(from.getIdempotencyKey());
    out.timeout_ms = text(from.getTimeoutMs());
    if (from.getBody().size() > limits::http_body_bytes_max) return refused("a body beyond http_body_bytes_max");
    out.body = bytes_of(from.getBody());
    out.principal = {TenantId{from.getTenant()}, text(from.getPrincipal()), from.getAdmin()};
    if (!out.path.starts_with('/')) return refused("no path");
    if (out.principal.name.empty() || !is_valid_utf8(out.principal.name)) return refused("nobody's");
    return out;
}

Result<HopPart> read(wire::HopPart::Reader from) {
    if (from.which() == wire::HopPart::BODY) return HopPart(HopBody{bytes_of(from.getBody())});
    if (from.which() != wire::HopPart::HEAD) return refused("unknown part");
    const auto head = from.getHead();
    HopHead out;
    out.status = head.getStatus();
    out.content_type = text(head.getContentType());
    out.headers = text(head.getHeaders());
    out.stream = head.getStream();
    if (out.status < 200 || out.status > 599) return refused("a status that is none");
    if (!are_header_lines(out.headers)) return refused("header lines that are none");
    if (const auto name = text(head.getError()); !name.empty()) {
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
    if (bytes.size() % word_bytes != 0) return refused("cut off");
    if (bytes.size() > limits::link_message_bytes_max) return refused("beyond link_message_bytes_max");
    // Bytes of a frame start anywhere, Cap'n Proto reads words.
    auto words = kj::heapArray<capnp::word>(bytes.size() / word_bytes);
    if (!bytes.empty()) std::memcpy(words.asBytes().begin(), bytes.data(), bytes.size());
    capnp::ReaderOptions options;
    options.traversalLimitInWords = 2 * words.size() + 8;
    options.nestingLimit = 4;
    try {
        capnp::FlatArrayMessageReader reader(words, options);
        if (reader.getEnd() != words.end()) return refused("bytes after the message");
        return read(reader.getRoot<Root>());
    } catch (const kj::Exception&) {
        return refused("damaged");
    }
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
    put(to.initPath(size(request.path)), request.path);
    put(to.initQuery(size(request.query)), request.query);
    put(to.initContentType(size(request.content_type)), request.content_type);
    put(to.initIdempotencyKey(size(request.idempotency_key)), request.idempotency_key);
    put(to.initTimeoutMs(size(request.timeout_ms)), request.timeout_ms);
    put(to.initBody(size(request.body)), request.body);
    to.setTenant(request.principal.tenant.value);
    put(to.initPrincipal(size(request.principal.name)), request.principal.name);
    to.setAdmin(request.principal.admin);
    return flat(builder);
}

std::string encode_hop_head(const HopHead& head) {
    capnp::MallocMessageBuilder builder;
    auto to = builder.initRoot<wire::HopPart>().initHead();
    to.setStatus(head.status);
    put(to.initContentType(static_cast<unsigned>(head.content_type.size())), head.content_type);
    put(to.initHeaders(static_cast<unsigned>(head.headers.size())), head.headers);
    to.setStream(head.stream);
    if (head.error) {
        const auto name = error_name(*head.error);
        put(to.initError(static_cast<unsigned>(name.size())), name);
    }
    to.setShard(head.shard ? head.shard->value : -1);
    return flat(builder);
}

std::string encode_hop_body(std::string_view bytes) {
    capnp::MallocMessageBuilder builder(static_cast<unsigned>(bytes.size() / word_bytes + 16));
    put(builder.initRoot<wire::HopPart>().initBody(static_cast<unsigned>(bytes.size())), bytes);
    return flat(builder);
}

Result<HopRequest> decode_hop_request(std::string_view bytes) { return decode<wire::HopRequest, HopRequest>(bytes); }
Result<HopPart> decode_hop_part(std::string_view bytes) { return decode<wire::HopPart, HopPart>(bytes); }

}  // namespace mainstay
